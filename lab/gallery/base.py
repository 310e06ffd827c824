"""What an experiment of `python -m lab.simulate` is: a card of knobs, a simulation, a figure, and a finding.

A new one is one file in this package with one subclass of `Experiment`, and one card `conf/simulation/<name>.yaml`; the
door finds it by its card, the tests by walking the package. Laws, walks and landscapes are its neighbours in the gallery;
here they are put together, held against measurement and drawn (`frame`).

    @settings()
    class Polya(Experiment):
        def simulate(self, around):                    parts with their progress, by `around.each`
            return Outcome(sentence, [exact("back by step 9", theory, measured), about(...)], arrays, values)
                                                       or, where that is long: the outcome() of a `Measured`
        def figure(arrays, title):                     from the saved arrays alone
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from dataclasses import dataclass as plain
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, SupportsFloat, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Generator, Tensor

from lab.progress import Tick
from lab.streams import stream

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")
R = TypeVar("R")
LOUD = 4.0
"""Standard errors beyond which theory and measurement are said to disagree: by chance once in 16000 comparisons."""
ROUND_OFF = 1e-12
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Uncertain(Protocol):
    """A number with its standard error: `Estimate`, `Slope`."""

    @property
    def value(self) -> float: ...

    @property
    def error(self) -> float: ...


@plain(frozen=True)
class Verdict:
    """A measured number beside what theory says of it.

    error is the standard error of `measured` (0: exact, or not known). z = (measured - theory) / error, where the theory
    is exact; where it is `approximate` (a limit, a first order) the relative difference of the two stands instead.
    """

    quantity: str
    theory: float
    measured: float
    error: float = 0.0
    approximate: bool = False

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


def exact(quantity: str, theory: SupportsFloat, measured: Uncertain | SupportsFloat) -> Verdict:
    """A measurement beside a theory that is exact: they differ by chance alone."""
    return _verdict(quantity, theory, measured, approximate=False)


def about(quantity: str, theory: SupportsFloat, measured: Uncertain | SupportsFloat) -> Verdict:
    """A measurement beside a limit or a first order of the truth."""
    return _verdict(quantity, theory, measured, approximate=True)


def _verdict(
    quantity: str, theory: SupportsFloat, measured: Uncertain | SupportsFloat, *, approximate: bool
) -> Verdict:
    if isinstance(measured, SupportsFloat):
        return Verdict(quantity, float(theory), float(measured), approximate=approximate)
    return Verdict(quantity, float(theory), measured.value, measured.error, approximate)


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


def shown(measured: Uncertain) -> str:
    """An estimate with its error, as `with_error`."""
    return with_error(measured.value, measured.error)


def paragraph(sentences: Sequence[str]) -> str:
    """Sentences, each with its capital and its full stop.

    >>> paragraph(["walkers leave", "B / lr decides"])
    'Walkers leave. B / lr decides.'
    """
    return ". ".join(s[0].upper() + s[1:] for s in sentences) + "."


def array(values: Any) -> np.ndarray:
    """Numbers, words, tensors, estimates (as value and error) and lists of them, as one array.

    >>> from lab.results import Estimate
    >>> array([Estimate(1.0, 0.5, 0, "walkers"), Estimate(2.0, 0.1, 0, "walkers")]).tolist()
    [[1.0, 0.5], [2.0, 0.1]]
    """
    if isinstance(values, Tensor):
        return values.cpu().numpy()
    if hasattr(values, "value") and hasattr(values, "error"):
        return np.array((values.value, values.error))
    if isinstance(values, list | tuple):
        return np.array([array(value) for value in values])
    return np.asarray(values)


@plain(frozen=True)
class Outcome:
    """What a simulation found: one plain paragraph, theory beside measurement, and the data behind the figure.

    arrays go to arrays/<name>_0000000.npz, each as `array` makes it; values are the other numbers for summary.json.
    """

    finding: str
    comparisons: list[Verdict]
    arrays: Mapping[str, Any]
    values: dict[str, float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "arrays", {name: array(values) for name, values in self.arrays.items()})

    def disagreement(self) -> str:
        """A sentence on the comparisons that are further apart than chance allows; empty where there is none."""
        apart = [c for c in self.comparisons if abs(c.z) > LOUD]
        names = ", ".join(f"{c.quantity} ({c.z:+.1f} standard errors)" for c in apart)
        return f"Theory and measurement DISAGREE: {names}." if apart else ""


class Measured(ABC):
    """What a simulation has measured, to be held against theory: it knows its rows, its sentence, its arrays and values."""

    @abstractmethod
    def rows(self) -> list[Verdict]:
        """Theory beside measurement."""

    @abstractmethod
    def sentence(self) -> str:
        """What was found, in one plain paragraph."""

    @abstractmethod
    def arrays(self) -> dict[str, Any]:
        """The data behind the figure, each as `array` makes it."""

    def values(self) -> dict[str, float]:
        """The other numbers for summary.json."""
        return {}

    def outcome(self) -> Outcome:
        """All of it."""
        return Outcome(self.sentence(), self.rows(), self.arrays(), self.values())


@plain(frozen=True)
class Surroundings:
    """What an experiment is given: its random streams, on the device it runs on, and the progress that it reports to."""

    seed: int
    device: torch.device
    stage: Callable[[str], Tick]

    def over(self, part: str, items: Sequence[T]) -> Iterator[tuple[T, Tick]]:
        """Each of the items of one part with the tick for its own share."""
        tick = self.stage(part)
        for i, item in enumerate(items):
            yield item, lambda share, i=i: tick((i + share) / len(items))  # type: ignore[misc]

    def each(self, part: str, items: Sequence[T], measure: Callable[[T, Tick], R]) -> dict[T, R]:
        """What `measure` finds for every item of one part, by item."""
        return {item: measure(item, tick) for item, tick in self.over(part, items)}

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

    def require_different(self, name: str, example: str, *, least: int = 1) -> None:
        """Raise ValueError where the list of this name has fewer than `least` entries, or one of them twice."""
        values = getattr(self, name)
        if len(set(values)) < max(least, len(values)):
            count = "one" if least == 1 else "two"
            raise ValueError(f"{name}: expected {count} or more different values, e.g. {example}")

    @abstractmethod
    def stages(self) -> Mapping[str, float]:
        """The parts of the simulation in order, by what the progress bar calls them, with a guess of their seconds."""

    @abstractmethod
    def simulate(self, around: Surroundings) -> Outcome:
        """Carry it out. Reports its progress through `around.stage(part)`, once for each part, in order."""

    @staticmethod
    @abstractmethod
    def figure(arrays: Mapping[str, np.ndarray], title: str) -> "Figure":
        """The figure, with the lines of the theory, from saved arrays alone."""
