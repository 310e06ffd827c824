"""The loss of a network on tensors in memory, as a function of its flat parameters: `NetworkObjective`."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from lab.objective.base import Objective, require_graph
from lab.objective.forward import modes, no_draws, plain_attention, refuse_sums
from lab.objective.replicas import Replicated
from lab.params import layout

CHUNK_BYTES = 256 * 2**20
"""Graph of one chunk when the chunk size is left to us: larger ones fall out of the cache, smaller ones pay dispatch."""
CHECKED = 2**22
"""Numbers the criterion is given, at most, to see whether it is a mean over examples."""


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
        refuse_sums(criterion, y)
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
        self._constant = [name for name, _ in model.named_parameters() if name not in self.layout.names]
        self._constant += [name for name, _ in model.named_buffers()]
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.has_batch_norm = bool(norms)
        if batch_norm == "eval" and any(norm.running_mean is None for norm in norms):
            raise ValueError('BatchNorm with track_running_stats=False has no eval mode; use batch_norm="train"')
        self._chunk_size = chunk_size
        self._replicated = Replicated(self)
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
        self.require_single_examples()
        x, y = (self.x, self.y) if index is None else (self.x[index], self.y[index])

        def loss(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return self.loss_of(w, x[None], y[None])

        with torch.no_grad():
            return vmap(grad(loss), in_dims=(None, 0, 0), chunk_size=self.chunk_size(w))(w.detach(), x, y)

    def replica_values(self, W: Tensor, index: Tensor | None = None) -> Tensor:
        """As `Objective.replica_values`, as one program. Train-mode BatchNorm couples examples: ValueError."""
        of = self._replicated.values
        return self._over_replicas(W, index, None, lambda W, x, y, a: of(W, x, y, shared=index is None))

    def replica_grads(self, W: Tensor, index: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """As `Objective.replica_grads`, as one program, in chunks of replicas whose graphs fit `CHUNK_BYTES`. BatchNorm by
        its running statistics: train mode, which couples examples, raises ValueError.
        """
        of = self._replicated.grads
        return self._over_replicas(W, index, weights, lambda W, x, y, a: of(W, x, y, a, shared=index is None))

    def _over_replicas(
        self, W: Tensor, index: Tensor | None, weights: Tensor | None, of: Callable[..., Tensor]
    ) -> Tensor:
        """`of` rows of W and their batches, added up over chunks of examples and joined over chunks of replicas."""
        self.require_single_examples()
        if len(W) == 0:
            raise ValueError(f"W has shape {tuple(W.shape)}: expected at least one replica, a row of weights")
        weights = None if weights is None else weights.to(W)
        if not self._known_fixed:
            self._outputs(self.weights.to(W), self.x[:1])
        count = len(self.x) if index is None else index.shape[1]
        columns = min(count, self.chunk_size(W[0]))
        if columns < count:
            self.require_mean()
        step = max(1, CHUNK_BYTES // (columns * self.bytes_per_example(W[0]) + 4 * self.num_params * W.element_size()))
        joined = []
        for begin in range(0, len(W), step):
            some, parts = slice(begin, begin + step), []
            for left in range(0, count, columns):
                those = slice(left, left + columns)
                chosen = None if index is None else index[some, those]
                x, y = (_taken(data, those, chosen) for data in (self.x, self.y))
                part = of(W[some], x, y, None if weights is None else weights[some, those])
                share = (min(left + columns, count) - left) / count
                parts.append(part if weights is not None or share == 1 else share * part)
            joined.append(sum(parts[1:], parts[0]))
        return joined[0] if len(joined) == 1 else torch.cat(joined)

    def require_single_examples(self) -> None:
        """Raise ValueError where a single example has no gradient of its own: train-mode BatchNorm."""
        if self.has_batch_norm and self.batch_norm == "train":
            raise ValueError('train-mode BatchNorm couples the examples of a batch; use batch_norm="eval"')

    def with_running_statistics(self) -> "NetworkObjective":
        """The same loss with BatchNorm in eval mode, in which every example has a gradient of its own; itself if it is."""
        if not self.has_batch_norm or self.batch_norm == "eval":
            return self
        return NetworkObjective(self.model, self.criterion, (self.x, self.y), batch_norm="eval")

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
            loss = self.loss_of(leaf, self.x[:examples], self.y[:examples])
            with suppress(RuntimeError):  # no second derivative: said where one is asked for
                graph = torch.autograd.grad(loss, leaf, create_graph=True, materialize_grads=True)
                del graph
        del loss
        return sum(storages.values())

    def loss_of(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The criterion on examples (x, y) of the caller's choosing, a scalar differentiable in w: for vmap and autograd."""
        return self._criterion(self._outputs(w, x), y=y)

    def constants(self, w: Tensor) -> list[Tensor]:
        """Frozen parameters and copies of the buffers, in order, in the dtype of w: what the network is besides w."""
        if not self._constant:
            return []
        frozen = [p.detach() for name, p in self.model.named_parameters() if name not in self.layout.names]
        return [_cast(p, w) for p in frozen] + [_cast(b, w).clone() for b in self.model.buffers()]

    def _outputs(self, w: Tensor, x: Tensor, constants: list[Tensor] | None = None) -> Tensor:
        """The network on one chunk, with w in place of the parameters and copies in place of the buffers."""
        held = dict(zip(self._constant, self.constants(w) if constants is None else constants, strict=True))
        with ExitStack() as stack:
            stack.enter_context(modes(self.model, train_batch_norm=self.batch_norm == "train"))
            stack.enter_context(plain_attention())
            if not self._known_fixed:
                stack.enter_context(no_draws(w.device))
            outputs: Tensor = functional_call(self.model, (self.layout.unflatten(w), held), (_cast(x, w),))
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


def _cast(tensor: Tensor, w: Tensor) -> Tensor:
    """In the dtype of w, unless it holds whole numbers."""
    return tensor.to(w.dtype) if tensor.is_floating_point() else tensor


def _taken(data: Tensor, those: slice, index: Tensor | None) -> Tensor:
    """A slice of the examples, or those of `index` (R, B) as (R, B, ...); several times faster than data[index]."""
    return data[those] if index is None else data.index_select(0, index.reshape(-1)).unflatten(0, index.shape)
