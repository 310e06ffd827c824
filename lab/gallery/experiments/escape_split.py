"""A saddle that SGD cannot leave: a neuron split in two equal halves, and the origin from which training begins.

Both halves receive the same gradient from every example, so mini-batches have no noise in the descending directions, u'Du =
0 exactly, and without noise there is no escape, however steep the descent. Isotropic noise leaves in the time of the
theory; an unequal split has a little noise, and is left a little later. At the origin of a network the same holds, and what
ends it is the size of the initial weights: log(1/size) / log(1 + lr |lambda|) steps. `lab.points.embedding`, `.saddle`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass as plain
from typing import Annotated, ClassVar

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor, optim

from lab.escape.network_saddle import NetworkSaddle, follow, left, mean_time
from lab.escape.noises import Isotropic
from lab.escape.replicas import Replicas
from lab.escape.saddle import Departure, growth_factor, kick_growth, log_chi
from lab.gallery.experiments.base import Comparison, Experiment, Outcome, Surroundings, with_error
from lab.gallery.experiments.escape_saddle import (
    INPUTS,
    OUTPUTS,
    halves_on,
    require_left,
    require_room,
    require_stable,
    smaller_minimum,
)
from lab.gallery.experiments.frame import panels
from lab.points.dense import LARGEST
from lab.points.embedding import OneHidden, split_neuron
from lab.progress import Tick
from lab.results import EscapeTimes, Estimate
from lab.settings import SettingError, settings

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
KICK, KICKED, GROWN = 1e-8, 16, 1e4
"""Of the control without noise: how far from the saddle, how many runs, and by what they may grow."""
SPREADS = 25
"""Standard deviations of the predicted time after its mean at which runs that stay are given up."""
ALIKE = 1e-6
"""Curvatures that differ by less than this part are one: at the origin they come as many times as there are neurons."""


@plain(frozen=True)
class Leaving:
    """Runs that are to leave a saddle: the theory, when they left, and their root mean square distance at every step."""

    name: str
    theory: Departure
    times: EscapeTimes
    distance: Tensor

    @property
    def mean(self) -> Estimate:
        return mean_time(self.times)


@plain(frozen=True)
class Origin:
    """Mean steps to leave the origin from weights of each size, and their slope against log(1/size)."""

    name: str
    means: list[Estimate]
    slope: Estimate


@settings()
class EscapeSplit(Experiment):
    """Saddles that SGD never leaves by its noise: a neuron split in equal halves, and the origin from which training
    begins.

    Both halves get the same gradient from every example, so that the noise along their difference is zero whatever the
    batch (Fukumizu and Amari 2000 for the saddles); isotropic noise leaves in log(1/noise) / log(1 + lr |lambda|) steps.
    """

    name: ClassVar[str] = "escape_split"

    examples: Annotated[
        int, Field(ge=20, le=1797, description="digits, lower half predicted from upper half by a tanh network")
    ] = 200
    share: Annotated[float, Field(gt=0, lt=1, description="of an unequal split, beside the equal one")] = 0.3
    lr: Annotated[Positive, Field(description="learning rate; half of it at the origin")] = 0.2
    batch_size: Annotated[
        int, Field(ge=1, le=100_000, description="of the runs that stay at the equal split, and of SGD from the origin")
    ] = 16
    unequal_batch_size: Annotated[int, Field(ge=1, le=100_000, description="of those that leave the unequal one")] = 64
    stay_steps: Annotated[int, Field(ge=1, le=1_000_000, description="for which those that stay are watched")] = 1500
    isotropic: Annotated[Positive, Field(description="standard deviation in every coordinate of the gradient")] = 0.01
    radius: Annotated[float, Field(gt=0, le=10, description="left: further along the descending direction")] = 0.3
    replicas: Annotated[int, Field(ge=10, le=100_000, description="runs of each kind, half from the origin")] = 512
    hidden: Annotated[
        int, Field(ge=1, le=(LARGEST - OUTPUTS) // (INPUTS + OUTPUTS + 1), description="neurons near the origin")
    ] = 8
    sizes: Annotated[
        tuple[Annotated[float, Field(ge=1e-9, le=0.01)], ...],
        Field(description="of its initial weights, standard deviations"),
    ] = (1e-5, 1e-4, 1e-3)

    def __post_init__(self) -> None:
        if len(self.sizes) < 2 or len(set(self.sizes)) < len(self.sizes):
            raise ValueError("sizes: expected two or more different numbers, e.g. [1e-5,1e-3]")
        if self.share == 0.5:
            raise ValueError("share=0.5: that is the equal split, which is there already; expected another part")

    def stages(self) -> dict[str, float]:
        cost = 1e-7 * self.replicas
        return {
            "saddles": 3.0,
            "equal split": (1e-3 + 2 * cost * self.batch_size) * self.stay_steps,
            "isotropic noise": cost * (self.examples + 30) * 50 / self.lr,
            "unequal split": cost * (self.unequal_batch_size + 30) * 60 / self.lr,
            "origin": cost * (self.examples / 2 + 50) * self.hidden / 2 * len(self.sizes) * 40 / self.lr,
        }

    def simulate(self, around: Surroundings) -> Outcome:
        tick = around.stage("saddles")
        shape, w = OneHidden(INPUTS, 1, OUTPUTS), smaller_minimum(self.examples)
        loss = halves_on(around.device, self.examples, 2)
        equal, unequal = (
            NetworkSaddle.at(loss, split_neuron(w, shape, share=part).to(around.device)) for part in (0.5, self.share)
        )
        origin = self._origin(around.device)
        for saddle in (equal, unequal, origin):
            require_stable(saddle, self.lr)
        tick(1.0)
        kick = self._kick(around, equal)
        stayed = self._stay(around, equal, around.stage("equal split"))
        leaving = [
            self._leave(around, equal, 0, self.isotropic, around.stage("isotropic noise")),
            self._leave(around, unequal, self.unequal_batch_size, 0.0, around.stage("unequal split")),
        ]
        tick = around.stage("origin")
        starts = [
            self._start(around, origin, 0, lambda share: tick(share / 2)),
            self._start(around, origin, self.batch_size, lambda share: tick((1 + share) / 2)),
        ]
        return self._outcome((equal, unequal, origin), kick, stayed, leaving, starts)

    def _origin(self, device: torch.device) -> NetworkSaddle:
        loss = halves_on(device, self.examples, self.hidden)
        return NetworkSaddle.at(loss, torch.zeros(loss.num_params, dtype=torch.float64, device=device))

    def _replicas(
        self, saddle: NetworkSaddle, W: Tensor, draws: torch.Generator, *, lr: float, size: int = 0, noise: float = 0.0
    ) -> Replicas:
        return Replicas(
            saddle.objective,
            W,
            lambda w: optim.SGD(w, lr=lr),
            batch_size=size or None,
            noise=Isotropic(noise) if noise else None,
            generator=draws,
        )

    def _kick(self, around: Surroundings, saddle: NetworkSaddle) -> Estimate:
        """Growth of a tiny kick without noise."""
        draws = around.stream(f"{self.name}/kick")
        kicks = torch.randn(KICKED, len(saddle.w), generator=draws, dtype=saddle.w.dtype, device=saddle.w.device)
        runs = self._replicas(saddle, saddle.w + KICK * kicks, draws, lr=self.lr)
        steps = max(6, int(math.log(GROWN) / self._log_z(saddle)))
        return kick_growth(follow(runs, saddle.w, saddle.directions, steps=steps)[:, :, 0])

    def _log_z(self, saddle: NetworkSaddle) -> float:
        return math.log(growth_factor(float(saddle.curvatures[0]), lr=self.lr))

    def _stay(self, around: Surroundings, saddle: NetworkSaddle, tick: Tick) -> Tensor:
        """SGD from the equal split: the distance (steps, R) in the whole descending space, at a hundred times."""
        draws = around.stream(f"{self.name}/stay")
        runs = self._replicas(saddle, saddle.w.expand(self.replicas, -1), draws, lr=self.lr, size=self.batch_size)
        rows, parts = [], min(100, self.stay_steps)
        for part in range(parts):
            runs.run((part + 1) * self.stay_steps // parts - part * self.stay_steps // parts)
            rows.append(((runs.W - saddle.w) @ saddle.directions).norm(dim=1))
            tick((part + 1) / parts)
        return torch.stack(rows)

    def _leave(self, around: Surroundings, saddle: NetworkSaddle, size: int, noise: float, tick: Tick) -> Leaving:
        theory = saddle.descent(lr=self.lr, batch_size=size or None, isotropic=noise).time(self.radius)
        if theory.never:
            raise SettingError(
                f"share={self.share}: no noise reaches the descending direction of this split; use another part"
            )
        name = f"split {self.share:g}, batch {size}" if size else f"equal split, isotropic noise {noise:g}"
        require_room(theory, name, self.radius)
        draws = around.stream(f"{self.name}/leave", size)
        runs = self._replicas(saddle, saddle.w.expand(self.replicas, -1), draws, lr=self.lr, size=size, noise=noise)
        steps = int(theory.mean + SPREADS * theory.std) + 10
        x = follow(runs, saddle.w, saddle.directions[:, :1], steps=steps, radius=self.radius, tick=tick)[:, :, 0]
        times = left(x.abs(), self.radius)
        require_left(times, name, self.radius)
        return Leaving(name, theory, times, x.square().mean(1).sqrt())

    def _start(self, around: Surroundings, saddle: NetworkSaddle, size: int, tick: Tick) -> Origin:
        """From small weights, the same for every size but for their scale: what differs is the size alone."""
        lr, U = self.lr / 2, alike(saddle)
        log_z = math.log(growth_factor(float(saddle.curvatures[0]), lr=lr))
        times = []
        for i, scale in enumerate(sorted(self.sizes)):
            draws = around.stream(f"{self.name}/origin")
            begin = torch.randn(
                max(2, self.replicas // 2), len(saddle.w), generator=draws, dtype=torch.float64, device=saddle.w.device
            )
            runs = self._replicas(saddle, scale * begin, draws, lr=lr, size=size)
            steps = int((math.log(1e3 * self.radius / scale)) / log_z * 2) + 10
            times.append(left(self._distances(runs, U, steps), self.radius))
            require_left(times[-1], f"from the origin, size {scale:g}", self.radius)
            tick((i + 1) / len(self.sizes))
        means = [mean_time(found) for found in times]
        together = torch.stack([found.times for found in times])
        x = -torch.tensor(sorted(self.sizes), dtype=torch.float64, device=together.device).log()
        x -= x.mean()
        slopes = x @ together / x.square().sum()
        slope = Estimate(float(slopes.mean()), float(slopes.std()) / math.sqrt(len(slopes)), 0, "least squares")
        return Origin(f"batch {size}" if size else "gradient descent", means, slope)

    def _distances(self, runs: Replicas, U: Tensor, steps: int) -> Tensor:
        """|U'w| (t + 1, R) until all are further than the radius."""
        rows = [(runs.W @ U).norm(dim=1)]
        gone = torch.zeros_like(rows[0], dtype=torch.bool)
        for _ in range(steps):
            runs.run(1)
            rows.append((runs.W @ U).norm(dim=1))
            gone |= ~(rows[-1] <= self.radius)
            if bool(gone.all()):
                break
        return torch.stack(rows)

    def _outcome(
        self,
        saddles: tuple[NetworkSaddle, NetworkSaddle, NetworkSaddle],
        kick: Estimate,
        stayed: Tensor,
        leaving: list[Leaving],
        starts: list[Origin],
    ) -> Outcome:
        equal, unequal, origin = saddles
        log_z, origin_z = self._log_z(equal), math.log(growth_factor(float(origin.curvatures[0]), lr=self.lr / 2))
        k = alike(origin).shape[1]
        gone = int((stayed > self.radius).any(0).sum())
        first = [
            (math.log(self.radius / size) - log_chi(k)[0]) / origin_z + 0.5 for size in sorted(self.sizes)
        ]  # the first whole step after the time at which |x_-| = size |N(0, 1)| z^t is the radius
        rows = [
            Comparison("u'Du, equal split, largest", 0.0, float(equal.variances.max()), approximate=True),
            Comparison(
                f"runs that left in {self.stay_steps} steps, batch {self.batch_size}", 0.0, gone, approximate=True
            ),
            Comparison.of("growth per step of a kick, equal split", log_z, kick),
            *(Comparison.of(f"steps to leave, {f.name}", f.theory.mean, f.mean, approximate=True) for f in leaving),
            Comparison("u'Du, origin, largest", 0.0, float(origin.variances.max()), approximate=True),
            *(
                Comparison.of(f"steps from size {size:g}, {start.name}", theory, mean, approximate=True)
                for start in starts
                for size, theory, mean in zip(sorted(self.sizes), first, start.means, strict=True)
            ),
            *(
                Comparison.of(
                    f"steps for a factor e in the size, {start.name}", 1 / origin_z, start.slope, approximate=True
                )
                for start in starts
            ),
        ]
        values = {
            "curvature_equal_split": float(equal.curvatures[0]),
            "curvature_unequal_split": float(unequal.curvatures[0]),
            "variance_unequal_split": float(unequal.variances[0]),
            "curvature_origin": float(origin.curvatures[0]),
            "descending_directions_equal_split": float(len(equal.curvatures)),
            "farthest_of_those_that_stay": float(stayed.max()),
            **{f"ratio_{f.name}": f.mean.value / f.theory.mean for f in leaving},
        }
        arrays = self._arrays(stayed, leaving, starts, np.array([first]), unequal)
        return Outcome(self._finding(saddles, stayed, gone, leaving, starts), rows, arrays, values)

    def _finding(
        self,
        saddles: tuple[NetworkSaddle, NetworkSaddle, NetworkSaddle],
        stayed: Tensor,
        gone: int,
        leaving: list[Leaving],
        starts: list[Origin],
    ) -> str:
        equal, unequal, origin = saddles
        noisy, batches = leaving
        verdict = equal.descent(lr=self.lr, batch_size=self.batch_size).time(self.radius)
        z = math.log(growth_factor(float(origin.curvatures[0]), lr=self.lr / 2))
        times = [with_error(f.mean.value, f.mean.error) for f in leaving]
        slopes = [with_error(start.slope.value, start.slope.error) for start in starts]
        return (
            f"A neuron split in two equal halves: {len(equal.curvatures)} descending directions, the steepest of "
            f"curvature {float(equal.curvatures[0]):.4f}, and u'Du below {_power(float(equal.variances.max()))} in all of "
            f"them. Theory: SGD leaves it {verdict if verdict.never else f'after {verdict}'}. Of {self.replicas} runs at "
            f"batch {self.batch_size}, {gone} left in {self.stay_steps} steps; the farthest is within "
            f"{_power(float(stayed.max()))} of where it began. Isotropic noise of {self.isotropic:g} leaves in {times[0]} "
            f"steps (theory {noisy.theory.mean:.2f}). Split {self.share:g} to {1 - self.share:g} the noise is small, u'Du "
            f"= {float(unequal.variances[0]):.5f}, but not zero: {times[1]} steps at batch {self.unequal_batch_size} "
            f"(theory {batches.theory.mean:.2f}). At the origin of an 8-{self.hidden}-2 network u'Du is "
            f"{float(origin.variances.max()):.2g} too: a factor e in the size of the initial weights costs {slopes[0]} "
            f"steps of gradient descent and {slopes[1]} of SGD at batch {self.batch_size} (theory {1 / z:.3f})."
        )

    def _arrays(
        self, stayed: Tensor, leaving: list[Leaving], starts: list[Origin], theory: np.ndarray, unequal: NetworkSaddle
    ) -> dict[str, np.ndarray]:
        """Farthest of those that stay against steps, root mean square distances, and the times from the origin."""
        parts = len(stayed)
        noise = (self.isotropic, math.sqrt(float(unequal.variances[0]) / self.unequal_batch_size))
        return {
            "stay_steps": (np.arange(parts) + 1) * self.stay_steps // parts,
            "stayed": stayed.max(1).values.cpu().numpy(),
            **{f"distance_{i}": f.distance.cpu().numpy() for i, f in enumerate(leaving)},
            "mean_steps": np.array([f.mean.value for f in leaving]),
            "slopes": np.array([f.theory.slope for f in leaving]),
            "lr_noise": self.lr * np.array(noise),
            "radius": np.array(self.radius),
            "batches": np.array([self.batch_size, self.unequal_batch_size]),
            "share": np.array(self.share),
            "sizes": np.array(sorted(self.sizes)),
            "origin": np.array([[(m.value, m.error) for m in start.means] for start in starts]),
            "origin_theory": theory[0],
        }

    @staticmethod
    def figure(arrays: Mapping[str, np.ndarray], title: str) -> Figure:
        return panels(arrays, title, (_draw_distance, _draw_origin), size=(11, 4.8), widths=(1.3, 1), box=False)


def alike(saddle: NetworkSaddle) -> Tensor:
    """The directions (P, k) of the most negative curvature, as often as it is repeated."""
    values = saddle.curvatures
    return saddle.directions[:, : int((values < values[0] * (1 - ALIKE)).sum())]


def _power(value: float) -> str:
    """The next power of ten, in words; 0 as it is."""
    return f"1e{math.ceil(math.log10(value)):d}" if value > 0 else "round-off"


def _draw_distance(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    size, unequal = (int(b) for b in arrays["batches"])
    names = ("equal halves, isotropic noise", f"split {float(arrays['share']):g}, batch {unequal}")
    axis.plot([], [], color="k", lw=1, ls="--", label="theory")
    for i, (name, color) in enumerate(zip(names, ("tab:blue", "tab:green"), strict=True)):
        seen, z = arrays[f"distance_{i}"], np.exp(1 / arrays["slopes"][i])
        steps = np.arange(len(seen))
        inside = np.maximum.accumulate(seen) < float(arrays["radius"])
        axis.plot(steps[inside][1:], seen[inside][1:], color=color, lw=2.2, label=f"{name}: root mean square")
        theory = arrays["lr_noise"][i] * np.sqrt((z ** (2.0 * steps) - 1) / (z * z - 1))
        kept = theory < 1.5 * float(arrays["radius"])
        axis.plot(steps[kept][1:], theory[kept][1:], color="k", lw=1, ls="--")
    floor = np.maximum(arrays["stayed"], 1e-18)
    axis.plot(
        arrays["stay_steps"], floor, color="tab:red", lw=2.2, label=f"equal halves, batch {size}: farthest of all runs"
    )
    axis.axhline(float(arrays["radius"]), color="0.4", lw=0.9, ls=":")
    axis.text(arrays["stay_steps"][-1], 1.6 * float(arrays["radius"]), "left", ha="right", color="0.4", fontsize=9)
    axis.set(xscale="log", yscale="log", ylim=(1e-18, 1e2), xlim=(1, arrays["stay_steps"][-1]))
    axis.set(xlabel="t (steps)", ylabel="distance from the saddle along its descent")
    axis.set_title("without noise in the descending directions SGD never leaves", fontsize=10)
    axis.legend(loc="center left", frameon=False, fontsize=9)


def _draw_origin(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    sizes = arrays["sizes"]
    axis.semilogx(sizes, arrays["origin_theory"], color="tab:red", lw=1.4, ls="--", label="theory")
    names = ("gradient descent", f"SGD, batch {int(arrays['batches'][0])}")
    for name, marker, color, means in zip(names, "os", ("k", "tab:blue"), arrays["origin"], strict=True):
        axis.errorbar(sizes, *means.T, color=color, ls="", marker=marker, ms=7, mfc="none", mew=1.5, label=name)
    axis.set(xlabel="size of the initial weights (standard deviation)", ylabel="mean steps to leave the origin")
    axis.set(ylim=(0, 1.15 * np.nanmax(arrays["origin"][:, :, 0])))
    axis.set_title("the saddle where training begins", fontsize=10)
    axis.legend(loc="lower left", frameon=False, fontsize=9)
