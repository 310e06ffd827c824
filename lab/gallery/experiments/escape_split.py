"""A saddle that SGD cannot leave: a neuron split in two equal halves, and the origin from which training begins.

Both halves receive the same gradient from every example, so mini-batches have no noise in the descending directions, u'Du =
0 exactly, and without noise there is no escape, however steep the descent. Isotropic noise leaves in the time of the
theory; an unequal split has a little noise, and is left a little later. At the origin of a network the same holds, and what
ends it is the size of the initial weights: log(1/size) / log(1 + lr |lambda|) steps. `lab.points.embedding`,
`lab.escape.saddle`.
"""

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lab.escape.network_saddle import NetworkSaddle, follow, left, mean_time
from lab.escape.replicas import Replicas
from lab.gallery.base import (
    Experiment,
    Outcome,
    Positive,
    Surroundings,
)
from lab.gallery.experiments.escape_split_figure import draw
from lab.gallery.experiments.escape_split_theory import Origin, SplitLeft, SplitNeurons, alike
from lab.gallery.experiments.network_saddles import (
    INPUTS,
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
from lab.points.dense import LARGEST
from lab.points.embedding import OneHidden, split_neuron
from lab.progress import Tick
from lab.results import Estimate
from lab.settings import SettingError, settings


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
        self.require_different("sizes", "[1e-5,1e-3]", least=2)
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
        kick = kicked(around, self.name, equal, lr=self.lr)
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
        return SplitNeurons(self, equal, unequal, origin, kick, stayed, leaving, starts).outcome()

    def _origin(self, device: torch.device) -> NetworkSaddle:
        loss = halves_on(device, self.examples, self.hidden)
        return NetworkSaddle.at(loss, torch.zeros(loss.num_params, dtype=torch.float64, device=device))

    def _stay(self, around: Surroundings, saddle: NetworkSaddle, tick: Tick) -> Tensor:
        """SGD from the equal split: the distance (steps, R) in the whole descending space, at a hundred times."""
        draws = around.stream(f"{self.name}/stay")
        start = saddle.w.expand(self.replicas, -1)
        runs = sgd_runs(saddle, start, draws, lr=self.lr, batch_size=self.batch_size)
        rows, parts = [], min(100, self.stay_steps)
        for part in range(parts):
            runs.run((part + 1) * self.stay_steps // parts - part * self.stay_steps // parts)
            rows.append(((runs.W - saddle.w) @ saddle.directions).norm(dim=1))
            tick((part + 1) / parts)
        return torch.stack(rows)

    def _leave(self, around: Surroundings, saddle: NetworkSaddle, size: int, noise: float, tick: Tick) -> SplitLeft:
        theory = saddle.descent(lr=self.lr, batch_size=size or None, isotropic=noise).time(self.radius)
        if theory.never:
            raise SettingError(
                f"share={self.share}: no noise reaches the descending direction of this split; use another part"
            )
        name = f"split {self.share:g}, batch {size}" if size else f"equal split, isotropic noise {noise:g}"
        require_room(theory, name, self.radius)
        draws = around.stream(f"{self.name}/leave", size)
        start, steps = saddle.w.expand(self.replicas, -1), patience(theory)
        runs = sgd_runs(saddle, start, draws, lr=self.lr, batch_size=size, noise=noise)
        x = follow(runs, saddle.w, saddle.directions[:, :1], steps=steps, radius=self.radius, tick=tick)[:, :, 0]
        times = left(x.abs(), self.radius)
        require_left(times, name, self.radius)
        return SplitLeft(name, theory, times, x.square().mean(1).sqrt())

    def _start(self, around: Surroundings, saddle: NetworkSaddle, size: int, tick: Tick) -> Origin:
        """From small weights, the same for every size but for their scale: what differs is the size alone."""
        lr, U = self.lr / 2, alike(saddle)
        log_z = log_growth(saddle, lr)
        times = []
        for i, scale in enumerate(sorted(self.sizes)):
            draws = around.stream(f"{self.name}/origin")
            begin = torch.randn(
                max(2, self.replicas // 2), len(saddle.w), generator=draws, dtype=torch.float64, device=saddle.w.device
            )
            runs = sgd_runs(saddle, scale * begin, draws, lr=lr, batch_size=size)
            steps = int((math.log(1e3 * self.radius / scale)) / log_z * 2) + 10
            times.append(left(self._distances(runs, U, steps), self.radius))
            require_left(times[-1], f"from the origin, size {scale:g}", self.radius)
            tick((i + 1) / len(self.sizes))
        means = [mean_time(exits) for exits in times]
        together = torch.stack([exits.times for exits in times])
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

    @staticmethod
    def figure(arrays: Arrays, title: str) -> Figure:
        return draw(arrays, title)
