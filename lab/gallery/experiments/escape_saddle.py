"""Leaving a saddle of a network under SGD: escape times against the law that knows three numbers of the saddle.

The saddle is a trained network with one hidden neuron to which a neuron without output weights was added, placed so that
all gradients vanish ("dead output neuron"). Its most negative curvature, the noise of mini-batches along it, u'Du, and the
learning rate give the mean time, its spread and its growth with log B: `lab.escape.saddle`. `lab.escape.network_saddle`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass as plain
from dataclasses import replace
from functools import lru_cache
from typing import Annotated, ClassVar

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor, optim

from lab.data.halves import halves_loss
from lab.escape.network_saddle import NetworkSaddle, follow, left, mean_time
from lab.escape.noises import Isotropic
from lab.escape.replicas import Replicas
from lab.escape.saddle import Departure, Descent, autoregression, growth_factor, kick_growth
from lab.gallery.experiments.base import Comparison, Experiment, Outcome, Surroundings, with_error
from lab.gallery.experiments.frame import panels
from lab.objective import NetworkObjective
from lab.points.dense import stationary
from lab.points.embedding import OneHidden, add_neuron, dead_neuron
from lab.points.minima import descend
from lab.progress import Tick, silent
from lab.results import EscapeTimes, Estimate
from lab.settings import SettingError, settings
from lab.streams import stream

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
INPUTS, OUTPUTS = 8, 2
RESTARTS, NEWTON_STEPS, BOUNDED = 12, 100, 10.0
"""Random starts of the smaller network, each for how long; weights longer than the last belong to saturated neurons."""
KICK, KICKED, KICK_STEPS, GROWN = 1e-8, 16, 300, 1e4
"""Of the control without noise: how far from the saddle, how many runs, how long, and by what they may grow."""
HEAVY = 0.9
"""Momentum of the control with a heavy ball."""
WINDOW = 0.5
"""The growth under noise is that within this part of the exit radius."""
CROWDED = 0.2
"""Spread of the noise over the radius from which on the law of a saddle is off by more than one percent."""
SPREADS = 25
"""Standard deviations of the predicted time after its mean at which runs that stay are given up."""


@plain(frozen=True)
class Leaving:
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
        if not self.batch_sizes or len(set(self.batch_sizes)) < len(self.batch_sizes):
            raise ValueError("batch_sizes: expected one or more different numbers, e.g. [8,32,128]")

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
            who.kick(around, saddle, tick) for who, tick in around.over("kicks without noise", [self, self._heavy()])
        ]
        found = [
            self._leave(around, saddle, size, 0.0, tick)
            for size, tick in around.over("batches", sorted(self.batch_sizes))
        ]
        found.append(self._leave(around, saddle, 0, self.isotropic, around.stage("isotropic")))
        for f in found:
            require_left(f.times, f.name, self.radius)
        return self._outcome(saddle, kicks, found)

    def _replicas(self, saddle: NetworkSaddle, W: Tensor, size: int, noise: float, draws: torch.Generator) -> Replicas:
        return Replicas(
            saddle.objective,
            W,
            lambda w: optim.SGD(w, lr=self.lr, momentum=self.momentum),
            batch_size=size or None,
            noise=Isotropic(noise) if noise else None,
            generator=draws,
        )

    def _log_z(self, saddle: NetworkSaddle) -> float:
        """Growth per step along the most negative curvature."""
        return math.log(growth_factor(float(saddle.curvatures[0]), lr=self.lr, momentum=self.momentum))

    def _heavy(self) -> "EscapeSaddle":
        """The same with a heavy ball whose steps are as long in the end."""
        return replace(self, momentum=HEAVY, lr=self.lr * (1 - HEAVY))

    def kick(self, around: Surroundings, saddle: NetworkSaddle, tick: Tick = silent) -> Estimate:
        """Growth of a tiny kick without noise."""
        draws = around.stream(f"{self.name}/kick")
        kicks = torch.randn(KICKED, len(saddle.w), generator=draws, dtype=saddle.w.dtype, device=saddle.w.device)
        runs = self._replicas(saddle, saddle.w + KICK * kicks, 0, 0.0, draws)
        steps = max(6, min(KICK_STEPS, int(math.log(GROWN) / self._log_z(saddle))))
        return kick_growth(follow(runs, saddle.w, saddle.directions, steps=steps, tick=tick)[:, :, 0])

    def _leave(self, around: Surroundings, saddle: NetworkSaddle, size: int, noise: float, tick: Tick) -> Leaving:
        def theory(modes: int) -> Departure:
            descent = saddle.descent(
                lr=self.lr, momentum=self.momentum, batch_size=size or None, isotropic=noise, modes=modes
            )
            return descent.time(self.radius)

        name = f"batch {size}" if size else f"isotropic noise {noise:g}"
        one, draws = theory(1), around.stream(f"{self.name}/runs", size)
        require_room(one, name, self.radius)
        runs = self._replicas(saddle, saddle.w.expand(self.replicas, -1), size, noise, draws)
        steps = int(one.mean + SPREADS * one.std) + 10
        x = follow(runs, saddle.w, saddle.directions, steps=steps, radius=self.radius, tick=tick)
        order = 2 if self.momentum else 1
        return Leaving(
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

    def _outcome(self, saddle: NetworkSaddle, kicks: list[Estimate], found: list[Leaving]) -> Outcome:
        log_z, heavy = self._log_z(saddle), self._heavy()
        slope = slope_of([f for f in found if f.batch_size])
        ball = f"the same, heavy ball {HEAVY:g}, lr {heavy.lr:g}"
        rows = [  # a heavy ball takes long to forget its smaller root: what is left of it is no error of chance
            Comparison.of(f"growth per step, no noise, lr {self.lr:g}", log_z, kicks[0], approximate=self.momentum > 0),
            Comparison.of(ball, heavy._log_z(saddle), kicks[1], approximate=True),
            *(Comparison.of(f"steps to leave, {f.name}", f.theory.mean, f.mean, approximate=True) for f in found),
            *([Comparison.of("their slope against log B", 0.5 / log_z, slope, approximate=True)] if slope else []),
            *(
                Comparison.of(f"growth under noise, {f.name}", log_z, f.growth, approximate=True)
                for f in found
                if f.growth.converged
            ),
            Comparison.of(
                "whole descending space over its first direction",
                float(np.mean([f.whole_theory.mean / f.theory.mean for f in found])),
                Estimate(float(np.mean([mean_time(f.whole).value / f.mean.value for f in found])), 0.0, 0, "replicas"),
                approximate=True,
            ),
        ]
        values = {
            "loss": saddle.point.value,
            "curvature": float(saddle.curvatures[0]),
            "variance_along_it": float(saddle.variances[0]),
            "largest_curvature": float(saddle.point.eigenvalues[-1]),
            "descending_directions": float(len(saddle.curvatures)),
            "zero_modes": float(saddle.zero_modes),
            **{f"ratio_{f.name}": f.ratio for f in found},
            **{f"spread_{f.name}": float(f.times.times.std()) for f in found},
            **{f"spread_theory_{f.name}": f.theory.std for f in found},
        }
        return Outcome(self._finding(saddle, kicks[0], found, slope), rows, self._arrays(saddle, found), values)

    def _finding(self, saddle: NetworkSaddle, kick: Estimate, found: list[Leaving], slope: Estimate | None) -> str:
        low, high = min(f.ratio for f in found), max(f.ratio for f in found)
        log_z, top, variance = self._log_z(saddle), float(saddle.curvatures[0]), float(saddle.variances[0])
        grows = ""
        if slope is not None:
            grows = (
                f", and grows by {with_error(slope.value, slope.error)} steps for every factor e in the batch size (theory "
                f"{0.5 / log_z:.2f})"
            )
        return (
            f"A dead output neuron makes a saddle of an 8-2-2 tanh network: curvature {top:.4f} along its steepest "
            f"descent, where the noise of one example has variance u'Du = {variance:.4f}. From these two numbers the "
            f"theory has the mean time in which SGD gets {self.radius:g} away from it: measured with {self.replicas} runs "
            f"each it is between {low:.3f} and {high:.3f} of that in {len(found)} kinds of noise{grows}. Without noise a "
            f"kick of {KICK:g} grows by {kick.value:.6f} per step (theory {log_z:.6f}). A bigger batch makes the stay "
            "longer only logarithmically; what lengthens it beyond the theory is that the descent weakens away from the "
            f"saddle, the more the larger the radius.{_crowded(found)}"
        )

    def _arrays(self, saddle: NetworkSaddle, found: list[Leaving]) -> dict[str, np.ndarray]:
        """For each kind of noise: the batch size of as much noise along u_1, mean, error, theory; times; theory's curves."""
        variance = float(saddle.variances[0])
        as_batch = [f.batch_size or variance / self.isotropic**2 for f in found]
        steps = torch.arange(int(max(f.times.times.max() for f in found)) + 1)
        sizes = torch.logspace(
            math.log10(min(as_batch) / 1.5), math.log10(max(as_batch) * 1.5), 60, dtype=torch.float64
        ).tolist()
        line = [self._descent(saddle, math.sqrt(variance / size)).time(self.radius).mean for size in sizes]
        return {
            "noise": np.array(
                [
                    (size, f.batch_size, f.mean.value, f.mean.error, f.theory.mean)
                    for size, f in zip(as_batch, found, strict=True)
                ]
            ),
            "line": np.array([sizes, line]),
            "times": np.stack([f.times.times.cpu().numpy() for f in found]),
            "survival": np.stack(
                [
                    self._descent(saddle, math.sqrt(variance / size)).survival(steps, self.radius).numpy()
                    for size in as_batch
                ]
            ),
            "radius": np.array(self.radius),
        }

    def _descent(self, saddle: NetworkSaddle, noise: float) -> Descent:
        return Descent([float(saddle.curvatures[0])], noise, self.lr, self.momentum)

    @staticmethod
    def figure(arrays: Mapping[str, np.ndarray], title: str) -> Figure:
        return panels(arrays, title, (_draw_means, _draw_curves), size=(11, 4.8), widths=(1, 1.15), box=False)


@lru_cache(maxsize=4)
def smaller_minimum(examples: int) -> Tensor:
    """Weights of the best 8-1-2 network that is not saturated, float64 on the CPU. The same for every seed of a run."""
    loss = halves_loss(examples, INPUTS, OUTPUTS, 1)
    start = torch.randn(RESTARTS, loss.num_params, generator=stream(0, "smaller network"), dtype=torch.float64)
    ends = [stationary(loss, w) for w in descend(loss, 0.3 * start, max_steps=NEWTON_STEPS)]
    bounded = [e for e in ends if e.grad_norm < 1e-9 and e.eigenvalues[0] > 0 and float(e.w.norm()) < BOUNDED]
    if not bounded:
        raise SettingError(f"examples={examples}: no minimum of the smaller network was found from {RESTARTS} starts")
    return min(bounded, key=lambda end: end.value).w


@lru_cache(maxsize=8)
def halves_on(device: torch.device, examples: int, hidden: int) -> NetworkObjective:
    """Loss of the 8-hidden-2 network with its data there; one for all, so that its programs are recorded once."""
    loss = halves_loss(examples, INPUTS, OUTPUTS, hidden)
    return NetworkObjective(loss.model.to(device), loss.criterion, (loss.x.to(device), loss.y.to(device)))


def dead_saddle(examples: int, neuron: int, device: torch.device) -> NetworkSaddle:
    """The best smaller network and a dead output neuron, found from the start of this number."""
    w, shape = smaller_minimum(examples), OneHidden(INPUTS, 1, OUTPUTS)
    start = torch.from_numpy(np.random.RandomState(neuron).randn(INPUTS + 1) * 0.5)
    try:
        incoming = dead_neuron(halves_loss(examples, INPUTS, OUTPUTS, 1), w, shape, start=start)
        return NetworkSaddle.at(halves_on(device, examples, 2), add_neuron(w, shape, incoming).to(device))
    except ValueError as error:
        raise SettingError(f"neuron={neuron}: {error}") from None


def require_stable(saddle: NetworkSaddle, lr: float, momentum: float = 0.0) -> None:
    """Raise SettingError where steps along the most positive curvature grow."""
    edge = 2 * (1 + momentum) / float(saddle.point.eigenvalues[-1])
    if lr >= edge:
        raise SettingError(
            f"lr={lr:g}: steps at the saddle are stable below {edge:.3g}; beyond, what leaves follows the most positive "
            "curvature"
        )


def require_room(theory: Departure, name: str, radius: float) -> None:
    """Raise SettingError where the noise alone carries runs out: the law of the saddle has nothing to say there."""
    if not theory.crowding < 1:
        raise SettingError(
            f"radius={radius:g}: the noise ({name}) spreads over {theory.crowding:.0%} of it before the instability acts: "
            "no escape from a saddle; use a larger radius or less noise"
        )


def require_left(times: EscapeTimes, name: str, radius: float) -> None:
    """Raise SettingError where some stayed: the mean time of the others would be too short."""
    stayed = int((~times.exited).sum())
    if stayed:
        raise SettingError(
            f"radius={radius:g}: {stayed} of {len(times.times)} runs ({name}) did not get that far from the saddle in "
            f"{float(times.times.max()):g} steps; use a smaller radius"
        )


def _crowded(found: list[Leaving]) -> str:
    """A sentence on noise so large that the saddle hardly matters; empty where there is none."""
    names = [f.name for f in found if f.theory.crowding > CROWDED]
    if not names:
        return ""
    return f" The noise fills part of the radius from the start ({', '.join(names)}): there the law is off."


def slope_of(found: list[Leaving]) -> Estimate | None:
    """Of the mean times against log B, weighted by their errors; None for a single batch size."""
    if len(found) < 2:
        return None
    x = np.log([f.batch_size for f in found])
    weights = np.array([f.mean.error for f in found]) ** -2.0
    centred = x - np.average(x, weights=weights)
    curvature = float(weights @ centred**2)
    value = float(weights * centred @ np.array([f.mean.value for f in found])) / curvature
    return Estimate(value, curvature**-0.5, 0, "weighted least squares")


def _draw_means(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    noise, line = arrays["noise"], arrays["line"]
    axis.semilogx(*line, color="tab:red", lw=1.6, ls="--", label="theory: curvature, learning rate and u'Du alone")
    for chosen, marker, label in ((noise[:, 1] > 0, "o", "mini-batches"), (noise[:, 1] == 0, "D", "isotropic noise")):
        x, _, mean, error, _ = noise[chosen].T
        axis.errorbar(x, mean, 2 * error, color="tab:blue", ls="", marker=marker, ms=7, mec="w", capsize=2, label=label)
    for x, _, mean, _, theory in noise:
        axis.annotate(f"x {mean / theory:.3f}", (x, mean), (0, 11), textcoords="offset points", ha="center", fontsize=9)
    axis.set(xlabel="batch size (isotropic: that of as much noise along u)", ylim=(0, 1.3 * np.nanmax(line[1])))
    axis.set(ylabel=f"mean steps until {float(arrays['radius']):g} away from the saddle")
    axis.set_title("numbers: measured over theory; bars: 2 standard errors", fontsize=10)
    axis.legend(loc="lower right", frameon=False, fontsize=9)


def _draw_curves(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    shades = matplotlib.colormaps["plasma"](np.linspace(0.05, 0.8, len(arrays["noise"])))
    steps = np.arange(arrays["survival"].shape[1])
    for (_, size, *_), times, theory, shade in zip(
        arrays["noise"], arrays["times"], arrays["survival"], shades, strict=True
    ):
        still = 1 - np.searchsorted(np.sort(times), steps, side="right") / len(times)
        axis.step(steps, still, where="post", color=shade, lw=1.8, label=f"batch {int(size)}" if size else "isotropic")
        axis.plot(steps, theory, color=shade, lw=1.1, ls="--")
    axis.plot([], [], color="0.3", lw=1.1, ls="--", label="theory")
    axis.set(xlabel="t (steps)", ylabel="share of runs still at the saddle after t", ylim=(0, 1.03), xlim=(0, None))
    axis.set_title("who is still there", fontsize=10)
    axis.legend(loc="upper right", frameon=False, fontsize=9)
