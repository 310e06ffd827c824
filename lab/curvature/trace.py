"""Traces: Tr A of any operator, Tr H of a loss, and the generalised Gauss-Newton trace Tr G, each with its error.

    Tr A = E s'As  over random signs s                              any operator: `lab.curvature.probing`
    Tr H = sum over examples of E z'(d2L_n/da2) z                   signs at pre-activations: `lab.layers.anatomy`
    Tr G = sum over examples n, k of lambda_k |J_n' v_k|^2          d2 loss/df2 = sum_k lambda_k v_k v_k'

The second is one double backward pass through the activations alone for as many independent probes as there are examples,
the third one backward pass for each k, whose per-example norms come from layer inputs and output gradients without the
per-example gradients (`lab.layers.algebra`). Where the outputs are piecewise linear in the pre-activations (ReLU,
pooling, BatchNorm in eval mode) the rest of H has no diagonal and Tr H = Tr G exactly.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from lab.curvature.forms import FEWEST_FREEDOM, warned
from lab.curvature.operators import LinearOperator, hessian, projected
from lab.curvature.probing import (
    Probes,
    automatic,
    diagonal,
    hutch_plus_plus,
    hutchinson,
    interval,
    sampled,
    xtrace,
)
from lab.layers.anatomy import Anatomy, output_passes, require_examples, take_apart
from lab.layers.recorder import Recording
from lab.objective import Objective, differentiating_again, with_gradients
from lab.results import Eigenpairs, Estimate
from lab.streams import random_signs

MOST_OUTPUTS = 1000
"""Numbers the network may put out per example where their Hessian is formed."""

OperatorMethod = Literal["auto", "hutchinson", "hutch++", "xtrace"]
Method = Literal["auto", "signs", "gauss_newton", "hutchinson", "hutch++", "xtrace"]


def trace(
    operator: LinearOperator,
    *,
    method: OperatorMethod = "auto",
    tol: float = 0.02,
    max_matvecs: int = 100,
    generator: torch.Generator | None = None,
    known: Eigenpairs | None = None,
) -> Estimate:
    """Tr A of a symmetric operator, known by its products.

    method     "hutchinson": mean of s'As over random signs s, error sqrt(2 sum of squares off the diagonal / probes).
               "hutch++", "xtrace": the same after the range of some products is taken exactly; error ~ 1/products for a
               decaying spectrum, at 4 vectors (P,) of memory for 2 (XTrace) or 3 (Hutch++) products.
               "auto": Hutchinson if a few probes say that it will do, else whichever of it and XTrace has the smaller
               error at equal cost. Where all P products are no dearer the exact diagonal is taken (error 0) by "auto".
    tol        wanted error relative to |Tr A|.
    generator  of the signs (default: a fixed seed).
    known      eigenpairs that were found already: their sum is exact, and the sampling is left with the rest of A.
    Error: one standard error, from the products between the probes and widened for few and skew ones (`lab.curvature.forms`;
    for XTrace by Student's t), so that value +- 1.96 error covers 95 %, however the sampling stopped. Sums in float64.
    Cost: `matvecs` products. Not converged within `max_matvecs`: one warning, `converged=False`. Raises
    ValueError where max_matvecs is too small to tell an error (15; 5 for Hutchinson).

    >>> from lab.curvature.operators import hessian
    >>> from lab.landscapes.quadratic import Quadratic
    >>> trace(hessian(Quadratic(torch.tensor([2.0, 5.0])), torch.zeros(2))).value
    7.0
    """
    solvers = {"hutchinson": hutchinson, "hutch++": hutch_plus_plus, "xtrace": xtrace, "auto": automatic}
    if method not in solvers:
        raise ValueError(f"method={method!r}: expected one of {', '.join(solvers)}")
    fewest = 1 + FEWEST_FREEDOM if method == "hutchinson" else 3 * (1 + FEWEST_FREEDOM)
    if not tol >= 0 or (max_matvecs < fewest and not (method == "auto" and operator.size <= max_matvecs)):
        raise ValueError(f"tol={tol}, max_matvecs={max_matvecs}: expected tol >= 0 and at least {fewest} products")
    probes = Probes(operator, generator or torch.Generator(operator.device).manual_seed(0))
    if known is not None:
        probes.operator = projected(operator, known.vectors, complement=True)
        probes.offset = float(known.values.sum())  # Ritz values: exactly the trace in the span of the vectors
    return warned(solvers[method](probes, tol, max_matvecs), "trace", tol)


@with_gradients
def hessian_trace(
    objective: Objective,
    w: Tensor,
    *,
    tol: float = 0.02,
    method: Method = "auto",
    max_matvecs: int = 100,
    generator: torch.Generator | None = None,
    operator: LinearOperator | None = None,
) -> Estimate:
    """Tr H(w), the trace of the Hessian of `objective`.

    method     "signs": random signs at the pre-activations, at least two draws (see `lab.layers.anatomy`); for networks
               of the layers known to `lab.layers.kinds`, each used once, and any functions between.
               "gauss_newton": Tr G, which is Tr H where outputs are piecewise linear in pre-activations; from two draws
               of random signs at the outputs, or exact where as many backward passes as outputs are no dearer.
               "hutchinson", "hutch++", "xtrace": products with the Hessian, as in `trace`; for any objective.
               "auto": the first of gauss_newton, signs, `trace(..., method="auto")` that is valid here; `method` of the
               result tells which: "gauss_newton" (exact), "gauss_newton_signs", "signs", "hutchinson", "xtrace",
               "diagonal".
    tol        wanted error relative to |Tr H|; 0 with gauss_newton asks for the exact value.
    operator   the Hessian at w, where it is there already: products are taken of it instead of one made for them.
    Error: as in `trace`; of the sampling methods ~ 1/sqrt(examples * draws). Cost, in `matvecs`: products, or draws plus
    backward passes of gauss_newton. Two draws of signs, 1.4 % on 2000 images: 1 gradient on a 3072-200-200-10 MLP, whose
    first layer they do not go back through; 3 gradients a draw on ResNet-20, those of gauss_newton 1. Not converged: one
    warning, `converged=False`.
    Raises TypeError where the chosen method cannot take apart the model, ValueError where it would be wrong: coupled
    examples (train-mode BatchNorm), a criterion that is no mean, outputs that are not piecewise linear, or a function
    without a second derivative.
    """

    def H() -> LinearOperator:
        return hessian(objective, w) if operator is None else operator

    if method in ("hutchinson", "hutch++", "xtrace"):
        return trace(H(), method=method, tol=tol, max_matvecs=max_matvecs, generator=generator)
    if method not in ("auto", "signs", "gauss_newton"):
        raise ValueError(f"method={method!r}: expected auto, signs, gauss_newton, hutchinson, hutch++ or xtrace")
    if not tol >= 0 or max_matvecs < 2:
        raise ValueError(f"tol={tol}, max_matvecs={max_matvecs}: expected tol >= 0 and at least 2 draws")
    try:
        anatomy = take_apart(objective, w)
        if method == "gauss_newton":
            anatomy.require_piecewise_linear()
    except (TypeError, ValueError):
        if method != "auto":
            raise
        return trace(H(), tol=tol, max_matvecs=max_matvecs, generator=generator)
    generator = generator or torch.Generator(w.device).manual_seed(0)
    few_outputs = anatomy.num_outputs <= MOST_OUTPUTS
    if method == "gauss_newton" or (method == "auto" and anatomy.piecewise_linear and few_outputs):
        return warned(_gauss_newton(anatomy, w, tol, max_matvecs, generator), "trace", tol)
    draws = partial(_sign_draws, anatomy, w, generator)
    few = draws(2)
    if method == "auto" and w.numel() <= min(max_matvecs, interval(few).needed(2, tol)):
        return warned(diagonal(Probes(H(), generator)), "trace", tol)
    return warned(sampled(draws, few, tol, max_matvecs, "signs"), "trace", tol)


@with_gradients
def gauss_newton_trace(objective: Objective, w: Tensor) -> Estimate:
    """Tr G = (1/N) sum over examples n of Tr J_n' (d2 loss_n/df2) J_n, J_n = df_n/dw (K, P): exact, error 0.

    Any criterion that is a mean over examples, convex in the outputs f or not. Cost: K backward passes with per-example
    norms (`matvecs`; K - 1 for the softmax, whose output Hessian is singular). For ten classes together 1.3 gradients on
    a 3072-200-200-10 MLP, 7 on ResNet-20. K is all that the network puts out for an example: 1 of (N,), T K of (N, T, K).
    Networks with other layers, or layers used twice: K passes as of `lab.layers.examples`, which form the gradients
    of single examples where no layer tells of them, dear for wide layers.
    Raises TypeError without a network, ValueError for train-mode BatchNorm or a criterion that is no mean over examples.
    """
    return _gauss_newton_exact(output_passes(require_examples(objective), w))


def _sign_draws(anatomy: Anatomy, w: Tensor, generator: torch.Generator, num: int) -> Tensor:
    """Draws (num, N) whose sums over the examples have the mean Tr H."""
    return torch.cat([chunk.sign_draws(num, generator) for chunk in anatomy.chunks(w)], dim=1)


def _gauss_newton_draws(anatomy: Anatomy, w: Tensor, generator: torch.Generator, num: int) -> Tensor:
    """Draws (num, N) whose sums have the mean Tr G: over the signs of lambda +-|J_n' sum_k sqrt|lambda_k| s_k v_k|^2, with
    random signs s.
    """
    chunks = list[Tensor]()
    for chunk in anatomy.chunks(w):
        values, vectors = output_curvature(chunk.criterion, chunk.outputs, chunk.num)
        draws = values.new_zeros(num, chunk.num, dtype=torch.float64)
        for draw in draws:
            s = random_signs(tuple(values.shape), values, generator)
            for side in (1, -1):
                part = (side * values).clamp(min=0)
                if bool((part != 0).any()):
                    draw += side * chunk.squared_norms((vectors @ (part.sqrt() * s)[:, :, None])[:, :, 0])
        chunks.append(chunk.weight / chunk.num * draws)
    return torch.cat(chunks, dim=1)


def _gauss_newton(anatomy: Anatomy, w: Tensor, tol: float, most: int, generator: torch.Generator) -> Estimate:
    """Tr G by draws or exact, whichever is expected to need fewer backward passes."""
    if tol == 0 or anatomy.num_outputs <= 2:
        return _gauss_newton_exact(anatomy.chunks(w))
    draws = partial(_gauss_newton_draws, anatomy, w, generator)
    few = draws(2)
    mean = interval(few)
    if not mean.within(tol) and anatomy.num_outputs < min(most, mean.needed(2, tol)) - 2:
        return _gauss_newton_exact(anatomy.chunks(w), spent=2)
    return sampled(draws, few, tol, most, "gauss_newton_signs")


def _gauss_newton_exact(passes: Iterable[Recording], spent: int = 0) -> Estimate:
    total, most = 0.0, 0
    for each in passes:
        values, vectors = output_curvature(each.criterion, each.outputs, each.num)
        curved = [k for k in range(values.shape[1]) if bool((values[:, k] != 0).any())]
        norms = each.pulled_norms(vectors[:, :, k] for k in curved)
        total += sum(each.weight * float((values[:, k] * norm).mean()) for k, norm in zip(curved, norms, strict=True))
        most = max(most, len(curved))
    return Estimate(total, 0.0, spent + most, "gauss_newton", math.isfinite(total))


def output_curvature(criterion: Callable[[Tensor], Tensor], outputs: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues (n, M) and eigenvectors (n, M, M) of d2 loss_n/df_n2 for n = `num` examples, loss = mean of loss_n.

    outputs of any shape, M numbers an example, one example after another.

    In float64: a fitted example has 1 - p of 1e-6, which float32 loses, and many may outweigh the few others. The k-th
    eigenvalues are set to zero where all are round-off: the softmax has one such column, and each costs a pass.
    Raises ValueError above `MOST_OUTPUTS` and where the criterion cannot be differentiated twice.
    """
    f = outputs.detach().double().requires_grad_()
    n, size = num, f.numel() // num
    if size > MOST_OUTPUTS:
        raise ValueError(f"{size} outputs for each example; their Hessian is formed for {MOST_OUTPUTS} at most")
    with torch.enable_grad(), differentiating_again():
        (g,) = torch.autograd.grad(criterion(f), f, create_graph=True, materialize_grads=True)
        if not g.requires_grad:
            return outputs.new_zeros(n, size), outputs.new_zeros(n, size, size)
        rows = [
            torch.autograd.grad(column.sum(), f, retain_graph=True, materialize_grads=True)[0].reshape(n, size)
            for column in g.reshape(n, size).unbind(1)
        ]
    hessians = n * torch.stack(rows, 1)
    if not bool(hessians.isfinite().all()):
        return outputs.new_full((n, size), math.nan), outputs.new_full((n, size, size), math.nan)
    values, vectors = torch.linalg.eigh((hessians + hessians.transpose(1, 2)) / 2)
    sizes = values.abs().sum(0)
    values = values * (sizes > 1e-13 * sizes.sum())
    return values.to(outputs.dtype), vectors.to(outputs.dtype)
