"""The examples of a network in chunks whose graphs fit into memory, unless they see each other; and subsets of them."""

import copy
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Self

import torch
from torch import Tensor

from lab.objective.base import Unsound
from lab.objective.criterion import require_mean
from lab.objective.function import Known, NetworkFunction
from lab.objective.look import Look, look_at
from lab.objective.replicas import Replicated

CHUNK_BYTES = 256 * 2**20
"""Graph of one chunk when the chunk size is left to us: larger ones fall out of the cache, smaller ones pay dispatch."""


class ChunkedNetwork(NetworkFunction):
    """The mean over the examples (x, y) of the criterion, chunk by chunk."""

    _replicated: Replicated

    def _looked(self) -> Look:
        return look_at(self)

    def require_mean(self) -> None:
        """Raise ValueError unless the criterion of all targets is the mean over uneven parts of them; once."""
        if not self._known.mean:
            require_mean(self, self._known.x, self._known.y)
            self._known.mean = True

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

    def _warn_coupled(self, size: int) -> None:
        """Warn once that the loss depends on its chunks, where that is not the known way of BatchNorm."""
        if self._known.warned or self.batch_statistics:
            return
        self._known.warned = True
        if self.coupled:
            warnings.warn(
                f"{self.coupled}: the loss is defined by its chunks of {size} examples; give the batch size of training as "
                "chunk_size",
                stacklevel=3,
            )

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
            self._warn_coupled(size)
        sizes = [size] * (len(self.x) // size) + [len(self.x) % size] * (len(self.x) % size > 0)
        if self.batch_statistics and len(sizes) > 1 and sizes[-1] == 1:
            sizes[-2:] = [size + 1]  # one example that is left over has no batch statistics
        for x, y in zip(self.x.split(sizes), self.y.split(sizes), strict=True):
            yield len(x) / len(self.x), self.outputs(w, x), partial(self.loss_at, y=y)

    def restrict(self, index: Tensor) -> Self:
        """As `Objective.restrict`, with the same modes and chunk size."""
        return self.on(self.x[index], self.y[index])

    def on(self, x: Tensor, y: Tensor, criterion: Callable[[Tensor, Tensor], Tensor] | None = None) -> Self:
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

    def in_chunks(self, size: int) -> Self:
        """The same loss in chunks of so many examples."""
        part = self.on(self.x, self.y)
        part._chunk_size = size
        return part

    def few(self, most: int) -> Self:
        """The loss over at most so many examples, spread over the data, in one chunk."""
        count = min(most, len(self.x))
        part = self.restrict(torch.linspace(0, len(self.x) - 1, count, device=self.y.device).round().long())
        part._chunk_size = max(self._chunk_size or 0, count)
        return part

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

    def _graph_bytes_of(self, w: Tensor, examples: int) -> int:
        """Bytes of the distinct tensors that a graph of the gradient over the first `examples` saves."""
        return self._saved_bytes(w, lambda leaf: self.loss_of(leaf, self.x[:examples], self.y[:examples]))

    def replicas_at_once(self, W: Tensor, examples: int) -> int:
        """Rows of W whose graphs over so many examples fit `CHUNK_BYTES`."""
        size = examples * self.bytes_per_example(W[0]) + 4 * self.num_params * W.element_size()
        return max(1, CHUNK_BYTES // size)
