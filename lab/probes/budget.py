"""What a run may spend on its measurements, as it was set: a share of the training time, or a number of Hessian products."""

import math
from dataclasses import dataclass, field
from typing import Any

from lab.settings import SettingError

SECONDS = 10.0
"""What the measurements of a run may take in all, whatever the share (s)."""


@dataclass(frozen=True)
class Budget:
    """A share of the training time, or a number of Hessian products over the set "auto" in the whole run. setting: what it
    is called where it was set, an argument of Python or a setting of the command line.
    """

    share: float | None = None
    products: int | None = None
    setting: str = field(default="budget", repr=False, compare=False)

    @property
    def named(self) -> str:
        """As it was set, budget=0.2."""
        return f"{self.setting}={self}"

    @property
    def none(self) -> str:
        """How no budget is written there."""
        return _none(self.setting)

    def allowed(self, step_seconds: float, total: int) -> float:
        """In seconds, or products."""
        if self.products is not None:
            return float(self.products)
        return max((self.share or 0.0) * step_seconds * total, SECONDS)

    def __str__(self) -> str:
        return f"products:{self.products}" if self.share is None else f"{self.share:g}"


def _none(setting: str) -> str:
    return "null" if "." in setting else "None"


def budget_of(value: Any, setting: str = "budget") -> Budget | None:
    """The budget that was typed, as an argument of Python or as the `setting` of the command line. Raises SettingError, one
    line, for what is none.

    >>> budget_of(0.2), budget_of("products:500"), budget_of(None)
    (Budget(share=0.2, products=None), Budget(share=None, products=500), None)
    """
    if value is None or isinstance(value, Budget):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
        return Budget(share=float(value), setting=setting)
    head, _, number = value.partition(":") if isinstance(value, str) else ("", "", "")
    if head == "products" and number.strip().isdecimal() and int(number) > 0:
        return Budget(products=int(number), setting=setting)
    raise SettingError(
        f"{setting}={value}: expected a share of the training time, e.g. 0.2, a number of Hessian products, e.g. "
        f"products:500, or {_none(setting)} for no budget"
    )
