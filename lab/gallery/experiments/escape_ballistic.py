"""Leaving a sharp minimum that fits every example: ballistic, at the rate of a random matrix product, and where it ends.

At zero residual mini-batches have no noise at all; runs leave because the linearised steps are unstable, and they follow
the top Lyapunov exponent of these, not the second moments, which explode earlier without anybody leaving. What leaves
lands where the sharpness is just below what the exponent allows. `lab.noise.lyapunov`, `lab.escape.renormalised`.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass as plain
from dataclasses import replace
from functools import lru_cache, partial
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor, nn, optim

from lab.curvature.eigen import lanczos
from lab.curvature.operators import hessian
from lab.curvature.stability import UpdateRule
from lab.data.digits import Digits
from lab.escape.renormalised import Length, free_growth, free_lengths, renormalised_growth, root_loss
from lab.escape.replicas import Replicas
from lab.gallery.experiments.ballistic_figure import draw
from lab.gallery.experiments.base import Comparison, Experiment, Outcome, Surroundings, with_error
from lab.models.losses import MeanSquaredErrorCriterion
from lab.models.mlp import initialised
from lab.noise.example_curvature import ExampleCurvature, example_curvature
from lab.noise.lyapunov import DECIDED, critical_lr, lyapunov
from lab.noise.second_moments import mean_square_lr, second_moment_radius
from lab.objective import NetworkObjective
from lab.points.interpolate import interpolate
from lab.progress import Tick
from lab.results import Estimate
from lab.settings import SettingError, settings
from lab.streams import stream

TRAINING_LR = 0.2
PIXELS, CLASSES = 64, 10
KICK, SHOVE = 1e-12, 1e-3
"""Distance from the minimum, a coordinate, of runs whose growth is measured, and of those that are to land elsewhere."""
LEFT = 1e-3
"""|f - y| / sqrt(N) above which a run has left: nine orders of magnitude beyond the kick."""
LANDED = 1.05
"""S lr/2 over its critical value above which a run is not where it can stay."""
PRODUCTS = 32
"""Random vectors behind an exponent."""
DIRECTIONS = 250
"""Eigenvectors of the curvature in which second moments are computed: a lower bound, by 1 or 2 %."""
FULL = 0
"""Stands for the whole set among batch sizes."""


@plain(frozen=True)
class Minimum:
    """The minimum that fits: loss, weights, its loss, the curvatures of the examples there, how long a displacement is."""

    objective: NetworkObjective
    w: Tensor
    loss: float
    curvature: ExampleCurvature
    length: Length

    @property
    def edge(self) -> float:
        """2/S, the largest stable learning rate of gradient descent."""
        return 2 / self.curvature.sharpness


@plain(frozen=True)
class Cell:
    """One learning rate (in units of 2/S) and batch size: growth per step of the linearised steps and of the network.

    moments: log(rho)/2, 0 where rho is at most 1; left: how many of the replicas left where they should stay, else -1.
    """

    lr: float
    batch_size: int
    exponent: Estimate
    moments: float
    growth: Estimate
    left: int

    @property
    def stays(self) -> bool:
        return not self.exponent.value > 0

    @property
    def measured(self) -> bool:
        return not self.stays and self.growth.converged

    @property
    def against_theory(self) -> Estimate:
        """Growth with the error of its difference from the exponent, which is measured too."""
        return replace(self.growth, error=math.hypot(self.growth.error, self.exponent.error))

    @property
    def name(self) -> str:
        return f"batch {self.batch_size or 'full'} at lr {self.lr:g} x 2/S"


@plain(frozen=True)
class Landing:
    """Where runs at lr = `start` end: S lr/2 (n,) there, and the edges of typical runs and of second moments, all x 2/S."""

    batch_size: int
    critical: float
    mean_square: float
    start: float
    ends: Tensor
    lost: int

    @property
    def end(self) -> Estimate:
        error = float(self.ends.std()) / math.sqrt(len(self.ends)) if len(self.ends) > 1 else 0.0
        return Estimate(float(self.ends.mean()), error, 0, "lanczos")

    @property
    def ratio(self) -> float:
        return self.end.value / self.critical


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
        for name in ("lrs", "batch_sizes"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}: expected one or more different values, e.g. [2,8] or [0.6,0.9]")
        weights = self.hidden * (PIXELS + CLASSES + 1) + CLASSES
        if weights <= CLASSES * self.examples:
            raise ValueError(
                f"hidden={self.hidden}: {weights} weights cannot fit {self.examples} examples of {CLASSES} outputs exactly; "
                "use more hidden neurons or fewer examples"
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
            edges[size] = self._edges(around.seed, at, size)
            tick(1.0)
        grid = [(size, lr) for size in (*sizes, FULL) for lr in sorted(self.lrs)]
        cells = [
            self._cell(around, at, lr, size, edges[size][1], tick) for (size, lr), tick in around.over("growth", grid)
        ]
        landings = [
            self._landing(around, at, size, *edges[size], tick) for size, tick in around.over("landing", [*sizes, FULL])
        ]
        return self._outcome(at, cells, landings)

    def _minimum(self, around: Surroundings, tick: Tick) -> Minimum:
        objective = digits_loss(self.examples, self.hidden, around.device)
        start = objective.layout.flatten(dict(_network(self.hidden, seed=around.seed).named_parameters()))
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

    def _edges(self, seed: int, at: Minimum, size: int) -> tuple[float, float]:
        """Critical learning rates of typical runs and of second moments, in units of 2/S."""
        low = mean_square_lr(at.curvature.top(DIRECTIONS), factor=1 / size, tol=1e-2).value

        def growth(lr: float) -> float:
            return _exponent(seed, at, lr, size, self.steps, DECIDED).value

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # near its zero the exponent is not known any better than to its floor
            critical = critical_lr(growth, low, min(1.3 * low, 1.1 * at.edge))
        if not math.isfinite(critical):
            raise SettingError(
                f"batch_sizes={size}: no critical learning rate was found at this batch size; use another"
            )
        return critical / at.edge, low / at.edge

    def _cell(self, around: Surroundings, at: Minimum, lr: float, size: int, mean_square: float, tick: Tick) -> Cell:
        exponent, moments = self._theory(around.seed, at, lr, size, mean_square)
        moved = self._replicas(around, at, lr * at.edge, size)
        if exponent.value > 0:
            return Cell(lr, size, exponent, moments, self._growth(moved, at, tick), -1)
        for share in range(10):
            moved.run((share + 1) * self.stay_steps // 10 - share * self.stay_steps // 10)
            tick((share + 1) / 10)
        left = int((~(at.length(moved.W) <= LEFT)).sum())
        return Cell(lr, size, exponent, moments, Estimate(math.nan, math.nan, 0, "stays", False), left)

    def _theory(self, seed: int, at: Minimum, lr: float, size: int, mean_square: float) -> tuple[Estimate, float]:
        """Exponent of the linearised steps, and log(rho)/2; both 0 where second moments, and so typical runs, are stable."""
        if lr <= mean_square:
            return Estimate(0.0, 0.0, 0, "mean square"), 0.0
        if size == FULL:
            return Estimate(math.log(2 * lr - 1), 0.0, 0, "closed form"), math.log(2 * lr - 1)
        rho = second_moment_radius(at.curvature.top(DIRECTIONS), lr=lr * at.edge, factor=1 / size, tol=1e-2).value
        return _exponent(seed, at, lr * at.edge, size, self.steps), 0.5 * math.log(rho)

    def _replicas(self, around: Surroundings, at: Minimum, lr: float, size: int) -> Replicas:
        """Runs that start next to the minimum; of full-batch ones a few say it all."""
        name = f"{self.name}/growth/{lr / at.edge:.6g}/{size}"
        draws = around.stream(name)
        kicks = torch.randn(
            self.replicas if size else 2, len(at.w), dtype=at.w.dtype, generator=draws, device=at.w.device
        )
        return _sgd(at, at.w + KICK * kicks, lr, size, draws)

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
        moved = _sgd(at, at.w + SHOVE * shoves, start * at.edge, size, draws)
        for share in range(10):
            moved.run((share + 1) * self.landing_steps // 10 - share * self.landing_steps // 10)
            tick((share + 1) / 12)
        kept = moved.W[moved.W.isfinite().all(1)]
        tops = [lanczos(hessian(at.objective, w), copies=False).top.values[0] for w in kept]
        ends = torch.stack(tops).cpu() * start * at.edge / 2 if tops else torch.empty(0, dtype=torch.float64)
        tick(1.0)
        return Landing(size, critical, mean_square, start, ends, self.landing_replicas - len(kept))

    def _outcome(self, at: Minimum, cells: list[Cell], landings: list[Landing]) -> Outcome:
        rows = []
        for cell in cells:
            if cell.measured:
                name, closed = f"growth per step, {cell.name}", cell.batch_size == FULL
                rows.append(Comparison.of(name, cell.exponent.value, cell.against_theory, approximate=closed))
        rows += [
            Comparison(f"runs that left, {cell.name}", 0.0, float(cell.left), approximate=True)
            for cell in cells
            if cell.stays
        ]
        landed = [end for end in landings if len(end.ends)]
        for end in landed:
            name = f"S lr/2 where it lands, batch {end.batch_size or 'full'} (theory: at most)"
            rows.append(Comparison.of(name, end.critical, end.end, approximate=True))
        values = {
            "sharpness": at.curvature.sharpness,
            "non_uniformity": at.curvature.non_uniformity,
            "loss_of_the_minimum": at.loss,
            **{f"landed_over_critical_batch_{end.batch_size or 'full'}": end.ratio for end in landed},
            **{f"second_moment_growth_{cell.name}": cell.moments for cell in cells if cell.batch_size and cell.moments},
            **{f"runs_lost_landing_batch_{end.batch_size or 'full'}": float(end.lost) for end in landings if end.lost},
        }
        return Outcome(self._finding(at, cells, landed), rows, _arrays(cells, landings), values)

    def _finding(self, at: Minimum, cells: list[Cell], landed: list[Landing]) -> str:
        said = [
            f"A {PIXELS}-{self.hidden}-{CLASSES} tanh network fits {self.examples} digits exactly (loss {at.loss:.1g}, "
            f"sharpness S = {at.curvature.sharpness:.4g}), so no mini-batch has any noise there: what leaves does so "
            "ballistically, because its linearised steps are unstable."
        ]
        grew = [cell for cell in cells if cell.measured and cell.batch_size]
        if grew:
            said.append(self._on_growth(grew))
        missed = [cell.name for cell in cells if not cell.stays and not cell.measured]
        if missed:
            said.append(f"No growth was measured for {', '.join(missed)}: too few left in {self.stay_steps} steps.")
        gap = [cell for cell in cells if cell.stays and cell.moments > 0]
        if gap:
            left = sum(cell.left for cell in gap)
            said.append(
                f"Where second moments explode and the exponent is negative ({', '.join(cell.name for cell in gap)}), "
                f"{left} of {self.replicas * len(gap)} runs left in {self.stay_steps} steps."
            )
        if landed:
            told = ", ".join(f"{end.ratio:.3f} (batch {end.batch_size or 'full'})" for end in landed)
            late = f"have in {self.landing_steps} steps not all landed where the sharpness is stable"
            land = late if max(end.ratio for end in landed) > LANDED else "land where the sharpness is just stable"
            said.append(
                f"Runs at {self.landing_at:g} times their critical learning rate {land}: S lr/2 over the critical "
                f"value at the minimum they left is {told}; theory: at most 1."
            )
        return " ".join(said)

    def _on_growth(self, grew: list[Cell]) -> str:
        ratios = [cell.growth.value / cell.exponent.value for cell in grew]
        worst = max(grew, key=lambda cell: cell.moments / cell.exponent.value)
        shown = min(grew, key=lambda cell: abs(cell.growth.value - 0.1))
        growth = shown.against_theory
        over = [cell.moments / cell.exponent.value for cell in grew]
        between = f"between {min(ratios):.2f} and {max(ratios):.2f}" if len(grew) > 1 else f"{ratios[0]:.2f}"
        return (
            f"Growth per step is {between} times the Lyapunov exponent of their random product in {len(grew)} "
            f"combination{'s' * (len(grew) > 1)} of learning rate and batch size ({shown.name}: "
            f"{with_error(growth.value, growth.error)}, theory {shown.exponent.value:.4f}); half the logarithm "
            f"of the second-moment radius is {min(over):.1f} to {max(over):.1f} times the exponent, most at {worst.name}."
        )

    @staticmethod
    def figure(arrays: Mapping[str, np.ndarray], title: str) -> Figure:
        return draw(arrays, title)


@lru_cache(maxsize=4)
def digits_loss(examples: int, hidden: int, device: torch.device) -> NetworkObjective:
    """Half the squared error of a 64-hidden-10 tanh network on the first digits, float64, pixels of variance one."""
    everything = Digits(examples="all").load(progress=False).train
    x = everything.x.double() / everything.x.double().std(correction=0)
    data = x[:examples].to(device), everything.y[:examples].to(device)
    return NetworkObjective(_network(hidden, seed=0).to(device), MeanSquaredErrorCriterion(CLASSES), data)


def _network(hidden: int, *, seed: int) -> nn.Module:
    """Initial weights as torch's defaults in float64, drawn in the order W1, b1, W2, b2."""
    wide = partial(nn.Linear, dtype=torch.float64)
    return initialised(
        lambda: nn.Sequential(wide(PIXELS, hidden), nn.Tanh(), wide(hidden, CLASSES)), seed=seed, init_scale=1.0
    )


def _exponent(seed: int, at: Minimum, lr: float, size: int, steps: int, tol: float = 0.05) -> Estimate:
    """By the same random numbers at every call, so that it is a function of lr."""
    draws = stream(seed, "escape_ballistic/exponent", size)
    return lyapunov(
        at.curvature,
        UpdateRule(lr=lr),
        batch_size=size,
        sampling="with_replacement",
        steps=steps,
        replicas=PRODUCTS,
        generator=draws,
        tol=tol,
    )


def _sgd(at: Minimum, W: Tensor, lr: float, size: int, draws: torch.Generator) -> Replicas:
    return Replicas(at.objective, W, lambda w: optim.SGD(w, lr=lr), batch_size=size or None, generator=draws)


def _arrays(cells: list[Cell], landings: list[Landing]) -> dict[str, np.ndarray]:
    """Rows of cells: lr, batch size, exponent, log(rho)/2, growth, its error, left; of landings: batch size and so on."""
    return {
        "cells": np.array(
            [(c.lr, c.batch_size, c.exponent.value, c.moments, c.growth.value, c.growth.error, c.left) for c in cells]
        ),
        "edges": np.array([(e.batch_size, e.critical, e.mean_square, e.start) for e in landings]),
        "ends": np.array([np.pad(e.ends.numpy(), (0, e.lost), constant_values=np.nan) for e in landings]),
    }
