"""Escape by noise that grows with the curvature, as that of SGD does: which curvatures set the rate, and which do not.

    x <- x - lr L'(x) + sqrt(2 lr D(x)) xi (Ito),    D(x) = lr |L''(x)| / 2B,    |L''| = H_a in the wells, H_b around the top
    tau ~ 2 pi / H_a exp(E),    E = (2 B barrier / lr) (s / H_a + (1 - s) / H_b),    s = H_b / (H_a + H_b)

E is the exponent of Xie, Sato and Sugiyama (2021); their prefactor 2 pi / H_b is off by H_a / H_b for this noise. Sharper
wells are left sooner, until H_a is larger than H_b: from there on E is set by the top. Noise of constant size, T = lr H_b /
2B, leaves them sooner only as H_a^(-1/2). D jumps where the parabolas meet, so a simulation approaches the differential
equation only as sqrt(lr); the exact chain of its steps is what it must agree with.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Annotated, ClassVar

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from lab.escape.survival import Slope
from lab.gallery.experiments.base import (
    Budget,
    Comparison,
    Experiment,
    MaxSteps,
    Outcome,
    Surroundings,
    Walkers,
    paragraph,
    with_error,
)
from lab.gallery.experiments.frame import panels
from lab.gallery.landscapes.piecewise_parabola import PiecewiseParabola
from lab.gallery.laws.kramers import Diffusion, Domain, curvature_exponent, escape_rate, kramers_time, on
from lab.gallery.laws.nystrom import Chain
from lab.gallery.laws.passages import Passages, escapes, slopes, untold
from lab.progress import Tick
from lab.settings import settings

LEAST = 2.0
"""Exponents below it have no rate: a walker does not settle before it leaves."""
RELAXED = 5.0
"""Relaxation times of the flatter parabola before the clock starts."""
STABLE = 1.0
"""lr times the largest curvature at most: beyond it steps jump over the well."""
PER_STEP = 8e-8
Curvature = Annotated[float, Field(gt=0, le=1e3)]


@settings()
class KramersCurvature(Experiment):
    """Escape by noise that grows with the curvature, as that of SGD: exponent, prefactor, and where sharper wells stop
    helping.

    Xie, Sato and Sugiyama 2021: their exponent is right, their prefactor is off by H_a / H_b for the noise of SGD (Ito),
    and once H_a is above H_b it is the top that sets the exponent. All against the exact chain of the steps.
    """

    name: ClassVar[str] = "kramers_curvature"

    well: Annotated[Curvature, Field(description="H_a, curvature of the well that is left at every B / lr")] = 2.0
    top: Annotated[Curvature, Field(description="H_b, that of the top but for the sign")] = 1.0
    barrier: Annotated[float, Field(gt=0, le=1e3, description="loss at the top minus loss in the well")] = 0.25
    batch_over_lr: Annotated[
        tuple[Annotated[float, Field(gt=0, le=1e6)], ...],
        Field(description="B / lr: two or more; the noise is D = lr |H| / 2B"),
    ] = (7.0, 9.0, 11.0, 13.0)
    wells: Annotated[
        tuple[Curvature, ...], Field(description="H_a of a sweep at the smallest B / lr, also with T = lr H_b / 2B")
    ] = (0.7, 1.0, 2.0, 4.0, 8.0)
    lr: Annotated[float, Field(ge=1e-4, le=1, description="learning rate, at most 1 over the largest curvature")] = 0.03
    walkers: Walkers = 2000
    budget: Budget = 1.0
    max_steps: MaxSteps = 1_000_000

    def __post_init__(self) -> None:
        if len(set(self.batch_over_lr)) < max(2, len(self.batch_over_lr)):
            raise ValueError("batch_over_lr: expected two or more different values, e.g. [7,10,13]")
        if len(set(self.wells)) < max(2, len(self.wells)):
            raise ValueError("wells: expected two or more different curvatures, e.g. [0.7,2,8]")
        steepest = max(self.well, self.top, *self.wells)
        if self.lr * steepest > STABLE:
            raise ValueError(
                f"lr={self.lr:g}: lr * curvature is {self.lr * steepest:.3g} where it is {steepest:g}, and steps jump over "
                f"the well; expected lr of {STABLE / steepest:.3g} or less"
            )
        low, sharp = min(self.batch_over_lr), max(self.well, *self.wells)
        least = min(self.exponent(low, sharp), 2 * low * self.barrier / self.top)
        if least < LEAST:
            raise ValueError(
                f"batch_over_lr={low:g}: the exponent is {least:.2g}, and below {LEAST:g} there is no rate; expected B / lr "
                f"of {low * LEAST / least:.3g} or more"
            )

    def landscape(self, well: float) -> PiecewiseParabola:
        """The two wells of that curvature, with the barrier between them."""
        return PiecewiseParabola(well, self.top, self.barrier)

    def exponent(self, batch_over_lr: float, well: float) -> float:
        """E of noise that grows with the curvature."""
        share = self.landscape(well).share
        return curvature_exponent(self.barrier, well, self.top, share=share, batch_over_lr=batch_over_lr)

    def process(self, batch_over_lr: float, well: float, *, curved: bool) -> Diffusion:
        """With noise that grows with the curvature, or of the size that it has at the top everywhere."""
        landscape = self.landscape(well)
        return on(
            landscape, self._noise(batch_over_lr, well, curved), cuts=(-landscape.inflection, landscape.inflection)
        )

    def _noise(self, batch_over_lr: float, well: float, curved: bool) -> float | Callable[[Tensor], Tensor]:
        if not curved:
            return self.top / (2 * batch_over_lr)
        landscape = self.landscape(well)
        return lambda x: landscape.curvature(x) / (2 * batch_over_lr)

    def _chain(self, batch_over_lr: float, well: float, curved: bool) -> Chain:
        end = self.landscape(well).minimum
        return Chain(self.process(batch_over_lr, well, curved=curved), self.lr, Domain(high=end), -end)

    @cached_property
    def line(self) -> list[Chain]:
        """The well of curvature `well`, at every B / lr."""
        return [self._chain(b, self.well, True) for b in sorted(self.batch_over_lr)]

    @cached_property
    def sweep(self) -> dict[tuple[float, bool], Chain]:
        """All wells at the smallest B / lr, with noise of either kind."""
        low = min(self.batch_over_lr)
        return {(h, curved): self._chain(low, h, curved) for curved in (True, False) for h in sorted(self.wells)}

    def _burn_in(self, well: float) -> float:
        return RELAXED / min(well, self.top)

    def stages(self) -> dict[str, float]:
        each = PER_STEP * self.walkers + 7e-5

        def seconds(chain: Chain) -> float:
            return each * min(self.max_steps, self.budget / chain.rate)

        return {
            "batch over lr": sum(map(seconds, self.line)),
            "curvature of the well": sum(map(seconds, self.sweep.values())),
        }

    def simulate(self, around: Surroundings) -> Outcome:
        x = sorted(self.batch_over_lr)
        line = [
            self._walk(around, chain, self._noise(b, self.well, True), self.well, f"line/{b}", tick)
            for (b, chain), tick in around.over("batch over lr", list(zip(x, self.line, strict=True)))
        ]
        sweep = {
            (h, curved): self._walk(around, chain, self._noise(x[0], h, curved), h, f"sweep/{h}/{curved}", tick)
            for ((h, curved), chain), tick in around.over("curvature of the well", list(self.sweep.items()))
        }
        return self._outcome(line, sweep)

    def _walk(
        self,
        around: Surroundings,
        chain: Chain,
        diffusion: float | Callable[[Tensor], Tensor],
        well: float,
        part: str,
        tick: Tick,
    ) -> Passages:
        return escapes(
            self.landscape(well),
            chain,
            torch.tensor([chain.start], device=around.device),
            diffusion=diffusion,
            walkers=self.walkers,
            budget=self.budget,
            burn_in=self._burn_in(well),
            max_steps=self.max_steps,
            generator=around.stream(f"{self.name}/{part}"),
            tick=tick,
        )

    def _outcome(self, line: list[Passages], sweep: dict[tuple[float, bool], Passages]) -> Outcome:
        x, wells = sorted(self.batch_over_lr), sorted(self.wells)
        kinds = {True: "noise ~ |H|", False: "constant noise"}
        rows = [
            *(
                Comparison.of(f"mean time, H_a = {self.well:g}, B/lr = {b:g}", p.exact, p.mean_time)
                for b, p in zip(x, line, strict=True)
                if p.told
            ),
            *(
                Comparison.of(f"mean time, {kinds[curved]}, H_a = {h:g}", p.exact, p.mean_time)
                for (h, curved), p in sweep.items()
                if p.told
            ),
        ]
        lined = slopes(x, line) if sum(p.told for p in line) > 1 else None
        if lined:
            measured, exact = lined
            rows += [
                Comparison("slope of log tau against B/lr", exact.value, measured.value, measured.error),
                Comparison(
                    "  against E / (B/lr)",
                    self.exponent(1.0, self.well),
                    measured.value,
                    measured.error,
                    approximate=True,
                ),
            ]
        last = line[-1]
        if last.told:
            for name, top in (("2 pi / H_a e^E", self.well), ("2 pi / H_b e^E", self.top)):
                asymptote = 2 * np.pi / top * np.exp(self.exponent(x[-1], self.well))
                rows.append(
                    Comparison.of(f"  B/lr = {x[-1]:g} against {name}", asymptote, last.mean_time, approximate=True)
                )
        grid, curvatures = np.linspace(x[0], x[-1], 12), np.geomspace(wells[0], wells[-1], 24)
        between = np.unique([*np.geomspace(wells[0], wells[-1], 7), *wells])
        return Outcome(
            self._finding(line, sweep, lined),
            rows,
            {
                "batch_over_lr": np.array(x),
                "line": np.array([p.point for p in line]),
                "line_exact": np.array([p.exact for p in line]),
                "grid": grid,
                "continuous": np.array([self._continuous(b, self.well, True) for b in grid]),
                "asymptote": np.array([self._asymptote(b, self.well) for b in grid]),
                "asymptote_of_xie": np.array([self._asymptote(b, self.well) * self.well / self.top for b in grid]),
                "wells": np.array(wells),
                "sweep": np.array([[sweep[h, curved].point for h in wells] for curved in (True, False)]),
                "sweep_at": between,
                "sweep_exact": np.array(
                    [[self._chain(x[0], h, curved).lifetime for h in between] for curved in (True, False)]
                ),
                "curvatures": curvatures,
                "sweep_continuous": np.array(
                    [[self._continuous(x[0], h, curved) for h in curvatures] for curved in (True, False)]
                ),
                "exponents": np.array([self.exponent(x[0], h) for h in curvatures]),
                "limit": np.array(2 * x[0] * self.barrier / self.top),
                "well": np.array(self.well),
                "top": np.array(self.top),
                "learning_rate": np.array(self.lr),
            },
            {f"exponent_{h:g}": self.exponent(x[0], h) for h in wells}
            | {f"exits_{h:g}_{kinds[curved]}": p.rate.exits for (h, curved), p in sweep.items()},
        )

    def _continuous(self, batch_over_lr: float, well: float, curved: bool) -> float:
        end = self.landscape(well).minimum
        return 1 / escape_rate(self.process(batch_over_lr, well, curved=curved), Domain(high=end), start=-end)

    def _asymptote(self, batch_over_lr: float, well: float) -> float:
        return kramers_time(
            self.exponent(batch_over_lr, well), well, self.top, well_diffusion=well, top_diffusion=self.top
        )

    def _finding(
        self, line: list[Passages], sweep: dict[tuple[float, bool], Passages], lined: tuple[Slope, Slope] | None
    ) -> str:
        x, wells = sorted(self.batch_over_lr), sorted(self.wells)
        said = [
            f"{self.walkers} walkers in each cell, barrier {self.barrier:g}, top of curvature {self.top:g}, lr = {self.lr:g}"
        ]
        if lined:
            measured, exact = lined
            said.append(
                f"with noise that grows with the curvature log tau of the well of curvature {self.well:g} grows by "
                f"{with_error(measured.value, measured.error)} for each unit of B / lr (theory: {exact.value:.4f} by the "
                f"exact chain of these steps, {self.exponent(1.0, self.well):.4f} by the exponent of Xie et al.)"
            )
        last = line[-1]
        if last.told and self.well != self.top:
            mean, right = last.mean_time, self._asymptote(x[-1], self.well)
            said.append(
                f"at B / lr = {x[-1]:g} the mean time is {with_error(mean.value, mean.error)}, exactly {last.exact:.4g} "
                f"for these steps and {self._continuous(x[-1], self.well, True):.4g} for small ones; the prefactor "
                f"2 pi / H_a makes it {right:.4g}, 2 pi / H_b would make it {right * self.well / self.top:.4g}"
            )
        first, sharpest = sweep[wells[0], True], sweep[wells[-1], True]
        flat, steep = sweep[wells[0], False], sweep[wells[-1], False]
        if all(p.told for p in (first, sharpest, flat, steep)):
            curved, constant = (
                first.mean_time.value / sharpest.mean_time.value,
                flat.mean_time.value / steep.mean_time.value,
            )
            said.append(
                f"as the well sharpens from {wells[0]:g} to {wells[-1]:g} at B / lr = {x[0]:g} it is left {curved:.3g} "
                f"times as fast (exact {first.exact / sharpest.exact:.3g}), with constant noise {constant:.3g} times (exact "
                f"{flat.exact / steep.exact:.3g}): the exponent falls from {self.exponent(x[0], wells[0]):.3g} to "
                f"{self.exponent(x[0], wells[-1]):.3g} and not to 0, for the top's curvature sets the rest"
            )
        return paragraph([*said, *untold([*line, *sweep.values()])])

    @staticmethod
    def figure(arrays: Mapping[str, np.ndarray], title: str) -> Figure:
        return panels(arrays, title, (_draw_line, _draw_sweep), size=(11, 4.8))


def _draw_line(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    x, grid = arrays["batch_over_lr"], arrays["grid"]
    axis.semilogy(grid, arrays["continuous"], color="tab:red", lw=1.2, label="theory, lr to 0 (quadrature)")
    axis.semilogy(grid, arrays["asymptote"], color="0.4", ls=":", lw=1.3, label=r"$2\pi / H_a\, e^E$")
    axis.semilogy(
        grid, arrays["asymptote_of_xie"], color="0.6", ls="-.", lw=1.2, label=r"$2\pi / H_b\, e^E$ (Xie et al.)"
    )
    axis.semilogy(x, arrays["line_exact"], color="tab:blue", ls="--", lw=1.2, label="exact chain of these steps")
    axis.errorbar(x, *arrays["line"].T, color="tab:blue", ls="", marker="o", ms=5, label="walkers")
    axis.set(xlabel="B / lr", ylabel="mean time (lr * step)")
    where = f"H_a = {float(arrays['well']):g}, H_b = {float(arrays['top']):g}, lr = {float(arrays['learning_rate']):g}"
    axis.set_title(f"noise ~ |H|: {where}", fontsize=10)
    axis.legend(loc="upper left", frameon=False, fontsize=9)


def _draw_sweep(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    h, grid = arrays["wells"], arrays["curvatures"]
    for i, (color, said) in enumerate((("tab:blue", "noise ~ |H|"), ("tab:orange", "constant noise"))):
        axis.loglog(grid, arrays["sweep_continuous"][i], color=color, lw=1, label=f"{said}, lr to 0")
        axis.loglog(
            arrays["sweep_at"],
            arrays["sweep_exact"][i],
            color=color,
            ls="--",
            lw=1.2,
            label="exact chain of these steps",
        )
        axis.errorbar(h, *arrays["sweep"][i].T, color=color, ls="", marker="o", ms=5, label="walkers")
    axis.axvline(float(arrays["top"]), color="k", lw=0.8, ls=":", label="H_b")
    axis.set(xlabel="curvature of the well H_a", ylabel="mean time (lr * step)")
    axis.set_xticks(h, [f"{value:g}" for value in h])
    axis.set_xticks([], minor=True)
    axis.set_title(f"sharper wells at B/lr = {float(arrays['batch_over_lr'][0]):g}", fontsize=10)
    axis.legend(loc="upper right", frameon=False, fontsize=9)
