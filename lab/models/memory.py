"""How the weights of convolutions lie in memory: channels last, as tensor cores and most CPUs take them fastest."""

import torch
from torch import nn


@torch.no_grad()
def channels_last(model: nn.Module) -> None:
    """Lay the four-dimensional weights out with their channels last, in place; values and identities stay.

    What a convolution puts out then lies so, too, whatever the batch does. Sums are made in another order, so results agree
    with those of the usual layout up to rounding. A flat vector of the weights is the same.
    """
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
