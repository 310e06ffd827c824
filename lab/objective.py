"""The seam of the lab: a scalar loss L(w) on a flat vector w in R^P, and its derivatives.

A subclass writes one method, `parts(w)`: pairs (weight, loss) whose weights sum to 1 and with L = sum weight * loss.
Everything else (value, gradient, Hessian products, third derivatives) is written once, here, for toys and networks
alike. Parts are weighted by examples, so a ragged last chunk is right: the mean of chunk means is not the mean.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Literal

import torch
from torch import Tensor, distributed, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from lab.params import layout

CHUNK_BYTES = 256 * 2**20
"""Graph of one chunk when the chunk size is left to us: larger ones fall out of the cache, smaller ones pay dispatch."""

NOT_AGAIN = ("is not implemented", "differentiate twice", "double backward", "create_graph=False", "order derivatives")
"""What torch says where a kernel has no further derivative: recurrent and compiled ones, bags of embeddings, CTC ..."""
SILENTLY_WRONG = {
    "autograd::Error": "a function in it is marked once_differentiable",
    "WeightNormInterface": "torch has no right second derivative of weight_norm; use another parametrisation",
}
"""Nodes of a graph through which torch 2.15 gives a wrong second derivative and says nothing. At a once_differentiable
function it hangs a node that raises, but does not come by it when it is asked for the derivative by named inputs, as here:
the terms behind it would be missing. Through weight_norm Hessian products are off by half and more."""
CHECKED = 2**22
"""Numbers the criterion is given, at most, to see whether it is a mean over examples."""


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
        return self.reduce(total).to(w.dtype), self.reduce(gradient)

    def grad(self, w: Tensor) -> Tensor:
        """Gradient of L at w, (P,). Cost: one gradient."""
        return self.value_and_grad(w)[1]

    def hvp(self, w: Tensor, v: Tensor) -> Tensor:
        """Hessian product H(w) v, (P,), exact. Cost: 2.2 gradients; `curvature.hessian` keeps the graph and pays 1.1."""
        leaf, product = w.detach().requires_grad_(), torch.zeros_like(w)
        for weight, loss in self.parts(leaf):
            product.add_(directional(self.slope(loss, leaf), leaf, v), alpha=weight)
        return self.reduce(product)

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
    """d(g'v)/d leaf from a gradient whose graph exists; zero where g does not depend on the leaf. The graph is kept."""
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
        raise ValueError(f"the loss cannot be differentiated again: {cause}") from error


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
                raise ValueError(f"the loss cannot be differentiated again: {cause}")
        waiting.extend(following for following, _ in node.next_functions)


class NetworkObjective(Objective):
    """L(w) = mean over examples of criterion(model_w(x), y): the loss of a network on tensors in memory.

    model      any module; its trainable parameters, in order, are w; tied ones count once, frozen ones are constants.
    criterion  (outputs, targets) -> scalar, the MEAN over the examples it is given. Sum-reduced losses, class weights and
               `ignore_index` do not average to the right number over chunks and are refused (ValueError); functions
               that are no mean are refused as soon as the data are cut into chunks.
    data       (x, y), first dimension the examples.
    chunk_size examples per part; None: the largest whose graph stays within `CHUNK_BYTES` (all, in train-mode BatchNorm).
    batch_norm "eval": running statistics, a loss that does not depend on chunks. "train": the statistics of each chunk,
               the loss that training descends when chunk_size is the batch size; it DEPENDS on chunk_size (ghost batches).
    Dropout is off in both: L is the loss of the mean network, a deterministic function of w; a network that draws random
    numbers all the same is refused. Attention runs on the plain kernel: the fused ones have no second derivative.
    Buffers, modes, `.grad` and random state of the model are left as found. A float64 w gives a float64 loss, whatever
    the dtype of the model.
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
        model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper off: its graphs are differentiable once
        if any(getattr(module, "max_norm", None) is not None for module in model.modules()):
            raise ValueError("an embedding with max_norm changes its weights when it is evaluated; use max_norm=None")
        if any(isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.sparse for m in model.modules()):
            raise ValueError("an embedding with sparse gradients has no gradient as a vector; use sparse=False")
        self._known_mean = self._known_fixed = False
        self._walked: set[tuple[bool, ...]] = set()
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
        return self.layout.flatten(dict(self.model.named_parameters()))

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
            self.require_mean()
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
        part._known_fixed, part._walked = self._known_fixed, self._walked
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

    def slope(self, f: Tensor, leaf: Tensor, along: Tensor | None = None) -> Tensor:
        """As `Objective.slope`. A function of somebody's own that ends the graph is found by walking it, once."""
        g = super().slope(f, leaf, along)
        kind = along is None, leaf.dim() == 1 and len(leaf) == self.num_params
        if kind not in self._walked:
            require_graph(g)
            self._walked.add(kind)
        return g

    def graph_bytes(self, w: Tensor) -> int:
        assert self.num_examples is not None
        return self.num_examples * self.bytes_per_example(w)

    def bytes_per_example(self, w: Tensor) -> int:
        """Memory the twice differentiable graph takes per example: by how much it grows from 8 examples to 16."""
        if w.dtype not in self._bytes_per_example:
            few = min(len(self.x) // 2, 8)
            if few > 1:
                grows = self._graph_bytes_of(w, 2 * few) - self._graph_bytes_of(w, few)
            else:  # 1 to 3 examples, all at once: one alone has no batch statistics
                few = len(self.x)
                grows = self._graph_bytes_of(w, few)
            self._bytes_per_example[w.dtype] = max(1, grows // few)
        return self._bytes_per_example[w.dtype]

    def require_mean(self) -> None:
        """Raise ValueError unless the criterion of all targets is the mean over uneven parts of them; once.

        The targets are sorted, so that parts differ in their classes: weighted and ignored targets show. A single ignored
        one makes its part NaN. The outputs are those of five examples, again and again: this costs no pass over the data.
        """
        if self._known_mean or len(self.y) < 2:
            return
        with torch.no_grad():
            w = self.weights
            outputs = self._outputs(w, self.x[:5])
            count = min(len(self.y), max(2, CHECKED // max(1, outputs.numel() // len(self.x[:5]))))
            order = self.y.reshape(len(self.y), -1).double().sum(1).argsort()
            y = self.y[order[torch.linspace(0, len(order) - 1, count, device=order.device).long()]]
            few = outputs.unflatten(0, (len(self.x[:5]), -1))  # several rows an example, as of a sequence, or one
            f = few[torch.arange(count, device=outputs.device) % len(few)]
            whole = self._criterion(f.flatten(0, 1), y)
            sizes = [1, (count - 2) // 2, count - 2 - (count - 2) // 2, 1]
            parts = zip(f.split(sizes), y.split(sizes), strict=True)
            split = sum(len(yi) / count * self._criterion(fi.flatten(0, 1), yi).double() for fi, yi in parts if len(yi))
        if not whole.isfinite():
            return  # a diverged network tells nothing of the criterion
        if not torch.isclose(whole.double(), torch.as_tensor(split), rtol=1e-5, atol=1e-7):
            raise ValueError(
                f"the criterion of {count} examples is {float(whole):g}, the mean over its parts {float(split):g}: it is "
                "no mean over examples (a sum, class weights, ignored targets?) and cannot be added up over chunks; use a "
                "mean, or one chunk: chunk_size=number of examples"
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
            with suppress(RuntimeError):  # no second derivative: said where one is asked for
                graph = torch.autograd.grad(loss, leaf, create_graph=True, materialize_grads=True)
                del graph
        del loss
        return sum(storages.values())

    def _loss(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self._criterion(self._outputs(w, x), y=y)

    def _outputs(self, w: Tensor, x: Tensor) -> Tensor:
        """The network on one chunk, with w in place of the parameters and copies in place of the buffers."""

        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(w.dtype) if tensor.is_floating_point() else tensor

        free = self.layout.unflatten(w)
        frozen = {name: cast(p.detach()) for name, p in self.model.named_parameters() if name not in free}
        buffers = {name: cast(b).clone() for name, b in self.model.named_buffers()}
        with ExitStack() as stack:
            stack.enter_context(_modes(self.model, train_batch_norm=self.batch_norm == "train"))
            stack.enter_context(_plain_attention())
            if not self._known_fixed:
                stack.enter_context(_no_draws(w.device))
            outputs: Tensor = functional_call(self.model, (free, frozen, buffers), (cast(x),))
        self._known_fixed = True
        if not isinstance(outputs, Tensor):
            raise ValueError(f"the network returned a {type(outputs).__name__}; expected one tensor: wrap the network")
        if w.requires_grad and torch.is_grad_enabled() and not outputs.requires_grad:
            raise ValueError(
                "the outputs of the network do not depend on its parameters; is there a no_grad or detach?"
            )
        return outputs

    def _criterion(self, outputs: Tensor, y: Tensor) -> Tensor:
        loss = self.criterion(outputs, y.to(outputs.dtype) if y.is_floating_point() else y)
        if loss.dim() != 0:
            raise ValueError(f"the criterion returned shape {tuple(loss.shape)}; expected the mean, a scalar")
        return loss


class Sharded(Objective):
    """The loss over the examples of all processes of `torch.distributed`, each of which holds its own `local` objective.

        L(w) = sum over processes of n_local / n * L_local(w)

    Every sum over parts is added up over the processes of `group` (default: all), so value, gradient, Hessian and
    Gauss-Newton products are the same number, bit for bit, in every process, and a solver runs in all of them in step.
    Laws of use: every process calls the same methods in the same order with the same w. Per-example gradients and
    mini-batches are those of `local`. Raises TypeError where `local` is no mean over examples, ValueError where its
    criterion is no mean or no process group was set up. Cost: one all-reduce of P numbers per gradient or product.
    """

    def __init__(self, local: Objective, *, group: "distributed.ProcessGroup | None" = None):
        if local.num_examples is None:
            raise TypeError(f"{type(local).__name__} is no mean over examples: there is nothing to share out")
        if not (distributed.is_available() and distributed.is_initialized()):
            raise ValueError("no process group; call torch.distributed.init_process_group first")
        self.local, self.group = local, group
        self.num_params = local.num_params
        device = local.x.device if isinstance(local, NetworkObjective) else torch.device("cpu")
        examples = self.reduce(torch.tensor([local.num_examples], dtype=torch.int64, device=device))
        self.num_examples = int(examples)
        self.share = local.num_examples / self.num_examples
        if self.share < 1 and isinstance(local, NetworkObjective):
            local.require_mean()

    def parts(self, w: Tensor) -> Iterator[tuple[float, Tensor]]:
        """The parts of this process, with their weights in the whole: over all processes these sum to 1."""
        for weight, loss in self.local.parts(w):
            yield self.share * weight, loss

    def composition(self, w: Tensor) -> Iterator[tuple[float, Tensor, Callable[[Tensor], Tensor]]]:
        """As `parts`: those of this process."""
        for weight, outputs, loss in self.local.composition(w):
            yield self.share * weight, outputs, loss

    def third(self, w: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """As `Objective.third`; what `local` refuses is refused."""
        return self.reduce(self.share * self.local.third(w, u, v))

    def graph_bytes(self, w: Tensor) -> int:
        return self.local.graph_bytes(w)

    def slope(self, f: Tensor, leaf: Tensor, along: Tensor | None = None) -> Tensor:
        return self.local.slope(f, leaf, along)

    def reduce(self, total: Tensor) -> Tensor:
        total = self.local.reduce(total).contiguous().clone()
        distributed.all_reduce(total, group=self.group)
        return total


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


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention by matrix products and softmax: the fused kernels have no second derivative."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _no_draws(device: torch.device) -> Iterator[None]:
    """Raise ValueError where random numbers are drawn; the generators are put back."""

    def states() -> list[Tensor]:
        return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]

    before = states()
    yield
    if all(map(torch.equal, before, states())):
        return
    torch.set_rng_state(before[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(before[1], device)
    raise ValueError(
        "the network draws random numbers though dropout is off (functional.dropout without training=self.training?): "
        "its loss is no function of w"
    )


def _refuse_sums(criterion: Callable[[Tensor, Tensor], Tensor], y: Tensor) -> None:
    """A loss whose chunk values do not average to the whole is refused, never silently wrong."""
    name = type(criterion).__name__
    if getattr(criterion, "reduction", "mean") not in ("mean", "batchmean"):
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
