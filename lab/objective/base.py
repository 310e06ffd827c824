"""The seam of the lab: a scalar loss L(w) on a flat vector w in R^P, and its derivatives.

A subclass writes one method, `parts(w)`: pairs (weight, loss) whose weights sum to 1 and with L = sum weight * loss.
Everything else (value, gradient, Hessian products, third derivatives) is written once, here, for toys and networks
alike. Parts are weighted by examples, so a ragged last chunk is right: the mean of chunk means is not the mean.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

NOT_AGAIN = ("is not implemented", "differentiate twice", "double backward", "create_graph=False", "order derivatives")
"""What torch says where a kernel has no further derivative: recurrent and compiled ones, bags of embeddings, CTC ..."""
SILENTLY_WRONG = {
    "autograd::Error": "a function in it is marked once_differentiable",
    "WeightNormInterface": "torch has no right second derivative of weight_norm; use another parametrisation",
}
"""Nodes of a graph through which torch 2.15 gives a wrong second derivative and says nothing. At a once_differentiable
function it hangs a node that raises, but does not come by it when it is asked for the derivative by named inputs, as here:
the terms behind it would be missing. Through weight_norm Hessian products are off by half and more."""


class Unsound(ValueError):
    """A loss of which a number cannot be had, or not be believed: it breaks a law, has no second derivative, draws random
    numbers, or has no gradients of single examples where these are asked for. The message is one line with the cure.
    """


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def with_gradients(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`function` with gradients recorded, also where its caller has switched them off by `torch.no_grad`, as the validation
    hooks of a trainer do, and without automatic half precision, which reaches into backward passes too. Under
    `torch.inference_mode`, which cannot be left for tensors made in it: ValueError.
    """

    @wraps(function)
    def recorded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        require_no_inference()
        with torch.enable_grad(), full_precision():
            return function(*args, **kwargs)

    return recorded


@contextmanager
def full_precision() -> Iterator[None]:
    """No automatic half precision inside, whatever is switched on around it."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def require_no_inference() -> None:
    """Raise ValueError under `torch.inference_mode`."""
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "called under torch.inference_mode, in which torch records no derivatives: call it outside, or use "
            "torch.no_grad there (in Lightning: Trainer(inference_mode=False))"
        )


def at_least_single(w: Tensor) -> Tensor:
    """w, in float32 where it is of half precision: products and solves in it would be off by 20 to 60 per cent.

    >>> at_least_single(torch.ones(1, dtype=torch.bfloat16)).dtype, at_least_single(torch.ones(1).double()).dtype
    (torch.float32, torch.float64)
    """
    return w.to(torch.promote_types(w.dtype, torch.float32)) if w.is_floating_point() else w


class Objective(ABC):
    """A scalar loss L: R^P -> R. It owns its data and never changes a caller's model, buffers, `.grad` or random state.

    Laws: the weights of `parts` sum to 1; `value`, `grad` and `hvp` are deterministic functions of w; results have the
    dtype and device of w.

    >>> from lab.landscapes.factorisation import Factorisation
    >>> loss, w, a, b = Factorisation(), torch.tensor([2.0, 3.0]), *torch.eye(2)  # (1 - ab)^2/2
    >>> loss.value(w), loss.grad(w), loss.hvp(w, a), loss.third(w, a, b)
    (tensor(12.5000), tensor([15., 10.]), tensor([ 9., 11.]), tensor([6., 4.]))
    """

    num_params: int
    num_examples: int | None = None
    """Number of examples the loss averages over; None where there are none (a landscape)."""

    @abstractmethod
    def parts(self, w: Tensor) -> Iterator[tuple[float, Tensor]]:
        """Yield (weight, loss) with L(w) = sum of weight * loss; each loss a scalar differentiable in w."""

    def value(self, w: Tensor) -> Tensor:
        """L(w), a scalar. Cost: one forward pass."""
        with torch.no_grad():
            return self._mean((weight, loss) for weight, loss in self.parts(w.detach()))

    @with_gradients
    def value_and_grad(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """L(w) and its gradient (P,). Cost: one gradient, memory of one chunk."""
        leaf = w.detach().requires_grad_()
        total, gradient = torch.zeros((), dtype=torch.float64, device=w.device), torch.zeros_like(w)
        for weight, loss in self.parts(leaf):
            (g,) = torch.autograd.grad(loss, leaf, materialize_grads=True)
            gradient.add_(g, alpha=weight)
            total += weight * loss.detach()
        return self.reduce(total).to(w.dtype), self.reduce(gradient)

    def grad(self, w: Tensor) -> Tensor:
        """Gradient of L at w, (P,). Cost: one gradient."""
        return self.value_and_grad(w)[1]

    @with_gradients
    def hvp(self, w: Tensor, v: Tensor) -> Tensor:
        """Hessian product H(w) v, (P,), exact. Cost: 2.2 gradients; `curvature.hessian` keeps the graph and pays 1.1."""
        leaf, product = w.detach().requires_grad_(), torch.zeros_like(w)
        for weight, loss in self.parts(leaf):
            product.add_(directional(self.slope(loss, leaf), leaf, v), alpha=weight)
        return self.reduce(product)

    @with_gradients
    def third(self, w: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Gradient of u'H(w)v with respect to w, (P,): the third derivative contracted twice. Cost: about 5 gradients."""
        leaf, product = w.detach().requires_grad_(), torch.zeros_like(w)
        for weight, loss in self.parts(leaf):
            g = self.slope(loss, leaf)
            if not g.requires_grad:
                continue
            hv = self.slope(g, leaf, v)
            product.add_(directional(hv, leaf, u), alpha=weight)
        return self.reduce(product)

    def example_grads(self, w: Tensor, index: Tensor | None = None) -> Tensor:
        """Per-example gradients (b, P), of the examples `index` (b,) or of all; their mean is the gradient.

        Raises TypeError where the loss is no mean over examples.
        """
        raise TypeError(f"{type(self).__name__} is not a mean over examples: it has no per-example gradients")

    def restrict(self, index: Tensor) -> "Objective":
        """The loss over the examples `index` (b,) only: L_B. Raises TypeError where there are no examples."""
        raise TypeError(f"{type(self).__name__} is not a mean over examples: it has no mini-batches")

    def replica_values(self, W: Tensor, index: Tensor | None = None) -> Tensor:
        """L at every row of W (R, P): (R,). `index` (R, B): row r on its own mini-batch. Cost: R values."""
        rows = [self if index is None else self.restrict(index[r]) for r in range(len(W))]
        return torch.stack([loss.value(w) for loss, w in zip(rows, W, strict=True)]) if len(W) else W.new_zeros(0)

    def replica_grads(self, W: Tensor, index: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Gradients at every row of W (R, P): (R, P). Cost: R gradients.

        index (R, B): row r on its own mini-batch, the mean over it. weights (R, B), or (R, N) without index: the gradient
        of sum_j weights[r, j] loss_j instead of the mean.
        """
        grads = torch.empty_like(W)
        for r, w in enumerate(W):
            chosen = None if index is None else index[r]
            if weights is None:
                grads[r] = (self if chosen is None else self.restrict(chosen)).grad(w)
            else:
                grads[r] = weights[r].to(w) @ self.example_grads(w, chosen)
        return grads

    def composition(self, w: Tensor) -> Iterator[tuple[float, Tensor, Callable[[Tensor], Tensor]]]:
        """Yield (weight, f, loss) with L(w) = sum of weight * loss(f) and outputs f differentiable in w: the split that
        the Gauss-Newton matrix J' (d2 loss/df2) J, J = df/dw, is about. Raises TypeError where there is no such split.
        """
        raise TypeError(f"{type(self).__name__} is no loss of outputs: it has no Gauss-Newton matrix")

    def slope(self, f: Tensor, leaf: Tensor, along: Tensor | None = None) -> Tensor:
        """d(f'along)/d leaf with its graph, for differentiating again; `along` may be left out for a scalar f."""
        with differentiating_again():
            return torch.autograd.grad(f, leaf, along, create_graph=True, materialize_grads=True)[0]

    def graph_bytes(self, w: Tensor) -> int:
        """About how much memory the graph of the gradient takes when kept for the whole sum (0: negligible)."""
        return 0

    def reduce(self, total: Tensor) -> Tensor:
        """A sum over parts, completed: added up over processes where the parts are spread over them (`Sharded`). Every
        sum over parts ends here, so that solvers and probes need not know.
        """
        return total

    def _mean(self, parts: Iterator[tuple[float, Tensor]]) -> Tensor:
        """The weighted sum, accumulated in float64, in the dtype of the losses."""
        total: Tensor | None = None
        for weight, loss in parts:
            part = weight * loss.double()
            total, dtype = part if total is None else total + part, loss.dtype
        if total is None:
            raise ValueError("the objective has no parts: it averages over no examples")
        return self.reduce(total).to(dtype)


def directional(g: Tensor, leaf: Tensor, v: Tensor) -> Tensor:
    """d(g'v)/d leaf from a gradient whose graph exists; zero where g does not depend on the leaf. The graph is kept.

    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> directional(3 * x.square(), x, torch.tensor([1.0, 1.0]))
    tensor([ 6., 12.])
    """
    if not g.requires_grad:
        return torch.zeros_like(leaf)
    with differentiating_again():
        return torch.autograd.grad(g, leaf, v, retain_graph=True, materialize_grads=True)[0]


@contextmanager
def differentiating_again() -> Iterator[None]:
    """Say in one line where a kernel has no further derivative: ValueError."""
    try:
        yield
    except RuntimeError as error:
        if not any(phrase in str(error) for phrase in NOT_AGAIN):
            raise
        cause = str(error).strip().splitlines()[0]
        raise Unsound(f"the loss cannot be differentiated again: {cause}") from error


def require_graph(g: Tensor) -> None:
    """Raise ValueError where the graph of g holds a node of `SILENTLY_WRONG`."""
    seen, waiting = set(), [g.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for name, cause in SILENTLY_WRONG.items():
            if name in node.name():
                raise Unsound(f"the loss cannot be differentiated again: {cause}")
        waiting.extend(following for following, _ in node.next_functions)


def memory_of(device: torch.device) -> int:
    """Bytes of memory of the machine, or those still free on a CUDA device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
