"""The records of all examples of an objective, chunk by chunk: made, checked, and kept where they fit into memory."""

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from lab.layers.chunk import Chunk, Formed, Rows, recorded
from lab.layers.completeness import unexplained
from lab.layers.recorder import Modules, known_modules
from lab.objective import CHUNK_BYTES, NetworkObjective, Objective, memory_of, with_gradients
from lab.objective.singles import example_gradients
from lab.params import Layout

T = TypeVar("T")

RECORD_BYTES = CHUNK_BYTES // 3
"""Size of the graph of a chunk to record, half of which is kept: larger ones are written to new memory every time."""


class Records:
    """What the layers tell of the gradients of all examples of an objective at w.

    formed  parameters whose gradients have to be formed: those that no known layer has, and those whose records turned out
            not to be their whole gradients. Objectives that are no networks have one parameter, "w", by `example_grads`.
    memory  bytes that the records may take to be kept (default: a quarter of what the device has).

    Raises TypeError where the loss is no mean over examples, ValueError where examples see each other.
    """

    def __init__(self, objective: Objective, w: Tensor, *, memory: int | None = None):
        self.objective, self.w, self.size = objective, w.detach().clone(), w.numel()
        self.memory = memory_of(w.device) // 4 if memory is None else memory
        self._kept: list[Chunk] | None = None
        self._modules: Modules = {}
        if isinstance(objective, NetworkObjective):
            objective.require_single_examples()
            self.layout, self.num_examples = objective.layout, len(objective.x)
            self._modules = known_modules(objective.model)
        else:
            if objective.num_examples is None:
                objective.example_grads(w)  # says that there are none: TypeError
                raise TypeError(f"{type(objective).__name__} has no num_examples: it is not a mean over examples")
            self.layout, self.num_examples = Layout(("w",), (w.shape,)), objective.num_examples
        self.formed = set(self.layout.names).difference(*(names.values() for names in self._modules.values()))

    def flat(self, pieces: Mapping[str, Tensor]) -> Tensor:
        """Named pieces as one vector (P,), zero where there is none."""
        sizes = zip(self.layout.names, self.layout.sizes, strict=True)
        return torch.cat([pieces[name].flatten() if name in pieces else self.w.new_zeros(size) for name, size in sizes])

    @with_gradients
    def each(self, work: Callable[[Chunk], T]) -> list[T]:
        """`work` of every chunk, in order."""
        while True:
            try:
                return [work(chunk) for chunk in self._chunks()]
            except _Again:  # at most once for every parameter: `formed` has grown
                continue

    def _chunks(self) -> Iterator[Chunk]:
        if self._kept is not None:
            yield from self._kept
            return
        kept, keep = list[Chunk](), True
        for chunk in self._made():
            if not kept and keep:
                keep = chunk.bytes <= chunk.num_examples / self.num_examples * self.memory
            if keep:
                kept.append(chunk)
            yield chunk
        if keep:
            self._kept = kept

    def _made(self) -> Iterator[Chunk]:
        network = self.objective
        if not isinstance(network, NetworkObjective):
            yield Chunk(slice(0, self.num_examples), formed=self._by_example_grads())
            return
        size, first = self._chunk_size(network), set[str]()
        for begin in range(0, self.num_examples, size):
            part = slice(begin, min(begin + size, self.num_examples))
            chunk = recorded(network, self._modules, self.formed, self.w, part)
            new = not begin or chunk.num_examples != size  # another axis may have as many entries as there are examples
            wrong = unexplained(network, self.w, chunk, self.formed) if new else set()
            if begin:
                wrong |= first ^ set(chunk.known)  # used in another way, or not at all, by some of the examples
            first = first or set(chunk.known) - wrong
            self.formed |= wrong
            if wrong and begin:
                raise _Again
            chunk.known = {name: call for name, call in chunk.known.items() if name not in wrong}
            if self.formed:
                chunk.formed = self._by_rows(network, part)
            yield chunk

    def _chunk_size(self, network: NetworkObjective) -> int:
        """Examples of a chunk; where they are left to us, so many that none is ragged, which would be checked once more."""
        size = network.chunk_size(self.w)
        if network._chunk_size is not None:
            return size
        size = max(1, min(size, RECORD_BYTES // max(1, network.bytes_per_example(self.w))))
        return next((k for k in range(size, size + size // 8 + 1) if self.num_examples % k == 0), size)

    def _by_example_grads(self) -> Formed:
        def form(index: Tensor) -> Rows:
            return {"w": self.objective.example_grads(self.w, index)}

        return Formed(torch.arange(self.num_examples, device=self.w.device), self._step(self.size), form)

    def _by_rows(self, network: NetworkObjective, part: slice) -> Formed:
        """Gradients in the parameters `formed` only, the others constant."""
        pieces = self.layout.unflatten(self.w)
        free = {name: piece for name, piece in pieces.items() if name in self.formed}

        def loss(free: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return network.loss_of(self.flat(pieces | free), x, y)

        def form(index: Tensor) -> Rows:
            x, y = network.x[index], network.y[index]
            rows = example_gradients(loss, free, x, y, chunk_size=len(index), known=network.vectorised)
            return {name: row.flatten(1) for name, row in rows.items()}

        index = torch.arange(part.start, part.stop, device=network.x.device)
        step = self._step(sum(piece.numel() for piece in free.values()))
        return Formed(index, min(step, network.chunk_size(self.w)), form)

    def _step(self, size: int) -> int:
        return max(1, CHUNK_BYTES // (2 * size * self.w.element_size()))


class _Again(Exception):
    """Records of a later chunk turned out not to be whole gradients: those before were made by them as well."""
