"""The loss of a network on tensors in memory, as a function of its flat parameters: `NetworkObjective`."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lab.objective.base import Objective, Unsound, at_least_single, require_graph, require_no_inference, with_gradients
from lab.objective.criterion import refuse_sums, require_mean
from lab.objective.forward import eager, plain, unwrapped
from lab.objective.look import Look, look_at
from lab.objective.modes import Modes, states
from lab.objective.replicas import Replicated
from lab.objective.singles import Vectorised, example_gradients
from lab.params import layout

if TYPE_CHECKING:
    from lab.objective.audit import Audit

CHUNK_BYTES = 256 * 2**20
"""Graph of one chunk when the chunk size is left to us: larger ones fall out of the cache, smaller ones pay dispatch."""


@dataclass
class Known:
    """What was found out about a network and its criterion on the data (x, y), once, for all mini-batches of these."""

    x: Tensor
    y: Tensor
    mean: bool = False
    third: bool = False
    coupled_told: bool = False
    walked: set[tuple[bool, ...]] = field(default_factory=set)
    bytes_per_example: dict[torch.dtype, int] = field(default_factory=dict)
    looks: dict[tuple[bool, ...], Look] = field(default_factory=dict)
    vectorised: Vectorised = field(default_factory=Vectorised)
    audit: "Audit | None" = None


class NetworkObjective(Objective):
    """L(w) = mean over examples of criterion(model_w(x), y): the loss of a network on tensors in memory.

    model      any module; its trainable parameters, in order, are w; tied ones count once, frozen ones are constants.
               Wrappers of torch.compile, DataParallel and DistributedDataParallel are taken off, checkpointed parts are run
               plainly. In half precision it is measured in float32, and that is said.
    criterion  (outputs, targets) -> scalar, the MEAN over the examples it is given. Sum-reduced losses, class weights and
               `ignore_index` do not average to the right number over chunks and are refused (ValueError); functions
               that are no mean are refused as soon as the data are cut into chunks or single examples are asked for.
    data       (x, y), first dimension the examples.
    chunk_size examples per part; None: the largest whose graph stays within `CHUNK_BYTES` (all, where the examples of a
               chunk see each other).
    batch_norm "train": every module in the mode it has, as whoever trains it has set it, with the statistics of each chunk
               where BatchNorm is in train mode: the loss that training descends when chunk_size is the batch size; it then
               DEPENDS on chunk_size (ghost batches). "eval": every module in eval mode, BatchNorm by running statistics.
    What draws random numbers (dropout) is off in both: L is the loss of the mean network, a deterministic function of w; a
    network that draws all the same is refused. Attention runs on the plain kernel: the fused ones have no second derivative.
    Buffers, modes, `.grad` and random state of the model are left as found. A float64 w gives a float64 loss, whatever
    the dtype of the model. Works under `torch.no_grad`; `torch.inference_mode` is refused.

    >>> x, y = torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0], [2.0]])
    >>> loss = NetworkObjective(nn.Linear(1, 1, bias=False), nn.MSELoss(), (x, y))  # mean of (w x - y)^2
    >>> w = torch.ones(1)
    >>> loss.value(w), loss.grad(w), loss.hvp(w, torch.ones(1)), loss.example_grads(w).T
    (tensor(0.5000), tensor([3.]), tensor([10.]), tensor([[0., 6.]]))
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
        refuse_sums(criterion, y)
        self.model, self.criterion, self.batch_norm = unwrapped(model), criterion, batch_norm
        self.x, self.y = x, y
        self.layout = layout(self.model)
        self.num_params, self.num_examples = self.layout.size, len(x)
        self._constant = [name for name, _ in self.model.named_parameters() if name not in self.layout.names]
        self._constant += [name for name, _ in self.model.named_buffers()]
        self.modes = Modes(self.model, batch_norm)
        norms = [m for m in self.modes.modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if batch_norm == "eval" and any(norm.running_mean is None for norm in norms):
            raise ValueError('BatchNorm with track_running_stats=False has no eval mode; use batch_norm="train"')
        self._chunk_size = chunk_size
        self._known = Known(x, y)
        self._replicated = Replicated(self)
        _tell_half(self.model)

    @property
    def weights(self) -> Tensor:
        """The model's present parameters as a detached vector w (P,), in float32 at least."""
        return at_least_single(self.layout.flatten(dict(self.model.named_parameters())))

    @property
    def batch_statistics(self) -> bool:
        """Whether a BatchNorm normalises by the examples of a chunk."""
        return self.modes.batch_statistics

    @property
    def vectorised(self) -> Vectorised:
        """Whether vmap can take the network: shared by all who try."""
        return self._known.vectorised

    @property
    def look(self) -> Look:
        """What forward passes of a few examples, and one of many, tell: precision, whether examples see each other."""
        flags = self.modes.flags
        if flags not in self._known.looks:
            self._known.looks[flags] = look_at(self)
        return self._known.looks[flags]

    @property
    def coupled(self) -> str:
        """How the examples of a chunk see each other, or "" where each has an output of its own."""
        if self.batch_statistics:
            return "train-mode BatchNorm couples the examples of a batch"
        return self.look.coupled

    def chunk_size(self, w: Tensor) -> int:
        """Examples per part at w's dtype."""
        assert self.num_examples is not None
        if self._chunk_size is not None:
            return min(self._chunk_size, self.num_examples)
        if self.batch_statistics:
            return self.num_examples
        fitting = max(1, min(self.num_examples, CHUNK_BYTES // max(1, self.bytes_per_example(w))))
        return self.num_examples if fitting < self.num_examples and self.coupled else fitting

    def parts(self, w: Tensor) -> Iterator[tuple[float, Tensor]]:
        """One part a chunk, weighted by its share of the examples."""
        for weight, outputs, loss in self.composition(w):
            yield weight, loss(outputs)

    def composition(self, w: Tensor) -> Iterator[tuple[float, Tensor, Callable[[Tensor], Tensor]]]:
        """One part a chunk: the network's outputs (examples, ...) and the criterion against their targets."""
        size = self.chunk_size(w)
        if size < len(self.x):
            self.require_mean()
            self._tell_coupled(size)
        for x, y in zip(self.x.split(size), self.y.split(size), strict=True):
            yield len(x) / len(self.x), self.outputs(w, x), partial(self.loss_at, y=y)

    def third(self, w: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """As `Objective.third`. The first one is held against a difference of Hessian products on a few examples, for torch
        has layers whose third derivative is silently wrong (LayerNorm in torch 2.15): ValueError where they differ.
        """
        if not self._known.third:
            from lab.objective.laws import require_third

            require_third(self.few(4), w)
            self._known.third = True
        return super().third(w, u, v)

    def restrict(self, index: Tensor) -> "NetworkObjective":
        """As `Objective.restrict`, with the same modes and chunk size."""
        return self.on(self.x[index], self.y[index])

    def on(
        self, x: Tensor, y: Tensor, criterion: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> "NetworkObjective":
        """The same network in the same modes on other examples (x, y), or also under another criterion, which the caller
        knows to be a mean over examples.
        """
        part = copy.copy(self)
        part.x, part.y, part.num_examples = x, y, len(x)
        part._replicated = Replicated(part)
        if criterion is not None:
            part.criterion = criterion
            part._known = Known(x, y, True, looks=self._known.looks, vectorised=self._known.vectorised)
        return part

    def in_chunks(self, size: int) -> "NetworkObjective":
        """The same loss in chunks of so many examples."""
        part = self.on(self.x, self.y)
        part._chunk_size = size
        return part

    def few(self, most: int) -> "NetworkObjective":
        """The loss over at most so many examples, spread over the data, in one chunk."""
        count = min(most, len(self.x))
        part = self.restrict(torch.linspace(0, len(self.x) - 1, count, device=self.y.device).round().long())
        part._chunk_size = max(self._chunk_size or 0, count)
        return part

    @with_gradients
    def example_grads(self, w: Tensor, index: Tensor | None = None) -> Tensor:
        """Per-example gradients (b, P), by vmap in chunks, or one by one where it cannot go. Raises ValueError where
        examples see each other, as in train-mode BatchNorm, or the criterion is no mean over examples.
        """
        self.require_single_examples()
        x, y = (self.x, self.y) if index is None else (self.x[index], self.y[index])
        size = self.chunk_size(w)
        return example_gradients(self.loss_of, w.detach(), x, y, chunk_size=size, known=self.vectorised)

    @with_gradients
    def replica_values(self, W: Tensor, index: Tensor | None = None) -> Tensor:
        """As `Objective.replica_values`, as one program where vmap can go. Coupled examples raise ValueError."""
        self._require_replicas(W)
        found = self.vectorised.attempt(lambda: self._replicated.values(W, index))
        return super().replica_values(W, index) if found is None else found

    @with_gradients
    def replica_grads(self, W: Tensor, index: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """As `Objective.replica_grads`, as one program where vmap can go, in chunks of replicas whose graphs fit
        `CHUNK_BYTES`. Coupled examples raise ValueError.
        """
        self._require_replicas(W)
        found = self.vectorised.attempt(lambda: self._replicated.grads(W, index, weights))
        return super().replica_grads(W, index, weights) if found is None else found

    def replicas_at_once(self, W: Tensor, examples: int) -> int:
        """Rows of W whose graphs over so many examples fit `CHUNK_BYTES`."""
        size = examples * self.bytes_per_example(W[0]) + 4 * self.num_params * W.element_size()
        return max(1, CHUNK_BYTES // size)

    def _require_replicas(self, W: Tensor) -> None:
        """Raise ValueError where there are no replicas, or no single examples."""
        if len(W) == 0:
            raise ValueError(f"W has shape {tuple(W.shape)}: expected at least one replica, a row of weights")
        self.require_single_examples()

    def require_single_examples(self) -> None:
        """Raise ValueError where a single example has no gradient of its own: examples that see each other in a chunk, as
        in train-mode BatchNorm, or a criterion that is no mean over examples.
        """
        if self.coupled:
            cure = (
                'use batch_norm="eval"' if self.batch_statistics else "single examples have no gradients of their own"
            )
            raise Unsound(f"{self.coupled}; {cure}")
        self.require_mean()

    def with_running_statistics(self) -> "NetworkObjective":
        """The same loss with all modules in eval mode where BatchNorm would couple the examples; itself if it does not."""
        if not self.batch_statistics:
            return self
        return NetworkObjective(self.model, self.criterion, (self.x, self.y), batch_norm="eval")

    def slope(self, f: Tensor, leaf: Tensor, along: Tensor | None = None) -> Tensor:
        """As `Objective.slope`. A function of somebody's own that ends the graph is found by walking it, once."""
        g = super().slope(f, leaf, along)
        kind = along is None, leaf.dim() == 1 and len(leaf) == self.num_params
        if kind not in self._known.walked:
            require_graph(g)
            self._known.walked.add(kind)
        return g

    def graph_bytes(self, w: Tensor) -> int:
        assert self.num_examples is not None
        return self.num_examples * self.bytes_per_example(w)

    def bytes_per_example(self, w: Tensor) -> int:
        """Memory the twice differentiable graph takes per example: by how much it grows from 8 examples to 16."""
        if w.dtype not in self._known.bytes_per_example:
            few = min(len(self.x) // 2, 8)
            if few > 1:
                grows = self._graph_bytes_of(w, 2 * few) - self._graph_bytes_of(w, few)
            else:  # 1 to 3 examples, all at once: one alone has no batch statistics
                few = len(self.x)
                grows = self._graph_bytes_of(w, few)
            self._known.bytes_per_example[w.dtype] = max(1, grows // few)
        return self._known.bytes_per_example[w.dtype]

    def require_mean(self) -> None:
        """Raise ValueError unless the criterion of all targets is the mean over uneven parts of them; once."""
        if not self._known.mean:
            require_mean(self, self._known.x, self._known.y)
            self._known.mean = True

    def _graph_bytes_of(self, w: Tensor, examples: int) -> int:
        """Bytes of the distinct tensors that a graph of the gradient over the first `examples` saves."""
        storages: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor.detach()  # the tensor itself would leave a reference cycle

        leaf = w.detach().requires_grad_()
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = self.loss_of(leaf, self.x[:examples], self.y[:examples])
            with suppress(RuntimeError):  # no second derivative: said where one is asked for
                graph = torch.autograd.grad(loss, leaf, create_graph=True, materialize_grads=True)
                del graph
        del loss
        return sum(storages.values())

    def loss_of(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The criterion on examples (x, y) of the caller's choosing, a scalar differentiable in w: for vmap and autograd."""
        return self.loss_at(self.outputs(w, x), y=y)

    def constants(self, w: Tensor) -> list[Tensor]:
        """Frozen parameters and copies of the buffers, in order, in the dtype of w: what the network is besides w."""
        if not self._constant:
            return []
        frozen = [p.detach() for name, p in self.model.named_parameters() if name not in self.layout.names]
        return [_cast(p, w) for p in frozen] + [_cast(b, w).clone() for b in self.model.buffers()]

    def outputs(self, w: Tensor, x: Tensor, constants: list[Tensor] | None = None) -> Tensor:
        """The network on one chunk, with w in place of the parameters and copies in place of the buffers."""
        require_no_inference()
        drawn = states(w.device)
        outputs = self._forward(w, x, constants)
        if not self.modes.fixed(w.device, drawn):
            outputs = self._forward(w, x, constants)
        if not isinstance(outputs, Tensor):
            raise Unsound(f"the network returned a {type(outputs).__name__}; expected one tensor: wrap the network")
        if w.requires_grad and not outputs.requires_grad:
            raise Unsound("the outputs of the network do not depend on its parameters; is there a no_grad or detach?")
        look = self._known.looks.get(self.modes.flags)
        if len(x) == 1 and look is not None and outputs.dim() == look.rank - 1:
            return outputs[None]  # a squeeze in the network took the axis of the examples with it
        return outputs

    def _forward(self, w: Tensor, x: Tensor, constants: list[Tensor] | None) -> Tensor:
        """What the network returns."""
        held = dict(zip(self._constant, self.constants(w) if constants is None else constants, strict=True))
        with ExitStack() as stack:
            if w.requires_grad:
                stack.enter_context(torch.enable_grad())
            stack.enter_context(plain())
            stack.enter_context(self.modes.applied(w.device, partial(self._run_few, w)))
            return functional_call(self.model, (self.layout.unflatten(w), held), (_cast(x, w),))

    def find_modes(self, w: Tensor) -> None:
        """Find out what draws random numbers, if that is not known yet: `outputs` would do so by itself."""
        with self.modes.applied(w.device, partial(self._run_few, w)):
            pass

    def _run_few(self, w: Tensor) -> None:
        """A forward pass of few examples, or of a chunk where few will not do; nothing is kept of it."""
        w, size = w.detach(), self.chunk_size(w) if self._chunk_size is not None else len(self.x)
        for count in (min(8, size), size):
            held = dict(zip(self._constant, self.constants(w), strict=True))
            try:
                functional_call(self.model, (self.layout.unflatten(w), held), (_cast(self.x[:count], w),))
                return
            except (RuntimeError, ValueError):
                if count == size:
                    raise

    def loss_at(self, outputs: Tensor, y: Tensor) -> Tensor:
        with ExitStack() as stack:
            if outputs.requires_grad:
                stack.enter_context(torch.enable_grad())
            stack.enter_context(eager())
            loss = self.criterion(outputs, y.to(outputs.dtype) if y.is_floating_point() else y)
        if loss.dim() != 0:
            raise ValueError(f"the criterion returned shape {tuple(loss.shape)}; expected the mean, a scalar")
        return loss

    def _tell_coupled(self, size: int) -> None:
        """Say once that the loss depends on its chunks, where that is not the known way of BatchNorm."""
        if self._known.coupled_told or self.batch_statistics:
            return
        self._known.coupled_told = True
        if self.coupled:
            warnings.warn(
                f"{self.coupled}: the loss is defined by its chunks of {size} examples; give the batch size of training as "
                "chunk_size",
                stacklevel=3,
            )


def _tell_half(model: nn.Module) -> None:
    """Say that weights of half precision are measured in float32."""
    half = sorted(
        {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.dtype != at_least_single(p).dtype}
    )
    if half:
        warnings.warn(
            f"{type(model).__name__} has weights in {', '.join(half)}: it is measured in float32", stacklevel=3
        )


def _cast(tensor: Tensor, w: Tensor) -> Tensor:
    """In the dtype of w, unless it holds whole numbers."""
    return tensor.to(w.dtype) if tensor.is_floating_point() else tensor
