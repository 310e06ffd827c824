"""The gradients g_i of single examples, of which a network has too many to hold as a matrix (N, P).

    squared norms |g_i|^2,   inner products g_i'g_j,   g_i'v for a vector v,   sum_i c_i g_i for weights c

come from one forward and one backward pass that record the inputs and output gradients of the layers (`lab.layers.algebra`).
Parameters that no layer knows, or that are used in more than one place, have their per-example gradients formed, by vmap or
one by one, a few examples at a time. So have those of which a layer's record is not the whole gradient, as plain backward
passes of some examples tell (`lab.layers.completeness`). Objectives that are no networks form theirs by `example_grads`.
Scale: of one example, mean g_i = g. BatchNorm normalises by running statistics: on those of a batch a single example has no
gradient (ValueError).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from lab.layers.chunk import Chunk, Formed, Pieces, recorded
from lab.layers.completeness import unexplained
from lab.layers.recorder import Modules, known_modules
from lab.objective import CHUNK_BYTES, NetworkObjective, Objective, memory_of, with_gradients
from lab.objective.singles import example_gradients
from lab.params import Layout

T = TypeVar("T")

RECORD_BYTES = CHUNK_BYTES // 3
"""Size of the graph of a chunk to record, half of which is kept: larger ones are written to new memory every time."""
BLOCK = 250
"""Pieces of a Gram matrix formed at a time: of symmetric ones little more than the half is."""


class Records:
    """What the layers tell of the gradients of all examples of an objective at w, chunk by chunk.

    formed  parameters whose gradients have to be formed: those that no known layer has, and those whose records turned out
            not to be their whole gradients. Objectives that are no networks have one parameter, "w", by `example_grads`.
    """

    def __init__(self, objective: Objective, w: Tensor, *, memory: int | None = None):
        self.objective, self.w, self.size = objective, w.detach().clone(), w.numel()
        self.memory = memory_of(w.device) // 4 if memory is None else memory
        self._kept, self._modules = list[Chunk](), Modules()
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
        """Those kept, or new ones, which are kept where all of them, going by the first, fit into `memory`."""
        kept, keep = list[Chunk](), False
        for chunk in self._kept or self._made():
            if not chunk.index[0]:
                keep = chunk.bytes <= len(chunk.index) / self.num_examples * self.memory
            if keep:
                kept.append(chunk)
            yield chunk
        self._kept = kept

    def _made(self) -> Iterator[Chunk]:
        size, first = self._chunk_size(), set[str]()
        for begin in range(0, self.num_examples, size):
            part = slice(begin, min(begin + size, self.num_examples))
            chunk = Chunk(torch.arange(part.start, part.stop, device=self.w.device), [])
            if isinstance(self.objective, NetworkObjective):
                chunk = recorded(self.objective, self._modules, self.w, part, self.formed)
                first = first if begin else set(chunk.known)
                wrong = first ^ set(chunk.known)  # used in another way, or not at all, by some of the examples
                if not begin or len(chunk.index) != size:  # another axis may have as many entries as there are examples
                    wrong |= unexplained(self.objective, self.w, chunk, self.formed)
                if wrong:
                    self.formed |= wrong
                    raise _Again
            yield Chunk(chunk.index, [*chunk.layers, Formed(self._gradients(chunk.index))]) if self.formed else chunk

    def _chunk_size(self) -> int:
        """Examples of a chunk; where they are left to us, so many that none is ragged, which would be checked once more."""
        size = CHUNK_BYTES // (2 * self.w.element_size() * max(1, sum(self._sizes[name] for name in self.formed)))
        if isinstance(network := self.objective, NetworkObjective):
            size = min(size, network.chunk_size(self.w))
            if network._chunk_size is not None:
                return max(1, size)
            size = min(size, RECORD_BYTES // max(1, network.bytes_per_example(self.w)))
        size = max(1, min(size, self.num_examples))
        return next((k for k in range(size, size + size // 8 + 1) if self.num_examples % k == 0), size)

    @property
    def _sizes(self) -> dict[str, int]:
        return dict(zip(self.layout.names, self.layout.sizes, strict=True))

    def _gradients(self, index: Tensor) -> Pieces:
        """Gradients (b, P) of the examples `index` in the parameters `formed`, the others constant."""
        network = self.objective
        if not isinstance(network, NetworkObjective):
            return {"w": network.example_grads(self.w, index)}
        pieces, loss_of = self.layout.unflatten(self.w), network.loss_of
        free = {name: piece for name, piece in pieces.items() if name in self.formed}

        def loss(free: Pieces, x: Tensor, y: Tensor) -> Tensor:
            return loss_of(self.flat(pieces | free), x, y)

        x, y = network.x[index], network.y[index]
        gradients = example_gradients(loss, free, x, y, chunk_size=len(index), known=network.vectorised)
        return {name: g.flatten(1) for name, g in gradients.items()}


class ExampleGradients(Records):
    """The per-example gradients of an objective at w, known by their norms, inner products and weighted sums.

    memory: bytes the records of all examples may take to be kept for further passes (default: a quarter of what the device
    has); where they need more, every pass makes them again, at one gradient each. A pass over kept records costs what a
    layer-wise forward pass (`along`) or a weight gradient (`weighted`) does: a third of a gradient. Raises TypeError where
    the loss is no mean over examples, ValueError for train-mode BatchNorm.
    """

    def squared_norms(self) -> Pieces:
        """|g_i|^2 by parameter: name -> (N,) float64; the sum over names is that of the whole gradient. Exact."""
        return self.joined(self.each(Chunk.squared_norms))

    def joined(self, chunks: list[Pieces]) -> Pieces:
        """Numbers per example by parameter, of all chunks; zero for a parameter that is not used."""
        nothing = self.w.new_zeros(self.num_examples, dtype=torch.float64)
        known = {name: torch.cat([each[name] for each in chunks]) for name in chunks[0]}
        return dict.fromkeys(self.layout.names, nothing) | known

    def along(self, v: Tensor) -> Tensor:
        """g_i'v: (N,) float64 for v (P,), (N, k) for v (P, k)."""
        if v.numel() == 0:
            return self.w.new_zeros(self.num_examples, 0, dtype=torch.float64)
        columns = [self.layout.unflatten(column.to(self.w)) for column in v.reshape(self.size, -1).T.contiguous()]
        products = torch.cat(self.each(lambda chunk: torch.stack([chunk.along(pieces) for pieces in columns], dim=1)))
        return products if v.dim() == 2 else products[:, 0]

    def weighted(self, c: Tensor) -> Tensor:
        """sum_i c_i g_i (P,) for weights c (N,)."""
        c = c.to(self.w)
        return torch.stack(self.each(lambda chunk: self.flat(chunk.weighted(c[chunk.index])))).sum(0)

    def gradient(self) -> Tensor:
        """The mean g (P,)."""
        return self.weighted(self.w.new_full((self.num_examples,), 1 / self.num_examples))

    def gram(self) -> Tensor:
        """The inner products g_i'g_j, (N, N) float64; over N, its eigenvalues are those of the uncentred covariance.

        Exact, parameter by parameter: products (h_i'h_j)(g_i'g_j) for a linear layer on vectors, formed gradients elsewhere.
        Cost: 2 N^2 operations for each input and output of the former and each entry of the latter; memory N numbers for
        these. Raises TooLarge where that does not fit.
        """
        total = torch.zeros(self.num_examples, self.num_examples, dtype=torch.float64, device=self.w.device)
        chunks = self.each(self._held)
        for name in chunks[0].known:
            calls = [chunk.known[name] for chunk in chunks]
            factors = [layer.factors(local) for layer, local in calls]
            if all(pair is not None for pair in factors):
                u, g = (torch.cat(side) for side in zip(*factors, strict=True))
                add_products(total, u, g)
            else:
                add_products(total, torch.cat([layer.rows(local) for layer, local in calls]))
        return total.tril_().add_(total.tril(-1).T)

    def _held(self, chunk: Chunk) -> Chunk:
        """The chunk, unless all of them with the largest formed gradients are more than half of the memory there is."""
        largest = max((self._sizes[n] for n, (layer, a) in chunk.known.items() if layer.factors(a) is None), default=0)
        needed = chunk.bytes / len(chunk.index) + 2 * largest * self.w.element_size() + 8 * self.num_examples
        if self.num_examples * needed > memory_of(self.w.device) / 2:
            raise TooLarge(
                f"the inner products of {self.num_examples} gradients need {self.num_examples * needed / 2**30:.1f} GiB of "
                "memory; take fewer examples: objective.restrict(index)"
            )
        return chunk


def add_products(total: Tensor, u: Tensor, g: Tensor | None = None) -> None:
    """The lower triangle of total += (u u') * (g g'), in float64 from rows in their own dtype, block by block."""
    for begin in range(0, len(u), BLOCK):
        rows, upto = slice(begin, begin + BLOCK), begin + BLOCK
        products = u[rows] @ u[:upto].T
        total[rows, :upto] += products if g is None else products.mul_(g[rows] @ g[:upto].T)


class TooLarge(ValueError):
    """The records and formed gradients behind a Gram matrix do not fit into memory."""


class _Again(Exception):
    """Records of a later chunk turned out not to be whole gradients: those before were made by them as well."""
