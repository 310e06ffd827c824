"""Conditions that end a run: trainer.stop=[train/loss<1e-3,test/accuracy>.99,sharpness/ratio>1.5].

A condition is looked at wherever its tag is measured, before the update of that step: train/loss and train/accuracy (of the
batch) at every update, whatever trainer.log_every says. The run ends with the weights that met it.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from operator import ge, gt, le, lt
from typing import Any

from lab.settings import SettingError

SIGNS: dict[str, Callable[[float, float], bool]] = {"<=": le, ">=": ge, "<": lt, ">": gt}
EVERY_UPDATE = ("train/loss", "train/accuracy")
"""Known at every update."""
WHERE_LOGGED = ("train/grad_norm", "train/update_norm", "train/lr")
"""Known where the training curves have a point."""
BESIDE = ("error/", "cost/")
"""How the tags begin of what stands beside a quantity."""
WILD = {*"*[?"}
"""What makes a tag a pattern."""
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

    met, reason  that condition, "train/loss<0.001", and by what, "train/loss 0.00098 < 0.001"; "" as long as none is met.
    """

    def __init__(self, conditions: Iterable[Condition] = ()):
        self.conditions, self.met, self.reason = tuple(conditions), "", ""
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
                self.met = str(condition)
                self.reason = f"{condition.tag} {value:.4g} {condition.sign} {condition.bound:g}"
        return bool(self.reason)

    def require(self, measured: Iterable[str], *, tests: bool, logs: bool, others: Iterable[str] = ()) -> None:
        """Raise SettingError, one line, for a tag that nothing in the run writes.

        measured  the tags that its probes may write, as patterns of `fnmatch` (`lab.probes.tags`).
        tests     whether it is evaluated on test data; logs: whether it has training curves.
        others    more of them that it writes where it has training curves.
        """
        known = [*EVERY_UPDATE, *(("test/loss", "test/accuracy") if tests else ())]
        known += [*(WHERE_LOGGED if logs else ()), *measured, *(others if logs else ())]
        plain = [tag for tag in known if not WILD & {*tag}]
        for condition in self.conditions:
            tag = condition.tag
            if any(fnmatchcase(tag, pattern) for pattern in known):
                continue
            head, _, name = tag.rpartition("/")
            alike = [other for other in plain if other.startswith(BESIDE) == tag.startswith(BESIDE)]
            if mine := [other.rpartition("/")[2] for other in alike if other.rpartition("/")[0] == head]:
                near = get_close_matches(name, mine, n=3, cutoff=NEAR) or get_close_matches(name, mine, n=1)
                close, there = [f"{head}/{other}" for other in near], [f"{head}/{other}" for other in mine]
            else:
                close, there = get_close_matches(tag, alike, n=1), _groups(known)
            cure = f"did you mean {' or '.join(close)}?" if close else f"there is {', '.join(there)}"
            raise SettingError(f"trainer.stop=[{condition}]: nothing in this run writes {tag}; {cure}")

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
        return {"met": self.met, "reason": self.reason}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back, where the condition that was met is still one of the run."""
        if state.get("met") in [str(condition) for condition in self.conditions]:
            self.met, self.reason = state["met"], state["reason"]


def _groups(tags: Iterable[str]) -> list[str]:
    """The tags, those of a probe by the beginning they share: sharpness/..."""
    free = (*EVERY_UPDATE, *WHERE_LOGGED, "test/loss", "test/accuracy")
    return list(dict.fromkeys(tag if tag in free else f"{'/'.join(tag.split('/')[:-1])}/..." for tag in tags))
