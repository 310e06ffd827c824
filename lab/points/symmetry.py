"""Symmetric images of a network's weights: hidden neurons permuted, and the signs of odd ones flipped.

    f(x) = sum_j v_j tanh(w_j'x + c_j) + b

does not change when neurons j change places, nor when (w_j, c_j, v_j) changes its sign: every minimum of h neurons has
h! 2^h images. A distance between points, a path or a barrier means something only between the nearest images: a straight or
a relaxed path to a wrong one climbs barriers that no escape has to climb.

The squared distance is a sum over neurons, so the nearest of all images is one assignment problem (Kuhn 1955) whose entries
are already minimal over the two signs: exact, h^3 operations.
"""

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from lab.objective import Objective

ELEMENTWISE = (nn.ReLU, nn.GELU, nn.ELU, nn.Softplus, nn.Sigmoid, nn.SiLU)
"""Activations that are not odd: neurons may change places, signs may not flip."""


@dataclass(frozen=True)
class Symmetry:
    """places (h, m): where the m weights of each of h neurons stand in the vector; odd: whether their signs may flip."""

    places: Tensor
    odd: bool

    @property
    def order(self) -> int:
        """Number of images of a point: h! or h! 2^h."""
        h = len(self.places)
        return int(torch.arange(1, h + 1).prod()) * (2**h if self.odd else 1)


def hidden_neurons(objective: Objective) -> Symmetry:
    """The symmetry of a network of one hidden layer, Linear - activation - Linear. TypeError for any other objective.

    Further symmetries (the scale of a ReLU neuron) are not counted.
    """
    inner = getattr(objective, "inner", objective)
    model = getattr(inner, "model", None)
    modules = list(model) if isinstance(model, nn.Sequential) else []
    layers = [module for module in modules if not isinstance(module, nn.Flatten)]
    if model is None or [isinstance(module, nn.Linear) for module in layers] != [True, False, True]:
        raise TypeError(
            "expected a network of one hidden layer, Sequential(Linear, activation, Linear): another has other symmetries"
        )
    first, activation, last = layers
    if not isinstance(activation, (nn.Tanh, *ELEMENTWISE)):
        raise TypeError(f"{type(activation).__name__} is not known to act on every neuron alone")
    if not all(parameter.requires_grad for parameter in model.parameters()):
        raise TypeError(
            "expected a network without frozen parameters: a neuron with a part that is fixed has no images"
        )
    entries: dict[int, Tensor] = {}
    begin = 0
    for parameter in model.parameters():
        entries[id(parameter)] = torch.arange(begin, begin + parameter.numel()).view(parameter.shape)
        begin += parameter.numel()
    columns = [entries[id(first.weight)], entries[id(last.weight)].T]
    if first.bias is not None:
        columns.append(entries[id(first.bias)][:, None])
    return Symmetry(torch.cat(columns, 1), isinstance(activation, nn.Tanh))


def nearest(w: Tensor, reference: Tensor, symmetry: Symmetry) -> Tensor:
    """The image of w (P,) nearest to `reference` (P,)."""
    places = symmetry.places.to(w.device)
    mine, theirs = w[places], reference[places]
    inner = theirs @ mine.T  # |a - s b|^2 = |a|^2 + |b|^2 - 2 s a'b
    gain = inner.abs() if symmetry.odd else inner
    rows, columns = linear_sum_assignment(gain.cpu().numpy(), maximize=True)
    signs = torch.ones(len(rows)).to(w)
    if symmetry.odd:
        signs = torch.where(inner[rows, columns] < 0, -1.0, 1.0).to(w)
    image = w.clone()
    image[places[rows]] = signs[:, None] * mine[columns]
    return image
