"""The spectrum of the Hessian: both ends by eigenpairs, all of it by its density, and what the two amount to.

    trace                                             lab.curvature.trace, where the density has it not to 1 % already
    |H|_F, negative mass, effective rank, outliers above the bulk edge      lab.curvature.density
    gradient_share = |V'g|^2 / |g|^2                 V the top k eigenvectors (Gur-Ari, Roberts and Dyer 2018)
    overlap        = |V'V_before|_F^2 / k            1: the top eigenspace is the one of the measurement before
    H = G + R      G Gauss-Newton, R residual: the outliers come from G (Papyan 2019; Sagun et al. 2017)

The eigenpairs found are taken out of the density, so it is exact at the ends and its errors are those of the bulk.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass as card
from torch import Tensor

from lab.curvature.density import SpectralDensity, density
from lab.curvature.eigen import Extremes, lanczos
from lab.curvature.operators import Hessian, LinearOperator, difference, gauss_newton, hessian, restricted
from lab.objective import Objective, at_least_single, audit, with_gradients
from lab.params import Layout
from lab.probes.base import Probe, Snapshot, Value
from lab.probes.spectrum_traces import by_products, spectrum_trace, split_trace
from lab.results import Eigenpairs, Estimate
from lab.settings import CARD, SettingError
from lab.streams import stream

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[[str], torch.Generator]
"""A named random stream of this measurement."""
LAYER_TOL = 0.05
"""Wanted error of the trace of a layer's block relative to itself."""
QUANTITIES = ("frobenius", "negative_mass", "effective_rank", "outliers")
"""Numbers that come from the density, with their errors."""


@dataclass(frozen=True)
class Spectral:
    """What `spectrum` found. top and bottom eigenpairs, the density of all eigenvalues, the trace, the gradient's share.

    trace.converged: its error is within 1 % of it; trace.method tells how it was got. gradient_share as at the head of this
    file; matvecs the products spent, draws of the trace, and one for the gradient. converged is that of the eigenpairs.
    """

    top: Eigenpairs
    bottom: Eigenpairs
    density: SpectralDensity
    trace: Estimate
    gradient_share: float
    matvecs: int

    @property
    def converged(self) -> bool:
        return self.top.converged and self.bottom.converged

    @property
    def numbers(self) -> dict[str, float]:
        """Every quantity by its name; what has an error has it under error/name."""
        numbers = {f"lambda_{i}": float(value) for i, value in enumerate(self.top.values, 1)}
        numbers |= {f"error/lambda_{i}": float(error) for i, error in enumerate(self.top.errors, 1)}
        numbers |= {f"lambda_min_{i}": float(value) for i, value in enumerate(self.bottom.values, 1)}
        numbers |= {f"error/lambda_min_{i}": float(error) for i, error in enumerate(self.bottom.errors, 1)}
        for name in QUANTITIES:
            estimate: Estimate = getattr(self.density, name)
            numbers |= {name: estimate.value, f"error/{name}": estimate.error}
        numbers |= {"trace": self.trace.value, "error/trace": self.trace.error}
        numbers |= {"trace_converged": float(self.trace.converged), "bulk_edge": self.density.bulk_edge}
        return numbers | {"gradient_share": self.gradient_share, "converged": float(self.converged)}

    def arrays(self, threshold: float | None = None) -> dict[str, Tensor]:
        """All that the figures are drawn from, float64, by name; the stability threshold with it, if there is one."""
        phi = self.density
        arrays = {name: getattr(phi, name) for name in ("grid", "values", "low", "high", "nodes", "weights")}
        numbers = {"sigma": phi.sigma, "size": phi.size, "edge": phi.bulk_edge, "threshold": threshold}
        arrays |= {name: torch.tensor(x, dtype=torch.float64) for name, x in numbers.items() if x is not None}
        return arrays | {"top": self.top.values, "bottom": self.bottom.values}

    def figure(self, threshold: float | None = None, title: str = "Hessian spectrum") -> "Figure":
        """Density and number of eigenvalues; the threshold 2/lr (or its kin) beside them."""
        from lab.run.figures import spectrum_figure

        return spectrum_figure({name: array.cpu().numpy() for name, array in self.arrays(threshold).items()}, title)


@with_gradients
def spectrum(
    objective: Objective,
    w: Tensor | None = None,
    *,
    k: int = 10,
    bottom: int = 10,
    tol: float = 1e-2,
    max_matvecs: int = 400,
    steps: int = 80,
    vectors: int = 3,
    parameters: str = "*",
    seed: int = 0,
    audited: bool = True,
) -> Spectral:
    """The spectrum of the Hessian of `objective` at w (default: its present `weights`); settings as of `Spectrum`.

    Before the first number of a loss its laws are looked at (`lab.objective.audit`, at the price of a few gradients; Unsound
    where one is broken), unless `audited` is False.

    >>> from lab.landscapes.quadratic import Quadratic
    >>> found = spectrum(Quadratic(torch.tensor([9.0, 4.0, 1.0, 1.0, -1.0])), torch.zeros(5), k=2, bottom=1)
    >>> [round(x, 2) for x in (*found.top.values.tolist(), found.trace.value, found.density.negative_mass.value)]
    [9.0, 4.0, 14.0, 0.06]
    """
    if w is None:
        if not isinstance(present := getattr(objective, "weights", None), Tensor):
            raise ValueError(f"{type(objective).__name__} has no present weights; give w")
        w = present
    w = at_least_single(w)
    if audited:
        for note in audit(objective, w, seed=seed).notes:
            if "could not decide" in note:
                warnings.warn(f"the loss: {note}", stacklevel=3)
    settings = Spectrum(
        k=k, bottom=bottom, tol=tol, max_matvecs=max_matvecs, steps=steps, vectors=vectors, parameters=parameters
    )
    return settings.of(objective, w, hessian(objective, w), draw=lambda what: stream(seed, f"spectrum/{what}"))


@card(kw_only=True, config=CARD)
class Spectrum(Probe):
    """Eigenpairs at both ends, density, trace and what they amount to, every `every` steps.

    every        steps between measurements.
    k, bottom    number of largest and of smallest eigenpairs.
    tol          wanted error of an eigenvalue relative to the largest |lambda|, at the bottom too.
    max_matvecs  Hessian products allowed per eigensolve.
    steps        Lanczos steps per random vector: the density resolves 1/steps of the range.
    vectors      random vectors of the density.
    examples     size of the fixed, class-balanced probe set; all; auto (all up to 5000, else 2000).
    parameters   glob of parameter names; the Hessian is that in these alone, all others held fixed.
    split        also the Gauss-Newton matrix and the residual: top eigenvalues and traces.
    layers       also the largest eigenvalue and the trace of every layer's block.
    engine       lab, or pyhessian for eigenvalues, trace and density of that package (no bottom, no parameters).
    Every solve starts from random vectors: between measurements far apart the eigenvectors turn, and the claim of a solve
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

    every: Annotated[int, Field(gt=0)] = 130
    k: Annotated[int, Field(gt=0)] = 10
    bottom: Annotated[int, Field(ge=0)] = 10
    tol: Annotated[float, Field(gt=0, lt=1)] = 1e-2
    max_matvecs: Annotated[int, Field(gt=3)] = 400
    steps: Annotated[int, Field(gt=1)] = 80
    vectors: Annotated[int, Field(gt=0)] = 3
    examples: Annotated[int, Field(gt=0)] | Literal["all", "auto"] = "auto"
    parameters: str = "*"
    split: bool = False
    layers: bool = False
    engine: Literal["lab", "pyhessian"] = "lab"
    _last: Tensor | None = field(default=None, init=False, repr=False)

    @model_validator(mode="after")
    def _consistent(self) -> "Spectrum":
        if self.max_matvecs < (fewest := self.k + self.bottom):
            raise ValueError(f"max_matvecs={self.max_matvecs} is too few for the eigenpairs; use {fewest} or more")
        if self.engine == "pyhessian" and self.parameters != "*":
            raise ValueError('engine=pyhessian measures all parameters; use parameters="*" or engine=lab')
        if self.engine == "pyhessian" and self.max_matvecs < 2 * self.k:
            raise ValueError(f"max_matvecs={self.max_matvecs} is too few for PyHessian; use {2 * self.k} or more")
        return self

    def measure(self, snapshot: Snapshot) -> dict[str, Value]:
        """The tags spectrum/*, error/spectrum/*, cost/spectrum/*, a figure, and the arrays behind it."""
        begin, draw = perf_counter(), partial(_draw, snapshot)
        loss = snapshot.loss_on(self.examples)
        H = snapshot.once(("hessian", self.examples), lambda: hessian(loss, snapshot.w))
        found = self.of(loss, snapshot.w, H, draw=draw)
        numbers, matvecs, now = found.numbers, found.matvecs, found.top.vectors
        if self._last is not None and self._last.shape == now.shape:
            numbers["overlap"] = _overlap(self._last, now)
        values = dict[str, Value]()
        if math.isfinite(found.density.bulk_edge):
            self._last = now
            threshold = snapshot.rule.threshold if snapshot.rule is not None and snapshot.rule.plain else None
            values |= {f"spectrum/{name}": array for name, array in found.arrays(threshold).items()}
            values["spectrum/density"] = found.figure(threshold, f"Hessian spectrum, step {snapshot.step}")
            for wanted, part in ((self.split, self._split), (self.layers, self._layers)):
                if wanted:
                    more, cost = part(loss, snapshot, H, found, draw)
                    numbers, matvecs = numbers | more, matvecs + cost
        values |= _tagged(numbers)
        values["cost/spectrum/matvecs"] = float(matvecs)
        values["cost/spectrum/seconds"] = perf_counter() - begin
        return values

    def of(self, objective: Objective, w: Tensor, H: Hessian, *, draw: Draw) -> Spectral:
        """The spectrum of H, the Hessian of `objective` at w, in the chosen parameters; draw(name) a random stream."""
        before, index = H.matvecs, self._index(objective)
        operator = H if index is None else restricted(H, index)
        gradient = H.gradient if index is None else H.gradient[index.to(H.device)]
        if self.engine == "pyhessian":
            ends, phi, whole, spent = self._by_pyhessian(objective, w, draw)
        else:
            k, bottom = self._counts(operator)
            ends = self._solve(operator, k, bottom, draw("whole"))
            known = _joined(ends.top, ends.bottom)
            phi = density(operator, steps=self.steps, vectors=self.vectors, known=known, generator=draw("density"))
            loss = objective if index is None else None
            whole, spent = spectrum_trace(loss, w, operator, phi.trace, known, draw("trace"), most=self.max_matvecs)
        return Spectral(
            ends.top,
            ends.bottom,
            phi,
            whole,
            gradient_share=_share(gradient, ends.top.vectors),
            matvecs=H.matvecs - before + spent + 1,
        )

    def _by_pyhessian(
        self, objective: Objective, w: Tensor, draw: Draw
    ) -> tuple[Extremes, SpectralDensity, Estimate, int]:
        """Eigenvalues of largest magnitude, density and trace as that package computes them, and the products spent."""
        from lab.curvature.pyhessian import PyHessian

        peer = PyHessian(objective, w, generator=draw("pyhessian"))
        top = peer.top(min(self.k, len(w)), tol=self.tol, max_matvecs=self.max_matvecs)
        whole = peer.trace(tol=self.tol, max_matvecs=self.max_matvecs)
        phi = peer.density(steps=self.steps, vectors=self.vectors)
        nothing = torch.zeros(0, dtype=torch.float64)
        bottom = Eigenpairs(nothing, top.vectors[:, :0], nothing, nothing, 0, True)
        return Extremes(top, bottom), phi, whole, peer.matvecs

    def _index(self, objective: Objective) -> Tensor | None:
        """The places of the chosen parameters; None for all."""
        if self.parameters == "*":
            return None
        try:
            return _layout(objective).select(self.parameters)
        except ValueError as error:
            raise SettingError(f"probe.spectrum.parameters={self.parameters}: {error}") from None

    def _counts(self, operator: LinearOperator) -> tuple[int, int]:
        """Eigenpairs at the top and at the bottom: no more than there are."""
        k = min(self.k, operator.size - min(self.bottom, operator.size // 2))
        return k, min(self.bottom, operator.size - k)

    def _solve(self, operator: LinearOperator, top: int, bottom: int, generator: torch.Generator) -> Extremes:
        return lanczos(
            operator, top=top, bottom=bottom, tol=self.tol, max_matvecs=self.max_matvecs, generator=generator
        )

    def _split(
        self, objective: Objective, snapshot: Snapshot, H: Hessian, found: Spectral, draw: Draw
    ) -> tuple[dict[str, float], int]:
        """H = G + R in the chosen parameters: the top of G, both ends of R, the traces; and the products spent."""
        index, k = self._index(objective), len(found.top.values)
        G: LinearOperator = gauss_newton(objective, snapshot.w)
        R = difference(H, G)
        if index is not None:
            G, R = restricted(G, index), restricted(R, index)
        top = self._solve(G, k, 0, draw("gauss_newton"))
        ends = self._solve(R, 1, min(1, R.size - 1), draw("residual"))
        loss = objective if index is None else None
        whole = split_trace(loss, snapshot.w, G, draw("gauss_newton/trace"))
        numbers = {f"gauss_newton/lambda_{i}": float(value) for i, value in enumerate(top.top.values, 1)}
        numbers |= {f"residual/lambda_{i}": float(value) for i, value in enumerate(ends.top.values, 1)}
        numbers |= {f"residual/lambda_min_{i}": float(value) for i, value in enumerate(ends.bottom.values, 1)}
        for name, pairs in (("gauss_newton/lambda", top.top), ("residual/lambda", ends.top)):
            numbers |= {f"error/{name}_{i}": float(error) for i, error in enumerate(pairs.errors, 1)}
        numbers |= {"gauss_newton/trace": whole.value, "error/gauss_newton/trace": whole.error}
        numbers |= {"residual/trace": found.trace.value - whole.value}
        numbers |= {"error/residual/trace": math.hypot(found.trace.error, whole.error)}
        return numbers, top.top.matvecs + 2 * ends.top.matvecs + whole.matvecs

    def _layers(
        self, objective: Objective, snapshot: Snapshot, H: Hessian, found: Spectral, draw: Draw
    ) -> tuple[dict[str, float], int]:
        """The largest eigenvalue and the trace of the block of every layer, and the products spent."""
        numbers, before = dict[str, float](), H.matvecs
        for layer, place in _layout(objective).layers().items():
            block, name = restricted(H, place), f"layer/{layer or 'all'}"
            ends = self._solve(block, 1, 0, draw(name))
            known = _joined(ends.top, ends.bottom)
            whole = by_products(block, known, draw(f"{name}/trace"), tol=LAYER_TOL)
            numbers |= {
                f"{name}/lambda_1": float(ends.top.values[0]),
                f"error/{name}/lambda_1": float(ends.top.errors[0]),
            }
            numbers |= {f"{name}/trace": whole.value, f"error/{name}/trace": whole.error}
        return numbers, H.matvecs - before

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self._last is None else {"top": self._last}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._last = state.get("top")


def _share(gradient: Tensor, vectors: Tensor) -> float:
    """|V'g|^2 / |g|^2, NaN at a critical point."""
    inside, whole = (vectors.T.double() @ gradient.double()).square().sum(), gradient.double().square().sum()
    return float(inside / whole)


def _overlap(before: Tensor, now: Tensor) -> float:
    """|V'W|_F^2 / k of two orthonormal bases (P, k)."""
    return float((before.to(now).T @ now).double().square().sum() / now.shape[1])


def _joined(top: Eigenpairs, bottom: Eigenpairs) -> Eigenpairs | None:
    """Both ends as one set of pairs; None where a product was not finite."""
    values = torch.cat([top.values, bottom.values])
    if not bool(values.isfinite().all()):
        return None
    vectors = torch.cat([top.vectors, bottom.vectors], dim=1)
    residuals, errors = torch.cat([top.residuals, bottom.residuals]), torch.cat([top.errors, bottom.errors])
    return Eigenpairs(values, vectors, residuals, errors, top.matvecs, top.converged and bottom.converged)


def _draw(snapshot: Snapshot, what: str) -> torch.Generator:
    return stream(snapshot.seed, f"spectrum/{what}", snapshot.step)


def _layout(objective: Objective) -> Layout:
    if not isinstance(layout := getattr(objective, "layout", None), Layout):
        raise SettingError(f"{type(objective).__name__} has no named parameters: probe.spectrum.parameters and layers")
    return layout


def _tagged(numbers: Mapping[str, float]) -> dict[str, Value]:
    """Numbers under spectrum/, errors under error/spectrum/."""
    return {
        f"error/spectrum/{name.removeprefix('error/')}" if name.startswith("error/") else f"spectrum/{name}": number
        for name, number in numbers.items()
    }
