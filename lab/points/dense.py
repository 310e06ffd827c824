"""Value, gradient and the whole Hessian at many points at once: the local picture behind minima, saddles and rates.

For losses of few parameters (P up to some hundreds). All points share one graph, which is differentiated P times as one
batch, so that 50 points of a network of 24 parameters cost what one costs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from lab.objective import Objective
from lab.objective.base import differentiating_again

LARGEST = 1000
"""Parameters up to which the Hessian is formed: 8 MB a point."""

Field = Callable[[Tensor], Tensor]
"""A function of every row of W (R, P), differentiable."""


@dataclass(frozen=True)
class Local:
    """values (R,), gradients (R, P), hessians (R, P, P) symmetric, at R points."""

    values: Tensor
    gradients: Tensor
    hessians: Tensor

    def rows(self, chosen: Tensor) -> "Local":
        """Of the points `chosen` only."""
        return Local(self.values[chosen], self.gradients[chosen], self.hessians[chosen])

    def where(self, mine: Tensor, other: "Local") -> "Local":
        """This at the points `mine` (R,), the other elsewhere."""
        return Local(
            torch.where(mine, self.values, other.values),
            torch.where(mine[:, None], self.gradients, other.gradients),
            torch.where(mine[:, None, None], self.hessians, other.hessians),
        )


@dataclass(frozen=True)
class Stationary:
    """A point w (P,) where the gradient vanishes to `grad_norm`: its loss, and all its curvatures.

    eigenvalues (P,) ascending, with the orthonormal eigenvectors as columns of `vectors` (P, P).
    """

    w: Tensor
    value: float
    grad_norm: float
    eigenvalues: Tensor
    vectors: Tensor

    @property
    def index(self) -> int:
        """Number of negative eigenvalues."""
        return int((self.eigenvalues < 0).sum())


def losses(objective: Objective, W: Tensor) -> Tensor:
    """L at every row of W (R, P): (R,), differentiable as often as the objective is. Cost: R values, as one program."""
    objective.value(W[0])  # what an objective finds out once, such as the size of its chunks, it must not under vmap

    def total(w: Tensor) -> Tensor:
        return torch.stack([weight * loss for weight, loss in objective.parts(w)]).sum()

    return vmap(total)(W)


def local(objective: Objective, W: Tensor) -> Local:
    """L, its gradient and Hessian at every row of W (R, P), exact by double backward. Cost: about 2 P gradients a point.

    Raises ValueError for more than `LARGEST` parameters.

    >>> from lab.landscapes.quadratic import Quadratic
    >>> local(Quadratic((2.0, 5.0)), torch.ones(1, 2)).hessians
    tensor([[[2., 0.],
             [0., 5.]]])
    """
    if W.shape[1] > LARGEST:
        raise ValueError(f"{W.shape[1]} parameters: full Hessians are formed up to {LARGEST}; use Lanczos beyond")
    with torch.enable_grad(), differentiating_again():
        leaf = W.detach().requires_grad_()
        values = losses(objective, leaf)
        (g,) = torch.autograd.grad(values.sum(), leaf, create_graph=True)
        P = W.shape[1]
        directions = torch.eye(P, dtype=W.dtype, device=W.device)[:, None].expand(P, len(W), P)
        (rows,) = torch.autograd.grad(g, leaf, directions, is_grads_batched=True, materialize_grads=True)
    H = rows.transpose(0, 1)
    return Local(values.detach(), g.detach(), (H + H.transpose(1, 2)) / 2)


def gradient_field(objective: Objective) -> Field:
    """W (R, P) -> gradients (R, P), differentiable again in W."""

    def field(W: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = W if W.requires_grad else W.detach().requires_grad_()
            return torch.autograd.grad(losses(objective, leaf).sum(), leaf, create_graph=True)[0]

    return field


def stationary(objective: Objective, w: Tensor) -> Stationary:
    """What w (P,) is, whether its gradient vanishes or not."""
    at = local(objective, w[None])
    eigenvalues, vectors = torch.linalg.eigh(at.hessians[0])
    return Stationary(w.detach().clone(), float(at.values[0]), float(at.gradients[0].norm()), eigenvalues, vectors)
