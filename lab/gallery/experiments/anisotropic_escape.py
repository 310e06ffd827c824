"""Does noise aligned with the Hessian help to escape? In a double well whose other directions are flatter, or sharper.

    L = (x^2 - 1)^2 / 4 + k / 2 sum_i y_i^2,    dw = -grad L dt + sqrt(2 D) dW,    Tr D the same for both kinds of noise
    isotropic   D = Tr D / d                    aligned   D = Tr D H / Tr H,   H = diag(2, k, ..., k) at the minimum

Escape goes along x, of curvature 2, and the directions do not act on each other: the exact time is that of the chain of x
alone, at temperature D_xx. Aligned noise puts the share 2 / (2 + (d - 1) k) there instead of 1 / d, so it helps if the way
out is among the sharp directions, k < 2, and hinders, exponentially, if it is among the soft ones. In networks it is.
"""

from functools import cached_property, partial
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from matplotlib.patches import Ellipse
from pydantic import Field

from lab.escape.survival import words
from lab.gallery.base import Outcome, Surroundings, exact, paragraph, shown
from lab.gallery.experiments.barrier import LEAST, BarrierExperiment, Budget, MaxSteps, Walkers, exits, mean_times
from lab.gallery.frame import Arrays, Axes, Figure, caption, law, panels, plain_ticks, points
from lab.gallery.laws.kramers import Domain, on
from lab.gallery.laws.nystrom import Chain
from lab.gallery.laws.passages import Passages, time_ratio
from lab.landscapes.double_well import DoubleWell
from lab.progress import Tick
from lab.settings import settings

Kind = Literal["isotropic", "aligned"]
KINDS: tuple[Kind, ...] = ("isotropic", "aligned")
COLORS = {"isotropic": "tab:orange", "aligned": "tab:blue"}
WELL = 2.0
"""Curvature of the well along the way out."""
BURN_IN = 5.0
"""Units of time lr * step, ten times the relaxation in the well along x, before the clock starts."""
STABLE = 1.0
PER_STEP = 3e-8


@settings()
class AnisotropicEscape(BarrierExperiment):
    """Does noise aligned with the Hessian help to escape? Only if the way out is among the sharp directions.

    Zhu et al. 2019 argue that it does; here with equal trace, in a double well whose other directions are flatter (it does)
    or sharper (it hinders, exponentially) than the way out. The exact chain of the way out is the theory.
    """

    name: ClassVar[str] = "anisotropic_escape"

    stiffness: Annotated[
        tuple[Annotated[float, Field(gt=0, le=100)], ...],
        Field(description="curvatures of the other directions; the way out has 2"),
    ] = (0.5, 1.0, 2.0, 4.0, 8.0)
    dimension: Annotated[int, Field(ge=2, le=1000, description="with that of the way out")] = 2
    trace: Annotated[
        float, Field(gt=0, le=1000, description="of the diffusion D, the same for both kinds of noise; barrier 0.25")
    ] = 0.14
    lr: Annotated[float, Field(ge=1e-3, le=0.5, description="learning rate, at most 1/(largest stiffness)")] = 0.1
    walkers: Walkers = 2000
    budget: Budget = 1.0
    max_steps: MaxSteps = 60_000

    def __post_init__(self) -> None:
        self.require_different("stiffness", "[0.5,8]", least=2)
        sharp, height = max(self.stiffness), DoubleWell().barrier
        if self.lr * sharp > STABLE:
            raise ValueError(
                f"lr={self.lr:g}: lr * stiffness is {self.lr * sharp:.3g}, and steps overshoot; expected lr of "
                f"{STABLE / sharp:.3g} or less"
            )
        most = max(self.temperature(kind, k) for kind in KINDS for k in self.stiffness)
        if height < LEAST * most:
            raise ValueError(
                f"trace={self.trace:g}: the barrier is {height / most:.2g} temperatures along the way out, and below "
                f"{LEAST:g} there is no rate; expected {self.trace * height / most / LEAST:.2g} or less"
            )

    def diffusion(self, kind: Kind, stiffness: float) -> torch.Tensor:
        """The diagonal of D (d,)."""
        curvatures = torch.full((self.dimension,), stiffness, dtype=torch.float64)
        curvatures[0] = WELL
        shape = curvatures if kind == "aligned" else torch.ones_like(curvatures)
        return self.trace * shape / shape.sum()

    def temperature(self, kind: Kind, stiffness: float) -> float:
        """D along the way out."""
        return float(self.diffusion(kind, stiffness)[0])

    def _chain(self, kind: Kind, stiffness: float) -> Chain:
        return Chain(on(DoubleWell(()), self.temperature(kind, stiffness)), self.lr, Domain(high=1.0), -1.0)

    @cached_property
    def cells(self) -> dict[tuple[Kind, float], Chain]:
        """The chain of x in every cell."""
        return {(kind, k): self._chain(kind, k) for kind in KINDS for k in sorted(self.stiffness)}

    def stages(self) -> dict[str, float]:
        each = PER_STEP * self.walkers * self.dimension + 1e-4
        return {
            f"{kind} noise": each * sum(self.steps(self.cells[kind, k], BURN_IN) for k in self.stiffness)
            for kind in KINDS
        }

    def simulate(self, around: Surroundings) -> Outcome:
        def walk(kind: Kind, k: float, tick: Tick) -> Passages:
            scale, draws = self.diffusion(kind, k), around.stream(f"{self.name}/{kind}/{k}")
            return self.walk(
                DoubleWell((k,) * (self.dimension - 1)),
                self.cells[kind, k],
                draws,
                tick,
                diffusion=1.0,
                burn_in=BURN_IN,
                scale=scale.to(draws.device, torch.float32),
            )

        ks, found = sorted(self.stiffness), dict[tuple[Kind, float], Passages]()
        for kind in KINDS:
            found |= {(kind, k): walk(kind, k, tick) for k, tick in around.over(f"{kind} noise", ks)}
        pairs = {k: (found["aligned", k], found["isotropic", k]) for k in ks}
        ratios = [
            exact(f"aligned / isotropic, k = {k:g}", a.exact / i.exact, time_ratio(a, i))
            for k, (a, i) in pairs.items()
            if a.measured and i.measured
        ]
        return Outcome(
            self._finding(found),
            [*mean_times({f"{kind}, k = {k:g}": p for (kind, k), p in found.items()}), *ratios],
            self._arrays(found, ks),
            exits({f"{kind}_{k:g}": p for (kind, k), p in found.items()}),
        )

    def _arrays(self, found: dict[tuple[Kind, float], Passages], ks: list[float]) -> dict[str, object]:
        grid = np.geomspace(ks[0], ks[-1], 25)
        return {
            "stiffness": ks,
            "times": [[found[kind, k].point for k in ks] for kind in KINDS],
            "at_least": [[self.lr / found[kind, k].rate.high for k in ks] for kind in KINDS],
            "grid": grid,
            "exact": [[self._chain(kind, k).lifetime for k in grid] for kind in KINDS],
            "diffusion": [[self.diffusion(kind, k)[:2] for k in (ks[0], ks[-1])] for kind in KINDS],
            "dimension": self.dimension,
        }

    def _finding(self, found: dict[tuple[Kind, float], Passages]) -> str:
        sentences = [
            f"{self.walkers} walkers in each cell, a double well in {self.dimension} dimensions, noise of the trace "
            f"{self.trace:g} in all"
        ]
        for k in (min(self.stiffness), max(self.stiffness)):
            a, i = found["aligned", k], found["isotropic", k]
            where = "flatter than" if k < WELL else "sharper than" if k > WELL else "as sharp as"
            sentences.append(
                f"where the other directions are {where} the way out ({k:g}, {WELL:g}), escape takes {_time(a)} with noise "
                f"aligned to the Hessian (exact {a.exact:.4g}) and {_time(i)} with isotropic noise (exact {i.exact:.4g})"
            )
        sentences.append(
            "aligned noise of equal trace helps only if the way out is among the sharp directions, and hinders, "
            f"exponentially, where it is among the soft ones (theory: both are equal at k = {WELL:g})"
        )
        return paragraph(sentences)

    @staticmethod
    def figure(arrays: Arrays, title: str) -> Figure:
        soft, stiff = (partial(_draw_landscape, which=which) for which in (0, 1))
        draws = (soft, stiff, _draw_times)
        return panels(arrays, title, draws, size=(13, 4.6), widths=(1, 1, 1.25), gridless=draws[:2])


def _time(p: Passages) -> str:
    """The mean time, or what is known where too few left."""
    if p.measured:
        return shown(p.mean_time)
    return f"more than {p.chain.lr / p.rate.high:.3g} (rate {words(p.rate)})"


def _draw_landscape(axis: Axes, arrays: Arrays, which: int) -> None:
    """Contours of L in the plane of x and one other direction, and the ellipses of the noise at the minimum."""
    k = float(arrays["stiffness"][(0, -1)[which]])
    x, y = np.meshgrid(np.linspace(-1.8, 1.8, 181), np.linspace(-1.3, 1.3, 131))
    loss = (x**2 - 1) ** 2 / 4 + k * y**2 / 2
    axis.contour(x, y, loss, levels=np.arange(1, 13) * 0.0625, colors="0.75", linewidths=0.8)
    for kind, diffusion in zip(KINDS, arrays["diffusion"][:, which], strict=True):
        width, height = 2 * np.sqrt(2 * diffusion)
        axis.add_patch(Ellipse((-1, 0), width, height, fill=False, color=COLORS[kind], lw=1.8, label=f"{kind} noise"))
    axis.annotate("", (0.85, 0), (-0.45, 0), arrowprops={"arrowstyle": "->", "color": "k"})
    axis.plot([-1, 1], [0, 0], "k.", ms=5)
    axis.plot([0], [0], "kx", ms=6)
    title = f"k = {k:g}: {'sharp' if k < WELL else 'soft'} way out of curvature {WELL:g}"
    axis.set(xlabel="x (way out)", ylabel="y", aspect="equal")
    caption(axis, title, "upper right", small=8)


def _draw_times(axis: Axes, arrays: Arrays) -> None:
    k = arrays["stiffness"]
    for i, kind in enumerate(KINDS):
        color, silent = COLORS[kind], np.isnan(arrays["times"][i, :, 0])
        law(axis, arrays["grid"], arrays["exact"][i], "exact chain", color)
        points(axis, k, arrays["times"][i], color, f"walkers, {kind}")
        if silent.any():
            label = "at least (95 %)"
            axis.plot(k[silent], arrays["at_least"][i][silent], color=color, ls="", marker="^", mfc="none", label=label)
    axis.axvline(WELL, color="k", lw=0.8, ls=":", label="curvature of the way out")
    title = f"escape by noise of equal trace, d = {int(arrays['dimension'])}"
    axis.set(xlabel="curvature k of the other directions", ylabel="mean time (lr * step)", xscale="log", yscale="log")
    caption(axis, title, "upper left")
    plain_ticks(axis, k)
