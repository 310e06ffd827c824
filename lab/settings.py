"""What a user sets: typed, range-checked, and refused in one line.

Every card of `conf/` is one pydantic dataclass, made by `settings()`: unknown names are refused and values are checked
against the annotated types and ranges. The text of a knob stands once, beside its range, and from there goes into the
docstring of the class, the YAML card (`scripts/cards.py`) and the help pages:

    lr: Annotated[float, Field(gt=0, description="learning rate, before the schedule")] = 0.1

Settings that contradict each other, or the data, raise `SettingError` with one line: what came, what was expected, what
to do.
"""

import dataclasses
import inspect
import os
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

CARD = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
"""What all cards share."""
GUARD = 1e5
"""An upper bound from here on guards the memory or the arithmetic, and says nothing about what is sensible."""
KNOBS = "\n\nSettings:\n"
"""What stands in a docstring between its own text and the list of the knobs."""
T = TypeVar("T")


class SettingError(ValueError):
    """A value the user chose cannot be right. The message is one line that names the setting and the cure."""


class UnknownSetting(SettingError):
    """There is no setting of this name."""

    def __init__(self, name: str, message: str):
        super().__init__(message)
        self.name = name


@dataclasses.dataclass(frozen=True)
class Knob:
    """One setting of a card: its text ("" where it has none), the values it takes as far as the text leaves them out, and
    its default.
    """

    text: str
    values: str
    default: Any

    def __str__(self) -> str:
        return "; ".join(filter(None, (self.text, self.values)))


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
def settings(*, frozen: bool = True, kw_only: bool = True) -> Callable[[type[T]], type[T]]:
    """The decorator of a card: a pydantic dataclass whose docstring ends in the list of its knobs.

    >>> @settings()
    ... class Decay:
    ...     "Weight decay."
    ...     rate: Annotated[float, Field(ge=0, lt=1, description="taken off the weights in a step")] = 0.1
    >>> print(Decay.__doc__)
    Weight decay.
    <BLANKLINE>
    Settings:
    rate  taken off the weights in a step; in [0, 1) (default 0.1)
    """

    def make(kind: type[T]) -> type[T]:
        made: type[T] = dataclass(frozen=frozen, kw_only=kw_only, config=CARD)(kind)  # type: ignore[assignment]
        hints = get_type_hints(made)  # without Field(...), which the signature would print whole
        arguments = inspect.signature(made).parameters.values()
        plain = [argument.replace(annotation=hints[argument.name]) for argument in arguments]
        made.__signature__ = inspect.Signature(plain)  # type: ignore[attr-defined]
        listed = knobs(made)
        wide = max(map(len, listed), default=0) + 2
        rows = [f"{name:<{wide}}{knob} (default {knob.default!r})" for name, knob in listed.items()]
        rows = [textwrap.fill(row, 116, subsequent_indent=" " * wide) for row in rows]
        made.__doc__ = KNOBS.join(filter(None, (inspect.cleandoc(made.__doc__ or ""), "\n".join(rows))))
        return made

    return make


def knobs(kind: type) -> dict[str, Knob]:
    """The settings of a card by name, inherited ones first; what is private or set by the class itself is none.

    A class that only changes the default of an inherited knob inherits its text.
    """
    listed = {}
    for field in dataclasses.fields(kind):
        if field.init and not field.name.startswith("_"):
            bases = [base.__dict__.get("__pydantic_fields__", {}).get(field.name) for base in kind.__mro__]
            infos: list[FieldInfo] = [info for info in bases if info is not None]
            text = next((info.description for info in infos if info.description), "")
            default = infos[0].get_default(call_default_factory=True)
            listed[field.name] = Knob(text, _values(infos[0], text), default)
    return listed


def _values(info: FieldInfo, text: str) -> str:
    """The choices of a setting, where its text does not name them, and its range."""
    parts = list(_parts(info.annotation, tuple(info.metadata), ""))
    choices = [choice for part in parts if part[0] is Literal for choice in part[1]]
    unnamed = any(not re.search(rf"\b{re.escape(str(choice))}\b", text) for choice in choices)
    ranges = {_range(*part) for part in parts if part[0] is not Literal}
    words = [" | ".join(map(str, choices)) if unnamed else "", *(ranges if len(ranges) == 1 else [])]
    return "; ".join(filter(None, words))


def _parts(annotation: Any, metadata: tuple[Any, ...], each: str) -> Iterator[tuple[Any, tuple[Any, ...], str]]:
    """The types a setting is made of, each with its constraints; `each` where it is that of the entries of a list."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        own = [constraint for extra in inner[1:] for constraint in getattr(extra, "metadata", [extra])]
        yield from _parts(inner[0], (*metadata, *own), each)
    elif origin is Literal:
        yield Literal, inner, each
    elif inner:
        for one in inner:
            yield from _parts(one, metadata if origin is not tuple else (), "each " if origin is tuple else each)
    elif annotation not in (type(None), ...):
        yield annotation, metadata, each


def _range(kind: Any, metadata: tuple[Any, ...], each: str) -> str:
    """A range in words; "" for what is plain: counts of at least 0 or 1."""
    bounds = {name: getattr(m, name) for m in metadata for name in ("gt", "ge", "lt", "le") if hasattr(m, name)}
    low, high = bounds.get("gt", bounds.get("ge")), bounds.get("lt", bounds.get("le"))
    high = None if high is not None and high >= GUARD else high
    if kind is int and low is not None and "gt" in bounds:
        low, bounds = low + 1, {}
    if high is None:
        plain = low is None or (kind is int and low <= 1)
        return "" if plain else f"{each}{'>' if 'gt' in bounds else '>='} {low:g}"
    if low is None:
        return f"{each}{'<' if 'lt' in bounds else '<='} {high:g}"
    if kind is int:
        return f"{each}{low} to {high}"
    return f"{each}in {'(' if 'gt' in bounds else '['}{low:g}, {high:g}{')' if 'lt' in bounds else ']'}"


def asked_threads() -> int | None:
    """The threads that OMP_NUM_THREADS asks for, or where it is not set MKL_NUM_THREADS; None: neither is a count.

    Of a list, one entry for each level of nesting, the first is meant.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        if match := re.fullmatch(r"\s*(\d+)\s*(,.*)?", os.environ.get(name, "")):
            return int(match[1]) or None
    return None


def usable_cpus() -> int:
    """The CPUs this process may use: a container, taskset or Slurm may grant fewer than the machine has. Not every Slurm
    binds a job to what it has granted.
    """
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    granted = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(seen, int(granted)) if granted.isdecimal() and int(granted) else seen
