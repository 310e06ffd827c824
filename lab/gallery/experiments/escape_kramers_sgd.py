"""How SGD leaves a minimum: the log of its time rises along a line in B / lr, and the slope is a least action.

For noise of the size lr / B the mean time is exp(V B / lr) to leading order, with V the least Freidlin-Wentzell action from
the minimum to the saddle in the noise that mini-batches have, covariance D(w) at every place (`lab.gallery.laws.action`).
The noise is nothing like isotropic: D is large where the curvature is, and the way out is soft. Isotropic noise of the same
trace has the slope 2 dL P / Tr D, several times too small. Side by side at one B / lr: SGD, Gaussian noise whose covariance
follows the replica (the same, if the shape of the noise does not matter), the covariance frozen at the minimum, and
isotropic noise of equal trace.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field

from lab.escape.langer import third_minimum
from lab.escape.noises import Frozen, Isotropic, SampleWeights
from lab.escape.renewal import Stays
from lab.escape.replicas import Noise
from lab.escape.survival import Slope, exponentiality, same_rate, slope
from lab.gallery.experiments.base import Comparison, Experiment, Outcome, Surroundings, with_error
from lab.gallery.experiments.frame import panels
from lab.gallery.experiments.kramers_sgd_figure import draw_kinds, draw_line
from lab.gallery.experiments.stage import (
    CaseName,
    Stage,
    Theory,
    actions,
    bars,
    hasty,
    measured,
    memoryless,
    said_of,
    set_stage,
)
from lab.results import Rate
from lab.settings import settings

Batch = Annotated[int, Field(ge=1, le=100_000)]
Lr = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
FOLLOWING, FROZEN, ISOTROPIC = "Gaussian, D(w)", "Gaussian, D frozen", "isotropic, same trace"
MEMORYLESS = 1e-3
"""p below which exits do not come at a constant rate, two rates are not one, and points lie on no line."""


@settings()
class EscapeKramersSgd(Experiment):
    """How SGD leaves a minimum of a real network: log of the time against B/lr, its slope a least action; other noises
    beside it.

    Expect a slope of about 0.05 (theory 0.055) and the isotropic one, 0.0153, excluded; equal rates at equal B/lr.
    Elsewhere a frozen covariance is not SGD, by a factor of ten: case=C1 lr=0.2 batch_sizes=[8,12,16] other_lrs=[].
    """

    name: ClassVar[str] = "escape_kramers_sgd"
    on_cpu: ClassVar[bool] = True

    case: Annotated[
        CaseName,
        Field(description="network and pair of minima: K2 | C1 (higher barrier) | K1 (third minimum: a warning)"),
    ] = "K2"
    lr: Annotated[Lr, Field(description="learning rate of the line; time is lr * steps")] = 0.4
    batch_sizes: Annotated[tuple[Batch, ...], Field(description="of the line, drawn with replacement")] = (12, 20, 30)
    other_lrs: Annotated[tuple[Lr, ...], Field(description="that repeat the middle batch at equal B / lr")] = (0.2, 0.1)
    noises: Annotated[bool, Field(description="also Gaussian ones: D(w), D frozen at the minimum, isotropic")] = True
    replicas: Annotated[int, Field(ge=2, le=100_000, description="running at once at lr, more at smaller ones")] = 128
    exits: Annotated[int, Field(ge=3, le=1_000_000, description="after which it ends: error 1 / sqrt(exits)")] = 80
    steps: Annotated[int, Field(ge=100, le=100_000_000, description="after which it ends at the latest, at lr")] = (
        20_000
    )

    def __post_init__(self) -> None:
        if len(set(self.batch_sizes)) < max(2, len(self.batch_sizes)):
            raise ValueError("batch_sizes: expected two or more different numbers, e.g. [12,20,30]")
        if len({self.lr, *self.other_lrs}) < 1 + len(self.other_lrs):
            raise ValueError("other_lrs: expected learning rates different from each other and from lr")
        for lr in self.other_lrs:
            if abs(self.batch_at(lr) - round(self.batch_at(lr))) > 1e-9 or round(self.batch_at(lr)) < 1:
                raise ValueError(
                    f"other_lrs: at lr {lr:g} the batch of equal B / lr would be {self.batch_at(lr):.4g}; "
                    "expected a whole number"
                )

    @property
    def middle(self) -> int:
        """The batch size at which learning rates and noises are compared."""
        return sorted(self.batch_sizes)[len(self.batch_sizes) // 2]

    def batch_at(self, lr: float) -> float:
        """The batch size of equal B / lr."""
        return self.middle * lr / self.lr

    def stages(self) -> dict[str, float]:
        def cost(lr: float, B: int, weight: float = 1.0) -> float:
            """Seconds of one measurement; the rates are those of K2."""
            inside = 3 / 0.029 / lr
            replicas = self.replicas * max(1.0, self.lr / lr)
            leaving = self.exits / (replicas * 0.0117 * np.exp(-0.0515 * B / lr) * lr)
            return float(inside + min(leaving, self.steps * self.lr / lr)) * (
                2e-4 + weight * 1.9e-7 * replicas * (B + 2)
            )

        return {
            "minima, saddle, least action": 5.0,
            "SGD": sum(cost(self.lr, B) for B in self.batch_sizes),
            "other learning rates": sum(cost(lr, round(self.batch_at(lr))) for lr in self.other_lrs),
            "other noises": 3.5 * cost(self.lr, self.middle, 1.5) if self.noises else 0.0,
            "quench": 0.005 * self.exits * len(self.batch_sizes),
        }

    def simulate(self, around: Surroundings) -> Outcome:
        tick = around.stage("minima, saddle, least action")
        stage = set_stage(self.case)
        for lr, knob in ((self.lr, "lr"), *((lr, "other_lrs") for lr in self.other_lrs)):
            stage.require_stable(lr, knob)
        tick(0.4)
        theory = actions(self.case)
        tick(1.0)
        line = [
            self._stays(stage, around, f"B {B}", tick, batch_size=B)
            for B, tick in around.over("SGD", sorted(self.batch_sizes))
        ]
        again = [
            self._stays(stage, around, f"lr {lr:g}", tick, lr=lr, batch_size=round(self.batch_at(lr)))
            for lr, tick in around.over("other learning rates", self.other_lrs)
        ]
        kinds = _noises(stage, self.middle) if self.noises else {}
        others = {
            kind: self._stays(stage, around, kind, tick, noise=kinds[kind])
            for kind, tick in around.over("other noises", list(kinds))
        }
        _, labels = stage.ends(line, around.stage("quench"))
        return self._outcome(stage, theory, line, again, others, labels)

    def _stays(
        self,
        stage: Stage,
        around: Surroundings,
        name: str,
        tick: object,
        *,
        lr: float | None = None,
        batch_size: int | None = None,
        noise: Noise | None = None,
    ) -> Stays:
        lr = lr or self.lr
        return stage.run(
            lr,
            around.stream(f"{self.name}/{name}"),
            replicas=round(self.replicas * max(1.0, self.lr / lr)),
            exits=self.exits,
            steps=round(self.steps * self.lr / lr) + stage.burn_in(lr),
            batch_size=batch_size,
            noise=noise,
            tick=tick,  # type: ignore[arg-type]
        )

    def _outcome(
        self,
        stage: Stage,
        theory: Theory,
        line: list[Stays],
        again: list[Stays],
        others: dict[str, Stays],
        labels: torch.Tensor,
    ) -> Outcome:
        sizes, x = sorted(self.batch_sizes), [B / self.lr for B in sorted(self.batch_sizes)]
        rates = [measured(stay, self.lr) for stay in line]
        same = [measured(stay, lr) for stay, lr in zip(again, self.other_lrs, strict=True)]
        kinds = {kind: measured(stay, self.lr) for kind, stay in others.items()}
        real = [(a, r) for a, r, stay in zip(x, rates, line, strict=True) if r.exits and not hasty(stay)]
        fitted = slope(*zip(*real, strict=True)) if len(real) > 1 else None
        comparisons = []
        if fitted is not None:
            comparisons.append(
                Comparison(
                    "slope of log time against B/lr", theory.sgd.value, fitted.value, fitted.error, approximate=True
                )
            )
        comparisons.append(
            Comparison(
                "least action with D = 1, in 2 dL",
                1.0,
                theory.unit.value / (2 * stage.langer.barrier),
                approximate=True,
            )
        )
        comparisons += [
            memoryless(stay, f"B = {B}")
            for B, stay in zip(sizes, line, strict=True)
            if int(stay.times.exited.sum()) > 3
        ]
        middle = rates[sizes.index(self.middle)]
        return Outcome(
            self._finding(stage, theory, line, rates, again, same, kinds, others, fitted, labels),
            comparisons,
            {
                "x": np.array(x),
                "batch_sizes": np.array(sizes),
                "lr": np.array(self.lr),
                "rates": np.where([[hasty(stay)] for stay in line], np.nan, bars(rates)),  # drawn where there is a rate
                "other_lrs": np.array(self.other_lrs),
                "same": bars(same),
                "kinds": np.array(list(kinds)),
                "kind_rates": bars(list(kinds.values())),
                "hasty": np.array([hasty(stay) for stay in (line[sizes.index(self.middle)], *others.values())]),
                "middle": np.array([self.middle, *bars([middle])[0]]),
                "slopes": np.array([theory.sgd.value, theory.chord, theory.isotropic]),
                "fitted": np.array(
                    [np.nan] * 4 if fitted is None else [fitted.value, fitted.low, fitted.high, fitted.intercept]
                ),
                "case": np.array(stage.case.words),
            },
            {
                "action": theory.sgd.value,
                "action_unit": theory.unit.value,
                "slope_chord": theory.chord,
                "slope_isotropic": theory.isotropic,
                "barrier": stage.langer.barrier,
                "noise_trace": float(stage.D.trace()),
                "ends_elsewhere": float((labels < 0).sum()),
            }
            | ({} if fitted is None else {"slope": fitted.value, "slope_low": fitted.low, "slope_high": fitted.high})
            | {f"rate_B_{B}": r.value for B, r in zip(sizes, rates, strict=True) if r.exits}
            | {f"rate_lr_{lr:g}": r.value for lr, r in zip(self.other_lrs, same, strict=True) if r.exits}
            | {f"rate_{kind.replace(' ', '_')}": r.value for kind, r in kinds.items() if r.exits},
        )

    def _finding(
        self,
        stage: Stage,
        theory: Theory,
        line: list[Stays],
        rates: list[Rate],
        again: list[Stays],
        same: list[Rate],
        kinds: dict[str, Rate],
        others: dict[str, Stays],
        fitted: Slope | None,
        labels: torch.Tensor,
    ) -> str:
        sizes = sorted(self.batch_sizes)
        told = "; ".join(f"B = {B}: {said_of(stay, r)}" for B, stay, r in zip(sizes, line, rates, strict=True))
        said = [
            f"{stage.words()}. {self.replicas} replicas of SGD (lr {self.lr:g}, batches with replacement) leave at {told}",
            self._line(theory, fitted),
        ]
        middle = rates[sizes.index(self.middle)]
        if same:
            several = ", ".join(
                f"{said_of(stay, r)} at lr {lr:g}" for lr, stay, r in zip(self.other_lrs, again, same, strict=True)
            )
            said.append(
                f"At the same B/lr = {self.middle / self.lr:g} other learning rates give {several} (p of one rate for all: "
                f"{same_rate([middle, *same]):.2g})"
            )
        if kinds:
            said.append(
                f"At lr {self.lr:g} and with the covariance of B = {self.middle}, "
                + "; ".join(
                    _beside(kind, r, middle, others[kind], theory, self.middle / self.lr) for kind, r in kinds.items()
                )
            )
        problems = third_minimum(labels)
        uneven = [B for B, stay in zip(sizes, line, strict=True) if exponentiality(stay.times).p < MEMORYLESS]
        if uneven:
            problems.append(
                f"exits at B = {', '.join(map(str, uneven))} do not come at a constant rate (p < {MEMORYLESS:g})"
            )
        ends = len(labels)
        said.append(
            f"WARNING: {'; '.join(problems)}"
            if problems
            else f"A converged quench of the {ends} ends finds the two minima and no other"
        )
        return ". ".join(said) + "."

    def _line(self, theory: Theory, fitted: Slope | None) -> str:
        lines = (
            f"least action {theory.sgd.value:.4f} in the measured noise, {theory.chord:.4f} along the straight line, "
            f"{theory.isotropic:.4f} for isotropic noise of equal trace"
        )
        if fitted is None:
            return f"Too few rates for a slope of the log of the time against B/lr (theory: {lines})"
        excluded = not fitted.low <= theory.isotropic <= fitted.high
        bent = fitted.p < MEMORYLESS
        return (
            f"The log of the mean time rises with B/lr by {with_error(fitted.value, fitted.error)} [{fitted.low:.4f}, "
            f"{fitted.high:.4f}] (theory: {lines}); the isotropic slope is {'EXCLUDED' if excluded else 'not excluded'}"
            + (
                f". The points do NOT lie on a line (p = {fitted.p:.1g}): the noise is not small, no action is seen"
                if bent
                else ""
            )
        )

    @staticmethod
    def figure(arrays: Mapping[str, np.ndarray], title: str) -> Figure:
        title = f"{title}\n{arrays['case']}"
        if not len(arrays["kinds"]):
            return panels(arrays, title, (draw_line,), size=(7.4, 5.2))
        draws = (draw_line, draw_kinds)
        return panels(arrays, title, draws, size=(12.0, 5.2), widths=(3, 2), gridless=(draw_kinds,))


def _noises(stage: Stage, batch_size: int) -> dict[str, Noise]:
    """Gaussian noises of the covariance D / B of mini-batches: at every place, of the well everywhere, its trace alone."""
    trace, size = float(stage.D.trace()), len(stage.D)
    return {
        FOLLOWING: SampleWeights(batch_size),
        FROZEN: Frozen.at(stage.objective, stage.well.w, batch_size),
        ISOTROPIC: Isotropic.of_trace(trace / batch_size, size),
    }


def _beside(kind: str, found: Rate, sgd: Rate, stay: Stays, theory: Theory, x: float) -> str:
    """A noise beside SGD in words; where replicas do not wait, no rate is told."""
    barrier = f"dL/T = {theory.isotropic * x:.2g}" if kind == ISOTROPIC else ""
    said = f"{kind} noise: {said_of(stay, found, barrier)}"
    if found.exits and sgd.exits and not hasty(stay):
        said += f", {found.value / sgd.value:.2f} times that of SGD (p of the same: {same_rate([sgd, found]):.1g})"
    return said
