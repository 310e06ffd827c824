"""Conditions that end a run: trainer.stop=[train/loss<1e-3,test/accuracy>.99,sharpness/ratio>1.5].

A condition is looked at wherever its tag is measured, before the update of that step: train/loss and train/accuracy (of the
batch) at every update, whatever trainer.log_every says. The run ends with the weights that met it.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from operator import ge, gt, le, lt
from typing import Any

from lab.settings import SettingError

SIGNS: dict[str, Callable[[float, float], bool]] = {"<=": le, ">=": ge, "<": lt, ">": gt}
EVERY_UPDATE = ("train/loss", "train/accuracy")
"""Known at every update."""
WHERE_LOGGED = ("train/grad_norm", "train/update_norm", "train/lr")
"""Known where the training curves have a point."""
NEAR = 0.85
"""So alike (of 1) are a tag and the one that was meant."""


@dataclass(frozen=True)
class Condition:
    """tag, sign (a key of SIGNS), bound: met where the value of the tag is on that side of the bound. NaN is on none."""

    tag: str
    sign: str
    bound: float

    @staticmethod
    def of(text: str) -> "Condition":
        """From "train/loss<1e-3". Raises ValueError with what was expected.

        >>> Condition.of("train/loss < 1e-3")
        Condition(tag='train/loss', sign='<', bound=0.001)
        """
        match = re.fullmatch(r"\s*([\w./\-]+/[\w./\-]+)\s*(<=|>=|<|>)\s*([^\s<>=]+)\s*", text)
        try:
            bound = float(match[3]) if match else math.nan
        except ValueError:
            bound = math.nan
        if match is None or not math.isfinite(bound):
            raise ValueError("expected a tag, one of < > <= >= and a finite number, e.g. [train/loss<1e-3]")
        return Condition(match[1], match[2], bound)

    def met(self, value: float) -> bool:
        return SIGNS[self.sign](value, self.bound)

    def __str__(self) -> str:
        return f"{self.tag}{self.sign}{self.bound:g}"


class Stopping:
    """The conditions of a run, and the first of them that was met.

    reason  "train/loss 0.00098 < 0.001"; "" as long as none is met.
    """

    def __init__(self, conditions: Iterable[Condition] = ()):
        self.conditions, self.reason = tuple(conditions), ""
        self._met = ""
        self._seen = {condition.tag: False for condition in self.conditions}

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.conditions)

    def see(self, step: int, values: Mapping[str, float]) -> bool:
        """Values measured before update `step`, by tag. Whether a condition is met, by now or before."""
        for condition in self.conditions:
            if condition.tag not in values:
                continue
            self._seen[condition.tag] = True
            value = float(values[condition.tag])
            if not self.reason and condition.met(value):
                self._met = str(condition)
                self.reason = f"{condition.tag} {value:.4g} {condition.sign} {condition.bound:g}"
        return bool(self.reason)

    def require(self, probes: Iterable[str], *, tests: bool, logs: bool, others: Iterable[str] = ()) -> None:
        """Raise SettingError, one line, for a tag that nothing in the run writes.

        probes   the names of its probes; tests: whether it is evaluated on test data; logs: whether it has training curves.
        others   more tags, and beginnings of tags, that it writes where it has training curves.
        """
        known = [*EVERY_UPDATE, *(("test/loss", "test/accuracy") if tests else ())]
        known += [*WHERE_LOGGED, *others] if logs else []
        beginnings = [f"{head}{name}/" for name in probes for head in ("", "error/", "cost/")]
        beginnings += [tag for tag in known if tag.endswith("/")]
        for condition in self.conditions:
            tag = condition.tag
            if tag not in known and not tag.startswith(tuple(beginnings)):
                close = get_close_matches(tag, known, n=1)
                raise SettingError(
                    f"trainer.stop=[{condition}]: nothing in this run writes {tag}"
                    + (f"; did you mean {close[0]}?" if close else f"; there is {', '.join([*known, *beginnings])}")
                )

    def require_measured(self, values: Mapping[str, float]) -> None:
        """Raise SettingError for a slip: a tag that is not among those that were measured at once before the first update,
        and is written almost as one that is.
        """
        for tag, seen in self._seen.items():
            head, _, name = tag.rpartition("/")
            mine = [other.rpartition("/")[2] for other in values if other.rpartition("/")[0] == head]
            if not seen and (close := get_close_matches(name, mine, n=1, cutoff=NEAR)):
                raise SettingError(f"trainer.stop: nothing writes {tag}; did you mean {head}/{close[0]}?")

    def unseen(self) -> list[str]:
        """A sentence for each condition whose tag was never measured."""
        return [f"trainer.stop: {tag} was never measured." for tag, seen in self._seen.items() if not seen]

    def state_dict(self) -> dict[str, Any]:
        return {"met": self._met, "reason": self.reason}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back, where the condition that was met is still one of the run."""
        if state.get("met") in [str(condition) for condition in self.conditions]:
            self._met, self.reason = state["met"], state["reason"]
