"""Residual networks for small images: y = phi(x_shortcut + norm(conv(phi(norm(conv(x)))))), twice differentiable.

Depth 8, 20, 32, 44, 56 = 6n + 2: the CIFAR networks of He et al. (2015), section 4.2. Three stages of n blocks with w, 2w,
4w channels (w = 16), shortcuts without parameters (option A: every second pixel, new channels zero).
Depth 18, 34: the ImageNet networks with a 3x3 stem and no max-pooling, as is usual on CIFAR. Four stages with w .. 8w
channels (w = 64), 1x1 convolution + normalisation as shortcut where the shape changes (option B).
Convolutions have a bias only with norm "none": a normalisation layer makes it redundant. No operation is in place, so
the network can be differentiated twice.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import pad

from lab.models.mlp import ACTIVATIONS, Activation, InitScale, Width, initialised
from lab.settings import SettingError, settings

Norm = Literal["batch", "group", "none"]
Depth = Literal[8, 20, 32, 44, 56, 18, 34]

BLOCKS_PER_STAGE = {6 * n + 2: (n,) * 3 for n in (1, 3, 5, 7, 9)} | {18: (2,) * 4, 34: (3, 4, 6, 3)}


@settings()
class ResNet:
    """Residual network for small images; needs image data (cifar10, cifar10_5k, image_folder).

    On ten classes and RGB images depth 18 has 11,173,962 parameters.
    """

    depth: Annotated[
        Depth,
        Field(description="8 | 20 | 32 | 44 | 56 (three stages, He et al. 2015, section 4.2) | 18 | 34 (four stages)"),
    ] = 20
    norm: Annotated[
        Norm, Field(description="batch | group (gcd(8, channels) groups, calm for curvature) | none (biases instead)")
    ] = "batch"
    width: Annotated[
        Width | None,
        Field(description="channels of the first stage; null is 16 for depth 8..56 and 64 for depth 18, 34"),
    ] = None
    activation: Annotated[Activation, Field(description="of all blocks")] = "relu"
    init_scale: InitScale = 1.0

    def build(self, input_shape: Sequence[int], num_classes: int, seed: int) -> nn.Module:
        """Images (B, C, H, W) -> logits (B, num_classes). The global random generator is left untouched.

        In a block the layers are made in the order conv1, norm1, conv2, norm2, shortcut.
        Raises SettingError when examples are not images.

        >>> sum(p.numel() for p in ResNet(depth=20).build((3, 32, 32), 10, seed=0).parameters())
        269722
        """
        if len(input_shape) != 3:
            raise SettingError(
                f"model=resnet needs images (channels, height, width), but examples have shape {tuple(input_shape)}; "
                "use model=mlp or data=cifar10"
            )
        return initialised(
            lambda: ResidualNetwork(input_shape[0], num_classes, self), seed=seed, init_scale=self.init_scale
        )


class ResidualNetwork(nn.Module):
    """3x3 stem, stages of blocks (the channels double and the size halves between stages), mean over pixels, linear."""

    def __init__(self, in_channels: int, num_classes: int, card: ResNet) -> None:
        super().__init__()
        stages = BLOCKS_PER_STAGE[card.depth]
        channels = width = card.width or (16 if len(stages) == 3 else 64)
        self.conv = _conv(in_channels, width, card.norm)
        self.norm = _norm(card.norm, width)
        self.activation = ACTIVATIONS[card.activation]()
        blocks = []
        for stage, count in enumerate(stages):
            for place in range(count):
                stride = 2 if stage > 0 and place == 0 else 1
                blocks.append(BasicBlock(channels, width * 2**stage, stride, card))
                channels = width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.conv(x)))  # (B, w, H, W)
        x = self.blocks(x)  # (B, 4w or 8w, H/4 or H/8, ...)
        return self.linear(x.mean((2, 3)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, the first with the stride, added to the shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, card: ResNet) -> None:
        super().__init__()
        norm = card.norm
        self.conv1 = _conv(in_channels, out_channels, norm, stride=stride)
        self.norm1 = _norm(norm, out_channels)
        self.conv2 = _conv(out_channels, out_channels, norm)
        self.norm2 = _norm(norm, out_channels)
        self.activation = ACTIVATIONS[card.activation]()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = Subsample(out_channels, stride)
            if len(BLOCKS_PER_STAGE[card.depth]) == 4:
                conv = _conv(in_channels, out_channels, norm, kernel_size=1, stride=stride)
                self.shortcut = nn.Sequential(conv, _norm(norm, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        out = self.activation(self.norm1(self.conv1(x)))
        return self.activation(self.norm2(self.conv2(out)) + self.shortcut(x))


class Subsample(nn.Module):
    """The parameter-free shortcut: every `stride`-th pixel, channels filled up with zeros at the end."""

    def __init__(self, out_channels: int, stride: int) -> None:
        super().__init__()
        self.out_channels, self.stride = out_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return pad(x, (0, 0, 0, 0, 0, self.out_channels - x.shape[1]))


def _conv(in_channels: int, out_channels: int, norm: Norm, *, kernel_size: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the image size at stride 1."""
    return nn.Conv2d(
        in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=norm == "none"
    )


def _norm(norm: Norm, channels: int) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(math.gcd(8, channels), channels) if norm == "group" else nn.Identity()
