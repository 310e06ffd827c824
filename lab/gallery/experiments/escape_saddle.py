"""Leaving a saddle of a network under SGD: escape times against the law that knows three numbers of the saddle.

The saddle is a trained network with one hidden neuron to which a neuron without output weights was added, placed so that
all gradients vanish ("dead output neuron"). Its most negative curvature, the noise of mini-batches along it, u'Du, and the
learning rate give the mean time, its spread and its growth with log B: `lab.escape.saddle`. `lab.escape.network_saddle`.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field

from lab.data.halves import halves_loss
from lab.escape.network_saddle import NetworkSaddle, follow, left, mean_time
from lab.escape.saddle import Departure, Descent, autoregression
from lab.gallery.base import (
    Experiment,
    Measured,
    Outcome,
    Positive,
    Surroundings,
    Verdict,
    about,
    exact,
    shown,
)
from lab.gallery.experiments.escape_saddle_figure import draw
from lab.gallery.experiments.network_saddles import (
    INPUTS,
    KICK,
    OUTPUTS,
    halves_on,
    kicked,
    log_growth,
    patience,
    require_left,
    require_room,
    require_stable,
    sgd_runs,
    smaller_minimum,
)
from lab.gallery.frame import Arrays, Figure
from lab.points.embedding import OneHidden, add_neuron, dead_neuron
from lab.progress import Tick
from lab.results import EscapeTimes, Estimate
from lab.settings import SettingError, settings

KICK_STEPS = 300
"""Of the control without noise, at most."""
HEAVY = 0.9
"""Momentum of the control with a heavy ball."""
WINDOW = 0.5
"""The growth under noise is that within this part of the exit radius."""
CROWDED = 0.2
"""Spread of the noise over the radius from which on the law of a saddle is off by more than one percent."""


@dataclass(frozen=True)
class LeavingByNoise:
    """What left from one kind of noise, and the theory: along u_1 alone, and in the whole descending space."""

    name: str
    batch_size: int
    theory: Departure
    whole_theory: Departure
    times: EscapeTimes
    whole: EscapeTimes
    growth: Estimate

    @property
    def mean(self) -> Estimate:
        return mean_time(self.times)

    @property
    def ratio(self) -> float:
        return self.mean.value / self.theory.mean


@settings()
class EscapeSaddle(Experiment):
    """Leaving a saddle of a real network under SGD: escape times from its curvature, learning rate and gradient noise
    alone.

    The saddle is a minimum of a smaller network with a dead output neuron (Fukumizu and Amari 2000). The mean time grows by
    1/(2 log(1 + lr |lambda|)) for every factor e in the batch size, and is right to a few percent without any fit.
    """

    name: ClassVar[str] = "escape_saddle"

    examples: Annotated[
        int, Field(ge=20, le=1797, description="digits, lower half predicted from upper half by an 8-2-2 tanh network")
    ] = 200
    neuron: Annotated[int, Field(ge=0, le=100_000, description="start from which the added dead neuron is found")] = 0
    lr: Annotated[Positive, Field(description="learning rate")] = 0.2
    momentum: Annotated[float, Field(ge=0, lt=1, description="of SGD (heavy ball)")] = 0.0
    batch_sizes: Annotated[
        tuple[Annotated[int, Field(ge=1, le=100_000)], ...], Field(description="drawn with replacement")
    ] = (8, 32, 128, 512)
    isotropic: Annotated[
        Positive, Field(description="standard deviation in every coordinate of the gradient, for comparison")
    ] = 0.01
    radius: Annotated[
        float, Field(gt=0, le=10, description="left: further from the saddle along its most negative curvature")
    ] = 0.3
    replicas: Annotated[int, Field(ge=10, le=100_000, description="runs for each kind of noise")] = 512

    def __post_init__(self) -> None:
        self.require_different("batch_sizes", "[8,32,128]")

    def stages(self) -> dict[str, float]:
        cost = sum(min(size, 2 * self.examples) + 30 for size in self.batch_sizes)
        runs = 1e-7 * self.replicas * 60 / self.lr * (1 - self.momentum)
        return {
            "saddle": 3.0,
            "kicks without noise": 0.5,
            "batches": runs * cost,
            "isotropic": runs * (self.examples + 30),
        }

    def simulate(self, around: Surroundings) -> Outcome:
        tick = around.stage("saddle")
        saddle = dead_saddle(self.examples, self.neuron, around.device)
        tick(1.0)
        require_stable(saddle, self.lr, self.momentum)
        kicks = [
            kicked(around, self.name, saddle, lr=who.lr, momentum=who.momentum, most=KICK_STEPS, tick=tick)
            for who, tick in around.over("kicks without noise", [self, self.heavy()])
        ]
        sizes = sorted(self.batch_sizes)
        runs = [self._leave(around, saddle, size, 0.0, tick) for size, tick in around.over("batches", sizes)]
        runs.append(self._leave(around, saddle, 0, self.isotropic, around.stage("isotropic")))
        for left_by in runs:
            require_left(left_by.times, left_by.name, self.radius)
        return DeadNeuron(self, saddle, kicks, runs).outcome()

    def heavy(self) -> "EscapeSaddle":
        """The same with a heavy ball whose steps are as long in the end."""
        return replace(self, momentum=HEAVY, lr=self.lr * (1 - HEAVY))

    def _leave(
        self, around: Surroundings, saddle: NetworkSaddle, size: int, noise: float, tick: Tick
    ) -> LeavingByNoise:
        def theory(modes: int) -> Departure:
            descent = saddle.descent(
                lr=self.lr, momentum=self.momentum, batch_size=size or None, isotropic=noise, modes=modes
            )
            return descent.time(self.radius)

        name = f"batch {size}" if size else f"isotropic noise {noise:g}"
        one, draws = theory(1), around.stream(f"{self.name}/runs", size)
        require_room(one, name, self.radius)
        start, knobs = saddle.w.expand(self.replicas, -1), {"lr": self.lr, "momentum": self.momentum}
        runs = sgd_runs(saddle, start, draws, batch_size=size, noise=noise, **knobs)
        x = follow(runs, saddle.w, saddle.directions, steps=patience(one), radius=self.radius, tick=tick)
        order = 2 if self.momentum else 1
        return LeavingByNoise(
            name,
            size,
            one,
            theory(len(saddle.curvatures)),
            left(x[:, :, 0].abs(), self.radius),
            left(x.norm(dim=2), self.radius),
            autoregression(
                x[:, :, 0], WINDOW * self.radius, around.stream(f"{self.name}/bootstrap", size), order=order
            ),
        )

    @staticmethod
    def figure(arrays: Arrays, title: str) -> Figure:
        return draw(arrays, title)


@dataclass(frozen=True)
class DeadNeuron(Measured):
    """The saddle; growth of kicks by SGD and by a heavy ball; what left it under every kind of noise."""

    card: EscapeSaddle
    saddle: NetworkSaddle
    kicks: list[Estimate]
    runs: list[LeavingByNoise]

    @cached_property
    def log_z(self) -> float:
        return log_growth(self.saddle, self.card.lr, self.card.momentum)

    @cached_property
    def slope(self) -> Estimate | None:
        """Of the mean times against log B, weighted by their errors; None for a single batch size."""
        batches = [run for run in self.runs if run.batch_size]
        if len(batches) < 2:
            return None
        x = np.log([run.batch_size for run in batches])
        weights = np.array([run.mean.error for run in batches]) ** -2.0
        centred = x - np.average(x, weights=weights)
        curvature = float(weights @ centred**2)
        value = float(weights * centred @ np.array([run.mean.value for run in batches])) / curvature
        return Estimate(value, curvature**-0.5, 0, "weighted least squares")

    def descent(self, noise: float) -> Descent:
        """Along the first direction, at this noise of the gradient."""
        return Descent([float(self.saddle.curvatures[0])], noise, self.card.lr, self.card.momentum)

    def rows(self) -> list[Verdict]:
        card, log_z, heavy, runs = self.card, self.log_z, self.card.heavy(), self.runs
        kick = f"growth per step, no noise, lr {card.lr:g}"
        ball, ball_z = f"the same, heavy ball {HEAVY:g}, lr {heavy.lr:g}", log_growth(self.saddle, heavy.lr, HEAVY)
        expected = float(np.mean([run.whole_theory.mean / run.theory.mean for run in runs]))
        sooner = float(np.mean([mean_time(run.whole).value / run.mean.value for run in runs]))
        return [  # a heavy ball takes long to forget its smaller root: what is left of it is no error of chance
            (about if card.momentum > 0 else exact)(kick, log_z, self.kicks[0]),
            about(ball, ball_z, self.kicks[1]),
            *(about(f"steps to leave, {run.name}", run.theory.mean, run.mean) for run in runs),
            *([about("their slope against log B", 0.5 / log_z, self.slope)] if self.slope else []),
            *(about(f"growth under noise, {run.name}", log_z, run.growth) for run in runs if run.growth.converged),
            about("whole descending space over its first direction", expected, sooner),
        ]

    def arrays(self) -> dict[str, object]:
        """For each kind of noise: the batch size of as much noise along u_1, mean, error, theory; times; theory's "
        "curves."""
        card, variance = self.card, float(self.saddle.variances[0])
        as_batch = [run.batch_size or variance / card.isotropic**2 for run in self.runs]
        steps = torch.arange(int(max(run.times.times.max() for run in self.runs)) + 1)
        ends = math.log10(min(as_batch) / 1.5), math.log10(max(as_batch) * 1.5)
        sizes = torch.logspace(*ends, 60, dtype=torch.float64).tolist()
        laws = [self.descent(math.sqrt(variance / size)) for size in as_batch]
        return {
            "noise": [
                (size, run.batch_size, run.mean.value, run.mean.error, run.theory.mean)
                for size, run in zip(as_batch, self.runs, strict=True)
            ],
            "line": [sizes, [self.descent(math.sqrt(variance / size)).time(card.radius).mean for size in sizes]],
            "times": [run.times.times for run in self.runs],
            "survival": [law.survival(steps, card.radius) for law in laws],
            "radius": card.radius,
        }

    def values(self) -> dict[str, float]:
        saddle = self.saddle
        return {
            "loss": saddle.point.value,
            "curvature": float(saddle.curvatures[0]),
            "variance_along_it": float(saddle.variances[0]),
            "largest_curvature": float(saddle.point.eigenvalues[-1]),
            "descending_directions": float(len(saddle.curvatures)),
            "zero_modes": float(saddle.zero_modes),
            **{f"ratio_{run.name}": run.ratio for run in self.runs},
            **{f"spread_{run.name}": float(run.times.times.std()) for run in self.runs},
            **{f"spread_theory_{run.name}": run.theory.std for run in self.runs},
        }

    def sentence(self) -> str:
        card, runs, ratios = self.card, self.runs, [run.ratio for run in self.runs]
        crowded = [run.name for run in runs if run.theory.crowding > CROWDED]
        grows, full = "", ""
        if self.slope is not None:
            grows = (
                f", and grows by {shown(self.slope)} steps for every factor e in the batch size (theory "
                f"{0.5 / self.log_z:.2f})"
            )
        if crowded:
            full = f" The noise fills part of the radius from the start ({', '.join(crowded)}): there the law is off."
        return (
            f"A dead output neuron makes a saddle of an 8-2-2 tanh network: curvature "
            f"{float(self.saddle.curvatures[0]):.4f} along its steepest descent, where the noise of one example has "
            f"variance u'Du = {float(self.saddle.variances[0]):.4f}. From these two numbers the theory has the mean "
            f"time in which SGD gets {card.radius:g} away from it: measured with {card.replicas} runs "
            f"each it is between {min(ratios):.3f} and {max(ratios):.3f} of that in {len(runs)} kinds of noise{grows}. "
            f"Without noise a kick of {KICK:g} grows by {self.kicks[0].value:.6f} per step (theory {self.log_z:.6f}). "
            "A bigger batch makes the stay longer only logarithmically; what lengthens it beyond the theory is that "
            f"the descent weakens away from the saddle, the more the larger the radius.{full}"
        )


def dead_saddle(examples: int, neuron: int, device: torch.device) -> NetworkSaddle:
    """The best smaller network and a dead output neuron, found from the start of this number."""
    w, shape = smaller_minimum(examples), OneHidden(INPUTS, 1, OUTPUTS)
    start = torch.from_numpy(np.random.RandomState(neuron).randn(INPUTS + 1) * 0.5)
    try:
        incoming = dead_neuron(halves_loss(examples, INPUTS, OUTPUTS, 1), w, shape, start=start)
        return NetworkSaddle.at(halves_on(device, examples, 2), add_neuron(w, shape, incoming).to(device))
    except ValueError as error:
        raise SettingError(f"neuron={neuron}: {error}") from None
