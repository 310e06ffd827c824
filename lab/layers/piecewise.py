"""Whether a network is piecewise linear in the outputs of its layers: by the functions in its graph, and by a derivative."""

import re

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from lab.layers.recorder import Recording, nodes
from lab.objective import differentiating_again

LINEAR = frozenset(
    """Add Sub Neg Sum Mean View ReshapeAlias UnsafeView Transpose T Permute Slice Select Index IndexSelect Cat Stack Clone
    ToCopy Expand Squeeze Unsqueeze Split UnsafeSplit ConstantPadNd Relu LeakyRelu Threshold Hardtanh Abs Clamp Where
    MaxPool1D MaxPool2DWithIndices MaxPool3DWithIndices AdaptiveMaxPool2D Max Amax AvgPool1D AvgPool2D AvgPool3D
    AdaptiveAvgPool2D AdaptiveAvgPool3D MkldnnAdaptiveAvgPool2D NativeBatchNorm CudnnBatchNorm Repeat Alias Flip Roll
    ReflectionPad1D ReflectionPad2D ReplicationPad1D ReplicationPad2D
    AccumulateGrad""".split()  # noqa: SIM905
)
"""Functions that are piecewise linear in all their arguments together, by the names of torch's backward nodes."""
BILINEAR = frozenset({"Mul", "Div", "Mm", "Addmm", "Bmm", "Baddbmm", "Convolution"})
"""Functions that are linear in one argument while the others are constant; a quotient in its numerator only."""


def is_piecewise_linear(outputs: Tensor) -> bool:
    """Whether every function in the graph of the outputs is piecewise linear in what depends on the layers."""
    return all(_is_linear(node) for node in nodes(outputs))


def _is_linear(node: Node) -> bool:
    if isinstance(node, BackwardCFunction):  # somebody's own, whatever its name
        return False
    name = re.sub(r"Backward\d*$", "", node.name().removeprefix("torch::autograd::"))
    if name in BILINEAR:
        varying = [i for i, (parent, _) in enumerate(node.next_functions) if parent is not None]
        return len(varying) == 1 and not (name == "Div" and varying == [1])
    return name in LINEAR and not getattr(node, "_saved_training", False)  # batch statistics are no constants


def bends(recording: Recording) -> bool:
    """Whether the second derivative of the outputs in those of the layers, along random directions, is more than round-off;
    also where there is none.
    """
    try:
        with differentiating_again():
            gradients = recording.derivatives([recording.outputs], [gaussian(recording.outputs)], again=True)
            products = recording.derivatives(gradients, [gaussian(g) for g in gradients])
    except (RuntimeError, ValueError):
        return True
    scale = sum(float(g.detach().norm()) for g in gradients)
    return any(float(p.norm()) > 1e3 * torch.finfo(p.dtype).eps * scale for p in products)


def gaussian(like: Tensor) -> Tensor:
    """Standard normal numbers in the shape and dtype of `like`, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(like.shape, dtype=torch.float64, generator=generator).to(like)
