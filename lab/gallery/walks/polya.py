"""Does a walk come back? In one and two dimensions surely, in three or more perhaps never (Polya 1921, Math. Ann. 84, 149).

The simple random walk on the d-dimensional lattice moves one coordinate by +-1 at a time. With u_n the probability to be
at the origin after n steps (0 for odd n), U = sum_n u_n is the mean number of visits, the start included, and the
probability ever to return is

    p = 1 - 1 / U,     U = integral_0^inf e^(-t) I_0(t / d)^d dt        (Montroll 1956, J. SIAM 4, 241),

because sum_n u_n t^n / n! = I_0(t / d)^d. The first return at step n has probability f_n = u_n - sum_{k<n} f_k u_{n-k}
(renewal), so the probability to be back BY step n is exact too. From d = 3 on it approaches p slowly: what is missing
after n steps is (1 - p)^2 sum_{k>n} u_k, of order n^(1 - d/2); a simulation has to add it.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import integrate, special
from torch import Generator, Tensor

from lab.progress import Tick, silent
from lab.results import Estimate

Array = np.ndarray
BLOCK = 32
"""Steps drawn at once."""
CHUNK = 1 << 13
"""Walkers that move together: chunk x block numbers of 8 bytes stay in a cache."""
WORD = 62
"""Bits of a 64-bit number that hold coordinates."""


def return_probability(d: int) -> float:
    """The probability ever to return to the origin; 1 for d = 1, 2. Error below 1e-10.

    The integral's tail is algebraic, t^(-d/2); in s = 1 / sqrt(t) its integrand is smooth down to s = 0.

    >>> round(return_probability(3), 9), return_probability(2)
    (0.34053733, 1.0)
    """
    if d < 1:
        raise ValueError(f"d={d}: expected at least 1 dimension")
    if d <= 2:
        return 1.0
    head, _ = integrate.quad(lambda t: special.i0e(t / d) ** d, 0, d, epsabs=1e-13)
    tail, _ = integrate.quad(lambda s: 2 / s**3 * special.i0e(1 / (s * s * d)) ** d, 0, d**-0.5, epsabs=1e-13)
    return 1 - 1 / (head + tail)


def at_origin(d: int, steps: int) -> Array:
    """(steps // 2 + 1,) u_0, u_2, u_4, ...: the probability to be at the origin after so many steps. Exact to round-off.

    One more dimension at a time: of 2n steps the new one takes 2j with binomial probability, and both walks must close,
    u^(d)_2n = sum_j Binomial(2j; 2n, 1/d) u^(1)_2j u^(d-1)_(2n-2j). Cost: d (steps/2)^2 positive terms.
    """
    if d < 1 or steps < 0:
        raise ValueError(f"d={d}, steps={steps}: expected at least 1 dimension and 0 steps")
    n = np.arange(steps // 2 + 1)
    line = np.exp(special.gammaln(2 * n + 1) - 2 * special.gammaln(n + 1) - 2 * n * math.log(2))
    u = line
    for dims in range(2, d + 1):
        u = np.array([_closing(int(m), dims) @ (line[: m + 1] * u[m::-1]) for m in n])
    return u


def _closing(m: int, dims: int) -> Array:
    """(m + 1,) the probability that of 2m steps 2j are along one of `dims` dimensions, j = 0 .. m."""
    j = 2 * np.arange(m + 1)
    log = special.gammaln(2 * m + 1) - special.gammaln(j + 1) - special.gammaln(2 * m - j + 1)
    return np.exp(log - j * math.log(dims) + (2 * m - j) * math.log1p(-1 / dims))


def first_return(d: int, steps: int) -> Array:
    """(steps // 2,) f_2, f_4, ...: the probability that the first return is at that step. Exact to round-off.

    Cost: that of `at_origin` and (steps/2)^2 for the renewal.

    >>> by_step_100 = first_return(1, 100).sum()
    >>> bool(abs(by_step_100 - (1 - math.comb(100, 50) / 2**100)) < 1e-13)
    True
    """
    u = at_origin(d, steps)
    f = np.zeros(len(u))
    for n in range(1, len(u)):
        f[n] = u[n] - f[1:n] @ u[n - 1 : 0 : -1]
    return f[1:]


def tail(d: int, steps: int) -> float:
    """The probability to return for the first time after step `steps`, d >= 3: (1 - p)^2 sum_{2k>steps} u_2k.

    With u_2k = 2 (d / 4 pi k)^(d/2), the sum is a Hurwitz zeta function. Relative error of order 1 / steps: 0.2 % at step
    100 for d = 3, 3 % for d = 10. Raises ValueError for d < 3, where the walk returns for sure and the sum is infinite.
    """
    if d < 3:
        raise ValueError(f"d={d}: there is no tail to add below 3 dimensions, where the walk returns for sure")
    later = 2 * (d / (4 * math.pi)) ** (d / 2) * special.zeta(d / 2, steps // 2 + 1)
    return float((1 - return_probability(d)) ** 2 * later)


@dataclass(frozen=True)
class Returns:
    """First returns of simulated walkers in d dimensions, followed for `steps` steps.

    times (walkers,) int64, 0 where a walker has not been back.
    """

    d: int
    steps: int
    times: Tensor

    def by(self, step: int) -> Estimate:
        """The share of walkers that were back by `step`, with its binomial standard error."""
        share = float(((self.times > 0) & (self.times <= step)).double().mean())
        return Estimate(share, math.sqrt(share * (1 - share) / len(self.times)), 0, "walkers")

    def ever(self) -> Estimate:
        """The share that returns ever, d >= 3: what was seen and the `tail` after the last step."""
        seen = self.by(self.steps)
        return Estimate(seen.value + tail(self.d, self.steps), seen.error, 0, "walkers and tail")


def first_returns(d: int, generator: Generator, *, walkers: int, steps: int, tick: Tick = silent) -> Returns:
    """Simulate `walkers` for up to `steps` steps, on the device of the generator; who is back stops.

    The coordinates are digits of 64-bit numbers, as many to a number as fit (20 dimensions of 3 bits, 5 of 12): a
    step adds one entry of a table and "at the origin" is "all numbers zero". Exact: no coordinate can
    leave its digit. Cost: below walkers x steps table look-ups.
    """
    if d < 1 or walkers < 1 or steps < 1:
        raise ValueError(f"d={d}, walkers={walkers}, steps={steps}: expected at least 1 of each")
    table = _moves(d, steps).to(generator.device)
    times = torch.zeros(walkers, dtype=torch.int64, device=generator.device)
    for first in range(0, walkers, CHUNK):
        mine = times[first : first + CHUNK]
        out = torch.arange(len(mine), device=generator.device)
        at = torch.zeros(len(mine), table.shape[1], dtype=torch.int64, device=generator.device)
        for done in range(0, steps, BLOCK):
            count = min(BLOCK, steps - done)
            drawn = torch.randint(2 * d, (len(out), count), generator=generator, device=generator.device)
            path = at[:, None] + table[drawn].cumsum(1)
            home = (path == 0).all(2)
            back = home.any(1)
            mine[out[back]] = done + 1 + home[back].to(torch.uint8).argmax(1)
            out, at = out[~back], path[~back, -1]
            tick((first + len(mine) * (done + count) / steps) / walkers)
    return Returns(d, steps, times)


def _moves(d: int, steps: int) -> Tensor:
    """(2d, words) int64: what each of the 2d moves adds to the numbers that hold the coordinates."""
    bits = math.ceil(math.log2(2 * steps + 1))
    each = max(1, WORD // bits)
    table = torch.zeros(2 * d, math.ceil(d / each), dtype=torch.int64)
    for i in range(d):
        table[2 * i, i // each] = 1 << (bits * (i % each))
        table[2 * i + 1, i // each] = -table[2 * i, i // each]
    return table
