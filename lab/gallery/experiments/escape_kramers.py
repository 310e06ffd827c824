"""Kramers' law in a real network: how long noise of a given temperature needs out of a minimum, and no parameter fitted.

Gradient descent with isotropic Gaussian noise of variance 2T/lr in every coordinate is Langevin dynamics; from the minimum
a over the saddle s it leaves at Langer's rate (`lab.escape.langer`), every number of which is measured beforehand: the
barrier, the Hessian at a, the Hessian at s. Measured rates are counted from replicas, an exit being half way beyond the
saddle, and the ends checked by a converged quench. Where that finds a third minimum, or the well is no bowl, or the barrier
is no barrier, the formula is refused and the reason told.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field

from lab.escape.noises import Isotropic
from lab.escape.renewal import Stays
from lab.escape.survival import against, kaplan_meier
from lab.gallery.experiments.base import Comparison, Experiment, Outcome, Surroundings
from lab.gallery.experiments.frame import panels
from lab.gallery.experiments.stage import CaseName, Stage, bars, draw_string, measured, memoryless, said_of, set_stage
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
        stays = []
        for x, tick in around.over("replicas", sorted(self.barriers)):
            stays.append(
                stage.run(
                    self.lr,
                    around.stream(f"{self.name}/replicas {x:g}"),
                    replicas=self.replicas,
                    exits=self.exits,
                    steps=self.steps + stage.burn_in(self.lr),
                    noise=Isotropic.at_temperature(stage.langer.barrier / x, self.lr),
                    tick=tick,
                )
            )
        found, labels = stage.ends(stays, around.stage("quench"))
        return self._outcome(stage, stays, found.values, labels)

    def _outcome(self, stage: Stage, stays: list[Stays], ends: torch.Tensor, labels: torch.Tensor) -> Outcome:
        barriers, this = sorted(self.barriers), stage.langer
        temperatures = [this.barrier / x for x in barriers]
        rates = [measured(stay, self.lr) for stay in stays]
        theory = [this.rate(T) for T in temperatures]
        refused = [this.refusals(T, labels) for T in temperatures]
        held = [(r, k, x) for r, k, x, no in zip(rates, theory, barriers, refused, strict=True) if not no]
        comparisons = [
            Comparison(
                f"rate over Langer's, dL/T = {x:g}", 1.0, r.value / k, r.value / k / r.exits**0.5, approximate=True
            )
            for r, k, x in held
            if r.exits
        ]
        pooled = against([r for r, _, _ in held], [k for _, k, _ in held]) if held else None
        if pooled is not None and pooled.exits and len(held) > 1:
            error = pooled.value / pooled.exits**0.5
            comparisons.append(Comparison("all together", 1.0, pooled.value, error, approximate=True))
        comparisons += [
            memoryless(stay, f"dL/T = {x:g}")
            for stay, x in zip(stays, barriers, strict=True)
            if stay.times.exited.sum() > 3
        ]
        curves = [kaplan_meier(stay.times) if bool(stay.times.exited.any()) else None for stay in stays]
        return Outcome(
            self._finding(stage, stays, barriers, rates, theory, refused, pooled, ends, labels),
            comparisons,
            {
                **stage.arrays(),
                "barriers": np.array(barriers),
                "rates": bars(rates),
                "theory": np.array(theory),
                "refused": np.array([bool(no) for no in refused]),
                "prefactor": np.array(this.prefactor),
                "curve": np.concatenate([np.full(len(c.times), i) for i, c in enumerate(curves) if c] or [np.zeros(0)]),
                "times": np.concatenate([c.times.numpy() * self.lr for c in curves if c] or [np.zeros(0)]),
                "survival": np.concatenate([c.survival.numpy() for c in curves if c] or [np.zeros(0)]),
                "case": np.array(stage.case.words),
            },
            {
                "barrier": this.barrier,
                "barrier_back": this.back,
                "negative_curvature": float(this.saddle.eigenvalues[0]),
                "prefactor": this.prefactor,
                "least_curvature_of_the_well": float(this.well.eigenvalues[0]),
                "largest_curvature_of_the_well": float(this.well.eigenvalues[-1]),
                "saddle_gradient_norm": this.saddle.grad_norm,
                "ends_elsewhere": float((labels < 0).sum()),
            }
            | {f"rate_at_{x:g}": r.value for x, r in zip(barriers, rates, strict=True) if r.exits},
        )

    def _finding(
        self,
        stage: Stage,
        stays: list[Stays],
        barriers: list[float],
        rates: list[Rate],
        theory: list[float],
        refused: list[list[str]],
        pooled: Rate | None,
        ends: torch.Tensor,
        labels: torch.Tensor,
    ) -> str:
        told = []
        for x, stay, r, k, no in zip(barriers, stays, rates, theory, refused, strict=True):
            said = f"dL/T = {x:g}: {said_of(stay, r)}"
            if not no:
                said += f", theory {k:.3g}" + (f", ratio {r.value / k:.2f}" if r.exits else "")
            told.append(said)
        levels = ", ".join(f"{v:.4f}" for v in sorted({round(float(v), 4) for v in ends}))
        quenched = f"A converged quench of all {len(labels)} ends finds the losses {levels}"
        closing = [f"{quenched}."]
        if any(refused):
            closing.append(
                f"Langer's formula is REFUSED: {_reasons(barriers, refused)}. Those rates stand without theory."
            )
        if pooled is not None and pooled.exits:
            closing.append(
                f"Measured over theory {pooled.value:.2f} [{pooled.low:.2f}, {pooled.high:.2f}], nothing fitted; "
                "the formula is the limit of high barriers."
            )
        return (
            f"{stage.words()}. {self.replicas} replicas of gradient descent (lr {self.lr:g}) with isotropic noise of "
            f"temperature T leave, against Langer's theory from the measured Hessians (prefactor "
            f"{stage.langer.prefactor:.4g}): {'; '.join(told)}. {' '.join(closing)}"
        )

    @staticmethod
    def figure(arrays: Mapping[str, np.ndarray], title: str) -> Figure:
        draws = (draw_string, _draw_law, _draw_survival)
        return panels(arrays, f"{title}\n{arrays['case']}", draws, size=(12.5, 4.6))


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


def _draw_law(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
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
    axis.set_title("Kramers' law", fontsize=10)
    axis.legend(loc="upper right", frameon=False, fontsize=9)


def _draw_survival(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    for i, x in enumerate(arrays["barriers"]):
        mine = arrays["curve"] == i
        t, s = arrays["times"][mine], arrays["survival"][mine]
        if not mine.any():
            continue
        color = COLORS[i % len(COLORS)]
        axis.step(np.r_[0, t], np.r_[1, s], where="post", color=color, lw=1.3, label=f"replicas, dL/T = {x:g}")
        end = t.max()
        if not arrays["refused"][i]:
            axis.plot([0, end], [1, np.exp(-arrays["theory"][i] * end)], color=color, ls="--", lw=1.2)
    axis.set_yscale("log")
    lowest = float(arrays["survival"].min()) if len(arrays["survival"]) else 0.5
    ticks = [share for share in (1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02) if share > 0.8 * lowest]
    axis.set_yticks(ticks, [f"{100 * share:g} %" for share in ticks])
    axis.set_yticks([], minor=True)
    axis.set_ylim(0.8 * lowest, 1.25)
    if not arrays["refused"].all():
        axis.plot([], [], color="k", ls="--", lw=1.2, label="theory: exp(-rate t)")
    axis.set(xlabel="time inside (lr * steps)", ylabel="share still inside")
    axis.set_title("Kaplan-Meier: a straight line is a rate", fontsize=10)
    if len(arrays["survival"]):
        axis.legend(loc="upper right", frameon=False, fontsize=9)
    else:
        axis.text(0.5, 0.5, "no replica has left", transform=axis.transAxes, ha="center", va="center")
