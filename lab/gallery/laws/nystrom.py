"""Escape in one dimension in discrete time, exactly: x <- x - lr L'(x) + sqrt(2 lr D(x)) xi, as a program walks.

The kernel P(x, y) of one step, killed outside the domain, is put on Gauss-Legendre points (Nystrom's method):

    mean number of steps     (1 - P) tau = 1
    rate per step            -log rho, rho the largest eigenvalue of P: from the quasi-stationary law, its left eigenvector
    survival                 S(t) = P^t 1

At a finite learning rate this, and not the differential equation, is what a simulation has to agree with: a walker is seen
at the ends of steps only, so a boundary is found later (by 4 to 6 % of the mean time at the top of a barrier, lr = 0.01),
and at lr = 0.4 a double well is left 1.6 times as fast. A D that jumps is approached only as sqrt(lr).
Kress, Linear Integral Equations, chapter 12, for the method.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from scipy.linalg import lu_factor, lu_solve
from scipy.special import ndtr
from torch import Tensor

from lab.gallery.laws.kramers import Diffusion, Domain, reach
from lab.gallery.laws.panels import NODES, Panels
from lab.settings import SettingError

WIDTH = 2.5
"""Standard deviations of a step in a panel of eight points: an error below 1e-9 of each integral."""
LARGEST = 4000
"""Points at most: a linear system of that size takes some seconds."""
LONGEST = 1e12
"""Steps of a mean time that float64 can tell from forever."""
LEAK = 1e-6
WIDENINGS = 6
ITERATIONS, TOL = 1000, 1e-12


@dataclass(frozen=True)
class StepChain:
    """The steps of `process` at one lr inside `domain`; start says in which well.

    Raises SettingError where noise is so fine that more than LARGEST points are needed, or where steps overshoot so far that
    walkers run away on a side without exit, when it is first asked for a number.
    """

    process: Diffusion
    lr: float
    domain: Domain
    start: float

    def __post_init__(self) -> None:
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise SettingError(f"lr={self.lr}: expected lr > 0")
        if not self.domain.holds(self.start):
            raise SettingError(f"start={self.start:g} is not inside the domain ({self.domain.low}, {self.domain.high})")

    def mean_steps(self) -> float:
        """The mean number of steps until the walker is found outside, from `start`."""
        return 1 + float(self._start @ self._times)

    @cached_property
    def rate(self) -> float:
        """-log rho: exits per step in the long run."""
        return -math.log1p(-self._grid.left)

    @property
    def lifetime(self) -> float:
        """1 / rate in units of lr * step."""
        return self.lr / self.rate

    @property
    def law(self) -> tuple[Tensor, Tensor]:
        """The quasi-stationary law: points (n,), and their shares of the mass, which sum to 1."""
        return torch.from_numpy(self._grid.x), torch.from_numpy(self._grid.mass)

    def survival(self, every: int, count: int) -> Tensor:
        """Shares still inside after 0, every, 2 every, ... steps, (count + 1,). Cost: log2(every) products of the kernel."""
        jump = np.linalg.matrix_power(self._grid.kernel, every - 1) if every > 1 else np.eye(len(self._grid.kernel))
        mass, shares = self._start @ jump, [1.0]
        for _ in range(count):
            shares.append(float(mass.sum()))
            mass = (mass @ self._grid.kernel) @ jump
        return torch.tensor(shares, dtype=torch.float64)

    # --- how ----------

    @cached_property
    def _grid(self) -> "_Grid":
        """Nodes, kernel and quasi-stationary law; a side without exit is widened until nothing is lost there."""
        low, high = self.domain.low, self.domain.high
        near = low if low is not None else reach(self.process, self.start, -1)
        far = high if high is not None else reach(self.process, self.start, +1)
        for _ in range(WIDENINGS):
            x, w = self._rule(near, far)
            kernel = self._density(x, x) * w
            grid = _Grid(x, w, kernel, *_quasi_stationary(kernel))
            if not 0 < 1 / grid.left < LONGEST:
                raise SettingError(
                    f"lr={self.lr:g}: the mean time is beyond {LONGEST:g} steps; expected a lower barrier, or more noise "
                    f"(a smaller B / lr)"
                )
            if self._lost(grid, near if low is None else None, far if high is None else None):
                near -= 0.0 if low is not None else 0.3 * (self.start - near)
                far += 0.0 if high is not None else 0.3 * (far - self.start)
            else:
                return grid
        raise SettingError(f"lr={self.lr:g}: steps overshoot until the walker runs away; use a smaller lr")

    def _rule(self, near: float, far: float) -> tuple[np.ndarray, np.ndarray]:
        cuts = [c for c in self.process.cuts if near < c < far]
        std = float(self._std(torch.linspace(near, far, 2001, dtype=torch.float64)).min())
        points = NODES * (far - near) / (WIDTH * std)
        if not points < LARGEST:
            raise SettingError(
                f"lr={self.lr:g}: steps of {std:.2g} in a range of {far - near:.2g} need {points:.3g} points, more than "
                f"{LARGEST}; use a larger lr or temperature"
            )
        ends = [near, *sorted(cuts), far]
        edges = [np.linspace(a, b, math.ceil((b - a) / (WIDTH * std)) + 1)[:-1] for a, b in pairwise(ends)]
        rule = Panels(torch.from_numpy(np.array([*np.concatenate(edges), far])))
        return rule.nodes.flatten().numpy(), rule.weights.flatten().numpy()

    def _lost(self, grid: "_Grid", near: float | None, far: float | None) -> bool:
        """Whether steps end beyond a side without exit, by a part of the exits that counts."""
        mean, std = self._moments(grid.x)
        beyond = np.zeros_like(grid.x)
        for end, side in ((near, 1), (far, -1)):
            if end is not None:
                beyond += ndtr(side * (end - mean) / std)
        return bool(beyond @ grid.mass > LEAK * grid.left + 1e-14)

    def _moments(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at = torch.from_numpy(x)
        return (at - self.lr * self.process.slope(at)).numpy(), self._std(at).numpy()

    def _std(self, x: Tensor) -> Tensor:
        return (2 * self.lr * self.process.diffusion(x)).sqrt()

    def _density(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        mean, std = self._moments(x)
        return np.exp(-(((y - mean[:, None]) / std[:, None]) ** 2) / 2) / (std[:, None] * math.sqrt(2 * math.pi))

    @cached_property
    def _times(self) -> np.ndarray:
        kernel = self._grid.kernel
        return np.linalg.solve(np.eye(len(kernel)) - kernel, np.ones(len(kernel)))

    @property
    def _start(self) -> np.ndarray:
        """Mass at the nodes after the first step."""
        return self._density(np.array([self.start]), self._grid.x)[0] * self._grid.w


@dataclass(frozen=True)
class _Grid:
    """Nodes and weights (n,), the kernel (n, n), and of the quasi-stationary law 1 - rho and the mass (n,)."""

    x: np.ndarray
    w: np.ndarray
    kernel: np.ndarray
    left: float
    mass: np.ndarray


def _quasi_stationary(kernel: np.ndarray) -> tuple[float, np.ndarray]:
    """1 - rho and the left eigenvector, by inverse iteration: 1 - rho keeps its digits where rho is nearly 1."""
    factors = lu_factor(np.eye(len(kernel)) - kernel)
    mass, before = np.full(len(kernel), 1 / len(kernel)), 0.0
    for _ in range(ITERATIONS):
        image = lu_solve(factors, mass, trans=1)
        lifetime = float(image.sum())  # 1 / (1 - rho): the sum of the mass was 1
        mass = image / lifetime
        if abs(lifetime - before) <= TOL * lifetime:
            break
        before = lifetime
    return 1 / lifetime, mass
