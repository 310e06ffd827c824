"""L(W) = 1/2 |W_depth ... W_1 - diag(s)|_F^2: a deep linear network on whitened data (Saxe, McClelland and Ganguli 2014).

Its singular values are learnt one after the other, the largest first; between them lie saddles at which some are learnt
and the rest are zero. All minima are global (Kawaguchi 2016).
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lab.landscapes.base import Critical, Landscape
from lab.settings import settings

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@settings(frozen=False, kw_only=False)
class DeepLinear(Landscape):
    """L = 1/2 |W_depth ... W_1 - diag(s)|^2: a deep linear network on whitened data (Saxe et al. 2014).

    The matrices are square, w their entries, W_1 first. At the saddle `saddle(r)` the r largest values are learnt in
    balance, W_l = diag(s_i^(1/depth)), the rest is zero. With two matrices its negative eigenvalues are -s_i of every
    value not learnt, each (n - r) times; with three or more they vanish: at r = 0 the whole Hessian is zero.
    """

    singular_values: Annotated[tuple[Positive, ...], Field(description="s, descending: the width")] = (3.0, 2.0, 1.0)
    depth: Annotated[int, Field(ge=2, description="number of matrices")] = 2

    def __post_init__(self) -> None:
        if not self.singular_values or list(self.singular_values) != sorted(self.singular_values, reverse=True):
            raise ValueError(f"singular_values={list(self.singular_values)}: expected some, in descending order")
        self.num_params = self.depth * len(self.singular_values) ** 2

    def energy(self, x: Tensor) -> Tensor:
        width = len(self.singular_values)
        layers = x.unflatten(-1, (self.depth, width, width))
        product = layers[..., 0, :, :]
        for layer in range(1, self.depth):
            product = layers[..., layer, :, :] @ product
        target = torch.diag(torch.tensor(self.singular_values, dtype=x.dtype, device=x.device))
        return 0.5 * (product - target).square().sum((-2, -1))

    def saddle(self, rank: int, *, dtype: torch.dtype = torch.float64) -> Tensor:
        """The critical point (P,) at which the `rank` largest singular values are learnt, in balance."""
        s = torch.tensor(self.singular_values, dtype=dtype)
        learnt = torch.where(torch.arange(len(s)) < rank, s ** (1 / self.depth), 0.0)
        return torch.diag(learnt).repeat(self.depth, 1, 1).reshape(-1)

    @property
    def critical_points(self) -> tuple[Critical, ...]:
        """The origin: eigenvalues -+s_i for every hidden unit with two matrices, none with more."""
        s, width = self.singular_values, len(self.singular_values)
        value = 0.5 * sum(each * each for each in s)
        pairs = [sign * each for each in s for sign in (-1, 1) for _ in range(width)]
        eigenvalues = sorted(pairs) if self.depth == 2 else [0.0] * self.num_params
        return (Critical((0.0,) * self.num_params, value, tuple(eigenvalues)),)
