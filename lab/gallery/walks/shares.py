"""How much of a random walk lies in its first principal components: most of it, whatever the walk.

The principal components of one walk, its positions x_0 = 0, x_1, ..., x_n taken as n + 1 points in d dimensions. In the
limit of many dimensions the Gram matrix of the points tends to min(i, j), whose eigenvectors are cosines and whose
eigenvalues are known (Antognini and Sohl-Dickstein 2018, arXiv 1806.08805): of p points, centred at their mean, component k
has the share

    rho_k = 6 / (p^2 - 1) / (4 sin^2(pi k / 2p))          -> 6 / (pi^2 k^2) for many points,

61 % and 15 %: "the trajectory is almost flat" is what a walk without any landscape shows. In fewer dimensions the
shares of single walks vary and their mean is larger. The Gram matrix of Gaussian steps is that of d independent draws
with these eigenvalues, so the mean share has a series in 1 / d whose first term is known (eigenvalues: Lawley 1956,
Biometrika 43, 128, l_k = rho_k + sum_j rho_k rho_j / (rho_k - rho_j) / d; the ratio to the trace by its covariances
Cov(l_k, trace) = 2 rho_k^2 / d). PCA without centring, about the origin, has other shares, larger ones.
"""

import math

import torch
from torch import Generator, Tensor

from lab.gallery.walks.lattice import FreeWalk, steps
from lab.progress import Tick, silent
from lab.results import Estimate

CHUNK_NUMBERS = 1 << 21
"""Numbers (walks x points x d) in memory at once, 8 bytes each a few times."""


def limit_shares(points: int) -> Tensor:
    """(points - 1,) the shares of the centred components for d -> infinity, in descending order. Exact; sums to 1.

    >>> round(float(limit_shares(1001)[0]), 6), round(float(limit_shares(1001)[:2].sum()), 6)
    (0.607928, 0.759911)
    """
    k = torch.arange(1, points, dtype=torch.float64)
    return 6 / (points**2 - 1) / (4 * torch.sin(math.pi * k / (2 * points)) ** 2)


def first_order_share(points: int, d: int, top: int = 2) -> float:
    """The mean share of the first `top` centred components in d dimensions, to first order in 1 / d.

    Error of order 1 / d^2: 0.009 too small at d = 10, 0.002 at d = 20 (top = 2). Raises ValueError where `top` is not
    between 1 and points - 1.
    """
    if not 1 <= top < points:
        raise ValueError(f"top={top} of {points} points: expected between 1 and points - 1")
    shares = limit_shares(points)
    limit, own = shares[:top].sum(), shares[:top]
    gaps = own[:, None] - shares[None, :]
    repelled = (own[:, None] * shares[None, :] / gaps.masked_fill(gaps == 0, torch.inf)).sum()
    with_trace, trace = 2 * own.square().sum(), 2 * shares.square().sum()
    return float(limit + (repelled - with_trace + limit * trace) / d)


def walk_shares(
    walk: FreeWalk, generator: Generator, *, walks: int, top: int = 2, centred: bool = True, tick: Tick = silent
) -> Tensor:
    """(walks, top) float64 shares of the first components of single walks, each over its n + 1 points.

    Products and eigenvalues in float64, of the smaller of the d x d covariance and the Gram matrix of the points. Cost per
    walk: n d min(n, d) + min(n, d)^3. Raises ValueError where there are fewer than `top` components.
    """
    points = walk.n + 1
    if not 1 <= top <= min(points - centred, walk.d):
        raise ValueError(f"top={top}: a walk of {points} points in {walk.d} dimensions has fewer components")
    chunk = max(1, CHUNK_NUMBERS // (points * walk.d))
    shares = []
    for first in range(0, walks, chunk):
        x = positions(walk, min(chunk, walks - first), generator)
        if centred:
            x -= x.mean(1, keepdim=True)
        squares = x.mT @ x if walk.d < points else x @ x.mT
        values = torch.linalg.eigvalsh(squares).flip(1)[:, :top]
        shares.append(values / squares.diagonal(dim1=1, dim2=2).sum(1, keepdim=True))
        tick(min(walks, first + chunk) / walks)
    return torch.cat(shares)


def mean_share(shares: Tensor) -> Estimate:
    """The mean over walks of the share of all given components together, with its standard error."""
    each = shares.sum(1)
    return Estimate(float(each.mean()), float(each.std() / len(each) ** 0.5), 0, "walks")


def positions(walk: FreeWalk, walks: int, generator: Generator) -> Tensor:
    """(walks, n + 1, d) float64 positions of walks from the origin, which is the first point."""
    moved = steps(walk, walks, walk.n, generator).double().cumsum(1)
    return torch.nn.functional.pad(moved, (0, 0, 1, 0))


def components(walk: FreeWalk, generator: Generator, *, top: int = 2) -> Tensor:
    """(n + 1, top) the centred principal components of one walk over time, unit length times sqrt(n + 1).

    For d -> infinity component k is +-sqrt(2) cos(pi k (t + 1/2) / (n + 1)), t = 0 .. n: plotted against each other they
    make Lissajous figures. Signs are chosen to match. Cost: one SVD.
    """
    x = positions(walk, 1, generator)[0]
    u = torch.linalg.svd(x - x.mean(0), full_matrices=False).U[:, :top] * len(x) ** 0.5
    return u * (u * cosines(len(x), top).to(u)).sum(0).sign()


def cosines(points: int, top: int = 2) -> Tensor:
    """(points, top) the components for d -> infinity, sqrt(2) cos(pi k (t + 1/2) / points)."""
    t, k = torch.arange(points, dtype=torch.float64), torch.arange(1, top + 1, dtype=torch.float64)
    return math.sqrt(2) * torch.cos(math.pi * k * (t[:, None] + 0.5) / points)
