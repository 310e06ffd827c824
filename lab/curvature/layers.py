"""What one layer tells of the traces, for Linear, Conv2d and the norms: random signs pulled to its output, and the
squared norms of its per-example gradients.

For one example a layer's output is linear in its parameters, output = A(parameters), with A made of the input h. Then
Tr over the parameters of A'(d2L/da2)A = E z'(d2L/da2) z for z = A s with random signs s: a linear layer has z z' of mean
(|h|^2 + 1) 1; a convolution takes a random sign kernel for each example, so that z has the covariance U U' of its patches
U; a normalisation takes signs times its normalised input. And |A'g|^2 of an output gradient g comes from h and g without
the per-example gradient where that is cheaper (Goodfellow 2015 for linear layers; Bu, Mao, Xu 2022 for convolutions).
"""

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from lab.curvature.probing import random_signs


class Layer(ABC):
    """One module in one forward pass over n examples: output = A(parameters), linear, with A made of its input.

    `shift` (a leaf, zero) is added to the output: derivatives with respect to it are those with respect to the output.
    """

    def __init__(self, module: Any, trainable: dict[str, slice], h: Tensor, output: Tensor):
        self.module, self.trainable, self.shape = module, trainable, output.shape
        self.h = h.detach()
        self.shift = output.new_zeros(()).expand(output.shape).requires_grad_()

    @abstractmethod
    def signs(self, generator: torch.Generator) -> Tensor:
        """A s with random signs s of its own for every example, in the shape of the output: E z z' = A A'."""

    @abstractmethod
    def gradients(self, g: Tensor) -> dict[str, Tensor]:
        """A'g: per-example gradients (n, ...) of "weight" and "bias" from that of the output."""

    def squared_norms(self, g: Tensor) -> Tensor:
        """|A'g|^2 per example (n,), float64."""
        gradients = self.gradients(g)
        return torch.stack([per_example(gradients[name].square()) for name in self.trainable]).sum(0)


class _Affine(Layer):
    """a = W u + b at every one of L places, in groups: u (n, groups, fan_in, L), a (n, groups, out, L)."""

    @abstractmethod
    def unfolded(self) -> Tensor:
        """u."""

    @abstractmethod
    def folded(self, a: Tensor) -> Tensor:
        """A tensor in the shape of the output as (n, groups, out, L)."""

    @abstractmethod
    def weight_signs(self, generator: torch.Generator) -> Tensor:
        """S u for a sign matrix S for every example, in the shape of the output."""

    @abstractmethod
    def weight_gradients(self, g: Tensor) -> Tensor:
        """g u' for every example, (n, ...)."""

    @cached_property
    def gram(self) -> Tensor | None:
        """u'u (n, groups, L, L) where |g u'|^2 = sum of g'g * u'u is the cheaper way."""
        places, fan_in = self.folded(self.shift).shape[3], self.module.weight[0].numel()
        if places == 1:
            return self.unfolded().square().sum(2, keepdim=True)
        if 2 * places > fan_in:
            return None
        u = self.unfolded()
        return u.transpose(2, 3) @ u

    def gradients(self, g: Tensor) -> dict[str, Tensor]:
        return {"weight": self.weight_gradients(g), "bias": self.folded(g).sum(3).flatten(1)}

    def squared_norms(self, g: Tensor) -> Tensor:
        total = torch.zeros(len(g), dtype=torch.float64, device=g.device)
        folded = self.folded(g)
        if "weight" in self.trainable:
            if self.gram is None:
                total += per_example(self.weight_gradients(g).square())
            elif folded.shape[3] == 1:
                total += per_example(folded.square().sum(2, keepdim=True) * self.gram)
            else:
                total += per_example((folded.transpose(2, 3) @ folded) * self.gram)
        if "bias" in self.trainable:
            total += per_example(folded.sum(3).square())
        return total

    def signs(self, generator: torch.Generator) -> Tensor:
        like = self.shift.detach()
        folded = self.folded(like)
        if folded.shape[3] == 1:  # one place: S u + s is as good as sqrt(|u|^2 + 1) s
            variance = like.new_full((), float("bias" in self.trainable))
            if "weight" in self.trainable:
                assert self.gram is not None
                variance = variance + self.gram
            return (variance.sqrt() * self.folded(random_signs(tuple(self.shape), like, generator))).reshape(self.shape)
        z = self.weight_signs(generator) if "weight" in self.trainable else like
        if "bias" in self.trainable:
            z = z + self.everywhere(random_signs((len(like), folded.shape[1] * folded.shape[2]), like, generator))
        return z

    @abstractmethod
    def everywhere(self, b: Tensor) -> Tensor:
        """One number for each output unit (n, units), to be added at all places."""


class _Linear(_Affine):
    def weight_gradients(self, g: Tensor) -> Tensor:
        return (self.folded(g) @ self.unfolded().transpose(2, 3)).squeeze(1)

    def unfolded(self) -> Tensor:
        return self.h.flatten(1, -2).transpose(1, 2)[:, None] if self.h.dim() > 2 else self.h[:, None, :, None]

    def folded(self, a: Tensor) -> Tensor:
        return a.flatten(1, -2).transpose(1, 2)[:, None] if a.dim() > 2 else a[:, None, :, None]

    def weight_signs(self, generator: torch.Generator) -> Tensor:
        matrices = random_signs((len(self.h), self.h.shape[-1], self.shape[-1]), self.h, generator)
        return (self.h.flatten(1, -2) @ matrices).reshape(self.shape)

    def everywhere(self, b: Tensor) -> Tensor:
        return b.reshape(len(b), *(1,) * (len(self.shape) - 2), -1)


class _Conv2d(_Affine):
    @cached_property
    def padded(self) -> Tensor:
        mode = "constant" if self.module.padding_mode == "zeros" else self.module.padding_mode
        return functional.pad(self.h, self.module._reversed_padding_repeated_twice, mode=mode)

    @property
    def one_image(self) -> Tensor:
        """All examples as channels of one: a convolution with a kernel for every example is one in groups."""
        return self.padded.reshape(1, -1, *self.padded.shape[2:])

    def unfolded(self) -> Tensor:
        conv = self.module
        patches = functional.unfold(self.padded, conv.kernel_size, dilation=conv.dilation, stride=conv.stride)
        return patches.unflatten(1, (conv.groups, -1))

    def weight_gradients(self, g: Tensor) -> Tensor:
        conv, n, g = self.module, len(g), g.reshape(1, -1, *g.shape[2:])
        sizes, groups = (n * conv.out_channels, *conv.weight.shape[1:]), n * conv.groups
        gradients = conv2d_weight(self.one_image, sizes, g, conv.stride, 0, conv.dilation, groups)
        return gradients.unflatten(0, (n, -1))

    def folded(self, a: Tensor) -> Tensor:
        return a.reshape(len(a), self.module.groups, -1, a.shape[2] * a.shape[3])

    def weight_signs(self, generator: torch.Generator) -> Tensor:
        conv, n = self.module, len(self.h)
        kernels = random_signs((n * conv.out_channels, *conv.weight.shape[1:]), self.h, generator)
        groups = n * conv.groups
        z = functional.conv2d(self.one_image, kernels, stride=conv.stride, dilation=conv.dilation, groups=groups)
        return z.reshape(self.shape)

    def everywhere(self, b: Tensor) -> Tensor:
        return b[:, :, None, None]


class _Norm(Layer):
    """a = weight * normalised + bias, entry by entry, with parameters spread over the other axes."""

    def __init__(self, module: Any, trainable: dict[str, slice], h: Tensor, output: Tensor):
        super().__init__(module, trainable, h, output)
        trailing = isinstance(module, nn.LayerNorm)
        spread = module.normalized_shape if trailing else (output.shape[1], *(1,) * (output.dim() - 2))
        self.spread = (len(output), *(1,) * (output.dim() - 1 - len(spread)), *spread)
        self.h = self.normalised(self.h)  # now: afterwards the buffers are not those of this pass

    def normalised(self, h: Tensor) -> Tensor:
        norm = self.module
        if isinstance(norm, nn.LayerNorm):
            return functional.layer_norm(h, norm.normalized_shape, eps=norm.eps)
        if isinstance(norm, nn.GroupNorm):
            return functional.group_norm(h, norm.num_groups, eps=norm.eps)
        return functional.batch_norm(h, norm.running_mean, norm.running_var, eps=norm.eps)

    def signs(self, generator: torch.Generator) -> Tensor:
        z = torch.zeros_like(self.h)
        if "weight" in self.trainable:
            z = z + self.h * random_signs(self.spread, z, generator)
        if "bias" in self.trainable:
            z = z + random_signs(self.spread, z, generator)
        return z

    def gradients(self, g: Tensor) -> dict[str, Tensor]:
        return {"weight": (g * self.h).sum_to_size(self.spread), "bias": g.sum_to_size(self.spread)}


LAYERS: dict[type[nn.Module], type[Layer]] = {
    nn.Linear: _Linear,
    nn.Conv2d: _Conv2d,
    nn.BatchNorm1d: _Norm,
    nn.BatchNorm2d: _Norm,
    nn.BatchNorm3d: _Norm,
    nn.GroupNorm: _Norm,
    nn.LayerNorm: _Norm,
}
"""Modules whose output is linear in their parameters and whose input does not depend on them."""


def per_example(tensor: Tensor) -> Tensor:
    """Sums over all axes but the first, float64."""
    return tensor.flatten(1).sum(1).double()
