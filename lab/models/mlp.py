"""The multilayer perceptron f(x) = W_k phi(... phi(W_1 x + b_1) ...) + b_k, and what all models share.

Initial weights are exactly those that `torch.manual_seed(seed)` and then building the layers from input to output give
(torch's default: weights and biases uniform in +-1/sqrt(fan_in)), times `init_scale`. With standardised pixels the
default starts above the edge of stability for common learning rates; init_scale = 0.3 shows progressive sharpening.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, TypeVar

import torch
from pydantic import Field
from torch import nn

from lab.settings import settings

Activation = Literal["tanh", "relu", "gelu", "elu", "softplus"]
M = TypeVar("M", bound=nn.Module)
Width = Annotated[int, Field(gt=0, strict=True)]
Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]
InitScale = Annotated[Scale, Field(description="factor on initial weights and biases, not on normalisation")]

ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
}


@settings()
class Mlp:
    """Multilayer perceptron; torch default initialisation, drawn from the run's seed. Images are flattened."""

    widths: Annotated[tuple[Width, ...], Field(description="units of each hidden layer; []: linear")] = (32, 32)
    activation: Annotated[Activation, Field(description="of hidden layers")] = "tanh"
    init_scale: Annotated[
        Scale, Field(description="factor on initial weights; 0.3 starts pixel-standardised CIFAR-10 below the edge")
    ] = 1.0

    def build(self, input_shape: Sequence[int], num_classes: int, seed: int) -> nn.Module:
        """(B, *input_shape) -> logits (B, num_classes). The global random generator is left untouched.

        >>> sum(p.numel() for p in Mlp(widths=(32,)).build((64,), 10, seed=0).parameters())  # 64 32 + 32 + 32 10 + 10
        2410
        """

        def layers() -> nn.Sequential:
            modules: list[nn.Module] = [nn.Flatten()] if len(input_shape) > 1 else []
            width = int(torch.Size(input_shape).numel())
            for next_width in self.widths:
                modules += [nn.Linear(width, next_width), ACTIVATIONS[self.activation]()]
                width = next_width
            return nn.Sequential(*modules, nn.Linear(width, num_classes))

        return initialised(layers, seed=seed, init_scale=self.init_scale)


def initialised(construct: Callable[[], M], *, seed: int, init_scale: float) -> M:
    """`construct()` on the CPU with torch's generator seeded, then weights and biases multiplied by `init_scale`.

    The gain and bias of normalisation layers (1 and 0) are not scaled.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # torch.manual_seed would reseed the CUDA generators too, which this fork does not restore.
        torch.default_generator.manual_seed(seed)
        model = construct()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                for parameter in module.parameters():
                    parameter.mul_(init_scale)
    return model
