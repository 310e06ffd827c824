"""Names and conditions as one types them: `lr` for optimizer.lr, "optimizer.lr<=0.1", "status=finished"."""

import difflib
import math
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from lab.compare.run import LATE, Run, as_typed, short
from lab.compare.strangers import Plain, shown
from lab.settings import SettingError

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
FORM = re.compile(r"\s*(?P<name>[^<>=!]+?)\s*(?P<sign><=|>=|!=|=|<|>)\s*(?P<value>.*?)\s*$", re.DOTALL)
NEAR = 5
"""Names that a refusal offers."""


@dataclass(frozen=True)
class Where:
    """A condition on a field, a setting or a result. = and != compare as texts, or as numbers where both are; <, >, <=
    and >= compare numbers, and a run without one does not meet them.
    """

    name: str
    sign: str
    value: Plain

    @staticmethod
    def of(text: str) -> "Where":
        """As it is typed. Raises SettingError for what is none."""
        if not (match := FORM.match(text)):
            raise SettingError(f"{shown(text)}: expected a condition such as optimizer.lr<=0.1 or status=finished")
        if match["sign"] in COMPARISONS and math.isnan(_number(match["value"])):
            raise SettingError(f"{shown(text)}: expected a number after {match['sign']}")
        return Where(match["name"], match["sign"], match["value"])

    def met(self, run: Run) -> bool:
        """Whether a run meets it, by the whole name."""
        if self.sign in COMPARISONS:
            return COMPARISONS[self.sign](run.number(self.name), _number(self.value))
        return same(run.get(self.name), self.value) == (self.sign == "=")


def same(one: Plain, other: Plain) -> bool:
    """Whether two values are equal, each as typed: 0.1 and "0.10" are.

    >>> same(0.1, "0.10"), same(None, "null"), same(True, "true"), same("full", "32")
    (True, True, True, False)
    """
    texts = as_typed(one), as_typed(other)
    return texts[0] == texts[1] or _number(one) == _number(other)


def resolved(name: str, known: Iterable[str]) -> str:
    """The known name that is meant: itself, or the only one that ends in it. Raises SettingError for none, and for several
    of a kind.
    """
    names = list(dict.fromkeys(known))
    if name in names:
        return name
    ends = [one for one in names if short(one) == name or one.endswith((f".{name}", f"/{name}"))]
    settings = [one for one in ends if "/" not in one]
    own = settings or [one for one in ends if not one.startswith((LATE, "error/", "cost/"))]
    if len(own) == 1:
        return own[0]
    if own:
        raise SettingError(f"{shown(name)} may be {', '.join(own[:NEAR])}; give one of them")
    near = [one for one in names if name and one.startswith(name)] or difflib.get_close_matches(name, names, n=1)
    near = near or difflib.get_close_matches(name, [*map(short, names)], n=1)
    cure = f"did you mean {near[0]}?" if near else "runs.columns lists what there is" if names else "there are no runs"
    raise SettingError(f"no run has {shown(name)}; {cure}")


def _number(value: Any) -> float:
    if isinstance(value, bool) or value is None:
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan
