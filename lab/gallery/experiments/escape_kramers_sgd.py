"""How SGD leaves a minimum: the log of its time rises along a line in B / lr, and the slope is a least action.

For noise of the size lr / B the mean time is exp(V B / lr) to leading order, with V the least Freidlin-Wentzell action from
the minimum to the saddle in the noise that mini-batches have, covariance D(w) at every place (`lab.gallery.laws.action`).
The noise is nothing like isotropic: D is large where the curvature is, and the way out is soft. Isotropic noise of the same
trace has the slope 2 dL P / Tr D, several times too small. Side by side at one B / lr: SGD, Gaussian noise whose covariance
follows the replica (the same, if the shape of the noise does not matter), the covariance frozen at the minimum, and
isotropic noise of equal trace.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field

from lab.escape.langer import third_minimum
from lab.escape.noises import Frozen, Isotropic, SampleWeights
from lab.escape.renewal import Stays
from lab.escape.replicas import Noise
from lab.escape.survival import Slope, exponentiality, same_rate, slope
from lab.gallery.base import Experiment, Measured, Outcome, Surroundings, Verdict, about, shown
from lab.gallery.experiments.kramers_sgd_figure import draw_kinds, draw_line
from lab.gallery.experiments.stage import CaseName, Stage, Theory, actions, set_stage
from lab.gallery.experiments.stays import bars, hasty, measured_rate, memoryless, rate_in_words
from lab.gallery.frame import Arrays, Figure, panels
from lab.progress import Tick
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
        self.require_different("batch_sizes", "[12,20,30]", least=2)
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

        def stay(name: str, tick: Tick, lr: float, batch_size: int | None, noise: Noise | None = None) -> Stays:
            return stage.run(
                lr,
                around.stream(f"{self.name}/{name}"),
                replicas=round(self.replicas * max(1.0, self.lr / lr)),
                exits=self.exits,
                steps=round(self.steps * self.lr / lr) + stage.burn_in(lr),
                batch_size=batch_size,
                noise=noise,
                tick=tick,
            )

        def again(lr: float, tick: Tick) -> Stays:
            return stay(f"lr {lr:g}", tick, lr, round(self.batch_at(lr)))

        noises = _noises(stage, self.middle) if self.noises else {}
        line = around.each("SGD", sorted(self.batch_sizes), lambda B, tick: stay(f"B {B}", tick, self.lr, B))
        same = around.each("other learning rates", self.other_lrs, again)
        kinds = around.each(
            "other noises", list(noises), lambda kind, tick: stay(kind, tick, self.lr, None, noises[kind])
        )
        _, labels = stage.ends(list(line.values()), around.stage("quench"))
        return SgdHeld(self, stage, theory, line, same, kinds, labels).outcome()

    @staticmethod
    def figure(arrays: Arrays, title: str) -> Figure:
        title = f"{title}\n{arrays['case']}"
        if not len(arrays["kinds"]):
            return panels(arrays, title, (draw_line,), size=(7.4, 5.2))
        draws = (draw_line, draw_kinds)
        return panels(arrays, title, draws, size=(12.0, 5.2), widths=(3, 2), gridless=(draw_kinds,))


@dataclass(frozen=True)
class SgdHeld(Measured):
    """Stays in the well: of SGD by batch size, at equal B / lr by learning rate, by kind of noise; and the minima at which
    the first end.
    """

    card: EscapeKramersSgd
    stage: Stage
    theory: Theory
    line: dict[int, Stays]
    again: dict[float, Stays]
    others: dict[str, Stays]
    labels: torch.Tensor

    @cached_property
    def rates(self) -> dict[int, Rate]:
        """Of SGD by batch size."""
        return {B: measured_rate(stay, self.card.lr) for B, stay in self.line.items()}

    @cached_property
    def same(self) -> dict[float, Rate]:
        """At equal B / lr, by learning rate."""
        return {lr: measured_rate(stay, lr) for lr, stay in self.again.items()}

    @cached_property
    def kinds(self) -> dict[str, Rate]:
        """By kind of noise."""
        return {kind: measured_rate(stay, self.card.lr) for kind, stay in self.others.items()}

    @property
    def middle(self) -> Rate:
        """Of SGD, where learning rates and noises are compared."""
        return self.rates[self.card.middle]

    @cached_property
    def fitted(self) -> Slope | None:
        """Of log time against B / lr; None where fewer than two batch sizes have a rate."""
        real = [(B / self.card.lr, r) for B, r in self.rates.items() if r.exits and not hasty(self.line[B])]
        return slope(*zip(*real, strict=True)) if len(real) > 1 else None

    def rows(self) -> list[Verdict]:
        rows, unit = [], self.theory.unit.value / (2 * self.stage.langer.barrier)
        if self.fitted is not None:
            rows.append(about("slope of log time against B/lr", self.theory.sgd.value, self.fitted))
        rows.append(about("least action with D = 1, in 2 dL", 1.0, unit))
        enough = [(B, stay) for B, stay in self.line.items() if int(stay.times.exited.sum()) > 3]
        return [*rows, *(memoryless(stay, f"B = {B}") for B, stay in enough)]

    def arrays(self) -> dict[str, object]:
        card, theory, fitted = self.card, self.theory, self.fitted
        line = np.where([[hasty(stay)] for stay in self.line.values()], np.nan, bars(list(self.rates.values())))
        return {
            "x": [B / card.lr for B in self.line],
            "batch_sizes": list(self.line),
            "lr": card.lr,
            "rates": line,  # drawn where there is a rate
            "other_lrs": list(self.same),
            "same": bars(list(self.same.values())),
            "kinds": list(self.kinds),
            "kind_rates": bars(list(self.kinds.values())),
            "hasty": [hasty(stay) for stay in (self.line[card.middle], *self.others.values())],
            "middle": [card.middle, *bars([self.middle])[0]],
            "slopes": [theory.sgd.value, theory.chord, theory.isotropic],
            "fitted": [np.nan] * 4 if fitted is None else [fitted.value, fitted.low, fitted.high, fitted.intercept],
            "case": self.stage.case.words,
        }

    def values(self) -> dict[str, float]:
        theory, fitted = self.theory, self.fitted
        fit = {} if fitted is None else {"slope": fitted.value, "slope_low": fitted.low, "slope_high": fitted.high}
        rates = {f"B_{B}": r for B, r in self.rates.items()} | {f"lr_{lr:g}": r for lr, r in self.same.items()}
        rates |= {kind.replace(" ", "_"): r for kind, r in self.kinds.items()}
        return {
            "action": theory.sgd.value,
            "action_unit": theory.unit.value,
            "slope_chord": theory.chord,
            "slope_isotropic": theory.isotropic,
            "barrier": self.stage.langer.barrier,
            "noise_trace": float(self.stage.D.trace()),
            "ends_elsewhere": float((self.labels < 0).sum()),
            **fit,
            **{f"rate_{name}": rate.value for name, rate in rates.items() if rate.exits},
        }

    def sentence(self) -> str:
        card, x = self.card, self.card.middle / self.card.lr
        line = "; ".join(f"B = {B}: {rate_in_words(self.line[B], rate)}" for B, rate in self.rates.items())
        sentences = [
            f"{self.stage.words()}. {card.replicas} replicas of SGD (lr {card.lr:g}, batches with replacement) leave "
            f"at {line}",
            self._slope(),
        ]
        if self.same:
            several = ", ".join(f"{rate_in_words(self.again[lr], rate)} at lr {lr:g}" for lr, rate in self.same.items())
            sentences.append(
                f"At the same B/lr = {x:g} other learning rates give {several} (p of one rate for all: "
                f"{same_rate([self.middle, *self.same.values()]):.2g})"
            )
        if self.kinds:
            beside = "; ".join(map(self._beside, self.kinds))
            sentences.append(f"At lr {card.lr:g} and with the covariance of B = {card.middle}, {beside}")
        return ". ".join([*sentences, self._ends()]) + "."

    def _ends(self) -> str:
        """Where runs end, and what speaks against a rate."""
        problems = third_minimum(self.labels)
        uneven = [B for B, stay in self.line.items() if exponentiality(stay.times).p < MEMORYLESS]
        if uneven:
            sizes = ", ".join(map(str, uneven))
            problems.append(f"exits at B = {sizes} do not come at a constant rate (p < {MEMORYLESS:g})")
        if problems:
            return f"WARNING: {'; '.join(problems)}"
        return f"A converged quench of the {len(self.labels)} ends finds the two minima and no other"

    def _slope(self) -> str:
        """The slope and its theories."""
        theory, fitted = self.theory, self.fitted
        lines = (
            f"least action {theory.sgd.value:.4f} in the measured noise, {theory.chord:.4f} along the straight line, "
            f"{theory.isotropic:.4f} for isotropic noise of equal trace"
        )
        if fitted is None:
            return f"Too few rates for a slope of the log of the time against B/lr (theory: {lines})"
        excluded = not fitted.low <= theory.isotropic <= fitted.high
        bent = f". The points do NOT lie on a line (p = {fitted.p:.1g}): the noise is not small, no action is seen"
        return (
            f"The log of the mean time rises with B/lr by {shown(fitted)} [{fitted.low:.4f}, "
            f"{fitted.high:.4f}] (theory: {lines}); the isotropic slope is {'EXCLUDED' if excluded else 'not excluded'}"
            + bent
            * (fitted.p < MEMORYLESS)
        )

    def _beside(self, kind: str) -> str:
        """A noise beside SGD; where replicas do not wait, no rate is told."""
        rate, stay, sgd = self.kinds[kind], self.others[kind], self.middle
        barrier = f"dL/T = {self.theory.isotropic * self.card.middle / self.card.lr:.2g}" if kind == ISOTROPIC else ""
        words = f"{kind} noise: {rate_in_words(stay, rate, barrier)}"
        if rate.exits and sgd.exits and not hasty(stay):
            words += f", {rate.value / sgd.value:.2f} times that of SGD (p of the same: {same_rate([sgd, rate]):.1g})"
        return words


def _noises(stage: Stage, batch_size: int) -> dict[str, Noise]:
    """Gaussian noises of the covariance D / B of mini-batches: at every place, of the well everywhere, its trace "
    "alone."""
    trace, size = float(stage.D.trace()), len(stage.D)
    return {
        FOLLOWING: SampleWeights(batch_size),
        FROZEN: Frozen.at(stage.objective, stage.well.w, batch_size),
        ISOTROPIC: Isotropic.of_trace(trace / batch_size, size),
    }
