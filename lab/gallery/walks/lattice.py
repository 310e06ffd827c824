"""Random walks in d dimensions: how far they get, in which direction, and by how much single walks differ.

Three ways to step. `one_coordinate`: one of the d coordinates, drawn at random, moves by +-1 (the simple random walk on
the lattice). `all_coordinates`: every coordinate moves by +-1. `gaussian`: every coordinate moves by N(0, 1). With
s = 1, d, d the mean squared length of a step, independent steps without drift give, exactly and for every n and d,

    E |x|^2 = s n,      Var |x|^2 = 2 s^2 n (n - 1) / d   (lattice),   2 s^2 n^2 / d   (gaussian),

so sqrt(n) is the distance of the simple random walk in ANY number of dimensions, and sqrt(n d) belongs to a walk that
moves all coordinates at once. Each coordinate has variance s n / d. For n >> d the coordinates are jointly Gaussian
(central limit theorem), so |x|^2 d / (s n) has the chi-squared law with d degrees of freedom: mean, median and spread
of |x| follow, with a relative error of order 1 / n. Two independent walks make an angle with E cos = 0 and
E cos^2 = 1 / d (exact for every n, as long as no walk is at the origin).
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import stats
from torch import Generator, Tensor

from lab.progress import Tick, silent
from lab.results import Estimate

Kind = Literal["one_coordinate", "all_coordinates", "gaussian"]
CHUNK_NUMBERS = 1 << 20
"""Numbers (walkers x d) that move together: 4 MB, about the size of a cache."""


@dataclass(frozen=True)
class FreeWalk:
    """A walk of n steps in d dimensions. Raises ValueError unless d >= 1 and n >= 1."""

    d: int
    n: int
    kind: Kind = "one_coordinate"

    def __post_init__(self) -> None:
        if self.d < 1 or self.n < 1:
            raise ValueError(f"d={self.d}, n={self.n}: expected at least 1 dimension and 1 step")

    @property
    def step_square(self) -> int:
        """E |step|^2: 1 where one coordinate moves, d where all do."""
        return 1 if self.kind == "one_coordinate" else self.d

    def mean_square(self) -> float:
        """E |x_n|^2. Exact."""
        return float(self.step_square * self.n)

    def mean(self) -> float:
        """E |x_n| of the Gaussian limit, sqrt(s n / d) sqrt(2) Gamma((d + 1) / 2) / Gamma(d / 2)."""
        gammas = math.exp(math.lgamma((self.d + 1) / 2) - math.lgamma(self.d / 2))
        return math.sqrt(2 * self.mean_square() / self.d) * gammas

    def median(self) -> float:
        """The median of |x_n| of the Gaussian limit, sqrt(s n / d x median of chi-squared with d degrees of freedom).

        >>> round(FreeWalk(10, 1000).median(), 2)  # and not 10 = sqrt(n / d), the size of one coordinate
        30.56
        """
        return math.sqrt(self.mean_square() / self.d * stats.chi2(self.d).median())

    def spread(self) -> float:
        """The standard deviation of |x_n| over its mean, of the Gaussian limit; about 1 / sqrt(2 d)."""
        return math.sqrt(self.mean_square() / self.mean() ** 2 - 1)

    def density(self, r: np.ndarray) -> np.ndarray:
        """The density of |x_n| at r (1 / length), of the Gaussian limit: a chi law of d degrees of freedom."""
        return stats.chi(self.d, scale=math.sqrt(self.mean_square() / self.d)).pdf(r)

    def cosine_density(self, c: np.ndarray) -> np.ndarray:
        """The density of the cosine between two walks in d >= 2, of the Gaussian limit: (1 - c^2)^((d - 3) / 2) / Beta."""
        return stats.beta((self.d - 1) / 2, (self.d - 1) / 2, loc=-1, scale=2).pdf(c)


def steps(walk: FreeWalk, walkers: int, count: int, generator: Generator) -> Tensor:
    """(walkers, count, d) float32 steps of a walk, on the device of the generator."""
    size, device = (walkers, count, walk.d), generator.device
    if walk.kind == "gaussian":
        return torch.randn(size, generator=generator, device=device)
    if walk.kind == "all_coordinates":
        return 2.0 * torch.randint(2, size, generator=generator, device=device, dtype=torch.float32) - 1
    drawn = torch.randint(2 * walk.d, size[:2], generator=generator, device=device)
    moves = torch.zeros(size, device=device)
    return moves.scatter_(2, (drawn // 2)[..., None], (2.0 * (drawn % 2) - 1)[..., None])


@dataclass(frozen=True)
class Ends:
    """Where walkers are: ends (walkers, d) after the last step; mean_square, error (t,) of |x|^2 at `times` (t,) steps."""

    ends: Tensor
    times: Tensor
    mean_square: Tensor
    error: Tensor

    def distances(self) -> Tensor:
        """(walkers,) |x| after the last step."""
        return self.ends.double().norm(dim=1)

    def median(self) -> Estimate:
        """The median of |x|, with the standard error by order statistics: ranks n/2 -+ sqrt(n)/2 lie one error apart."""
        ordered, n = self.distances().sort().values, len(self.ends)
        half = max(1, round(n**0.5 / 2))
        low, high = max(0, n // 2 - half), min(n - 1, n // 2 + half)
        middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
        return Estimate(float(middle), float(ordered[high] - ordered[low]) / 2, 0, "walkers")

    def cosines(self) -> Tensor:
        """(walkers // 2,) cosines between walker 1 and 2, 3 and 4, ...; pairs with one at the origin have none."""
        x = self.ends.double()[: len(self.ends) // 2 * 2]
        lengths = x.norm(dim=1)
        cosines = (x[::2] * x[1::2]).sum(1) / (lengths[::2] * lengths[1::2])
        return cosines[cosines.isfinite()]


def wander(walk: FreeWalk, generator: Generator, *, walkers: int, times: Tensor, tick: Tick = silent) -> Ends:
    """Where `walkers` are after the numbers of steps in `times` (t,), ascending, the last of which is walk.n.

    Cost: walkers x n steps of d numbers, in chunks; memory one chunk and the ends. Positions on the lattice are exact in
    float32 up to n = 2^24. Raises ValueError for fewer than 2 walkers and for times that do not end at walk.n.
    """
    if walkers < 2 or int(times[-1]) != walk.n or int(times[0]) < 1 or not bool((times.diff() > 0).all()):
        raise ValueError(f"walkers={walkers}, times={times.tolist()}: expected 2 or more, and ascending to n={walk.n}")
    chunk = max(1, CHUNK_NUMBERS // walk.d)
    sums = torch.zeros(2, len(times), dtype=torch.float64, device=generator.device)
    ends = []
    for first in range(0, walkers, chunk):
        x = torch.zeros(min(chunk, walkers - first), walk.d, device=generator.device)
        done = 0
        for i, time in enumerate(times.tolist()):
            for n in range(done, time):
                x = _moved(walk, x, generator)
                tick((first + len(x) * (n + 1) / walk.n) / walkers)
            done = time
            squares = x.double().square().sum(1)
            sums[:, i] += torch.stack((squares.sum(), squares.square().sum()))
        ends.append(x)
    mean, square = sums / walkers
    error = ((square - mean**2).clamp(min=0) / (walkers - 1)).sqrt()
    return Ends(torch.cat(ends), times, mean, error)


def _moved(walk: FreeWalk, x: Tensor, generator: Generator) -> Tensor:
    """x (w, d) after one more step."""
    if walk.kind != "one_coordinate":
        return x + steps(walk, len(x), 1, generator)[:, 0]
    drawn = torch.randint(2 * walk.d, (len(x), 1), generator=generator, device=x.device)
    return x.scatter_add_(1, drawn // 2, 2.0 * (drawn % 2) - 1)
