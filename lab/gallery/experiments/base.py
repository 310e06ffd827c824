"""What an experiment of `python -m lab.simulate` is: a card of knobs, a simulation, a figure, and a finding.

A new one is one file in this package with one subclass of `Experiment`, and one card `conf/simulation/<name>.yaml`; the
door finds it by its card, the tests by walking the package. Mathematics (walks, landscapes, samplers) belongs to the
floors below; here it is put together, held against theory and drawn.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Generator

from lab.progress import Tick
from lab.results import Estimate
from lab.streams import stream

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")
LOUD = 4.0
"""Standard errors beyond which theory and measurement are said to disagree: by chance once in 16000 comparisons."""
ROUND_OFF = 1e-12
Walkers = Annotated[int, Field(ge=20, le=10_000_000, description="in each cell")]
Budget = Annotated[
    float, Field(gt=0, le=20, description="mean times that a walker is watched; one that has not left then is censored")
]
MaxSteps = Annotated[int, Field(ge=1000, le=100_000_000, description="for which a walker is watched at most")]


@dataclass(frozen=True)
class Comparison:
    """A measured number beside what theory says of it.

    error is the standard error of `measured` (0: exact, or not known). z = (measured - theory) / error, where the theory
    is exact; where it is `approximate` (a limit, a first order) their relative difference is told instead.
    """

    quantity: str
    theory: float
    measured: float
    error: float = 0.0
    approximate: bool = False

    @classmethod
    def of(cls, quantity: str, theory: float, measured: Estimate, *, approximate: bool = False) -> "Comparison":
        """From an estimate with its standard error."""
        return cls(quantity, float(theory), measured.value, measured.error, approximate)

    @property
    def z(self) -> float:
        """Standard errors between the two; NaN where the theory is approximate or the error is not known."""
        if self.approximate or not known(self.error, self.measured):
            return math.nan
        return (self.measured - self.theory) / self.error

    def row(self) -> tuple[str, str, str, str]:
        """Quantity, theory, measured +- error, and how they agree."""
        if math.isnan(self.z):
            agree = f"{100 * (self.measured / self.theory - 1):+.2g} %" if self.theory else ""
        else:
            agree = f"z = {self.z:+.1f}"
        about = "~" if self.approximate else ""
        return self.quantity, f"{about}{self.theory:.5g}", with_error(self.measured, self.error), agree

    def plain(self) -> dict[str, Any]:
        """For summary.json, which has null for NaN."""
        return asdict(self) | {"z": None if math.isnan(self.z) else self.z}


def known(error: float, value: float) -> bool:
    """Whether a standard error is one, and neither absent nor the round-off of an exact value."""
    return error > ROUND_OFF * abs(value)


def with_error(value: float, error: float) -> str:
    """A number with as many digits as its standard error (of two digits) allows.

    >>> with_error(30.6594, 0.0652), with_error(0.125, 0.0), with_error(5662.2, 126.0)
    ('30.659 +- 0.065', '0.125', '5662 +- 126')
    """
    if not known(error, value):
        return f"{value:.5g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} +- {error:.{digits}f}"


def paragraph(said: Sequence[str]) -> str:
    """Sentences, each with its capital and its full stop.

    >>> paragraph(["walkers leave", "B / lr decides"])
    'Walkers leave. B / lr decides.'
    """
    return ". ".join(s[0].upper() + s[1:] for s in said) + "."


@dataclass(frozen=True)
class Outcome:
    """What a simulation found: one plain paragraph, theory beside measurement, and the data behind the figure.

    values are the other numbers for summary.json; arrays go to arrays/<name>_0000000.npz.
    """

    finding: str
    comparisons: list[Comparison]
    arrays: dict[str, np.ndarray]
    values: dict[str, float]

    def disagreement(self) -> str:
        """A sentence on the comparisons that are further apart than chance allows; empty where there is none."""
        apart = [c for c in self.comparisons if abs(c.z) > LOUD]
        said = ", ".join(f"{c.quantity} ({c.z:+.1f} standard errors)" for c in apart)
        return f"Theory and measurement DISAGREE: {said}." if apart else ""


@dataclass(frozen=True)
class Surroundings:
    """What an experiment is given: its random streams, on the device it runs on, and whom to tell how far it is."""

    seed: int
    device: torch.device
    stage: Callable[[str], Tick]

    def over(self, part: str, items: Sequence[T]) -> Iterator[tuple[T, Tick]]:
        """Each of the items of one part with the tick for its own share."""
        tick = self.stage(part)
        for i, item in enumerate(items):
            yield item, lambda share, i=i: tick((i + share) / len(items))  # type: ignore[misc]

    def stream(self, name: str, step: int = 0) -> Generator:
        """The random numbers of one part, a function of (seed, name, step)."""
        return stream(self.seed, name, step, device=self.device)


class Experiment(ABC):
    """One simulation. Subclasses are cards (`lab.settings.settings`); the docstring heads that in `conf/simulation/`.

    name is that of its card. parallel says whether single operations are long enough to gain from a second thread: waking
    one for short operations costs more than it brings, on a busy machine a hundred times. on_cpu: it computes there only.
    Settings that contradict each other raise ValueError from `__post_init__`, in one line that begins with the name of one
    of them.
    """

    name: ClassVar[str]
    parallel: ClassVar[bool] = False
    on_cpu: ClassVar[bool] = False

    @abstractmethod
    def stages(self) -> Mapping[str, float]:
        """The parts of the simulation in order, by what the progress bar calls them, with a guess of their seconds."""

    @abstractmethod
    def simulate(self, around: Surroundings) -> Outcome:
        """Carry it out. Tells its progress through `around.stage(part)`, which it calls once for each part, in order."""

    @staticmethod
    @abstractmethod
    def figure(arrays: Mapping[str, np.ndarray], title: str) -> "Figure":
        """The figure, with the lines of the theory, from saved arrays alone."""
