"""When has a replica left? Rules that look at the weights W (R, P) of all replicas at once.

    Coordinate     u'(w - origin) > threshold     beyond a saddle along its unstable direction: default where one is known
    Quench         gradient descent from w ends in another minimum: the reference, and default elsewhere
    Growth         |U'(w - origin)| > radius      along unstable directions U of a saddle or of an unstable minimum
    LossBarrier    L(w) > L* + barrier            wrong in more than a few dimensions: E[L - L*] is P T/2 inside the basin
    TopDistance    |V'(w - origin)| > radius      wrong: escapes go along the softest directions, V are the stiffest

The first time at the top of a barrier is no escape: half of those who reach it come back. A Coordinate belongs half
way between the saddle and the minimum beyond it, and replicas are inspected at times far apart of a recrossing.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from lab.objective import Objective
from lab.points.quench import Quenched, quench


class Exit(Protocol):
    """A rule that says which replicas are outside. `name` as in the settings; `warning` is empty or says why not to use it;
    `costly` rules are asked about those inside only.
    """

    name: ClassVar[str]
    warning: ClassVar[str] = ""
    costly: ClassVar[bool] = False

    def outside(self, W: Tensor) -> Tensor:
        """(R,) bool: which rows of W (R, P) are outside; NaN is outside of nothing."""


@dataclass(frozen=True)
class Coordinate(Exit):
    """u'(w - origin) > threshold, or |u'(w - origin)| > threshold where `both` ways lead out. direction u (P,) is used as
    it is given.
    """

    direction: Tensor
    origin: Tensor
    threshold: float
    both: bool = False
    name: ClassVar[str] = "saddle"

    @staticmethod
    def beyond(direction: Tensor, saddle: Tensor, beyond: Tensor) -> "Coordinate":
        """Half way beyond the saddle to the minimum `beyond` it, along the unstable direction."""
        along = float((beyond - saddle) @ direction)
        sign = 1.0 if along > 0 else -1.0
        return Coordinate(sign * direction, saddle, 0.5 * abs(along))

    def along(self, W: Tensor) -> Tensor:
        """u'(w - origin), (R,)."""
        return (W.detach() - self.origin) @ self.direction

    def outside(self, W: Tensor) -> Tensor:
        along = self.along(W)
        return (along.abs() if self.both else along) > self.threshold


@dataclass(frozen=True)
class Growth(Exit):
    """|U'(w - origin)| > radius for orthonormal columns U (P, k), the directions that grow."""

    directions: Tensor
    origin: Tensor
    radius: float
    name: ClassVar[str] = "linear"

    def distance(self, W: Tensor) -> Tensor:
        """|U'(w - origin)|, (R,)."""
        return ((W.detach() - self.origin) @ self.directions).norm(dim=1)

    def outside(self, W: Tensor) -> Tensor:
        return self.distance(W) > self.radius


@dataclass(frozen=True)
class TopDistance(Growth):
    """`Growth` with the stiffest directions of the Hessian, in which nothing happens."""

    name: ClassVar[str] = "top_distance"
    warning: ClassVar[str] = (
        "top_distance sees nothing of an escape: it goes along the softest directions of the Hessian, not the stiffest"
    )


@dataclass(frozen=True)
class LossBarrier(Exit):
    """Full-batch loss above `level`. Cost: a loss of all examples a replica."""

    objective: Objective
    level: float
    name: ClassVar[str] = "loss_barrier"
    warning: ClassVar[str] = (
        "loss_barrier counts replicas that never left: in P dimensions noise lifts the loss by P T/2 inside the basin"
    )

    def outside(self, W: Tensor) -> Tensor:
        return self.objective.replica_values(W) > self.level


@dataclass
class Quench(Exit):
    """Gradient descent from w ends elsewhere than gradient descent from the checkpoint: another basin.

    Two ends are the same basin unless the loss along the straight line between them rises above both by more than
    `tolerance` (relative to their loss, or absolute where that is larger), or their losses differ by more than that. A
    symmetric image of the minimum is another basin by this rule: its loss is the same, but a barrier lies between.

    home (P,) the quenched checkpoint; lr, steps and gradient_tolerance those of `lab.points.quench.quench` (lr None: from
    the largest curvature). Replicas that are not at rest by then are counted in `unconverged` and judged where they are.
    """

    objective: Objective
    home: Tensor
    lr: float | None = None
    steps: int = 20_000
    gradient_tolerance: float = 1e-8
    tolerance: float = 1e-3
    points: int = 9
    unconverged: int = field(default=0, init=False)
    quenched: int = field(default=0, init=False)
    name: ClassVar[str] = "quench"
    costly: ClassVar[bool] = True

    def ends(self, W: Tensor) -> Quenched:
        """Where gradient descent from the rows of W leads."""
        ends = quench(self.objective, W, lr=self.lr, tol=self.gradient_tolerance, max_steps=self.steps)
        self.unconverged += int((~ends.converged & ends.values.isfinite()).sum())
        self.quenched += len(W)
        return ends

    def outside(self, W: Tensor) -> Tensor:
        return self.elsewhere(self.ends(W).w)

    def elsewhere(self, ends: Tensor) -> Tensor:
        """(R,) bool: which of the quenched points (R, P) lie in another basin than `home`."""
        home = self.objective.replica_values(self.home[None])[0]
        there = self.objective.replica_values(ends)
        slack = self.tolerance * torch.maximum(home.abs(), there.abs()).clamp(min=self.tolerance)
        highest = torch.maximum(home, there)
        barrier = torch.zeros_like(there, dtype=torch.bool)
        for t in torch.linspace(0, 1, self.points + 2)[1:-1].tolist():
            barrier |= self.objective.replica_values(torch.lerp(self.home, ends, t)) > highest + slack
        return barrier | ((there - home).abs() > slack)
