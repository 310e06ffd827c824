"""The gradients g_i of single examples, of which a network has too many to hold as a matrix (N, P).

    squared norms |g_i|^2,   inner products g_i'g_j,   g_i'v for a vector v,   sum_i c_i g_i for weights c

come from one forward and one backward pass that record the inputs and output gradients of the layers (`lab.layers.layer`).
Parameters that no layer knows, or that are used in more than one place, have their per-example gradients formed, by vmap or
one by one, a few examples at a time. So have those of which a layer's record is not the whole gradient, as plain backward
passes of some examples tell (`lab.layers.completeness`). Objectives that are no networks form theirs by `example_grads`.
Scale: of one example, mean g_i = g. BatchNorm normalises by running statistics: on those of a batch a single example has no
gradient (ValueError).
"""

import torch
from torch import Tensor

from lab.layers.chunk import Chunk, Rows, joined
from lab.layers.records import Records
from lab.objective import Objective, memory_of

BLOCK = 250
"""Rows of a Gram matrix formed at a time: of symmetric ones little more than the half is."""


def squared_norms(objective: Objective, w: Tensor) -> dict[str, Tensor]:
    """|g_i|^2 of every example by parameter, name -> (N,) float64; the sum over names is that of the whole gradient.

    Exact. Cost: one gradient and a little; memory of one chunk. Where parameters have no names there is one, "w". Raises
    TypeError where the loss is no mean over examples, ValueError for train-mode BatchNorm.
    """
    return ExampleGradients(objective, w, memory=0).squared_norms()


def gram(objective: Objective, w: Tensor) -> Tensor:
    """The inner products g_i'g_j, (N, N) float64; over N, its eigenvalues are those of the uncentred covariance.

    Exact, parameter by parameter: products of inner products (h_i'h_j)(g_i'g_j) for a linear layer on vectors, formed
    gradients elsewhere. Cost: one gradient and 2 N^2 operations for each input and output of the former and each entry of
    the latter; memory N numbers for these. Raises as `squared_norms`.
    """
    return ExampleGradients(objective, w, memory=0).gram()


class ExampleGradients(Records):
    """The per-example gradients of an objective at w, known by their norms, inner products and weighted sums.

    memory: bytes the records of all examples may take to be kept for further passes (default: a quarter of what the device
    has); where they need more, every pass makes them again, at one gradient each. A pass over kept records costs what a
    layer-wise forward pass (`along`) or a weight gradient (`weighted`) does: a third of a gradient.
    """

    def squared_norms(self) -> Rows:
        """|g_i|^2 by parameter: name -> (N,) float64."""
        return self.joined(self.each(Chunk.squared_norms))

    def joined(self, chunks: list[Rows]) -> Rows:
        """Numbers per example by parameter, of all chunks; zero for a parameter that is not used."""
        nothing = self.w.new_zeros(self.num_examples, dtype=torch.float64)
        return dict.fromkeys(self.layout.names, nothing) | joined(chunks)

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
        return torch.stack(self.each(lambda chunk: self.flat(chunk.weighted(c[chunk.part])))).sum(0)

    def gradient(self) -> Tensor:
        """The mean g (P,)."""
        return self.weighted(self.w.new_full((self.num_examples,), 1 / self.num_examples))

    def gram(self) -> Tensor:
        """g_i'g_j (N, N) float64. Raises TooLarge where the records do not fit into memory."""
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
        for rows in joined([rows for chunk in chunks for _, rows in chunk.rows()]).values():
            add_products(total, rows)
        return total.tril_().add_(total.tril(-1).T)

    def _held(self, chunk: Chunk) -> Chunk:
        """The chunk, unless all of them with the largest formed gradients are more than half of the memory there is."""
        sizes = dict(zip(self.layout.names, self.layout.sizes, strict=True))
        largest = max((sizes[n] for n, (layer, a) in chunk.known.items() if layer.factors(a) is None), default=0)
        largest = max(largest, sum(sizes[name] for name in self.formed))
        needed = chunk.bytes / chunk.num_examples + 2 * largest * self.w.element_size() + 8 * self.num_examples
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
