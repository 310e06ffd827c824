"""Layers that are no matrix product: normalisations and embeddings; and the list of all known modules."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lab.layers.algebra import Convolution, Layer, Linear
from lab.layers.gradients import per_example
from lab.streams import random_signs


class Norm(Layer):
    """a = weight * normalised + bias: GroupNorm, LayerNorm, BatchNorm on running statistics. Rows are small."""

    def __init__(self, module: Any, names: dict[str, str], h: Tensor, output: Tensor):
        super().__init__(module, names, self._normalised(module, h), output)  # now: BatchNorm's buffers may change
        spread = module.normalized_shape if isinstance(module, nn.LayerNorm) else (h.shape[1], *(1,) * (h.dim() - 2))
        self.spread = (*(1,) * (h.dim() - 1 - len(spread)), *spread)

    @staticmethod
    def _normalised(norm: Any, h: Tensor) -> Tensor:
        if isinstance(norm, nn.LayerNorm):
            return functional.layer_norm(h, norm.normalized_shape, eps=norm.eps)
        if isinstance(norm, nn.GroupNorm):
            return functional.group_norm(h, norm.num_groups, eps=norm.eps)
        return functional.batch_norm(h, norm.running_mean, norm.running_var, eps=norm.eps)

    def rows(self, name: str, part: slice = slice(None)) -> Tensor:
        g = self.g[part]
        products = g if name == "bias" else g * self.h[part]
        return products.sum_to_size(len(g), *self.spread).flatten(1)

    def signs(self, generator: torch.Generator) -> Tensor:
        z = torch.zeros_like(self.h)
        for name in self.names:
            s = random_signs((len(z), *self.spread), z, generator)
            z = z + (s if name == "bias" else self.h * s)
        return z


class Embedding(Layer):
    """nn.Embedding: the row of every index, at L places an example; indices equal to `padding_idx` have no gradient."""

    def _flat(self, a: Tensor, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Indices (b, L), and what stands at their places in the output, (b, L, d), zero where it is padding."""
        index = (self.h if self.h.dim() > 1 else self.h[:, None])[part].flatten(1)
        a, padding = a[part].reshape(*index.shape, self.module.embedding_dim), self.module.padding_idx
        return index, a if padding is None else a * (index != padding)[:, :, None]

    def rows(self, name: str, part: slice = slice(None)) -> Tensor:
        index, g = self._flat(self.g, part)
        rows = g.new_zeros(len(g), self.module.num_embeddings, g.shape[2])
        return rows.scatter_add_(1, index[:, :, None].expand_as(g), g).flatten(1)

    def unformed_norms(self, name: str) -> Tensor:
        index, g = self._flat(self.g)
        return per_example((g @ g.transpose(1, 2)) * (index[:, :, None] == index[:, None, :]))

    def along(self, name: str, v: Tensor) -> Tensor:
        index, g = self._flat(self.g)
        return per_example(g * v.reshape(-1, g.shape[2])[index])

    def weighted(self, name: str, c: Tensor) -> Tensor:
        index, g = self._flat(self.g)
        total = g.new_zeros(self.module.num_embeddings, g.shape[2])
        return total.index_add_(0, index.flatten(), (g * c[:, None, None]).flatten(0, 1)).flatten()

    def signs(self, generator: torch.Generator) -> Tensor:
        index, s = self._flat(random_signs(tuple(self.shape), self.g, generator))
        first = (index[:, :, None] == index[:, None, :]).int().argmax(2)  # equal indices have one row, and one sign
        return s.gather(1, first[:, :, None].expand_as(s)).reshape(self.shape)


LAYERS: dict[type[nn.Module], type[Layer]] = {
    nn.Linear: Linear,
    nn.Conv1d: Convolution,
    nn.Conv2d: Convolution,
    nn.GroupNorm: Norm,
    nn.LayerNorm: Norm,
    nn.BatchNorm1d: Norm,
    nn.BatchNorm2d: Norm,
    nn.BatchNorm3d: Norm,
    nn.Embedding: Embedding,
}
"""Modules, of exactly these types, whose output is linear in their parameters, with inputs of which these are no part."""
