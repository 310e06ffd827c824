"""The seam of the lab: a scalar loss L(w) on a flat vector w in R^P, and its derivatives.

A subclass writes one method, `parts(w)`: pairs (weight, loss) whose weights sum to 1 and with L = sum weight * loss.
Everything else (value, gradient, Hessian products, third derivatives) is written once, here, for toys and networks
alike. Parts are weighted by examples, so a ragged last chunk is right: the mean of chunk means is not the mean.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from lab.params import layout, weights

CHUNK_BYTES = 256 * 2**20
"""Graph of one chunk when the chunk size is left to us: larger ones fall out of the cache, smaller ones pay dispatch."""


class Objective(ABC):
    """A scalar loss L: R^P -> R. It owns its data and never changes a caller's model, buffers, `.grad` or random state.

    Laws: the weights of `parts` sum to 1; `value`, `grad` and `hvp` are deterministic functions of w; results have the
    dtype and device of w.
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

    def value_and_grad(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """L(w) and its gradient (P,). Cost: one gradient, memory of one chunk."""
        leaf = w.detach().requires_grad_()
        total, gradient = torch.zeros((), dtype=torch.float64, device=w.device), torch.zeros_like(w)
        for weight, loss in self.parts(leaf):
            (g,) = torch.autograd.grad(loss, leaf, materialize_grads=True)
            gradient.add_(g, alpha=weight)
            total += weight * loss.detach()
        return total.to(w.dtype), gradient

    def grad(self, w: Tensor) -> Tensor:
        """Gradient of L at w, (P,). Cost: one gradient."""
        return self.value_and_grad(w)[1]

    def hvp(self, w: Tensor, v: Tensor) -> Tensor:
        """Hessian product H(w) v, (P,), exact. Cost: 2.2 gradients; `curvature.hessian` keeps the graph and pays 1.1."""
        leaf, product = w.detach().requires_grad_(), torch.zeros_like(w)
        for weight, loss in self.parts(leaf):
            (g,) = torch.autograd.grad(loss, leaf, create_graph=True, materialize_grads=True)
            product.add_(directional(g, leaf, v), alpha=weight)
        return product

    def third(self, w: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Gradient of u'H(w)v with respect to w, (P,): the third derivative contracted twice. Cost: about 5 gradients."""
        leaf, product = w.detach().requires_grad_(), torch.zeros_like(w)
        for weight, loss in self.parts(leaf):
            (g,) = torch.autograd.grad(loss, leaf, create_graph=True, materialize_grads=True)
            if not g.requires_grad:
                continue
            (hv,) = torch.autograd.grad(g, leaf, v, create_graph=True, materialize_grads=True)
            product.add_(directional(hv, leaf, u), alpha=weight)
        return product

    def example_grads(self, w: Tensor, index: Tensor | None = None) -> Tensor:
        """Per-example gradients (b, P), of the examples `index` (b,) or of all; their mean is the gradient.

        Raises TypeError where the loss is no mean over examples.
        """
        raise TypeError(f"{type(self).__name__} is not a mean over examples: it has no per-example gradients")

    def restrict(self, index: Tensor) -> "Objective":
        """The loss over the examples `index` (b,) only: L_B. Raises TypeError where there are no examples."""
        raise TypeError(f"{type(self).__name__} is not a mean over examples: it has no mini-batches")

    def composition(self, w: Tensor) -> Iterator[tuple[float, Tensor, Callable[[Tensor], Tensor]]]:
        """Yield (weight, f, loss) with L(w) = sum of weight * loss(f) and outputs f differentiable in w: the split that
        the Gauss-Newton matrix J' (d2 loss/df2) J, J = df/dw, is about. Raises TypeError where there is no such split.
        """
        raise TypeError(f"{type(self).__name__} is no loss of outputs: it has no Gauss-Newton matrix")

    def graph_bytes(self, w: Tensor) -> int:
        """About how much memory the graph of the gradient takes when kept for the whole sum (0: negligible)."""
        return 0

    @staticmethod
    def _mean(parts: Iterator[tuple[float, Tensor]]) -> Tensor:
        """The weighted sum, accumulated in float64, in the dtype of the losses."""
        total: Tensor | None = None
        for weight, loss in parts:
            part = weight * loss.double()
            total, dtype = part if total is None else total + part, loss.dtype
        if total is None:
            raise ValueError("the objective has no parts: it averages over no examples")
        return total.to(dtype)


def directional(g: Tensor, leaf: Tensor, v: Tensor) -> Tensor:
    """d(g'v)/d leaf from a gradient whose graph exists; zero where g does not depend on the leaf. The graph is kept."""
    if not g.requires_grad:
        return torch.zeros_like(leaf)
    return torch.autograd.grad(g, leaf, v, retain_graph=True, materialize_grads=True)[0]


class NetworkObjective(Objective):
    """L(w) = mean over examples of criterion(model_w(x), y): the loss of a network on tensors in memory.

    model      any module; its trainable parameters, in order, are w; tied ones count once, frozen ones are constants.
    criterion  (outputs, targets) -> scalar, the MEAN over the examples it is given. Sum-reduced losses, class weights and
               `ignore_index` do not average to the right number over chunks and are refused (ValueError).
    data       (x, y), first dimension the examples.
    chunk_size examples per part; None: the largest whose graph stays within `CHUNK_BYTES` (all, in train-mode BatchNorm).
    batch_norm "eval": running statistics, a loss that does not depend on chunks. "train": the statistics of each chunk,
               the loss that training descends when chunk_size is the batch size; it DEPENDS on chunk_size (ghost batches).
    Dropout is off in both: L is the loss of the mean network, a deterministic function of w. Buffers, modes, `.grad` and
    random state of the model are left as found. A float64 w gives a float64 loss, whatever the dtype of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Tensor, Tensor], Tensor],
        data: tuple[Tensor, Tensor],
        *,
        chunk_size: int | None = None,
        batch_norm: Literal["eval", "train"] = "eval",
    ):
        x, y = data
        if len(x) != len(y) or len(x) == 0:
            raise ValueError(f"data has {len(x)} inputs and {len(y)} targets; expected the same number, at least one")
        if batch_norm not in ("eval", "train"):
            raise ValueError(f'batch_norm={batch_norm!r}: expected "eval" or "train"')
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size={chunk_size}: expected a positive number of examples, or None")
        _refuse_sums(criterion, y)
        self._known_mean = False
        self.model, self.criterion, self.batch_norm = model, criterion, batch_norm
        self.x, self.y = x, y
        self.layout = layout(model)
        self.num_params, self.num_examples = self.layout.size, len(x)
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.has_batch_norm = bool(norms)
        if batch_norm == "eval" and any(norm.running_mean is None for norm in norms):
            raise ValueError('BatchNorm with track_running_stats=False has no eval mode; use batch_norm="train"')
        self._chunk_size = chunk_size
        self._bytes_per_example: dict[torch.dtype, int] = {}

    @property
    def weights(self) -> Tensor:
        """The model's present parameters as a detached vector w (P,)."""
        return weights(self.model)

    def chunk_size(self, w: Tensor) -> int:
        """Examples per part at w's dtype."""
        assert self.num_examples is not None
        if self._chunk_size is not None:
            return min(self._chunk_size, self.num_examples)
        if self.has_batch_norm and self.batch_norm == "train":
            return self.num_examples
        return max(1, min(self.num_examples, CHUNK_BYTES // max(1, self.bytes_per_example(w))))

    def parts(self, w: Tensor) -> Iterator[tuple[float, Tensor]]:
        """One part a chunk, weighted by its share of the examples."""
        for weight, outputs, loss in self.composition(w):
            yield weight, loss(outputs)

    def composition(self, w: Tensor) -> Iterator[tuple[float, Tensor, Callable[[Tensor], Tensor]]]:
        """One part a chunk: the network's outputs (examples, ...) and the criterion against their targets."""
        size = self.chunk_size(w)
        if size < len(self.x):
            self._require_mean()
        for x, y in zip(self.x.split(size), self.y.split(size), strict=True):
            yield len(x) / len(self.x), self._outputs(w, x), partial(self._criterion, y=y)

    def third(self, w: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """As `Objective.third`. LayerNorm (torch 2.15: silently wrong) and train-mode BatchNorm (none): ValueError."""
        if any(isinstance(module, nn.LayerNorm) for module in self.model.modules()):
            raise ValueError("torch has no right third derivative of LayerNorm; use GroupNorm")
        if self.has_batch_norm and self.batch_norm == "train":
            raise ValueError(
                'torch has no third derivative of train-mode BatchNorm; use batch_norm="eval" or GroupNorm'
            )
        return super().third(w, u, v)

    def restrict(self, index: Tensor) -> "NetworkObjective":
        data = self.x[index], self.y[index]
        part = NetworkObjective(
            self.model, self.criterion, data, chunk_size=self._chunk_size, batch_norm=self.batch_norm
        )
        part._bytes_per_example = self._bytes_per_example  # measured once for all mini-batches
        return part

    def example_grads(self, w: Tensor, index: Tensor | None = None) -> Tensor:
        """Per-example gradients (b, P) by vmap, in chunks. Train-mode BatchNorm couples the examples: ValueError."""
        if self.has_batch_norm and self.batch_norm == "train":
            raise ValueError('train-mode BatchNorm couples the examples of a batch; use batch_norm="eval"')
        x, y = (self.x, self.y) if index is None else (self.x[index], self.y[index])

        def loss(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return self._loss(w, x[None], y[None])

        with torch.no_grad():
            return vmap(grad(loss), in_dims=(None, 0, 0), chunk_size=self.chunk_size(w))(w.detach(), x, y)

    def graph_bytes(self, w: Tensor) -> int:
        assert self.num_examples is not None
        return self.num_examples * self.bytes_per_example(w)

    def bytes_per_example(self, w: Tensor) -> int:
        """Memory the twice differentiable graph takes per example: by how much it grows from 8 examples to 16."""
        if w.dtype not in self._bytes_per_example:
            few = min(len(self.x) // 2, 8)
            grows = self._graph_bytes_of(w, 2 * few) - self._graph_bytes_of(w, few) if few else 0
            self._bytes_per_example[w.dtype] = max(1, grows // max(1, few))
        return self._bytes_per_example[w.dtype]

    def _require_mean(self) -> None:
        """Raise ValueError unless the criterion of a few examples is the mean over an uneven split of them; once."""
        if self._known_mean:
            return
        with torch.no_grad(), _modes(self.model, train_batch_norm=False):
            x, y = self.x[:5], self.y[:5]
            dtype = next(self.model.parameters()).dtype
            outputs = self.model(x.to(dtype) if x.is_floating_point() else x)
            y = y.to(dtype) if y.is_floating_point() else y
            whole, share = self.criterion(outputs, y), 1 / len(y)
            split = share * self.criterion(outputs[:1], y[:1]) + (1 - share) * self.criterion(outputs[1:], y[1:])
        if not torch.isclose(whole, split, rtol=1e-3, atol=1e-6):
            raise ValueError(
                f"the criterion of {len(y)} examples is {float(whole):g}, the mean over its parts {float(split):g}: it is "
                "no mean over examples (a sum, class weights?) and cannot be added up over chunks; use a mean"
            )
        self._known_mean = True

    def _graph_bytes_of(self, w: Tensor, examples: int) -> int:
        """Bytes of the distinct tensors that a graph of the gradient over the first `examples` saves."""
        storages: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor.detach()  # the tensor itself would leave a reference cycle

        leaf = w.detach().requires_grad_()
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = self._loss(leaf, self.x[:examples], self.y[:examples])
            graph = torch.autograd.grad(loss, leaf, create_graph=True, materialize_grads=True)
        del loss, graph
        return sum(storages.values())

    def _loss(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self._criterion(self._outputs(w, x), y=y)

    def _outputs(self, w: Tensor, x: Tensor) -> Tensor:
        """The network on one chunk, with w in place of the parameters and copies in place of the buffers."""

        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(w.dtype) if tensor.is_floating_point() else tensor

        frozen = {name: cast(p.detach()) for name, p in self.model.named_parameters() if not p.requires_grad}
        train = self.batch_norm == "train"
        buffers = {name: cast(b).clone() if train else cast(b) for name, b in self.model.named_buffers()}
        with _modes(self.model, train_batch_norm=train):
            outputs: Tensor = functional_call(self.model, (self.layout.unflatten(w), frozen, buffers), (cast(x),))
        return outputs

    def _criterion(self, outputs: Tensor, y: Tensor) -> Tensor:
        loss = self.criterion(outputs, y.to(outputs.dtype) if y.is_floating_point() else y)
        if loss.dim() != 0:
            raise ValueError(f"the criterion returned shape {tuple(loss.shape)}; expected the mean, a scalar")
        return loss


@contextmanager
def _modes(model: nn.Module, *, train_batch_norm: bool) -> Iterator[None]:
    """Every module in eval mode, BatchNorm in train mode if asked; the flags are put back afterwards."""
    before = [(module, module.training) for module in model.modules()]
    for module, _ in before:
        module.training = train_batch_norm and isinstance(module, nn.modules.batchnorm._BatchNorm)
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def _refuse_sums(criterion: Callable[[Tensor, Tensor], Tensor], y: Tensor) -> None:
    """A loss whose chunk values do not average to the whole is refused, never silently wrong."""
    name = type(criterion).__name__
    if getattr(criterion, "reduction", "mean") != "mean":
        raise ValueError(f'{name} has reduction={criterion.reduction!r}; expected "mean" over examples')  # type: ignore[attr-defined]
    if getattr(criterion, "weight", None) is not None:
        raise ValueError(f"{name} has class weights: chunk means do not average to the mean; use an unweighted loss")
    ignored = getattr(criterion, "ignore_index", None)
    if ignored is not None and not y.is_floating_point() and bool((y == ignored).any()):
        raise ValueError(
            f"{name} ignores targets equal to ignore_index={ignored}: leave those examples out of the data"
        )


def memory_of(device: torch.device) -> int:
    """Bytes of memory of the machine, or those still free on a CUDA device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
