"""A saddle of a network as a run meets it: descending directions, the noise of mini-batches in them, and runs that leave.

    x_i(t) = u_i'(w_t - w_s),   u_i the eigenvectors of negative curvature;   left: first step with |x_1| > r, or |x_-| > r

held against `lab.escape.saddle`, which knows the curvatures, the learning rate and u_i'Du_i times `sampling.batch_factor`,
and nothing else of the network. What it cannot know slows runs down: the curvature weakens away from the saddle, and noise
that depends on the place multiplies instead of adding.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lab.escape.renormalised import exits
from lab.escape.replicas import Replicas
from lab.escape.saddle import Descent, noise_std
from lab.noise.alignment import variances
from lab.objective import NetworkObjective
from lab.points.dense import Stationary, stationary
from lab.progress import Tick, silent
from lab.results import EscapeTimes, Estimate
from lab.sampling import Sampling, batch_factor

FLAT = 1e-8
"""Curvatures smaller than this times the largest are zero."""


@dataclass(frozen=True)
class NetworkSaddle:
    """A saddle w_s of `objective` with all its curvatures (`point`). Cost of the construction: a dense Hessian."""

    objective: NetworkObjective
    point: Stationary

    @staticmethod
    def at(objective: NetworkObjective, w: Tensor, *, tol: float = 1e-8) -> "NetworkSaddle":
        """The saddle w (P,). Raises ValueError where the gradient is above `tol`, or no curvature is negative."""
        saddle = NetworkSaddle(objective, stationary(objective, w))
        if saddle.point.grad_norm > tol:
            raise ValueError(f"|gradient| = {saddle.point.grad_norm:.2g} at these weights: expected a critical point")
        if not len(saddle.curvatures):
            raise ValueError("no curvature is negative at these weights: expected a saddle")
        return saddle

    @property
    def w(self) -> Tensor:
        """w_s (P,)."""
        return self.point.w

    @cached_property
    def curvatures(self) -> Tensor:
        """The negative eigenvalues (k,), the most negative one first."""
        values = self.point.eigenvalues
        return values[values < -FLAT * values.abs().max()]

    @property
    def directions(self) -> Tensor:
        """Their eigenvectors (P, k)."""
        return self.point.vectors[:, : len(self.curvatures)]

    @property
    def zero_modes(self) -> int:
        """Eigenvalues that are zero."""
        values = self.point.eigenvalues
        return int((values.abs() <= FLAT * values.abs().max()).sum())

    @cached_property
    def variances(self) -> Tensor:
        """u'Du (k,) float64 of one example."""
        return variances(self.objective, self.w, self.directions)

    @cached_property
    def scale(self) -> float:
        """Mean of |g_i|^2: what u'Du is round-off of."""
        return float(self.objective.example_grads(self.w).square().sum(1).mean())

    def descent(
        self,
        *,
        lr: float,
        batch_size: int | None = None,
        sampling: Sampling = "with_replacement",
        isotropic: float = 0.0,
        momentum: float = 0.0,
        modes: int = 1,
    ) -> Descent:
        """The theory of the first `modes` descending directions: noise of mini-batches, of standard deviation `isotropic`
        in every coordinate of the gradient, or of both.
        """
        assert self.objective.num_examples is not None
        factor = batch_factor(self.objective.num_examples, batch_size, sampling) if batch_size else 0.0
        batches = noise_std(self.variances[:modes], factor=factor, scale=self.scale, dtype=self.w.dtype)
        noise = (batches.square() + isotropic**2).sqrt()
        return Descent(self.curvatures[:modes].tolist(), noise.tolist(), lr, momentum)


def follow(
    replicas: Replicas,
    origin: Tensor,
    directions: Tensor,
    *,
    steps: int,
    radius: float = float("inf"),
    tick: Tick = silent,
) -> Tensor:
    """x (t + 1, R, k), coordinates along `directions` (P, k) at every step, until all |x_1| > radius or `steps` are over."""
    rows, gone = [(replicas.W - origin) @ directions], torch.zeros(len(replicas.W), dtype=torch.bool)
    gone = gone.to(origin.device)
    for step in range(steps):
        replicas.run(1)
        rows.append((replicas.W - origin) @ directions)
        gone |= ~(rows[-1][:, 0].abs() <= radius)
        tick((step + 1) / steps)
        if bool(gone.all()):
            break
    return torch.stack(rows)


def left(distance: Tensor, radius: float) -> EscapeTimes:
    """First step at which each distance (t + 1, R) exceeds the radius; censored at the end, NaN an exit of its own kind."""
    first = exits(distance, radius)
    out = first >= 0
    at = torch.where(out, first, len(distance) - 1)
    failed = out & ~distance.gather(0, at[None])[0].isfinite()
    return EscapeTimes(at.double(), out & ~failed, failed)


def mean_time(times: EscapeTimes) -> Estimate:
    """Mean of the times and its standard error; NaN, not converged, where some did not leave: that mean would be too low."""
    if not bool(times.exited.all()):
        return Estimate(float("nan"), float("nan"), 0, "replicas", False)
    return Estimate(float(times.times.mean()), float(times.times.std()) / len(times.times) ** 0.5, 0, "replicas")
