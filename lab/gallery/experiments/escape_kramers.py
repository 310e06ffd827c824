"""Kramers' law in a real network: how long noise of a given temperature needs out of a minimum, and no parameter fitted.

Gradient descent with isotropic Gaussian noise of variance 2T/lr in every coordinate is Langevin dynamics; from the minimum
a over the saddle s it leaves at Langer's rate (`lab.escape.langer`), every number of which is measured beforehand: the
barrier, the Hessian at a, the Hessian at s. Measured rates are counted from replicas, an exit being half way beyond the
saddle, and the ends checked by a converged quench. Where that finds a third minimum, or the well is no bowl, or the barrier
is no barrier, the formula is refused and the reason told.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field

from lab.escape.noises import Isotropic
from lab.escape.renewal import Stays
from lab.escape.survival import against, kaplan_meier
from lab.gallery.base import Experiment, Measured, Outcome, Surroundings, Verdict
from lab.gallery.experiments.stage import CaseName, Stage, set_stage
from lab.gallery.experiments.stays import bars, draw_string, measured_rate, memoryless, rate_in_words
from lab.gallery.frame import Arrays, Axes, Figure, caption, law, panels
from lab.progress import Tick
from lab.results import Rate
from lab.settings import settings

SECONDS_PER_STEP = 6e-6
"""Of one replica."""
COLORS = ("tab:blue", "tab:orange", "tab:purple", "tab:brown", "tab:olive", "tab:cyan")


@settings()
class EscapeKramers(Experiment):
    """Kramers' law in a real network: escape over a saddle by isotropic noise, against Langer's rate from measured
    Hessians.

    Nothing is fitted: minima, saddle and both Hessians are found first. Expect measured over theory 0.7 to 1.0 (the formula
    is the limit of high barriers). case=K1 has a third minimum that the converged quench finds: the formula is refused
    there.
    """

    name: ClassVar[str] = "escape_kramers"
    on_cpu: ClassVar[bool] = True

    case: Annotated[
        CaseName, Field(description="network and pair of minima: K2 | C1 (wider well) | K1 (third minimum: a warning)")
    ] = "K2"
    barriers: Annotated[
        tuple[Annotated[float, Field(ge=0.1, le=12)], ...],
        Field(description="barrier over temperature dL / T, one measurement each"),
    ] = (3.0, 4.0)
    lr: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, description="learning rate; time is lr * steps")] = 0.4
    replicas: Annotated[int, Field(ge=2, le=100_000, description="running at once")] = 128
    exits: Annotated[int, Field(ge=3, le=1_000_000, description="after which it ends: error 1 / sqrt(exits)")] = 60
    steps: Annotated[int, Field(ge=100, le=100_000_000, description="after which it ends at the latest")] = 20_000

    def __post_init__(self) -> None:
        if not self.barriers or len(set(self.barriers)) < len(self.barriers) or len(self.barriers) > len(COLORS):
            raise ValueError(f"barriers: expected one to {len(COLORS)} different numbers dL / T, e.g. [3,4]")

    def stages(self) -> dict[str, float]:
        # Rates fall as exp(-dL / T); at 4 it takes some 7000 steps to see 60 of 128 replicas leave.
        wanted = [7000 * np.exp(x - 4) * (self.exits / 60) * (128 / self.replicas) + 300 for x in self.barriers]
        steps = float(sum(min(w, self.steps) for w in wanted))
        return {
            "minima and saddle": 3.0,
            "replicas": SECONDS_PER_STEP * self.replicas * steps,
            "quench": 0.01 * self.exits * len(self.barriers),
        }

    def simulate(self, around: Surroundings) -> Outcome:
        tick = around.stage("minima and saddle")
        stage = set_stage(self.case)
        stage.require_stable(self.lr, "lr")
        tick(1.0)

        def stay(x: float, tick: Tick) -> Stays:
            return stage.run(
                self.lr,
                around.stream(f"{self.name}/replicas {x:g}"),
                replicas=self.replicas,
                exits=self.exits,
                steps=self.steps + stage.burn_in(self.lr),
                noise=Isotropic.at_temperature(stage.langer.barrier / x, self.lr),
                tick=tick,
            )

        stays = around.each("replicas", sorted(self.barriers), stay)
        ends, labels = stage.ends(list(stays.values()), around.stage("quench"))
        return LangerHeld(self, stage, stays, ends.values, labels).outcome()

    @staticmethod
    def figure(arrays: Arrays, title: str) -> Figure:
        draws = (draw_string, _draw_law, _draw_survival)
        return panels(arrays, f"{title}\n{arrays['case']}", draws, size=(12.5, 4.6))


@dataclass(frozen=True)
class LangerHeld(Measured):
    """Stays in the well by dL / T, and the losses and minima at which those end that left or were still inside."""

    card: EscapeKramers
    stage: Stage
    stays: dict[float, Stays]
    ends: torch.Tensor
    labels: torch.Tensor

    @cached_property
    def rates(self) -> dict[float, Rate]:
        """Measured, per unit of lr * step."""
        return {x: measured_rate(stay, self.card.lr) for x, stay in self.stays.items()}

    @cached_property
    def theory(self) -> dict[float, float]:
        """Langer's rates."""
        return {x: self.stage.langer.rate(self.stage.langer.barrier / x) for x in self.stays}

    @cached_property
    def refused(self) -> dict[float, list[str]]:
        """Why his formula means nothing there; empty where it means something."""
        return {x: self.stage.langer.refusals(self.stage.langer.barrier / x, self.labels) for x in self.stays}

    @property
    def held(self) -> list[float]:
        """The barriers at which it does."""
        return [x for x, reasons in self.refused.items() if not reasons]

    @cached_property
    def pooled(self) -> Rate | None:
        """All of these over their theory."""
        return against([self.rates[x] for x in self.held], [self.theory[x] for x in self.held]) if self.held else None

    def rows(self) -> list[Verdict]:
        rows = []
        for x in self.held:
            rate, ratio = self.rates[x], self.rates[x].value / self.theory[x]
            if rate.exits:
                rows.append(Verdict(f"rate over Langer's, dL/T = {x:g}", 1.0, ratio, ratio / rate.exits**0.5, True))
        pooled = self.pooled
        if pooled is not None and pooled.exits and len(self.held) > 1:
            rows.append(Verdict("all together", 1.0, pooled.value, pooled.value / pooled.exits**0.5, True))
        enough = [(x, stay) for x, stay in self.stays.items() if stay.times.exited.sum() > 3]
        return [*rows, *(memoryless(stay, f"dL/T = {x:g}") for x, stay in enough)]

    def arrays(self) -> dict[str, object]:
        stays = enumerate(self.stays.values())
        curves = {i: kaplan_meier(stay.times) for i, stay in stays if bool(stay.times.exited.any())}
        return {
            **self.stage.arrays(),
            "barriers": list(self.stays),
            "rates": bars(list(self.rates.values())),
            "theory": list(self.theory.values()),
            "refused": [bool(reasons) for reasons in self.refused.values()],
            "prefactor": self.stage.langer.prefactor,
            "curve": np.concatenate([np.full(len(c.times), i) for i, c in curves.items()] or [np.zeros(0)]),
            "times": np.concatenate([c.times.numpy() * self.card.lr for c in curves.values()] or [np.zeros(0)]),
            "survival": np.concatenate([c.survival.numpy() for c in curves.values()] or [np.zeros(0)]),
            "case": self.stage.case.words,
        }

    def values(self) -> dict[str, float]:
        this = self.stage.langer
        return {
            "barrier": this.barrier,
            "barrier_back": this.back,
            "negative_curvature": float(this.saddle.eigenvalues[0]),
            "prefactor": this.prefactor,
            "least_curvature_of_the_well": float(this.well.eigenvalues[0]),
            "largest_curvature_of_the_well": float(this.well.eigenvalues[-1]),
            "saddle_gradient_norm": this.saddle.grad_norm,
            "ends_elsewhere": float((self.labels < 0).sum()),
        } | {f"rate_at_{x:g}": rate.value for x, rate in self.rates.items() if rate.exits}

    def sentence(self) -> str:
        card, parts, pooled = self.card, [], self.pooled
        for x, rate in self.rates.items():
            part = f"dL/T = {x:g}: {rate_in_words(self.stays[x], rate)}"
            if not self.refused[x]:
                ratio = f", ratio {rate.value / self.theory[x]:.2f}" if rate.exits else ""
                part += f", theory {self.theory[x]:.3g}{ratio}"
            parts.append(part)
        levels = ", ".join(f"{v:.4f}" for v in sorted({round(float(v), 4) for v in self.ends}))
        closing = [f"A converged quench of all {len(self.labels)} ends finds the losses {levels}."]
        if any(self.refused.values()):
            reasons = _reasons(list(self.refused), list(self.refused.values()))
            closing.append(f"Langer's formula is REFUSED: {reasons}. Those rates stand without theory.")
        if pooled is not None and pooled.exits:
            closing.append(
                f"Measured over theory {pooled.value:.2f} [{pooled.low:.2f}, {pooled.high:.2f}], nothing fitted; "
                "the formula is the limit of high barriers."
            )
        return (
            f"{self.stage.words()}. {card.replicas} replicas of gradient descent (lr {card.lr:g}) with isotropic noise of "
            f"temperature T leave, against Langer's theory from the measured Hessians (prefactor "
            f"{self.stage.langer.prefactor:.4g}): {'; '.join(parts)}. {' '.join(closing)}"
        )


def _reasons(barriers: list[float], refused: list[list[str]]) -> str:
    """Every reason once, with the measurements it holds for unless it holds for all."""
    said = {
        reason: [x for x, no in zip(barriers, refused, strict=True) if reason in no] for no in refused for reason in no
    }
    ordered = sorted(said.items(), key=lambda item: -len(item[1]))
    return "; ".join(
        reason if len(at) == len(barriers) else f"at dL/T = {', '.join(f'{x:g}' for x in at)} {reason}"
        for reason, at in ordered
    )


def _draw_law(axis: Axes, arrays: Arrays) -> None:
    x, (value, low, high) = arrays["barriers"], arrays["rates"].T
    grid = np.linspace(min(x.min() - 0.7, 2.3), max(x.max() + 0.7, 5), 50)
    refused = bool(arrays["refused"].all())
    law = arrays["prefactor"] * np.exp(-grid)
    axis.semilogy(
        grid,
        law,
        color="0.6" if refused else "tab:red",
        ls=":" if refused else "--",
        lw=1.4,
        label="Langer, refused here" if refused else "theory: Langer, nothing fitted",
    )
    seen = np.isfinite(low)
    for i in range(len(x)):
        color = COLORS[i % len(COLORS)]
        if seen[i]:
            reach = [[value[i] - low[i]], [high[i] - value[i]]]
            axis.errorbar(x[i], value[i], reach, color=color, marker="o", ms=6, capsize=3, ls="")
        else:
            axis.plot(x[i], high[i], color=color, marker="v", ms=8, ls="")
    axis.plot([], [], color="k", marker="o", ls="", label="replicas, 95 %")
    if not seen.all():
        axis.plot([], [], color="k", marker="v", ls="", label="no exit: below")
    axis.set(xlabel="barrier over temperature dL / T", ylabel="rate of escape (per lr * step)")
    caption(axis, "Kramers' law", "upper right")


def _draw_survival(axis: Axes, arrays: Arrays) -> None:
    for i, x in enumerate(arrays["barriers"]):
        mine = arrays["curve"] == i
        t, s = arrays["times"][mine], arrays["survival"][mine]
        if not mine.any():
            continue
        color = COLORS[i % len(COLORS)]
        axis.step(np.r_[0, t], np.r_[1, s], where="post", color=color, lw=1.3, label=f"replicas, dL/T = {x:g}")
        end = t.max()
        if not arrays["refused"][i]:
            law(axis, [0, end], [1, np.exp(-arrays["theory"][i] * end)], color=color)
    axis.set_yscale("log")
    lowest = float(arrays["survival"].min()) if len(arrays["survival"]) else 0.5
    ticks = [share for share in (1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02) if share > 0.8 * lowest]
    axis.set_yticks(ticks, [f"{100 * share:g} %" for share in ticks])
    axis.set_yticks([], minor=True)
    axis.set_ylim(0.8 * lowest, 1.25)
    if not arrays["refused"].all():
        law(axis, [], [], "theory: exp(-rate t)", "k")
    axis.set(xlabel="time inside (lr * steps)", ylabel="share still inside")
    axis.set_title("Kaplan-Meier: a straight line is a rate", fontsize=10)
    if len(arrays["survival"]):
        axis.legend(loc="upper right", frameon=False, fontsize=9)
    else:
        axis.text(0.5, 0.5, "no replica has left", transform=axis.transAxes, ha="center", va="center")
