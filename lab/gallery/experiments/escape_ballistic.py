"""Leaving a sharp minimum that fits every example: ballistic, at the rate of a random matrix product, and where it ends.

At zero residual mini-batches have no noise at all; runs leave because the linearised steps are unstable, and they follow
the top Lyapunov exponent of these, not the second moments, which explode earlier without anybody leaving. What leaves
lands where the sharpness is just below what the exponent allows. `lab.noise.lyapunov`, `lab.escape.renormalised`.
"""

import math
import warnings
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import optim

from lab.curvature.eigen import lanczos
from lab.curvature.operators import hessian
from lab.escape.renormalised import free_growth, free_lengths, renormalised_growth, root_loss
from lab.escape.replicas import Replicas
from lab.gallery.base import Experiment, Outcome, Surroundings
from lab.gallery.experiments.ballistic_figure import draw
from lab.gallery.experiments.ballistic_minimum import (
    CLASSES,
    PIXELS,
    PRODUCTS,
    GrowthCell,
    Landing,
    Minimum,
    digits_loss,
    exponent,
    network,
    sgd,
)
from lab.gallery.experiments.ballistic_theory import FULL, Ballistic
from lab.gallery.frame import Arrays, Figure
from lab.noise.example_curvature import example_curvature
from lab.noise.lyapunov import DECIDED, critical_lr
from lab.noise.second_moments import mean_square_lr, second_moment_radius
from lab.points.interpolate import interpolate
from lab.progress import Tick
from lab.results import Estimate
from lab.settings import SettingError, settings

TRAINING_LR = 0.2
KICK, SHOVE = 1e-12, 1e-3
"""Distance from the minimum, a coordinate, of runs whose growth is measured, and of those that are to land "
"elsewhere."""
LEFT = 1e-3
"""|f - y| / sqrt(N) above which a run has left: nine orders of magnitude beyond the kick."""
DIRECTIONS = 250
"""Eigenvectors of the curvature in which second moments are computed: a lower bound, by 1 or 2 %."""


@settings()
class EscapeBallistic(Experiment):
    """Leaving a sharp minimum that fits every example: at the rate of a random matrix product, landing where sharpness is
    stable.

    Where the residual is zero mini-batches have no noise: runs leave because the linearised steps are unstable. They grow
    by the top Lyapunov exponent of their random product (Furstenberg and Kesten 1960), while the second moments of Wu, Ma
    and E (2018) explode earlier and faster, carried by rare runs; and they land where S lr/2 is just below the critical
    value.
    """

    name: ClassVar[str] = "escape_ballistic"

    examples: Annotated[int, Field(ge=10, le=200, description="first digits, fitted exactly")] = 50
    hidden: Annotated[int, Field(ge=2, le=500, description="tanh neurons; more weights than 10 x examples")] = 24
    training_steps: Annotated[
        int, Field(ge=1, le=1_000_000, description="of descent at lr 0.2, before Gauss-Newton steps to zero loss")
    ] = 3000
    lrs: Annotated[
        tuple[Annotated[float, Field(gt=0, le=3)], ...],
        Field(description="learning rates, in units of 2 / sharpness of the minimum"),
    ] = (0.3, 0.4, 0.6, 0.9, 1.2)
    batch_sizes: Annotated[
        tuple[Annotated[int, Field(ge=1, le=1000)], ...],
        Field(description="examples a step, with replacement; the full batch comes with them"),
    ] = (2, 4, 8, 16)
    replicas: Annotated[int, Field(ge=2, le=10_000, description="runs of each kind whose growth is measured")] = 64
    steps: Annotated[
        int,
        Field(ge=20, le=100_000, description="of each, and of the random product; the first 30 and 25 % are left out"),
    ] = 200
    stay_steps: Annotated[
        int, Field(ge=1, le=1_000_000, description="of runs that the theory says stay (and of the other estimators)")
    ] = 400
    estimator: Annotated[
        Literal["renormalised", "own_exit", "common_time"],
        Field(description="renormalised | own_exit: of each run, from step 8 | common_time: the first exit of all"),
    ] = "renormalised"
    landing_at: Annotated[
        float, Field(gt=1, le=2, description="learning rate of runs that land, over the critical one of the batch size")
    ] = 1.25
    landing_replicas: Annotated[int, Field(ge=2, le=1000, description="of them, for each batch size")] = 16
    landing_steps: Annotated[int, Field(ge=1, le=1_000_000, description="for which they go on")] = 2000

    def __post_init__(self) -> None:
        self.require_different("lrs", "[0.6,0.9]")
        self.require_different("batch_sizes", "[2,8]")
        weights = self.hidden * (PIXELS + CLASSES + 1) + CLASSES
        if weights <= CLASSES * self.examples:
            raise ValueError(
                f"hidden={self.hidden}: {weights} weights cannot fit {self.examples} examples of {CLASSES} outputs "
                "exactly; use more hidden neurons or fewer examples"
            )

    def stages(self) -> dict[str, float]:
        rows = CLASSES * self.examples
        product = 1e-10 * rows**2 * PRODUCTS * self.steps
        step, cells = 4e-6 * self.replicas, (len(self.batch_sizes) + 1) * len(self.lrs)
        landing = (5e-4 + 8e-6 * self.landing_replicas) * self.landing_steps + 0.1 * self.landing_replicas
        return {
            "training": 6e-4 * self.training_steps + 1e-8 * rows**3,
            "edges": len(self.batch_sizes) * (4 * product + 4e-9 * rows**3),
            "growth": cells * (product / 2 + (5e-4 + step) * self.steps),
            "landing": (len(self.batch_sizes) + 1) * landing,
        }

    def simulate(self, around: Surroundings) -> Outcome:
        at = self._minimum(around, around.stage("training"))
        sizes = sorted(self.batch_sizes)
        edges = {FULL: (1.0, 1.0)}
        for size, tick in around.over("edges", sizes):
            edges[size] = _edges(self, around.seed, at, size)
            tick(1.0)
        grid = [(size, lr) for size in (*sizes, FULL) for lr in sorted(self.lrs)]
        cells = [
            self._cell(around, at, lr, size, edges[size][1], tick) for (size, lr), tick in around.over("growth", grid)
        ]
        landings = [
            self._landing(around, at, size, *edges[size], tick) for size, tick in around.over("landing", [*sizes, FULL])
        ]
        return Ballistic(self, at, cells, landings).outcome()

    def _minimum(self, around: Surroundings, tick: Tick) -> Minimum:
        objective = digits_loss(self.examples, self.hidden, around.device)
        start = objective.layout.flatten(dict(network(self.hidden, seed=around.seed).named_parameters()))
        run = Replicas(
            objective,
            start.to(around.device)[None],
            lambda w: optim.SGD(w, lr=TRAINING_LR),
            generator=around.stream(f"{self.name}/training"),
        )
        for share in range(10):
            run.run((share + 1) * self.training_steps // 10 - share * self.training_steps // 10)
            tick((share + 1) / 11)
        found = interpolate(objective, run.W[0])
        if not found.converged:
            raise SettingError(
                f"training_steps={self.training_steps}: Gauss-Newton steps from there end at loss {found.loss:.2g}, "
                "not at a minimum that fits every example; train longer or use more hidden neurons"
            )
        tick(1.0)
        curvature = example_curvature(objective, found.w)
        return Minimum(objective, found.w, found.loss, curvature, root_loss(objective, found.w))

    def _cell(
        self, around: Surroundings, at: Minimum, lr: float, size: int, mean_square: float, tick: Tick
    ) -> GrowthCell:
        rate, moments = self._theory(around.seed, at, lr, size, mean_square)
        moved = self._replicas(around, at, lr * at.edge, size)
        if rate.value > 0:
            return GrowthCell(lr, size, rate, moments, self._growth(moved, at, tick), -1)
        for share in range(10):
            moved.run((share + 1) * self.stay_steps // 10 - share * self.stay_steps // 10)
            tick((share + 1) / 10)
        left = int((~(at.length(moved.W) <= LEFT)).sum())
        return GrowthCell(lr, size, rate, moments, Estimate(math.nan, math.nan, 0, "stays", False), left)

    def _theory(self, seed: int, at: Minimum, lr: float, size: int, mean_square: float) -> tuple[Estimate, float]:
        """Exponent of the linearised steps, and log(rho)/2; both 0 where second moments, and so typical runs, are "
        "stable."""
        if lr <= mean_square:
            return Estimate(0.0, 0.0, 0, "mean square"), 0.0
        if size == FULL:
            return Estimate(math.log(2 * lr - 1), 0.0, 0, "closed form"), math.log(2 * lr - 1)
        rho = second_moment_radius(at.curvature.top(DIRECTIONS), lr=lr * at.edge, factor=1 / size, tol=1e-2).value
        return exponent(seed, at, lr * at.edge, size, self.steps), 0.5 * math.log(rho)

    def _replicas(self, around: Surroundings, at: Minimum, lr: float, size: int) -> Replicas:
        """Runs that start next to the minimum; of full-batch ones a few say it all."""
        name = f"{self.name}/growth/{lr / at.edge:.6g}/{size}"
        draws = around.stream(name)
        kicks = torch.randn(
            self.replicas if size else 2, len(at.w), dtype=at.w.dtype, generator=draws, device=at.w.device
        )
        return sgd(at, at.w + KICK * kicks, lr, size, draws)

    def _growth(self, moved: Replicas, at: Minimum, tick: Tick) -> Estimate:
        if self.estimator == "renormalised":
            return renormalised_growth(
                moved, at.w, at.length, steps=self.steps, burn_in=3 * self.steps // 10, tick=tick
            )
        lengths = free_lengths(moved, at.length, steps=self.stay_steps, until=LEFT, tick=tick)
        own, common = free_growth(lengths, LEFT)
        return own if self.estimator == "own_exit" else common

    def _landing(
        self, around: Surroundings, at: Minimum, size: int, critical: float, mean_square: float, tick: Tick
    ) -> Landing:
        start = self.landing_at * critical
        draws = around.stream(f"{self.name}/landing", size)
        shoves = torch.randn(self.landing_replicas, len(at.w), dtype=at.w.dtype, generator=draws, device=at.w.device)
        moved = sgd(at, at.w + SHOVE * shoves, start * at.edge, size, draws)
        for share in range(10):
            moved.run((share + 1) * self.landing_steps // 10 - share * self.landing_steps // 10)
            tick((share + 1) / 12)
        kept = moved.W[moved.W.isfinite().all(1)]
        tops = [lanczos(hessian(at.objective, w), copies=False).top.values[0] for w in kept]
        ends = torch.stack(tops).cpu() * start * at.edge / 2 if tops else torch.empty(0, dtype=torch.float64)
        tick(1.0)
        return Landing(size, critical, mean_square, start, ends, self.landing_replicas - len(kept))

    @staticmethod
    def figure(arrays: Arrays, title: str) -> Figure:
        return draw(arrays, title)


def _edges(card: EscapeBallistic, seed: int, at: Minimum, size: int) -> tuple[float, float]:
    """Critical learning rates of typical runs and of second moments, in units of 2/S."""
    low = mean_square_lr(at.curvature.top(DIRECTIONS), factor=1 / size, tol=1e-2).value

    def growth(lr: float) -> float:
        return exponent(seed, at, lr, size, card.steps, DECIDED).value

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # near its zero the exponent is not known any better than to its floor
        critical = critical_lr(growth, low, min(1.3 * low, 1.1 * at.edge))
    if not math.isfinite(critical):
        raise SettingError(f"batch_sizes={size}: no critical learning rate was found at this batch size; use another")
    return critical / at.edge, low / at.edge
