"""The traces of the spectrum probe: of the Hessian, of its blocks and of the Gauss-Newton matrix, by the best way there is.

Errors are reported and no setting of the probe would make them smaller: nothing warns here.
"""

import math
import warnings
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from lab.curvature.operators import LinearOperator
from lab.curvature.trace import gauss_newton_trace, hessian_trace, trace
from lab.layers.anatomy import take_apart
from lab.objective import Objective
from lab.results import Eigenpairs, Estimate

TRACE_TOL = 0.01
"""Wanted error of a trace relative to itself."""
PRODUCTS = 100
"""Products for a trace, unless as many as there are parameters are allowed."""


def spectrum_trace(
    objective: Objective | None,
    w: Tensor,
    operator: LinearOperator,
    there: Estimate,
    known: Eigenpairs | None,
    generator: torch.Generator,
    *,
    most: int,
) -> tuple[Estimate, int]:
    """Tr of the operator, the Hessian of `objective` at w if one is given, and its cost beside the operator's products.

    The first of these that is within `TRACE_TOL`, or the nearest of them: that of the density, which is `there`; by the
    layers of the network (100 draws at most); by products, beside the eigenpairs `known` (`by_products`).
    """
    found, before, spent = [there], operator.matvecs, 0
    if there.error > TRACE_TOL * abs(there.value):  # not where it is NaN: nothing else will be finite
        with suppress(TypeError, ValueError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if objective is not None:
                take_apart(objective, w)
                found.append(hessian_trace(objective, w, tol=TRACE_TOL, generator=generator, operator=operator))
                spent = max(0, found[-1].matvecs - (operator.matvecs - before))
        if not found[-1].error <= TRACE_TOL * abs(found[-1].value):
            found.append(by_products(operator, known, generator, most=most))
    best = min((each for each in found if math.isfinite(each.error)), key=lambda each: each.error, default=there)
    return replace(best, converged=best.error <= TRACE_TOL * abs(best.value)), spent


def by_products(
    operator: LinearOperator,
    known: Eigenpairs | None,
    generator: torch.Generator,
    *,
    tol: float = TRACE_TOL,
    most: int = PRODUCTS,
) -> Estimate:
    """Tr A beside its eigenpairs `known`: exact where all P products are no more than `most`, else from `PRODUCTS`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        allowed = max(PRODUCTS, most if operator.size <= most else 0)
        return trace(operator, tol=tol, max_matvecs=allowed, generator=generator, known=known)


def split_trace(objective: Objective | None, w: Tensor, G: LinearOperator, generator: torch.Generator) -> Estimate:
    """Tr G, the Gauss-Newton matrix of `objective` at w if one is given: exact for a network of known layers, else by
    products, which cost less than the gradients of single examples that an exact one would be made of.
    """
    if objective is not None:
        with suppress(TypeError, ValueError):
            take_apart(objective, w)
            return gauss_newton_trace(objective, w)
    return by_products(G, None, generator)
