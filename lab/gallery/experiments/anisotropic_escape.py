"""Does noise aligned with the Hessian help to escape? In a double well whose other directions are flatter, or sharper.

    L = (x^2 - 1)^2 / 4 + k / 2 sum_i y_i^2,    dw = -grad L dt + sqrt(2 D) dW,    Tr D the same for both kinds of noise
    isotropic   D = Tr D / d                    aligned   D = Tr D H / Tr H,   H = diag(2, k, ..., k) at the minimum

Escape goes along x, of curvature 2, and the directions do not act on each other: the exact time is that of the chain of x
alone, at temperature D_xx. Aligned noise puts the share 2 / (2 + (d - 1) k) there instead of 1 / d, so it helps if the way
out is among the sharp directions, k < 2, and hinders, exponentially, if it is among the soft ones. In networks it is.
"""

from collections.abc import Mapping
from functools import cached_property, partial
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from pydantic import Field

from lab.escape.survival import words
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
from lab.gallery.laws.kramers import Domain, on
from lab.gallery.laws.nystrom import Chain
from lab.gallery.laws.passages import Passages, escapes, time_ratio
from lab.landscapes.double_well import DoubleWell
from lab.settings import settings

Kind = Literal["isotropic", "aligned"]
KINDS: tuple[Kind, ...] = ("isotropic", "aligned")
COLORS = {"isotropic": "tab:orange", "aligned": "tab:blue"}
WELL = 2.0
"""Curvature of the well along the way out."""
BURN_IN = 5.0
"""Units of time lr * step, ten times the relaxation in the well along x, before the clock starts."""
LEAST = 2.0
"""Barriers below so many temperatures have no rate."""
STABLE = 1.0
PER_STEP = 3e-8


@settings()
class AnisotropicEscape(Experiment):
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
        if len(set(self.stiffness)) < max(2, len(self.stiffness)):
            raise ValueError("stiffness: expected two or more different curvatures, e.g. [0.5,8]")
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
        process = on(DoubleWell(()), self.temperature(kind, stiffness))
        return Chain(process, self.lr, Domain(high=1.0), -1.0)

    @cached_property
    def cells(self) -> dict[tuple[Kind, float], Chain]:
        """The chain of x in every cell."""
        return {(kind, k): self._chain(kind, k) for kind in KINDS for k in sorted(self.stiffness)}

    def stages(self) -> dict[str, float]:
        each = PER_STEP * self.walkers * self.dimension + 1e-4
        seconds = dict.fromkeys(KINDS, 0.0)
        for (kind, _), chain in self.cells.items():
            seconds[kind] += each * min(self.max_steps, BURN_IN / self.lr + self.budget / chain.rate)
        return {f"{kind} noise": seconds[kind] for kind in KINDS}

    def simulate(self, around: Surroundings) -> Outcome:
        found = {}
        for kind in KINDS:
            for k, tick in around.over(f"{kind} noise", sorted(self.stiffness)):
                start = torch.zeros(self.dimension, device=around.device)
                start[0] = -1.0
                found[kind, k] = escapes(
                    DoubleWell((k,) * (self.dimension - 1)),
                    self.cells[kind, k],
                    start,
                    diffusion=1.0,
                    scale=self.diffusion(kind, k).to(start),
                    walkers=self.walkers,
                    budget=self.budget,
                    burn_in=BURN_IN,
                    max_steps=self.max_steps,
                    generator=around.stream(f"{self.name}/{kind}/{k}"),
                    tick=tick,
                )
        return self._outcome(found)

    def _outcome(self, found: dict[tuple[Kind, float], Passages]) -> Outcome:
        ks = sorted(self.stiffness)
        times = [
            Comparison.of(f"mean time, {kind}, k = {k:g}", p.exact, p.mean_time)
            for (kind, k), p in found.items()
            if p.told
        ]
        ratios = []
        for k in ks:
            a, i = found["aligned", k], found["isotropic", k]
            if a.told and i.told:
                name = f"aligned / isotropic, k = {k:g}"
                ratios.append(Comparison.of(name, a.exact / i.exact, time_ratio(a, i)))
        grid = np.geomspace(ks[0], ks[-1], 25)
        return Outcome(
            self._finding(found),
            [*times, *ratios],
            {
                "stiffness": np.array(ks),
                "times": np.array([[found[kind, k].point for k in ks] for kind in KINDS]),
                "at_least": np.array([[self.lr / found[kind, k].rate.high for k in ks] for kind in KINDS]),
                "grid": grid,
                "exact": np.array([[self._chain(kind, k).lifetime for k in grid] for kind in KINDS]),
                "diffusion": np.array(
                    [[self.diffusion(kind, k)[:2].numpy() for k in (ks[0], ks[-1])] for kind in KINDS]
                ),
                "dimension": np.array(self.dimension),
            },
            {f"exits_{kind}_{k:g}": p.rate.exits for (kind, k), p in found.items()},
        )

    def _finding(self, found: dict[tuple[Kind, float], Passages]) -> str:
        said = [
            f"{self.walkers} walkers in each cell, a double well in {self.dimension} dimensions, noise of the trace "
            f"{self.trace:g} in all"
        ]
        for k in (min(self.stiffness), max(self.stiffness)):
            a, i = found["aligned", k], found["isotropic", k]
            where = "flatter than" if k < WELL else "sharper than" if k > WELL else "as sharp as"
            said.append(
                f"where the other directions are {where} the way out ({k:g}, {WELL:g}), escape takes {_told(a)} with noise "
                f"aligned to the Hessian (exact {a.exact:.4g}) and {_told(i)} with isotropic noise (exact {i.exact:.4g})"
            )
        said.append(
            "aligned noise of equal trace helps only if the way out is among the sharp directions, and hinders, "
            f"exponentially, where it is among the soft ones (theory: both are equal at k = {WELL:g})"
        )
        return paragraph(said)

    @staticmethod
    def figure(arrays: Mapping[str, np.ndarray], title: str) -> Figure:
        soft, stiff = (partial(_draw_landscape, which=which) for which in (0, 1))
        draws = (soft, stiff, _draw_times)
        return panels(arrays, title, draws, size=(13, 4.6), widths=(1, 1, 1.25), gridless=draws[:2])


def _told(p: Passages) -> str:
    """The mean time, or what is known where too few left."""
    if p.told:
        return with_error(p.mean_time.value, p.mean_time.error)
    return f"more than {p.chain.lr / p.rate.high:.3g} (rate {words(p.rate)})"


def _draw_landscape(axis: Axes, arrays: Mapping[str, np.ndarray], which: int) -> None:
    """Contours of L in the plane of x and one other direction, and the ellipses of the noise at the minimum."""
    k = float(arrays["stiffness"][(0, -1)[which]])
    x, y = np.meshgrid(np.linspace(-1.8, 1.8, 181), np.linspace(-1.3, 1.3, 131))
    axis.contour(
        x, y, (x**2 - 1) ** 2 / 4 + k * y**2 / 2, levels=np.arange(1, 13) * 0.0625, colors="0.75", linewidths=0.8
    )
    for kind, diffusion in zip(KINDS, arrays["diffusion"][:, which], strict=True):
        width, height = 2 * np.sqrt(2 * diffusion)
        axis.add_patch(Ellipse((-1, 0), width, height, fill=False, color=COLORS[kind], lw=1.8, label=f"{kind} noise"))
    axis.annotate("", (0.85, 0), (-0.45, 0), arrowprops={"arrowstyle": "->", "color": "k"})
    axis.plot([-1, 1], [0, 0], "k.", ms=5)
    axis.plot([0], [0], "kx", ms=6)
    axis.set(xlabel="x (way out)", ylabel="y", aspect="equal", title="")
    axis.set_title(f"k = {k:g}: {'sharp' if k < WELL else 'soft'} way out of curvature {WELL:g}", fontsize=10)
    axis.legend(loc="upper right", frameon=False, fontsize=8)


def _draw_times(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    k = arrays["stiffness"]
    for i, kind in enumerate(KINDS):
        color, silent = COLORS[kind], np.isnan(arrays["times"][i, :, 0])
        axis.loglog(arrays["grid"], arrays["exact"][i], color=color, ls="--", lw=1.2, label="exact chain")
        axis.errorbar(k, *arrays["times"][i].T, color=color, ls="", marker="o", ms=5, label=f"walkers, {kind}")
        if silent.any():
            label = "at least (95 %)"
            axis.plot(k[silent], arrays["at_least"][i][silent], color=color, ls="", marker="^", mfc="none", label=label)
    axis.axvline(WELL, color="k", lw=0.8, ls=":", label="curvature of the way out")
    axis.set(xlabel="curvature k of the other directions", ylabel="mean time (lr * step)")
    axis.set_xticks(k, [f"{value:g}" for value in k])
    axis.set_xticks([], minor=True)
    axis.set_title(f"escape by noise of equal trace, d = {int(arrays['dimension'])}", fontsize=10)
    axis.legend(loc="upper left", frameon=False, fontsize=9)
