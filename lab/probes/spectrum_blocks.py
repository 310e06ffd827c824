"""The Hessian in chosen parameters, its parts and its blocks: their eigenvalues, densities and traces.

Errors of traces are reported and no setting of the probe would make them smaller: nothing warns here.
"""

import math
import warnings
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lab.curvature.density import SpectralDensity, density
from lab.curvature.eigen import Extremes, lanczos
from lab.curvature.operators import LinearOperator, difference, gauss_newton, restricted
from lab.curvature.trace import gauss_newton_trace, hessian_trace, trace
from lab.layers.anatomy import take_apart
from lab.objective import Objective
from lab.params import Layout
from lab.probes.base import Snapshot
from lab.results import Eigenpairs, Estimate, numbered, ranked
from lab.settings import SettingError

if TYPE_CHECKING:
    from lab.probes.spectrum import Spectrum

TRACE_TOL, LAYER_TOL = 0.01, 0.05
"""Wanted error of a trace, and of that of a layer's block, relative to itself."""
PRODUCTS, FEW = 100, 12
"""Products, or draws, of a trace, unless as many as there are parameters are allowed; the fewest of a standard error."""


class Blocks:
    """The Hessian in the chosen parameters, its parts and its blocks; every solve draws from a stream of its name."""

    def __init__(self, here: Snapshot, settings: "Spectrum"):
        self.here, self.settings = here, settings
        self.loss = here.loss_on(settings.examples)
        self.H = here.hessian(settings.examples)
        self.places = None if settings.parameters == "*" else settings.select(_layout(self.loss))
        self.k, self.bottom, self.steps, self.vectors = settings.counts
        self.layered = self.loss if self.places is None else None
        """The loss, where the layers of its network tell traces."""

    def chosen(self, operator: LinearOperator) -> LinearOperator:
        """An operator on all weights in the chosen parameters."""
        return operator if self.places is None else restricted(operator, self.places)

    def chosen_part(self, v: Tensor) -> Tensor:
        """The entries of v (P,) that belong to the chosen parameters."""
        return v if self.places is None else v[self.places.to(v.device)]

    def draw(self, what: str) -> torch.Generator:
        return self.here.stream(f"spectrum/{what}")

    def solve(self, operator: LinearOperator, top: int, bottom: int, what: str) -> Extremes:
        tol, most = float(self.settings.tol), self.settings.max_matvecs
        return lanczos(operator, top=top, bottom=bottom, tol=tol, max_matvecs=most, generator=self.draw(what))

    def by_lanczos(self) -> tuple[Extremes, SpectralDensity, Estimate, int]:
        """Eigenpairs, no more than there are, density and trace; and the products spent."""
        operator, before = self.chosen(self.H), self.H.matvecs
        k = min(self.k, operator.size - min(self.bottom, operator.size // 2))
        ends = self.solve(operator, k, min(self.bottom, operator.size - k), "whole")
        known, draw = _joined(ends), self.draw("density")
        phi = density(operator, steps=self.steps, vectors=self.vectors, known=known, generator=draw)
        whole, spent = self._trace(operator, phi.trace, known)
        return ends, phi, whole, self.H.matvecs - before + spent

    def by_pyhessian(self) -> tuple[Extremes, SpectralDensity, Estimate, int]:
        """Eigenvalues of largest magnitude, density and trace as that package computes them, and the products spent."""
        from lab.curvature.pyhessian import PyHessian

        settings, w = self.settings, self.here.w
        peer = PyHessian(self.loss, w, generator=self.draw("pyhessian"))
        top = peer.top(min(self.k, len(w)), tol=float(settings.tol), max_matvecs=settings.max_matvecs)
        whole = peer.trace(tol=float(settings.tol), max_matvecs=settings.max_matvecs)
        phi = peer.density(steps=self.steps, vectors=self.vectors)
        nothing = torch.zeros(0, dtype=torch.float64)
        bottom = Eigenpairs(nothing, top.vectors[:, :0], nothing, nothing, 0, True)
        return Extremes(top, bottom), phi, whole, peer.matvecs

    def split(self, k: int, whole: Estimate) -> tuple[dict[str, float], int]:
        """H = G + R: the k largest of G, both ends of R, the traces, `whole` that of H; and the products spent."""
        G = gauss_newton(self.loss, self.here.w)
        metric, rest = self.chosen(G), self.chosen(difference(self.H, G))
        top = self.solve(metric, k, 0, "gauss_newton").top
        ends = self.solve(rest, 1, min(1, rest.size - 1), "residual")
        known = self._metric_trace(metric)
        left = Estimate(whole.value - known.value, math.hypot(whole.error, known.error), 0, "difference")
        numbers = eigenvalues("gauss_newton/lambda", top) | eigenvalues("residual/lambda", ends.top)
        numbers |= eigenvalues("residual/lambda_min", ends.bottom)
        numbers |= numbered({"gauss_newton/trace": known, "residual/trace": left})
        return numbers, top.matvecs + 2 * ends.top.matvecs + known.matvecs

    def layers(self) -> tuple[dict[str, float], int]:
        """The largest eigenvalue and the trace of the block of every layer, and the products spent."""
        numbers, before = dict[str, float](), self.H.matvecs
        for layer, place in _layout(self.loss).layers().items():
            block, name = restricted(self.H, place), f"layer/{layer or 'all'}"
            ends = self.solve(block, 1, 0, name)
            known, draw = _joined(ends), self.draw(f"{name}/trace")
            numbers |= eigenvalues(f"{name}/lambda", ends.top)
            numbers |= numbered({f"{name}/trace": by_products(block, known, draw, tol=LAYER_TOL)})
        return numbers, self.H.matvecs - before

    def _trace(self, operator: LinearOperator, there: Estimate, known: Eigenpairs | None) -> tuple[Estimate, int]:
        """Tr of H in the chosen parameters, and its cost beside the products of H.

        The first of these that is within `TRACE_TOL`, or the nearest of them: that of the density, which is `there`; by the
        layers of the network (`most_draws`); by products, beside the eigenpairs `known` (`by_products`).
        """
        ways, before, spent, draw = [there], operator.matvecs, 0, self.draw("trace")
        draws = self.settings.most_draws
        if there.error > TRACE_TOL * abs(there.value):  # not where it is NaN: nothing else will be finite
            with suppress(TypeError, ValueError), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if self.layered is not None:
                    take_apart(self.layered, self.here.w)
                    loss, w = self.layered, self.here.w
                    way = hessian_trace(loss, w, tol=TRACE_TOL, max_matvecs=draws, generator=draw, operator=operator)
                    ways.append(way)
                    spent = max(0, ways[-1].matvecs - (operator.matvecs - before))
            if not ways[-1].error <= TRACE_TOL * abs(ways[-1].value) and (draws == PRODUCTS or len(ways) == 1):
                ways.append(by_products(operator, known, draw, draws=draws, most=self.settings.max_matvecs))
        best = min((way for way in ways if math.isfinite(way.error)), key=lambda way: way.error, default=there)
        return replace(best, converged=best.error <= TRACE_TOL * abs(best.value)), spent

    def _metric_trace(self, G: LinearOperator) -> Estimate:
        """Tr G in the chosen parameters: exact for a network of known layers, else by products, which cost less than the
        gradients of single examples that an exact one would be made of.
        """
        if self.layered is not None:
            with suppress(TypeError, ValueError):
                take_apart(self.layered, self.here.w)
                return gauss_newton_trace(self.layered, self.here.w)
        return by_products(G, None, self.draw("gauss_newton/trace"))


def by_products(
    operator: LinearOperator,
    known: Eigenpairs | None,
    generator: torch.Generator,
    *,
    tol: float = TRACE_TOL,
    draws: int = PRODUCTS,
    most: int = PRODUCTS,
) -> Estimate:
    """Tr A beside its eigenpairs `known`: exact where all P products are no more than `most`, else from `draws`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        allowed = max(draws, most if operator.size <= most else 0)
        return trace(operator, tol=tol, max_matvecs=allowed, generator=generator, known=known)


def eigenvalues(name: str, pairs: Eigenpairs) -> dict[str, float]:
    """name_1, name_2 .. with their errors."""
    return ranked([f"{name}_{i + 1}" for i in range(len(pairs.values))], pairs)


def _joined(ends: Extremes) -> Eigenpairs | None:
    """Both ends as one set of pairs; None where a product was not finite."""
    top, bottom = ends.top, ends.bottom
    joined = (torch.cat([getattr(top, name), getattr(bottom, name)]) for name in ("values", "residuals", "errors"))
    values, residuals, errors = joined
    if not bool(values.isfinite().all()):
        return None
    vectors = torch.cat([top.vectors, bottom.vectors], dim=1)
    return Eigenpairs(values, vectors, residuals, errors, top.matvecs, top.converged and bottom.converged)


def _layout(objective: Objective) -> Layout:
    if not isinstance(layout := getattr(objective, "layout", None), Layout):
        raise SettingError(f"{type(objective).__name__} has no named parameters: probe.spectrum.parameters and layers")
    return layout
