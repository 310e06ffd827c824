"""How fast a run was seen to leave a saddle: growth of a kick without noise, and by autoregression under noise."""

import math

import torch
from torch import Tensor

from lab.results import Estimate


def kick_growth(x: Tensor) -> Estimate:
    """log z from runs without noise that start off the saddle by a tiny kick: slope of log|x| over the last two thirds.

    x (steps + 1, R) or (steps + 1, R, k): coordinates along one descending direction, or along k of the same curvature, of
    R replicas at every step, all small enough to be linear. The control beside every run with noise: to 1e-5. Error: of
    the mean over replicas, whose kicks differ. Raises ValueError for fewer than 6 steps; NaN, not converged, where x is 0
    or not finite.
    """
    size = x.detach().double()
    size = size.norm(dim=2) if size.dim() == 3 else size.abs()
    if size.dim() != 2 or len(size) < 7:
        raise ValueError(f"x of shape {tuple(x.shape)}: expected (steps + 1, R) or (steps + 1, R, k), 6 steps or more")
    logs = size[len(size) // 3 :].log()
    time = torch.arange(len(logs), dtype=torch.float64, device=logs.device)
    time -= time.mean()
    slopes = time @ logs / time.square().sum()
    if not bool(slopes.isfinite().all()):
        return Estimate(math.nan, math.nan, 0, "kick", False)
    error = float(slopes.std()) / math.sqrt(len(slopes)) if len(slopes) > 1 else math.nan
    return Estimate(float(slopes.mean()), error, 0, "kick")


def autoregression(
    x: Tensor, radius: float, generator: torch.Generator, *, order: int = 1, resamples: int = 200
) -> Estimate:
    """log z from noisy runs: each coordinate regressed on the one before, replicas followed until |x| > radius.

    x (steps + 1, R) along one descending direction. order 1: sum x_t x_t+1 / sum x_t^2; order 2, for heavy ball: on the two
    before, the larger root. Error: bootstrap over replicas. Too low by 1 to 4 %, more where steps are long beside the
    radius (11 % at lr 0.4): tell the radius with the number. Raises ValueError for another order or fewer than 2 replicas;
    NaN, not converged, where no replica moved or the root is not positive.
    """
    if order not in (1, 2) or x.dim() != 2 or x.shape[1] < 2 or len(x) <= order:
        raise ValueError(f"x of shape {tuple(x.shape)}, order={order}: expected (steps + 1, R >= 2) and order 1 or 2")
    x = x.detach().double()
    inside = ((x.abs() <= radius).cumprod(0) > 0)[order - 1 : -1]  # what is regressed on is inside, and was until then
    before = torch.stack([x[order - 1 - lag : len(x) - 1 - lag] for lag in range(order)], -1)
    before = torch.where(inside[..., None], before, 0.0)
    after = torch.where(inside, x[order:], 0.0)
    squares = torch.einsum("tri,trj->rij", before, before).flatten(1)
    products = torch.einsum("tri,tr->ri", before, after)
    drawn = torch.randint(x.shape[1], (resamples, x.shape[1]), generator=generator, device=generator.device).to(
        x.device
    )
    counts = torch.zeros(resamples, x.shape[1], dtype=x.dtype, device=x.device)
    counts.scatter_add_(1, drawn, torch.ones_like(counts))
    counts = torch.cat([torch.ones_like(counts[:1]), counts])
    roots = _largest_roots((counts @ squares).unflatten(1, (order, order)), counts @ products)
    growths = roots.log()
    if not bool(growths[0].isfinite()):
        return Estimate(math.nan, math.nan, 0, f"AR({order})", False)
    again = growths[1:]
    return Estimate(float(growths[0]), float(again[again.isfinite()].std()), 0, f"AR({order})")


def _largest_roots(squares: Tensor, products: Tensor) -> Tensor:
    """The larger root (n,) of z^order = the regression coefficients from normal equations (n, order, order), (n, order)."""
    coefficients = torch.linalg.lstsq(squares, products[..., None]).solution[..., 0]
    if coefficients.shape[1] == 1:
        return coefficients[:, 0]
    one, two = coefficients.unbind(1)
    return (one + (one * one + 4 * two).sqrt()) / 2
