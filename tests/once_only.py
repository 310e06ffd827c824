"""A function that torch must not differentiate twice, for the tests of who says so."""

import torch
from torch import Tensor


class OnceOnly(torch.autograd.Function):
    """x^2 whose backward must not be differentiated: torch says nothing of it where only some inputs are asked for."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * ctx.saved_tensors[0] * slope
