"""The settings of a probe: `k: Annotated[Count, knob("number of top eigenvalues")] = 1`."""

from typing import Annotated, Any, Literal

from pydantic import Field


def knob(text: str, **bounds: float) -> Any:
    """The text of a setting, and bounds of it (gt, ge, lt, le), for `Annotated`."""
    return Field(description=text, **bounds)  # type: ignore[call-overload]


Natural = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(gt=0)]
Several = Annotated[int, Field(gt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1)]
Every = Annotated[Count, knob("steps between measurements")]
When = Annotated[Literal["steps", "end"], knob("steps: every so many | end: once, at the end of training")]
Rhythm = Count | Literal["auto"]
"""Of a card of the lab, whose text says what auto is."""
ProbeSet = Annotated[
    Count | Literal["all", "auto"],
    knob("probe set: all | n (class-balanced, fixed) | auto: all up to 5000 training examples, else 2000"),
]
