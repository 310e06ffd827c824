"""The spectrum of the Hessian: both ends by eigenpairs, all of it by its density, and what the two amount to.

    trace                                             lab.curvature.trace, where the density has it not to 1 % already
    |H|_F, negative mass, effective rank, outliers above the bulk edge      lab.curvature.density
    gradient_share = |V'g|^2 / |g|^2                 V the top k eigenvectors (Gur-Ari, Roberts and Dyer 2018)
    overlap        = |V'V_before|_F^2 / k            1: the top eigenspace is the one of the measurement before
    H = G + R      G Gauss-Newton, R residual: the outliers come from G (Papyan 2019; Sagun et al. 2017)

The known eigenpairs are taken out of the density, so it is exact at the ends and its errors are those of the bulk.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

import torch
from matplotlib.figure import Figure
from pydantic import model_validator
from torch import Tensor

from lab.curvature.density import SpectralDensity
from lab.curvature.stability import UpdateRule
from lab.params import Layout, layout
from lab.probes.base import Memory, Plan, Probe, Snapshot, measures
from lab.probes.knobs import Count, Natural, ProbeSet, Rhythm, Several, Share, knob
from lab.probes.nested import Nested, bracketed
from lab.probes.spectrum_blocks import FEW, PRODUCTS, Blocks, eigenvalues
from lab.results import Eigenpairs, Estimate, Result, numbered
from lab.run.figures import spectrum_figure
from lab.settings import SettingError
from lab.settings import settings as card

PER_PAIR = 7
"""Hessian products that a wanted eigenpair takes; they foretell the time only."""
QUANTITIES = ("frobenius", "negative_mass", "effective_rank", "outliers")
"""Numbers that come from the density, with their errors."""
ARRAYS = ("grid", "values", "low", "high", "nodes", "weights")
"""What the density is drawn from."""


@card(frozen=False)
class Spectrum(Probe):
    """Spectrum of the Hessian: eigenpairs at both ends, density, trace, outliers, negative mass, effective rank.

    Rhythm solve starts from random vectors: between measurements far apart the eigenvectors turn, and the claim of a solve
    from nothing is the stronger one. Memory from one measurement to the next: k vectors (P,), for the overlap.
    The trace is that of the density where its error is within 1 %, else by the layers of the network (hessian_trace of
    `lab.curvature.trace`, up to 100 draws), else, as for landscapes, recurrent networks and chosen parameters, by up to 100
    products more beside the eigenpairs known, or by all P if max_matvecs allows. Its tag trace_converged is 1 where the
    error came within 1 %. error/.. of all numbers: 1.96 of it cover 95 %.
    Cost: steps x vectors products of 1.1 gradients for the density, 100 to 200 for 10 + 10 eigenpairs, each with its
    orthogonalisation, those of the trace; as reported in cost/spectrum/matvecs and seconds. Memory: a vector (P,) or
    two for every product of an eigensolve.
    """

    name: ClassVar[str] = "spectrum"
    halves: ClassVar[str] = "errors of eigenvalues count what the others would change, the density does not"
    loose: ClassVar[Mapping[str, float]] = {"tol": 3e-2}
    fewest: ClassVar[Mapping[str, float]] = {"tol": 3e-2, "k": 3, "bottom": 1, "steps": 30, "vectors": 1}
    auto: ClassVar[Mapping[str, float]] = {"every": 130, "tol": 1e-2, "k": 10, "bottom": 10, "steps": 80, "vectors": 3}

    every: Annotated[Rhythm, knob("steps between measurements: n | auto: 130, more seldom where probe.budget asks")] = (
        "auto"
    )
    k: Annotated[
        Count | Literal["auto"],
        knob("number of largest eigenpairs | auto: 10, 3 where probe.budget asks for the fewest"),
    ] = "auto"
    bottom: Annotated[Natural | Literal["auto"], knob("number of smallest eigenpairs | auto: 10, or 1")] = "auto"
    tol: Annotated[
        Share | Literal["auto"],
        knob("wanted error of an eigenvalue at both ends, relative to the largest | auto: 0.01, 0.03 by probe.budget"),
    ] = "auto"
    max_matvecs: Annotated[int, knob("Hessian products allowed per eigensolve (each about 1.1 gradients)", gt=3)] = 400
    steps: Annotated[
        Several | Literal["auto"],
        knob("Lanczos steps per random vector: the density resolves 1/steps of the range | auto: 80, or 30"),
    ] = "auto"
    vectors: Annotated[
        Count | Literal["auto"],
        knob("random vectors of the density; its errors fall as 1/sqrt(vectors) | auto: 3, or 1"),
    ] = "auto"
    examples: ProbeSet = "auto"
    parameters: Annotated[
        str, knob("glob of parameter names, as in *.weight: the Hessian in these, all others held")
    ] = "*"
    split: Annotated[bool, knob("also H = Gauss-Newton + residual: top eigenvalues and traces of both")] = False
    layers: Annotated[bool, knob("also the largest eigenvalue and the trace of every layer's block")] = False
    engine: Annotated[
        Literal["lab", "pyhessian"], knob("lab | pyhessian (eigenvalues, trace and density of that package)")
    ] = "lab"

    @model_validator(mode="after")
    def _consistent(self) -> "Spectrum":
        k, bottom, _, _ = self.counts
        if self.max_matvecs < (least := k + bottom):
            raise ValueError(f"max_matvecs={self.max_matvecs} is too few for the eigenpairs; use {least} or more")
        if self.engine == "pyhessian" and self.parameters != "*":
            raise ValueError('engine=pyhessian measures all parameters; use parameters="*" or engine=lab')
        if self.engine == "pyhessian" and self.max_matvecs < 2 * k:
            raise ValueError(f"max_matvecs={self.max_matvecs} is too few for PyHessian; use {2 * k} or more")
        return self

    def require(self, plan: Plan) -> None:
        """Also where the glob names no parameter. (Numbers of eigenpairs are cut to what there is.)"""
        super().require(plan)
        self.select(layout(plan.model))

    def select(self, layout: Layout) -> Tensor:
        """The places of the chosen parameters. Raises SettingError where there are none."""
        try:
            return layout.select(self.parameters)
        except ValueError as error:
            raise SettingError(f"probe.spectrum.parameters={self.parameters}: {error}") from None

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """k, bottom, steps and vectors, as numbers."""
        now = self.settled()
        return int(now.k), int(now.bottom), int(now.steps), int(now.vectors)

    @property
    def most_draws(self) -> int:
        """Draws, and products, that a trace may take beside the density. On a part of the probe set, whose trace is that of
        the whole within some per cent, no more than half of what the density takes.
        """
        _, _, steps, vectors = self.counts
        return (
            max(FEW, min(PRODUCTS, steps * vectors // 2)) if isinstance(self.settled().probe_set, Nested) else PRODUCTS
        )

    def expected_matvecs(self, rule: UpdateRule | None) -> int:
        k, bottom, steps, vectors = self.counts
        ends = min(PER_PAIR * (k + bottom), self.max_matvecs)
        whole = ends + vectors * steps + self.most_draws
        return whole * (3 if self.split else 1) * (2 if self.layers else 1)


@dataclass(frozen=True)
class SpectrumResult(Result):
    """The spectrum of the Hessian, or of its block in the chosen parameters.

    top, bottom     eigenpairs at both ends; density that of all eigenvalues.
    trace           converged where its error is within 1 % of it; trace.method tells where it comes from.
    gradient_share  the gradient's share in the top eigenspace, NaN at a critical point; overlap that of the eigenspace with
                    the one before (head of this file), None at the first measurement.
    threshold       of the optimiser, where it is one of H itself.
    parts           the numbers of G, R and the layers, by name, where these were asked for.
    matvecs         products spent, draws of the trace, and one for the gradient.
    """

    blank: ClassVar[str] = "the Hessian is not finite here: there is no spectrum to draw"
    top: Eigenpairs
    bottom: Eigenpairs
    density: SpectralDensity
    trace: Estimate
    gradient_share: float
    overlap: float | None
    threshold: float | None
    parts: Mapping[str, float]
    matvecs: int
    warm: Memory = field(repr=False)

    @property
    def converged(self) -> bool:
        return self.top.converged and self.bottom.converged

    def numbers(self) -> dict[str, float]:
        numbers = eigenvalues("lambda", self.top) | eigenvalues("lambda_min", self.bottom)
        numbers |= numbered({name: getattr(self.density, name) for name in QUANTITIES} | {"trace": self.trace})
        numbers |= {"trace_converged": float(self.trace.converged), "bulk_edge": self.density.bulk_edge}
        numbers |= {"gradient_share": self.gradient_share, "converged": float(self.converged)}
        return numbers | ({} if self.overlap is None else {"overlap": self.overlap}) | dict(self.parts)

    def sentence(self) -> str:
        ends = [("largest", self.top), ("smallest", self.bottom)]
        known = [(name, float(pairs.values[0]), float(pairs.errors[0])) for name, pairs in ends if len(pairs.values)]
        words = [f"the {name} eigenvalue is {value:.4g} +- {error:.1g}" for name, value, error in known]
        words.append(f"the trace {self.trace.value:.4g} +- {self.trace.error:.1g}")
        above = f"{self.density.outliers.value:.0f}"
        words.append("1 eigenvalue lies above the bulk" if above == "1" else f"{above} eigenvalues lie above the bulk")
        words.append(f"the negative ones are {self.density.negative_mass.value:.2g} of the absolute sum")
        end = "." if self.converged else "; an eigensolve did not converge."
        return f"Hessian spectrum: {', '.join(words)}{end}"

    def figure(self, when: str = "", *, threshold: float | None = None) -> Figure:
        """As of every result; `threshold` in place of that of the optimiser."""
        return super().figure(when) if threshold is None else replace(self, threshold=threshold).figure(when)

    def arrays(self) -> dict[str, Tensor]:
        """All that the figure is drawn from, float64; nothing where a product was not finite."""
        phi = self.density
        if not math.isfinite(phi.bulk_edge):
            return {}
        numbers = {"sigma": phi.sigma, "size": phi.size, "edge": phi.bulk_edge, "threshold": self.threshold}
        arrays = {name: getattr(phi, name) for name in ARRAYS}
        arrays |= {name: torch.tensor(x, dtype=torch.float64) for name, x in numbers.items() if x is not None}
        return arrays | {"top": self.top.values, "bottom": self.bottom.values}

    def figures(self, when: str = "") -> dict[str, Figure]:
        """Density and number of eigenvalues; the threshold 2/lr (or its kin) beside them."""
        arrays = {name: array.cpu().numpy() for name, array in self.arrays().items()}
        return {"density": spectrum_figure(arrays, f"Hessian spectrum{when}")} if arrays else {}

    def costs(self) -> dict[str, float]:
        return {"matvecs": float(self.matvecs)}

    def memory(self) -> Memory:
        return self.warm


@measures(Spectrum)
def spectrum(here: Snapshot, settings: Spectrum, memory: Memory) -> SpectrumResult:
    """The spectrum of the Hessian, with the threshold of the optimiser where the snapshot has one.

    >>> from lab.landscapes.quadratic import Quadratic
    >>> result = spectrum(Quadratic(torch.tensor([9.0, 4.0, 1.0, 1.0, -1.0])), torch.zeros(5), k=2, bottom=1)
    >>> [round(x, 2) for x in (*result.top.values.tolist(), result.trace.value, result.density.negative_mass.value)]
    [9.0, 4.0, 14.0, 0.06]
    """
    blocks = Blocks(here, settings)
    ends, phi, trace, matvecs = blocks.by_pyhessian() if settings.engine == "pyhessian" else blocks.by_lanczos()
    if isinstance(part := settings.examples, Nested):
        rest = here.loss_on(Nested(part.examples, rest=True))
        top, bottom = (bracketed(pairs, rest, here.w, blocks.chosen) for pairs in (ends.top, ends.bottom))
        ends = replace(ends, top=top, bottom=bottom)
    finite, now, last = math.isfinite(phi.bulk_edge), ends.top.vectors, memory.get("top")
    parts = dict[str, float]()
    if finite and settings.split:
        parts, spent = blocks.split(now.shape[1], trace)
        matvecs += spent
    if finite and settings.layers:
        numbers, spent = blocks.layers()
        parts, matvecs = parts | numbers, matvecs + spent
    return SpectrumResult(
        ends.top,
        ends.bottom,
        phi,
        trace,
        gradient_share=_share(blocks.chosen_part(blocks.H.gradient), now),
        overlap=_overlap(last, now) if last is not None and last.shape == now.shape else None,
        threshold=here.rule.threshold if here.rule is not None and here.rule.plain else None,
        parts=parts,
        matvecs=matvecs + 1,
        warm={"top": now} if finite else memory,
    )


def _share(gradient: Tensor, vectors: Tensor) -> float:
    """|V'g|^2 / |g|^2, NaN at a critical point."""
    inside, whole = (vectors.T.double() @ gradient.double()).square().sum(), gradient.double().square().sum()
    return float(inside / whole)


def _overlap(before: Tensor, now: Tensor) -> float:
    """|V'W|_F^2 / k of two orthonormal bases (P, k)."""
    return float((before.to(now).T @ now).double().square().sum() / now.shape[1])
