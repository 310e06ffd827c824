"""Escape from where training stands: replicas of the run with random numbers of their own, and what makes them leave.

    at a saddle            growth of every negative direction against log(1 + lr |lambda|), exit times against `Descent`
    at a minimum that fits growth against the Lyapunov exponent of the linearised steps, landing against the critical
    every example          sharpness: mini-batches have no noise there, and there is no rate
    elsewhere              exits by quench, rate with exact interval, and the reasons why there is none

for every learning rate and batch size of a sweep. `lab.escape.ensemble` is the estimator, `lab.escape.warnings` judges it;
where no rate exists none is logged, and the sentence says why. Networks run with fixed BatchNorm statistics.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lab.probes.base import Every, Memory, Positive, Probe, Snapshot, measures
from lab.probes.escape_cells import Cell, cell
from lab.probes.escape_start import ExitName, Scene, Start, begin, number
from lab.probes.escape_words import sentences
from lab.results import Result
from lab.sampling import Sampling
from lab.settings import settings as card

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@card(frozen=False)
class Escape(Probe):
    """Escape: replicas of the run from its weights; rates with intervals, growth against theory, and why there is no rate.

    loss_barrier and top_distance are wrong exits in more than a few dimensions. Every replica is looked at 8 times in the
    budget (quench), or at every step.
    """

    name: ClassVar[str] = "escape"
    speaks: ClassVar[bool] = True

    every: Every = 1000
    at: Annotated[
        Literal["steps", "end"], Field(description="steps: every so many | end: once, at the end of training")
    ] = "steps"
    examples: Annotated[
        Annotated[int, Field(gt=1)] | Literal["all", "auto"],
        Field(
            description="probe set whose loss it is, and from which batches are drawn: n | all | auto (all up to 5000, else "
            "2000)"
        ),
    ] = "auto"
    replicas: Annotated[int, Field(ge=2, description="copies of the run with independent batches and noise")] = 64
    lrs: Annotated[tuple[Positive, ...], Field(description="learning rates of the sweep; empty: that of the run")] = ()
    batch_sizes: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...],
        Field(description="batch sizes of the sweep, 0 the full batch; empty: that of the run"),
    ] = ()
    sampling: Annotated[
        Sampling | None, Field(description="epoch | with_replacement | without_replacement; null: as the run draws")
    ] = None
    noise: Annotated[
        Literal["minibatch", "sample_weights", "frozen", "isotropic"],
        Field(
            description="minibatch | sample_weights | frozen | isotropic: Gaussian on the full gradient, of the size of B"
        ),
    ] = "minibatch"
    exit: Annotated[
        ExitName,
        Field(
            description="auto: saddle at a saddle, else quench | saddle | quench | linear | loss_barrier | top_distance"
        ),
    ] = "auto"
    radius: Annotated[
        Positive | None,
        Field(description="of saddle, linear, top_distance, in weights; null: half way to the minima beyond"),
    ] = None
    barrier: Annotated[Positive, Field(description="loss above the start, of loss_barrier")] = 0.01
    directions: Annotated[
        int, Field(gt=0, description="of top_distance, of linear at a minimum, and negative ones looked at at a saddle")
    ] = 5
    budget: Annotated[int, Field(ge=16, description="steps a replica is watched, at most")] = 2000
    burn_in: Annotated[
        Annotated[int, Field(ge=0)] | None,
        Field(description="steps before the clock starts; null: 3 relaxation times, at most a quarter of the budget"),
    ] = None
    max_matvecs: Annotated[
        int, Field(ge=2, description="Hessian products, at most, that say what kind of point the start is")
    ] = 200
    quench_steps: Annotated[
        int, Field(gt=0, description="steps of gradient descent that say in which basin a replica is")
    ] = 2000
    gradient_tol: Annotated[
        Positive, Field(description="|gradient| at rest, and of a critical point (loss per unit of weight)")
    ] = 1e-6
    growth_steps: Annotated[
        int, Field(ge=20, description="of runs whose growth is measured; the random product takes up to 10 times more")
    ] = 200
    controls: Annotated[bool, Field(description="also runs without noise, at lr and lr/10")] = True

    def due(self, step: int) -> bool:
        return self.at == "steps" and super().due(step)

    @property
    def at_end(self) -> bool:
        return self.at == "end"


@dataclass(frozen=True)
class EscapeResult(Result):
    """Where the replicas started, and what they did for each learning rate and batch size of the sweep (`cells`); None and
    () where the weights are not finite. exit: the criterion by which they left.
    """

    start: Start | None
    cells: tuple[Cell, ...]
    exit: str

    def numbers(self) -> dict[str, float]:
        """Those of the first cell: the run's own, unless a sweep was asked for. NaN where nothing was measured."""
        if self.start is None:
            return {}
        point = self.start.critical
        return {
            "index": float(point.index),
            "index_exact": float(point.index_exact),
            "loss": point.value,
            "grad_norm": point.grad_norm,
        } | self.cells[0].numbers()

    def sentence(self) -> str:
        if self.start is None:
            return ""
        return sentences(self.start.critical, self.cells, fits=self.start.curvature is not None, kind=self.exit)

    def figure(self, when: str = "") -> "Figure":
        """Who is still inside, and the sweep beside theory."""
        from lab.probes.escape_figure import figure

        if self.start is None:
            raise ValueError("the weights are not finite: there is nothing to draw")
        return figure(self.cells, f"escape{when}")

    def figures(self, when: str = "") -> "dict[str, Figure]":
        return {} if self.start is None else {"survival": self.figure(when)}

    def arrays(self) -> dict[str, Tensor]:
        """sweep: a row for every cell, with the columns of `lab.probes.escape_cells.COLUMNS`."""
        if self.start is None:
            return {}
        return {"sweep": torch.tensor([cell.row() for cell in self.cells], dtype=torch.float64)}


@measures(Escape)
def escape(here: Snapshot, settings: Escape, memory: Memory) -> EscapeResult:
    """How replicas of the run leave the point where it stands. Raises SettingError where no one step moves all weights."""
    if not bool(here.w.isfinite().all()):
        return EscapeResult(None, (), "")
    scene = Scene(here, settings, begin(here, settings))
    lrs, sizes = settings.lrs or (number(scene.start.rule.lr),), settings.batch_sizes or (here.batch_size or 0,)
    cells = tuple(cell(scene, lr, size) for lr in lrs for size in sizes)
    return EscapeResult(scene.start, cells, scene.exit_name)
