"""Models of one's own for `python -m lab.train`: nothing here knows of the lab.

    python -m lab.train data=tensors data.file=moons.npz model=own model.path=examples/own/nets.py:TinyNet \\
        model.args.width=32

A class, or a function that returns a module. Its arguments are model.args.NAME=VALUE; the lab seeds torch before it is
called. The module maps a batch of inputs (B, ...) to one tensor of outputs (B, K).
"""

from itertools import pairwise

import torch
from torch import Tensor, nn


class TinyNet(nn.Module):
    """Two hidden layers of smooth units, with a shortcut around the second."""

    def __init__(self, width: int = 64, inputs: int = 2, outputs: int = 2):
        super().__init__()
        self.first, self.second = nn.Linear(inputs, width), nn.Linear(width, width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.head(h + torch.tanh(self.second(h)))


def tiny_conv(channels: int = 8, classes: int = 10) -> nn.Module:
    """Images (B, 3, H, W) to logits; GroupNorm, for calm curvature."""
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, stride=2, padding=1),
        nn.GroupNorm(2, channels),
        nn.GELU(),
        nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * channels, classes),
    )


def silu_mlp(
    widths: tuple[int, ...] = (512, 512), scale: float = 0.2, inputs: int = 3072, classes: int = 10
) -> nn.Module:
    """Images, flattened, to outputs through SiLU; Kaiming normal weights times `scale`, biases 0."""
    sizes = [inputs, *widths, classes]
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(sizes):
        layer = nn.Linear(fan_in, fan_out)
        nn.init.kaiming_normal_(layer.weight)
        with torch.no_grad():
            layer.weight *= scale
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.SiLU()]
    return nn.Sequential(*layers[:-1])
