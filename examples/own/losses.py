"""Losses of one's own for `python -m lab.train`: (outputs, targets) to the MEAN over examples.

    python -m lab.train data=tensors data.file=moons.npz loss=own loss.path=examples/own/losses.py:focal loss.args.gamma=1

A function gets its arguments, loss.args.NAME=VALUE, at every call; a class is made with them once and then called.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


def focal(outputs: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean of -(1 - p)^gamma log p, p the probability of the true class (Lin et al. 2017); gamma 0 is cross-entropy."""
    log_p = -functional.cross_entropy(outputs, targets, reduction="none")
    return -((1 - log_p.exp()) ** gamma * log_p).mean()


class LogCosh(nn.Module):
    """Mean over examples of the sum of log cosh((f - y)/scale), for real targets: a smooth absolute error."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = scale

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        error = (outputs - targets) / self.scale
        return torch.logaddexp(error, -error).sub(torch.log(torch.tensor(2.0))).flatten(1).sum(1).mean()
