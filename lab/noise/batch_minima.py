"""Every batch has a landscape of its own: where its minima lie, beside each other and beside that of all examples.

    w_b     where descent on L_b, the mean over batch b, goes from w;  w_full likewise on L
    step    of the descent: s's / s'y, s the last move and y = H s the change of the gradient over it: 1 / curvature along s
    shift   of the minimum when example i is left out: (H_rest + damping)^-1 g_i / (N - 1)

Linear regression, Gaussian inputs, batches of B > d + 1 examples: the minima are centred at w_full with spread
d sigma^2 / (B - d - 1), larger than the d sigma^2 / B of a fixed H; where B <= d they are affine subspaces, and w_b is the
point of one that is nearest to w. Descent is the spectral gradient method of Barzilai and Borwein (1988) with the
non-monotone line search of Raydan (1997), all batches at once. The shift is exact for linear regression:
-(X'X)^-1 x_i e_i / (1 - h_i), e_i the residual and h_i the leverage (Cook and Weisberg, Residuals and influence in
regression, 1982); with the Gauss-Newton matrix in the place of H it is the influence function for networks of Koh and Liang
(2017, arXiv 1703.04730).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from lab.curvature.operators import LinearOperator, gauss_newton
from lab.curvature.vectors import dots
from lab.objective import CHUNK_BYTES, NetworkObjective, Objective
from lab.sampling import Sampling

MEMORY = 10
"""Non-monotone line search: a step must lead below the largest of so many last losses."""
DECREASE = 1e-4
"""By at least this times step |g|^2."""


def draw_batches(
    num_examples: int, batch_size: int, count: int, sampling: Sampling, generator: torch.Generator
) -> Tensor:
    """Indices (count, batch_size) of batches drawn as in training; of an epoch the full ones, disjoint, then the next.

    Raises ValueError where a batch is larger than the set and not drawn with replacement.
    """
    if sampling == "with_replacement":
        return torch.randint(num_examples, (count, batch_size), generator=generator)
    if batch_size > num_examples:
        raise ValueError(f"a batch of {batch_size} out of {num_examples} examples; expected at most {num_examples}")
    per_order = num_examples // batch_size if sampling == "epoch" else 1
    orders = [torch.randperm(num_examples, generator=generator) for _ in range(-(-count // per_order))]
    return torch.cat([order[: per_order * batch_size].view(per_order, batch_size) for order in orders])[:count]


def one_by_one(losses: Iterable[Objective], W: Tensor) -> tuple[Tensor, Tensor]:
    """L_r(w_r) (R,) and gradients (R, P) at W (R, P), one loss after another and in its chunks. Cost: R gradients."""
    pairs = [loss.value_and_grad(w) for loss, w in zip(losses, W, strict=False)]
    return torch.stack([value for value, _ in pairs]), torch.stack([gradient for _, gradient in pairs])


class BatchLosses:
    """The losses L_b of R batches, index (R, B), each at weights of its own, all at once where vmap can go."""

    def __init__(self, objective: NetworkObjective, index: Tensor):
        objective.require_single_examples()
        self.objective, self.index = objective, index.to(objective.y.device)
        self.x, self.y = objective.x[self.index], objective.y[self.index]

    def value_and_grad(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """L_b(w_b) (R,) and gradients (R, P) at W (R, P). Cost: R gradients of B examples."""
        pair = self._at_once(grad_and_value(self.objective.loss_of), W)
        return one_by_one(self._each(), W) if pair is None else (pair[1], pair[0])

    def value(self, W: Tensor) -> Tensor:
        """L_b(w_b) (R,) at W (R, P). Cost: R forward passes of B examples."""
        values = self._at_once(self.objective.loss_of, W)
        return (
            torch.stack([loss.value(w) for loss, w in zip(self._each(), W, strict=True)]) if values is None else values
        )

    def _each(self) -> Iterator[NetworkObjective]:
        return (self.objective.restrict(row) for row in self.index)

    def _at_once(self, function: Callable[..., Any], W: Tensor) -> Any:
        """function(w_b, x_b, y_b) of all batches, as many at a time as fill a chunk; None where vmap cannot go."""
        examples = self.x.shape[1] * self.objective.bytes_per_example(W[0])
        at_once = max(1, CHUNK_BYTES // (examples + W[0].numel() * W.element_size()))
        with torch.no_grad():
            return self.objective.vectorised.attempt(lambda: vmap(function, chunk_size=at_once)(W, self.x, self.y))


@dataclass(frozen=True)
class BatchMinima:
    """Where descent led: weights (R, P), the losses (R,) there, and |g| there over |g| at the start (R,)."""

    weights: Tensor
    losses: Tensor
    gradient_left: Tensor


def descend(
    value_and_grad: Callable[[Tensor], tuple[Tensor, Tensor]], W: Tensor, *, steps: int, lr: float, tol: float = 0.0
) -> BatchMinima:
    """Spectral gradient descent on each loss from its row of W (R, P): the best point met in `steps` steps.

    lr: of the first step. It ends early where every |g| has fallen below `tol` of that at the start. On a quadratic of
    condition number k the error falls about as fast as with conjugate gradients, some sqrt(k) steps a digit. Cost: R
    gradients of a batch a step; memory 5 R P numbers. A loss that is not finite at the start leaves its row as it is.
    """
    value, gradient = value_and_grad(W)  # (R,), (R, P)
    first, best, lowest, left = _norms(gradient), W, value, _norms(gradient)
    recent = value[:, None].repeat(1, MEMORY)  # (R, MEMORY): the last losses
    step = torch.full_like(value, lr)
    for i in range(steps):
        if bool((left <= tol * first).all()):
            break
        trial = W - step[:, None] * gradient  # (R, P)
        new, slope = value_and_grad(trial)
        size = _norms(gradient)
        good = new <= recent.amax(1) - DECREASE * step * size**2  # (R,): the line search is content
        change, turn = trial - W, slope - gradient  # (R, P): s and y = H s of a quadratic
        curved = (change * turn).sum(1)  # (R,): s'y
        spectral = torch.where(curved > 0, _norms(change) ** 2 / curved, 2 * step)  # (R,): s's / s'y
        step = torch.where(good, spectral, step / 4)
        W, gradient = torch.where(good[:, None], trial, W), torch.where(good[:, None], slope, gradient)
        value = torch.where(good, new, value)
        recent[:, i % MEMORY] = value
        better = good & ((new < lowest) | ((new == lowest) & (_norms(slope) < left)))
        best, lowest = torch.where(better[:, None], trial, best), torch.where(better, new, lowest)
        left = torch.where(better, _norms(slope), left)
    return BatchMinima(best, lowest, left / first)


def _norms(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows.double(), dim=1).to(rows.dtype)


@dataclass(frozen=True)
class Shift:
    """How the minimum moves: vector (P,), the residual |A s - b| / |b| it was solved to, and the products spent."""

    vector: Tensor
    residual: float
    matvecs: int


def leave_one_out(
    objective: NetworkObjective,
    w: Tensor,
    example: int,
    *,
    damping: float = 0.0,
    tol: float = 1e-6,
    max_matvecs: int = 200,
) -> Shift:
    """How the minimum w of L moves when `example` is left out: (G_rest + damping)^-1 g_i / (N - 1), by conjugate gradients.

    G_rest is the Gauss-Newton matrix of the other examples: one Newton step, exact for linear regression. damping, in
    units of curvature: directions in which the loss is flatter do not move; a network that fits everything needs it.
    Assumes g = 0 at w. Cost: a gradient and up to `max_matvecs` Gauss-Newton products.
    """
    num = len(objective.x)
    if num < 2:
        raise ValueError("one example alone: leaving it out leaves none")
    every = torch.arange(num, device=objective.y.device)
    G = gauss_newton(objective.restrict(every[every != example]), w)
    g = objective.example_grads(w, every[example : example + 1])[0]
    return conjugate_gradients(G, g / (num - 1), damping=damping, tol=tol, max_matvecs=max_matvecs)


def conjugate_gradients(
    operator: LinearOperator, b: Tensor, *, damping: float = 0.0, tol: float = 1e-6, max_matvecs: int = 200
) -> Shift:
    """(A + damping)^-1 b for a positive semidefinite A, to a residual of `tol` |b| or as far as `max_matvecs` products go.

    >>> from lab.curvature.operators import hessian
    >>> from lab.landscapes.quadratic import Quadratic
    >>> conjugate_gradients(hessian(Quadratic(torch.tensor([2.0, 5.0])), torch.zeros(2)), torch.ones(2)).vector
    tensor([0.5000, 0.2000])
    """
    x, r = torch.zeros_like(b), b.clone()
    p, square, size = r, _dot(r, r), math.sqrt(_dot(b, b))
    spent = 0
    while spent < max_matvecs and math.sqrt(square) > tol * size:
        Ap = (operator @ p) + damping * p
        spent += 1
        curved = _dot(p, Ap)
        if not curved > 0:  # a direction without curvature: no solution lies beyond
            break
        x, r = x + square / curved * p, r - square / curved * Ap
        square, before = _dot(r, r), square
        p = r + square / before * p
    return Shift(x, math.sqrt(square) / size if size > 0 else 0.0, spent)


def _dot(a: Tensor, b: Tensor) -> float:
    return float(dots(a[None], b[None]))
