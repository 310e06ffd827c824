"""The stage of an escape: a small network, the minimum it starts in, the saddle and the minimum beyond, all found afresh.

A d - h - k network of tanh neurons with weight decay on the halves of digits (`lab.data.halves`): minima from random starts,
the saddle by the string method and Newton, between nearest symmetric images. It is the same for every seed of a run.
"""

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lab.data.halves import halves_loss
from lab.escape.exits import Coordinate
from lab.escape.langer import Langer
from lab.escape.renewal import Stays, renewals
from lab.escape.replicas import Noise, Replicas
from lab.gallery.laws.action import (
    POINTS,
    Action,
    action,
    chord_slope,
    example_covariance,
    isotropic_slope,
    least_action,
    resampled,
)
from lab.objective import Objective
from lab.objective.decayed import Decayed
from lab.points.dense import Field, Stationary, gradient_field, stationary
from lab.points.minima import find_minima
from lab.points.quench import Quenched, quench
from lab.points.string import find_pass
from lab.points.symmetry import Symmetry, hidden_neurons, nearest
from lab.progress import Tick, silent
from lab.settings import SettingError
from lab.streams import stream

CaseName = Literal["K2", "C1", "K1"]
RESTARTS = 32
"""Random starts in a round; rounds are made until both minima are among what they found."""
ROUNDS = 8
RELAXATIONS = 3.0
"""Burn-in in units of 1 / lambda_min, the slowest relaxation of the well."""
INSPECT = 4.0
"""Units of time (lr * steps) between inspections: longer than a recrossing of the saddle, much shorter than a stay."""
STABLE = 2.0
"""lr * lambda_max from which on gradient descent leaves the well by itself."""


@dataclass(frozen=True)
class Case:
    """A network with weight decay, and its pair of minima, told apart by their losses."""

    examples: int
    decay: float
    well: float
    beyond: float
    inputs: int = 8
    outputs: int = 2
    hidden: int = 2

    @property
    def words(self) -> str:
        return (
            f"{self.inputs}-{self.hidden}-{self.outputs} tanh network on the halves of {self.examples} digits, weight decay "
            f"{self.decay:g}"
        )


CASES: dict[CaseName, Case] = {
    "K2": Case(50, 0.02, well=0.4245, beyond=0.4055),
    "C1": Case(200, 0.01, well=0.6050, beyond=0.5939),
    "K1": Case(50, 0.01, well=0.3773, beyond=0.3617),  # with a third minimum, of loss 0.3742: the warning
}
NEAR = 1e-3
"""How near to the loss of its name a minimum is."""


@dataclass(frozen=True)
class Stage:
    """What there is to leave: objective, the two minima and the saddle (`langer`), the string between them."""

    case: Case
    objective: Objective
    symmetry: Symmetry
    langer: Langer
    string: Tensor
    values: Tensor
    D: Tensor

    @property
    def well(self) -> Stationary:
        return self.langer.well

    @property
    def minima(self) -> tuple[Stationary, Stationary]:
        return self.langer.well, self.langer.beyond

    @property
    def exit(self) -> Coordinate:
        """Beyond the saddle by half of the way to the next minimum, along the unstable direction."""
        return Coordinate.beyond(self.langer.direction, self.langer.saddle.w, self.langer.beyond.w)

    @property
    def climb(self) -> Tensor:
        """The part of the string from the well to the saddle."""
        return torch.cat([self.string[: int(self.values.argmax())], self.langer.saddle.w[None]])

    def require_stable(self, lr: float, name: str) -> None:
        """Raise SettingError where gradient descent itself leaves the well."""
        sharpest = float(self.well.eigenvalues[-1])
        if lr * sharpest >= STABLE:
            raise SettingError(
                f"{name}={lr:g}: gradient descent is stable in this well below 2 / lambda_max = {STABLE / sharpest:.3g}; "
                "use a smaller one"
            )

    def run(
        self,
        lr: float,
        generator: torch.Generator,
        *,
        replicas: int,
        exits: int,
        steps: int,
        batch_size: int | None = None,
        noise: Noise | None = None,
        tick: Tick = silent,
    ) -> Stays:
        """Replicas of SGD in the well, until `exits` have left it or `steps` are made. Raises SettingError where these are
        over before the replicas are looked at after the burn-in.
        """
        inspect_every, burn_in = max(1, round(INSPECT / lr)), self.burn_in(lr)
        if steps - burn_in < inspect_every:
            raise SettingError(
                f"steps={steps - burn_in} of lr={lr:g} are a time of {lr * (steps - burn_in):.2g}, and replicas are looked "
                f"at every {INSPECT:g}; use more steps or a larger lr"
            )
        copies = Replicas(
            self.objective,
            self.well.w.expand(replicas, -1),
            partial(torch.optim.SGD, lr=lr),
            batch_size=batch_size,
            noise=noise,
            generator=generator,
        )
        return renewals(
            copies,
            self.exit,
            self.well.w,
            exits=exits,
            steps=steps,
            inspect_every=inspect_every,
            burn_in=burn_in,
            tick=tick,
        )

    def burn_in(self, lr: float) -> int:
        """Steps after which a replica has forgotten where it began."""
        return round(RELAXATIONS / float(self.well.eigenvalues[0]) / lr)

    def ends(self, stays: list[Stays], tick: Tick = silent) -> tuple[Quenched, Tensor]:
        """Where those that left and those that were still inside go by a converged quench, and which of `minima` it is."""
        points = torch.cat([part for stay in stays for part in (stay.left, stay.inside)])
        found = quench(self.objective, points[points.isfinite().all(1)], tick=tick)
        return found, found.labels(self.minima, self.symmetry)

    def words(self) -> str:
        """The stage in two sentences."""
        this = self.langer
        return (
            f"An {self.case.words} ({len(this.well.w)} parameters), starts in its minimum of loss {this.well.value:.5g}. "
            f"The string method and Newton find the saddle to the minimum of loss {this.beyond.value:.5g}: index 1, |g| = "
            f"{this.saddle.grad_norm:.0e}, barrier dL = {this.barrier:.5g} (back {this.back:.3g}), negative curvature "
            f"{float(this.saddle.eigenvalues[0]):.4g}"
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """The string for the figure: length along it and loss."""
        arcs = (self.string[1:] - self.string[:-1]).norm(dim=1).cumsum(0)
        return {
            "arc": np.concatenate([[0.0], arcs.numpy()]),
            "string": self.values.numpy(),
            "losses": np.array([this.value for this in (self.langer.well, self.langer.saddle, self.langer.beyond)]),
        }


@lru_cache(maxsize=4)
def set_stage(name: CaseName) -> Stage:
    """Minima, saddle and Hessians of a case, found afresh (once in a process). Raises ValueError where that fails."""
    case = CASES[name]
    network = halves_loss(case.examples, case.inputs, case.outputs, case.hidden)
    objective, symmetry = Decayed(network, case.decay), hidden_neurons(network)
    well, beyond = _pair(objective, symmetry, case)
    beyond = stationary(objective, nearest(beyond.w, well.w, symmetry))
    found = find_pass(objective, well.w, beyond.w)
    if found.saddle is None:
        raise ValueError(f"no saddle between the minima of {name}: {found.failure}")
    D = example_covariance(objective)(well.w[None])[0]
    return Stage(case, objective, symmetry, Langer(well, found.saddle, beyond), found.string, found.values, D)


def _pair(objective: Objective, symmetry: Symmetry, case: Case) -> tuple[Stationary, Stationary]:
    """The two minima of the case, from as many random starts as it takes."""
    known: dict[float, Stationary] = {}
    for part in range(ROUNDS):
        found = find_minima(objective, stream(0, "escape/minima", part), restarts=RESTARTS, symmetry=symmetry)
        for loss in (case.well, case.beyond):
            near = [point for point in found.points if abs(point.value - loss) < NEAR]
            if near:
                known[loss] = near[0]
        if len(known) == 2:
            return known[case.well], known[case.beyond]
    raise ValueError(f"{ROUNDS * RESTARTS} random starts did not find minima of loss {case.well} and {case.beyond}")


@dataclass(frozen=True)
class Theory:
    """Slopes of log time against B / lr: least actions in the noise of SGD and in D = 1 (which must be twice the
    barrier); along the chord; and for isotropic noise of equal trace.
    """

    sgd: Action
    unit: Action
    chord: float
    isotropic: float


@lru_cache(maxsize=4)
def actions(case: CaseName) -> Theory:
    """The theory of a case; once in a process."""
    stage = set_stage(case)
    this, gradient = stage.langer, gradient_field(stage.objective)
    covariance = example_covariance(stage.objective)
    chord = torch.stack([this.well.w, this.saddle.w])
    sgd = least_action(
        gradient, covariance, min(stage.climb, chord, key=lambda path: _cost(gradient, covariance, path))
    )
    return Theory(
        sgd,
        least_action(gradient, None, stage.climb),
        chord_slope(this.barrier, stage.D, this.well.w, this.saddle.w),
        isotropic_slope(this.barrier, stage.D),
    )


def _cost(gradient: Field, covariance: Field, path: Tensor) -> float:
    return float(action(gradient, covariance, resampled(path, POINTS)).detach())
