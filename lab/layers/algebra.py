"""One layer in one forward pass, and what its inputs and output gradients tell of single examples ("ghost" gradients).

For one example the output a of a layer is linear in the parameters, a = A(parameters), with A made of the input. An output
gradient g therefore has the parameter gradient A'g. With inputs u (fan_in, L) at L places (pixels, positions), a = W u + b:

    gradient         A'g = (g u', sum over places of g)              fan_in * out numbers
    squared norm     sum over places of (g'g) * (u'u)                Goodfellow (2015), L = 1; Bu, Mao, Xu (2022)
    along V          sum of g * (V u)                                what a forward pass of the layer costs
    weighted sum     sum over examples of c_i g_i u_i'               what a weight gradient of the layer costs
    random signs     z = S u + s, signs S, s in place of W, b        E z z' = A A'

The last gives traces: Tr A'MA = E z'Mz over the parameters, for any matrix M in the space of the outputs.
"""

from abc import abstractmethod
from copy import copy
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from lab.layers.gradients import Gradients, per_example, squares
from lab.streams import random_signs

ROWS_BYTES = 2**21
"""Memory of the gradients that are formed at once: more falls out of the cache and is written to new memory every time."""
FEW_CHANNELS = 8
"""Input channels from which gradients of a convolution are themselves formed by a convolution, in groups: twice as fast as
by unfolded inputs on a CPU, and slower with fewer channels."""


class Layer(Gradients):
    """One call of a module on n examples, which are the first dimension of its input h and of its output: rows A'g.

    names  "weight", "bias" -> name in the network, of the trainable ones.
    g      a gradient in the output (n, ...), which whoever makes a backward pass sets.
    """

    def __init__(self, module: Any, names: dict[str, str], h: Tensor, output: Tensor):
        self.module, self.names, self.shape = module, names, output.shape
        self.h, self.g = h.detach(), output.new_empty(0)
        self.repeated = False
        """Whether more output gradients follow at the same input: what they share is kept."""

    @property
    def bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.h, self.g))

    @abstractmethod
    def signs(self, generator: torch.Generator) -> Tensor:
        """z = A s (n, ...) with random signs s of its own for every example, in the shape of the output: E z z' = A A'."""

    def pieces(self, name: str) -> list[slice]:
        """Parts whose rows take `ROWS_BYTES`."""
        size = getattr(self.module, name).numel() * self.g.element_size()
        step = max(1, ROWS_BYTES // size)
        return [slice(begin, begin + step) for begin in range(0, len(self.g), step)]

    def at(self, index: Tensor) -> "Layer":
        """The same call on the examples `index` only."""
        few = copy(self)
        few.h, few.g = self.h[index], self.g[index]
        few.shape = few.g.shape
        return few


class Affine(Layer):
    """a = W u + b. `places` is L, `out` the units of a group, `unit_axis` the axis of the units in the output."""

    places: int
    out: int
    unit_axis: int

    @abstractmethod
    def unfolded(self, part: slice = slice(None)) -> Tensor:
        """u (b, groups, fan_in, L) of the examples `part`."""

    @abstractmethod
    def folded(self, part: slice = slice(None)) -> Tensor:
        """g (b, groups, out, L) of the examples `part`."""

    @abstractmethod
    def apply(self, weight: Tensor) -> Tensor:
        """The layer's output on h with this weight and no bias."""

    @abstractmethod
    def weight_signs(self, generator: torch.Generator) -> Tensor:
        """S u with a sign matrix S for every example, in the shape of the output."""

    def rows(self, name: str, part: slice = slice(None)) -> Tensor:
        if name == "bias":
            return self.folded(part).sum(3).flatten(1)
        return (self.folded(part) @ self.unfolded(part).transpose(2, 3)).flatten(1)  # g u'

    def _forms(self, name: str) -> bool:
        """Whether forming the rows is the cheapest way to their norms."""
        if name == "bias" or self.places == 1:
            return name == "bias"
        fan_in = self.module.weight[0].numel()
        if self.repeated:  # u'u is there already; it takes L^2 numbers
            return 2 * self.places > fan_in
        return self.places * (fan_in + self.out) >= fan_in * self.out

    def unformed_norms(self, name: str) -> Tensor | None:
        if self._forms(name):
            return None
        inner = self.inner if self.repeated else self._inner(self.unfolded())
        return per_example(inner * self._inner(self.folded()))  # sum of (u'u) * (g'g)

    @cached_property
    def inner(self) -> Tensor:
        """u'u (n, groups, L, L)."""
        return self._inner(self.unfolded())

    def _inner(self, a: Tensor) -> Tensor:
        """a'a (n, groups, L, L) of a (n, groups, units, L)."""
        return squares(a[..., 0])[:, :, None, None] if self.places == 1 else a.transpose(2, 3) @ a

    def along(self, name: str, v: Tensor) -> Tensor:
        return super().along(name, v) if name == "bias" else per_example(self.g * self.apply(v))

    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        if name == "bias" or self.places > 1:
            return None
        u, g = self.unfolded(), self.folded()
        return (u.flatten(1), g.flatten(1)) if u.shape[1] == 1 else None

    def signs(self, generator: torch.Generator) -> Tensor:
        num, units, bias = len(self.h), self.module.weight.shape[0], "bias" in self.names
        if self.places == 1:  # one place: S u + s is as good as sqrt(|u|^2 + 1) s
            variance = self.inner + bias if "weight" in self.names else self.g.new_ones(num, 1, 1, 1)
            s = random_signs((num, variance.shape[1], units // variance.shape[1], 1), self.g, generator)
            return (variance.sqrt() * s).reshape(self.shape)
        z = self.weight_signs(generator) if "weight" in self.names else self.g.new_zeros(self.shape)
        if bias:
            s = random_signs((num, units), self.g, generator)
            z = z + s.reshape(num, *(-1 if axis == self.unit_axis else 1 for axis in range(1, z.dim())))
        return z


class Linear(Affine):
    """nn.Linear on vectors (n, in) or on sequences (n, ..., in)."""

    def __init__(self, module: Any, names: dict[str, str], h: Tensor, output: Tensor):
        super().__init__(module, names, h, output)
        self.places, self.out = max(1, h[0].numel() // h.shape[-1]), len(module.weight)
        self.unit_axis = output.dim() - 1

    def unfolded(self, part: slice = slice(None)) -> Tensor:
        return self._columns(self.h[part])

    def folded(self, part: slice = slice(None)) -> Tensor:
        return self._columns(self.g[part])

    def _columns(self, a: Tensor) -> Tensor:
        return a[:, None, :, None] if a.dim() == 2 else a.flatten(1, -2).transpose(1, 2)[:, None]

    def apply(self, weight: Tensor) -> Tensor:
        return functional.linear(self.h, weight)

    def weighted(self, name: str, c: Tensor) -> Tensor:
        g = (self.g * c.reshape(-1, *(1,) * (self.g.dim() - 1))).flatten(0, -2)
        return g.sum(0) if name == "bias" else (g.T @ self.h.flatten(0, -2)).flatten()

    def weight_signs(self, generator: torch.Generator) -> Tensor:
        matrices = random_signs((len(self.h), self.h.shape[-1], self.out), self.g, generator)
        return (self.h.flatten(1, -2) @ matrices).reshape(self.shape)


class Convolution(Affine):
    """nn.Conv2d, and nn.Conv1d as one of images of height 1; any groups, stride, dilation and padding."""

    unit_axis = 1

    def __init__(self, module: Any, names: dict[str, str], h: Tensor, output: Tensor):
        flat = isinstance(module, nn.Conv1d)
        one = (1,) if flat else ()
        padding: tuple[int, ...] = (0, 0)
        if module.padding_mode == "zeros" and not isinstance(module.padding, str):
            padding = (0, *module.padding) if flat else module.padding
        else:
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            h = functional.pad(h, module._reversed_padding_repeated_twice, mode=mode)
        super().__init__(module, names, h[:, :, None] if flat else h, output)
        self.settings = (*one, *module.stride), padding, (*one, *module.dilation)
        """Stride, padding, dilation, as torch's functions have them in a row."""
        self.kernel = (module.out_channels, module.in_channels // module.groups, *one, *module.kernel_size)
        self.grid = (*one, *output.shape[2:])
        self.places, self.out = output[0, 0].numel(), module.out_channels // module.groups

    @property
    def images(self) -> Tensor:
        """g (n, out, height, width)."""
        return self.g.unflatten(2, self.grid) if self.g.dim() == 3 else self.g

    def unfolded(self, part: slice = slice(None)) -> Tensor:
        stride, (vertical, horizontal), dilation = self.settings
        h = functional.pad(self.h[part], (horizontal, horizontal, vertical, vertical))
        n, channels, down, across = h.stride()
        inside, between = (dilation[0] * down, dilation[1] * across), (stride[0] * down, stride[1] * across)
        sizes = *h.shape[:2], *self.kernel[2:], *self.grid
        windows = h.as_strided(sizes, (n, channels, *inside, *between))
        return windows.reshape(len(h), self.module.groups, -1, self.places)

    def folded(self, part: slice = slice(None)) -> Tensor:
        return self.g[part].flatten(2).unflatten(1, (self.module.groups, -1))

    def rows(self, name: str, part: slice = slice(None)) -> Tensor:
        if name == "bias" or self.h.is_cuda or self.kernel[1] < FEW_CHANNELS:
            return super().rows(name, part)
        h, g = self.h[part], self.images[part]
        n, g = len(h), g.reshape(1, -1, *g.shape[2:])
        return conv2d_weight(_one_image(h), self._kernels(n), g, *self.settings, n * self.module.groups).reshape(n, -1)

    def _kernels(self, n: int) -> tuple[int, ...]:
        """The size of a kernel for each of n examples, which are groups of one image."""
        return n * self.kernel[0], *self.kernel[1:]

    def apply(self, weight: Tensor) -> Tensor:
        out = functional.conv2d(self.h, weight.reshape(self.kernel), None, *self.settings, self.module.groups)
        return out.reshape(self.shape)

    def weighted(self, name: str, c: Tensor) -> Tensor:
        g = self.images * c[:, None, None, None]
        if name == "bias":
            return g.sum((0, 2, 3))
        return conv2d_weight(self.h, self.kernel, g, *self.settings, self.module.groups).flatten()

    def weight_signs(self, generator: torch.Generator) -> Tensor:
        n = len(self.h)
        kernels = random_signs(self._kernels(n), self.g, generator)
        groups = n * self.module.groups
        return functional.conv2d(_one_image(self.h), kernels, None, *self.settings, groups).reshape(self.shape)


def _one_image(h: Tensor) -> Tensor:
    """All examples as channels of one image: a convolution with a kernel for every example is one in groups."""
    return h.reshape(1, -1, *h.shape[2:])
