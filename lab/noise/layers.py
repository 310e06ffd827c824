"""The per-example gradients of one layer, from its inputs and output gradients, formed only where that is cheaper.

For one example a layer's output is linear in its parameters, so its gradient is a product of the layer's input h and of
the output gradient g ("ghost" gradients). At L places (pixels, positions), with inputs u (fan_in, L) and g (out, L):

    gradient         g u'                                            fan_in * out numbers
    squared norm     sum over places of (g'g) * (u'u)                Goodfellow (2015), L = 1; Bu, Mao, Xu (2022)
    along V          sum of g * (V u)                                what a forward pass of the layer costs
    weighted sum     sum over examples of c_i g_i u_i'               what a weight gradient of the layer costs

Everything is per example; sums over examples and float64 totals are those of `lab.noise.examples`.
"""

from abc import ABC, abstractmethod
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

ROWS_BYTES = 2**21
"""Formed gradients that are used at once: larger ones fall out of the cache and are written to new memory every time."""

FEW_CHANNELS = 8
"""Input channels from which gradients of a convolution are themselves formed by a convolution, in groups: twice as fast as
by unfolded inputs on a CPU, and slower with fewer channels."""


class Layer(ABC):
    """One call of a module on n examples, first dimension the examples. `g` (as the output) is set after the backward pass.

    The laws: `squared_norms`, `along` and `weighted` of a parameter are those of the rows of `rows`, up to round-off.
    """

    def __init__(self, module: Any, h: Tensor, output: Tensor):
        self.module, self.h, self.g = module, h.detach(), torch.empty(0)

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.h, self.g))

    @abstractmethod
    def rows(self, name: str, part: slice = slice(None)) -> Tensor:
        """Gradients (b, P) in parameter `name` of the examples `part`."""

    def squared_norms(self, name: str) -> Tensor:
        """Squared norm of every row (n,), float64."""
        return torch.cat([squares(self.rows(name, part)).double() for part in self.pieces(name)])

    def distances(self, name: str, v: Tensor) -> Tensor:
        """Squared distance of every row from v, of the shape of the parameter: (n,) float64."""
        return torch.cat([squares(self.rows(name, part) - v.flatten()).double() for part in self.pieces(name)])

    def pieces(self, name: str) -> list[slice]:
        """The examples in parts whose rows take `ROWS_BYTES`."""
        size = getattr(self.module, name).numel() * self.g.element_size()
        step = max(1, ROWS_BYTES // size)
        return [slice(begin, begin + step) for begin in range(0, len(self.g), step)]

    def along(self, name: str, v: Tensor) -> Tensor:
        """Inner product of every row with v, of the shape of the parameter: (n,) float64."""
        return (self.rows(name) @ v.flatten()).double()

    def weighted(self, name: str, c: Tensor) -> Tensor:
        """sum_i c_i row_i (P,) for weights c (n,)."""
        return c @ self.rows(name)

    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        """(u (n, fan_in), g (n, out)) where every row is an outer product g u'; None: it is not."""
        return None

    def moments(self, name: str, c: Tensor) -> tuple[Tensor, Tensor]:
        """`squared_norms` and `weighted`; rows that have to be formed are formed once."""
        norms, total = [], torch.zeros((), dtype=self.g.dtype, device=self.g.device)
        for part in self.pieces(name):
            rows = self.rows(name, part)
            norms.append(squares(rows).double())
            total = total + c[part] @ rows
        return torch.cat(norms), total

    def at(self, index: Tensor) -> "Layer":
        """The same call on the examples `index` only."""
        few = copy(self)
        few.h, few.g = self.h[index], self.g[index]
        return few


class Affine(Layer):
    """a = W u + b at L places, in groups: u (n, groups, fan_in, L), a (n, groups, out, L)."""

    def __init__(self, module: Any, h: Tensor, output: Tensor):
        super().__init__(module, h, output)
        self.places, self.out = 1, len(module.weight)  # out: units of a group

    @abstractmethod
    def unfolded(self, part: slice) -> Tensor:
        """u of the examples `part`."""

    @abstractmethod
    def folded(self, part: slice = slice(None)) -> Tensor:
        """g of the examples `part` (b, groups, out, L)."""

    def rows(self, name: str, part: slice = slice(None)) -> Tensor:
        if name == "bias":
            return self.folded(part).sum(3).flatten(1)
        return (self.folded(part) @ self.unfolded(part).transpose(2, 3)).flatten(1)

    def _formed(self, name: str) -> bool:
        """Whether forming the rows is the cheapest way to their norms."""
        fan_in = self.module.weight[0].numel()
        return name == "bias" or (self.places > 1 and self.places * (fan_in + self.out) >= fan_in * self.out)

    def moments(self, name: str, c: Tensor) -> tuple[Tensor, Tensor]:
        if self._formed(name):
            return super().moments(name, c)
        return self.squared_norms(name), self.weighted(name, c)

    def squared_norms(self, name: str) -> Tensor:
        if self._formed(name):
            return super().squared_norms(name)
        u, g = self.unfolded(slice(None)), self.folded()
        if self.places == 1:
            return (squares(u[..., 0]) * squares(g[..., 0])).sum(1).double()
        return per_example((u.transpose(2, 3) @ u) * (g.transpose(2, 3) @ g))

    def along(self, name: str, v: Tensor) -> Tensor:
        if name == "bias":
            return super().along(name, v)
        return per_example(self.g * self.apply(v))

    @abstractmethod
    def apply(self, weight: Tensor) -> Tensor:
        """The layer's output on h with this weight and no bias."""

    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        if name == "bias" or self.places > 1:
            return None
        u, g = self.unfolded(slice(None)), self.folded()
        return (u.flatten(1), g.flatten(1)) if u.shape[1] == 1 else None


class Linear(Affine):
    """nn.Linear on vectors (n, in) or on sequences (n, ..., in)."""

    def __init__(self, module: Any, h: Tensor, output: Tensor):
        super().__init__(module, h, output)
        self.places = max(1, h[0].numel() // h.shape[-1])

    def unfolded(self, part: slice) -> Tensor:
        return self._columns(self.h[part])

    def folded(self, part: slice = slice(None)) -> Tensor:
        return self._columns(self.g[part])

    def _columns(self, a: Tensor) -> Tensor:
        return a[:, None, :, None] if a.dim() == 2 else a.flatten(1, -2).transpose(1, 2)[:, None]

    def apply(self, weight: Tensor) -> Tensor:
        return functional.linear(self.h, weight)

    def weighted(self, name: str, c: Tensor) -> Tensor:
        g = self.g * c.reshape(-1, *(1,) * (self.g.dim() - 1))
        g = g.flatten(0, -2)
        return g.sum(0) if name == "bias" else (g.T @ self.h.flatten(0, -2)).flatten()


class Convolution(Affine):
    """nn.Conv2d, and nn.Conv1d as one of images of height 1; any groups, stride, dilation and padding."""

    def __init__(self, module: Any, h: Tensor, output: Tensor):
        flat = isinstance(module, nn.Conv1d)
        self.padding: tuple[int, ...] = (0, 0)
        if module.padding_mode == "zeros" and not isinstance(module.padding, str):
            self.padding = (0, *module.padding) if flat else module.padding
        else:
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            h = functional.pad(h, module._reversed_padding_repeated_twice, mode=mode)
        super().__init__(module, h[:, :, None] if flat else h, output)
        self.stride = (1, *module.stride) if flat else module.stride
        self.dilation = (1, *module.dilation) if flat else module.dilation
        self.kernel = (1, *module.kernel_size) if flat else module.kernel_size
        self.shape = (module.out_channels, module.in_channels // module.groups, *self.kernel)
        self.places, self.out = output[0, 0].numel(), module.out_channels // module.groups

    @property
    def images(self) -> Tensor:
        """g (n, out, height, width)."""
        return self.g[:, :, None] if self.g.dim() == 3 else self.g

    def unfolded(self, part: slice) -> Tensor:
        vertical, horizontal = self.padding
        h = functional.pad(self.h[part], (horizontal, horizontal, vertical, vertical))
        n, channels, down, across = h.stride()
        windows = h.as_strided(
            (len(h), h.shape[1], *self.kernel, *self.images.shape[2:]),
            (
                n,
                channels,
                self.dilation[0] * down,
                self.dilation[1] * across,
                self.stride[0] * down,
                self.stride[1] * across,
            ),
        )
        return windows.reshape(len(h), self.module.groups, -1, self.places)

    def folded(self, part: slice = slice(None)) -> Tensor:
        return self.g[part].flatten(2).unflatten(1, (self.module.groups, -1))

    def rows(self, name: str, part: slice = slice(None)) -> Tensor:
        if name == "bias" or self.h.is_cuda or self.shape[1] < FEW_CHANNELS:
            return super().rows(name, part)
        h, g = self.h[part], self.images[part]  # the examples as groups of one image
        shape, n = (len(h) * self.shape[0], *self.shape[1:]), len(h)
        h, g = h.reshape(1, -1, *h.shape[2:]), g.reshape(1, -1, *g.shape[2:])
        rows = conv2d_weight(h, shape, g, self.stride, self.padding, self.dilation, n * self.module.groups)
        return rows.reshape(n, -1)

    def apply(self, weight: Tensor) -> Tensor:
        out = functional.conv2d(
            self.h, weight.reshape(self.shape), None, self.stride, self.padding, self.dilation, self.module.groups
        )
        return out.reshape(self.g.shape)

    def weighted(self, name: str, c: Tensor) -> Tensor:
        g = self.images * c[:, None, None, None]
        if name == "bias":
            return g.sum((0, 2, 3))
        return conv2d_weight(
            self.h, self.shape, g, self.stride, self.padding, self.dilation, self.module.groups
        ).flatten()


class Norm(Layer):
    """a = weight * normalised + bias: GroupNorm, LayerNorm, BatchNorm on running statistics. Rows are small."""

    def __init__(self, module: Any, h: Tensor, output: Tensor):
        super().__init__(module, self._normalised(module, h), output)
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


class Embedding(Layer):
    """nn.Embedding: the row of every index, at L places an example; indices equal to `padding_idx` have no gradient."""

    def _flat(self, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Indices (b, L) and their gradients (b, L, d)."""
        index = self.h[part].reshape(len(self.h[part]), -1)
        g = self.g[part].reshape(*index.shape, -1)
        padding = self.module.padding_idx
        return index, g if padding is None else g * (index != padding)[:, :, None]

    def rows(self, name: str, part: slice = slice(None)) -> Tensor:
        index, g = self._flat(part)
        rows = g.new_zeros(len(g), self.module.num_embeddings, g.shape[2])
        return rows.scatter_add_(1, index[:, :, None].expand_as(g), g).flatten(1)

    def squared_norms(self, name: str) -> Tensor:
        index, g = self._flat()
        return per_example((g @ g.transpose(1, 2)) * (index[:, :, None] == index[:, None, :]))

    def along(self, name: str, v: Tensor) -> Tensor:
        index, g = self._flat()
        return per_example(g * v.reshape(-1, g.shape[2])[index])

    def moments(self, name: str, c: Tensor) -> tuple[Tensor, Tensor]:
        return self.squared_norms(name), self.weighted(name, c)

    def weighted(self, name: str, c: Tensor) -> Tensor:
        index, g = self._flat()
        total = g.new_zeros(self.module.num_embeddings, g.shape[2])
        return total.index_add_(0, index.flatten(), (g * c[:, None, None]).flatten(0, 1)).flatten()


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
"""Modules, of exactly these types, whose per-example gradients are known from their inputs and output gradients."""


def known(module: nn.Module) -> bool:
    """Whether `LAYERS` has the module as it is set."""
    return type(module) in LAYERS and not getattr(module, "scale_grad_by_freq", False)


def squares(tensor: Tensor) -> Tensor:
    """Squared lengths along the last axis."""
    return torch.linalg.vector_norm(tensor, dim=-1).square()


def per_example(tensor: Tensor) -> Tensor:
    """Sums over all axes but the first, float64."""
    return tensor.flatten(1).sum(1).double()
