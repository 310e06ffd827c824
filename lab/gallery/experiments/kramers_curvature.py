"""Escape by noise that grows with the curvature, as that of SGD does: which curvatures set the rate, and which do not.

    x <- x - lr L'(x) + sqrt(2 lr D(x)) xi (Ito),    D(x) = lr |L''(x)| / 2B,    |L''| = H_a in the wells, H_b around the top
    tau ~ 2 pi / H_a exp(E),    E = (2 B barrier / lr) (s / H_a + (1 - s) / H_b),    s = H_b / (H_a + H_b)

E is the exponent of Xie, Sato and Sugiyama (2021); their prefactor 2 pi / H_b is off by H_a / H_b for this noise. Sharper
wells are left sooner, until H_a is larger than H_b: from there on E is set by the top. Noise of constant size, T = lr H_b /
2B, leaves them sooner only as H_a^(-1/2). D jumps where the parabolas meet, so a simulation approaches the differential
equation only as sqrt(lr); the exact chain of its steps is what it must agree with.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field
from torch import Tensor

from lab.escape.survival import Slope
from lab.gallery.base import Measured, Outcome, Surroundings, Verdict, about, exact, paragraph, shown
from lab.gallery.experiments.barrier import LEAST, BarrierExperiment, Budget, MaxSteps, Walkers, exits, mean_times
from lab.gallery.frame import Arrays, Axes, Figure, caption, law, panels, plain_ticks, points
from lab.gallery.landscapes.piecewise_parabola import PiecewiseParabola
from lab.gallery.laws.kramers import Diffusion, Domain, curvature_exponent, escape_rate, kramers_time, on
from lab.gallery.laws.nystrom import Chain
from lab.gallery.laws.passages import Passages, slopes, too_few
from lab.progress import Tick
from lab.settings import settings

RELAXED = 5.0
"""Relaxation times of the flatter parabola before the clock starts."""
STABLE = 1.0
"""lr times the largest curvature at most: beyond it steps jump over the well."""
PER_STEP = 8e-8
KINDS = {True: "noise ~ |H|", False: "constant noise"}
Curvature = Annotated[float, Field(gt=0, le=1e3)]


@settings()
class KramersCurvature(BarrierExperiment):
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
        self.require_different("batch_over_lr", "[7,10,13]", least=2)
        self.require_different("wells", "[0.7,2,8]", least=2)
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
        cuts = (-landscape.inflection, landscape.inflection)
        return on(landscape, self._noise(batch_over_lr, well, curved), cuts=cuts)

    def _noise(self, batch_over_lr: float, well: float, curved: bool) -> float | Callable[[Tensor], Tensor]:
        if not curved:
            return self.top / (2 * batch_over_lr)
        landscape = self.landscape(well)
        return lambda x: landscape.curvature(x) / (2 * batch_over_lr)

    def chain(self, batch_over_lr: float, well: float, curved: bool) -> Chain:
        end = self.landscape(well).minimum
        return Chain(self.process(batch_over_lr, well, curved=curved), self.lr, Domain(high=end), -end)

    @cached_property
    def line(self) -> dict[float, Chain]:
        """The well of curvature `well`, at every B / lr."""
        return {b: self.chain(b, self.well, True) for b in sorted(self.batch_over_lr)}

    @cached_property
    def sweep(self) -> dict[tuple[float, bool], Chain]:
        """All wells at the smallest B / lr, with noise of either kind."""
        low = min(self.batch_over_lr)
        return {(h, curved): self.chain(low, h, curved) for curved in KINDS for h in sorted(self.wells)}

    def stages(self) -> dict[str, float]:
        each = PER_STEP * self.walkers + 7e-5
        return {
            "batch over lr": each * sum(map(self.steps, self.line.values())),
            "curvature of the well": each * sum(map(self.steps, self.sweep.values())),
        }

    def simulate(self, around: Surroundings) -> Outcome:
        def walk(chain: Chain, b: float, well: float, curved: bool, part: str, tick: Tick) -> Passages:
            draws, diffusion = around.stream(f"{self.name}/{part}"), self._noise(b, well, curved)
            burn_in = RELAXED / min(well, self.top)
            return self.walk(self.landscape(well), chain, draws, tick, diffusion=diffusion, burn_in=burn_in)

        def at(b: float, tick: Tick) -> Passages:
            return walk(self.line[b], b, self.well, True, f"line/{b}", tick)

        def out_of(cell: tuple[float, bool], tick: Tick) -> Passages:
            return walk(self.sweep[cell], min(self.batch_over_lr), *cell, f"sweep/{cell[0]}/{cell[1]}", tick)

        line = list(around.each("batch over lr", list(self.line), at).values())
        sweep = around.each("curvature of the well", list(self.sweep), out_of)
        return CurvedEscapes(self, sorted(self.batch_over_lr), sorted(self.wells), line, sweep).outcome()

    def continuous(self, batch_over_lr: float, well: float, curved: bool) -> float:
        end = self.landscape(well).minimum
        return 1 / escape_rate(self.process(batch_over_lr, well, curved=curved), Domain(high=end), start=-end)

    def asymptote(self, batch_over_lr: float, well: float) -> float:
        exponent = self.exponent(batch_over_lr, well)
        return kramers_time(exponent, well, self.top, well_diffusion=well, top_diffusion=self.top)

    @staticmethod
    def figure(arrays: Arrays, title: str) -> Figure:
        return panels(arrays, title, (_draw_line, _draw_sweep), size=(11, 4.8))


@dataclass(frozen=True)
class CurvedEscapes(Measured):
    """Walkers at every B / lr, and out of wells of every curvature at the smallest, with noise of both kinds."""

    card: KramersCurvature
    x: list[float]
    wells: list[float]
    line: list[Passages]
    sweep: dict[tuple[float, bool], Passages]

    @cached_property
    def slope(self) -> tuple[Slope, Slope] | None:
        """Of log tau against B / lr, measured and exact; None where fewer than two cells have a time."""
        return slopes(self.x, self.line) if sum(p.measured for p in self.line) > 1 else None

    def rows(self) -> list[Verdict]:
        card = self.card
        x, last = self.x, self.line[-1]
        rows = mean_times(
            {f"H_a = {card.well:g}, B/lr = {b:g}": p for b, p in zip(x, self.line, strict=True)}
            | {f"{KINDS[curved]}, H_a = {h:g}": p for (h, curved), p in self.sweep.items()}
        )
        if self.slope:
            measured, theory = self.slope
            rows += [
                exact("slope of log tau against B/lr", theory.value, measured),
                about("  against E / (B/lr)", card.exponent(1.0, card.well), measured),
            ]
        if last.measured:
            for name, top in (("2 pi / H_a e^E", card.well), ("2 pi / H_b e^E", card.top)):
                asymptote = 2 * np.pi / top * np.exp(card.exponent(x[-1], card.well))
                rows.append(about(f"  B/lr = {x[-1]:g} against {name}", asymptote, last.mean_time))
        return rows

    def arrays(self) -> dict[str, object]:
        card = self.card
        x, wells = self.x, self.wells
        grid, curvatures = np.linspace(x[0], x[-1], 12), np.geomspace(wells[0], wells[-1], 24)
        between = np.unique([*np.geomspace(wells[0], wells[-1], 7), *wells])
        return {
            "batch_over_lr": x,
            "line": [p.point for p in self.line],
            "line_exact": [p.exact for p in self.line],
            "grid": grid,
            "continuous": [card.continuous(b, card.well, True) for b in grid],
            "asymptote": [card.asymptote(b, card.well) for b in grid],
            "asymptote_of_xie": [card.asymptote(b, card.well) * card.well / card.top for b in grid],
            "wells": wells,
            "sweep": [[self.sweep[h, curved].point for h in wells] for curved in KINDS],
            "sweep_at": between,
            "sweep_exact": [[card.chain(x[0], h, curved).lifetime for h in between] for curved in KINDS],
            "curvatures": curvatures,
            "sweep_continuous": [[card.continuous(x[0], h, curved) for h in curvatures] for curved in KINDS],
            "exponents": [card.exponent(x[0], h) for h in curvatures],
            "limit": 2 * x[0] * card.barrier / card.top,
            "well": card.well,
            "top": card.top,
            "learning_rate": card.lr,
        }

    def values(self) -> dict[str, float]:
        exponents = {f"exponent_{h:g}": self.card.exponent(self.x[0], h) for h in self.wells}
        return exponents | exits({f"{h:g}_{KINDS[curved]}": p for (h, curved), p in self.sweep.items()})

    def sentence(self) -> str:
        card = self.card
        x, wells, last = self.x, self.wells, self.line[-1]
        sentences = [
            f"{card.walkers} walkers in each cell, barrier {card.barrier:g}, top of curvature {card.top:g}, lr = {card.lr:g}"
        ]
        if self.slope:
            measured, theory = self.slope
            sentences.append(
                f"with noise that grows with the curvature log tau of the well of curvature {card.well:g} grows by "
                f"{shown(measured)} for each unit of B / lr (theory: {theory.value:.4f} by the exact chain of these steps, "
                f"{card.exponent(1.0, card.well):.4f} by the exponent of Xie et al.)"
            )
        if last.measured and card.well != card.top:
            right = card.asymptote(x[-1], card.well)
            sentences.append(
                f"at B / lr = {x[-1]:g} the mean time is {shown(last.mean_time)}, exactly {last.exact:.4g} "
                f"for these steps and {card.continuous(x[-1], card.well, True):.4g} for small ones; the prefactor "
                f"2 pi / H_a makes it {right:.4g}, 2 pi / H_b would make it {right * card.well / card.top:.4g}"
            )
        ends = [(self.sweep[wells[0], curved], self.sweep[wells[-1], curved]) for curved in KINDS]
        if all(p.measured for pair in ends for p in pair):
            faster = [first.mean_time.value / last.mean_time.value for first, last in ends]
            theory_faster = [first.exact / last.exact for first, last in ends]
            sentences.append(
                f"as the well sharpens from {wells[0]:g} to {wells[-1]:g} at B / lr = {x[0]:g} it is left {faster[0]:.3g} "
                f"times as fast (exact {theory_faster[0]:.3g}), with constant noise {faster[1]:.3g} times (exact "
                f"{theory_faster[1]:.3g}): the exponent falls from {card.exponent(x[0], wells[0]):.3g} to "
                f"{card.exponent(x[0], wells[-1]):.3g} and not to 0, for the top's curvature sets the rest"
            )
        return paragraph([*sentences, *too_few([*self.line, *self.sweep.values()])])


def _draw_line(axis: Axes, arrays: Arrays) -> None:
    x, grid = arrays["batch_over_lr"], arrays["grid"]
    law(axis, grid, arrays["continuous"], "theory, lr to 0 (quadrature)", ls="-")
    law(axis, grid, arrays["asymptote"], r"$2\pi / H_a\, e^E$", "0.4", ls=":", lw=1.3)
    law(axis, grid, arrays["asymptote_of_xie"], r"$2\pi / H_b\, e^E$ (Xie et al.)", "0.6", ls="-.")
    law(axis, x, arrays["line_exact"], "exact chain of these steps", "tab:blue")
    points(axis, x, arrays["line"], label="walkers")
    where = f"H_a = {float(arrays['well']):g}, H_b = {float(arrays['top']):g}, lr = {float(arrays['learning_rate']):g}"
    axis.set(xlabel="B / lr", ylabel="mean time (lr * step)", yscale="log")
    caption(axis, f"noise ~ |H|: {where}", "upper left")


def _draw_sweep(axis: Axes, arrays: Arrays) -> None:
    h, grid = arrays["wells"], arrays["curvatures"]
    for i, (color, kind) in enumerate((("tab:blue", "noise ~ |H|"), ("tab:orange", "constant noise"))):
        law(axis, grid, arrays["sweep_continuous"][i], f"{kind}, lr to 0", color, ls="-", lw=1)
        law(axis, arrays["sweep_at"], arrays["sweep_exact"][i], "exact chain of these steps", color)
        points(axis, h, arrays["sweep"][i], color, "walkers")
    axis.axvline(float(arrays["top"]), color="k", lw=0.8, ls=":", label="H_b")
    title = f"sharper wells at B/lr = {float(arrays['batch_over_lr'][0]):g}"
    axis.set(xlabel="curvature of the well H_a", ylabel="mean time (lr * step)", xscale="log", yscale="log")
    caption(axis, title, "upper right")
    plain_ticks(axis, h)
