"""The edge of stability in two variables: gradient descent holds the sharpness at 2/lr, and the central flow says how.

L = y x^2/2 + k (y - y*)^2/2 draws its curvature y past 2/lr. There x starts to oscillate, and settles in a cycle of period 2
whose amplitude x^2 = 2 k (y* - 2/lr) pushes y down as hard as the loss pulls it up: the very variance of the central flow
(Cohen et al. 2025). Beyond lr (y* - 2/lr) = 1/2 the cycle is lost. With noise the balance E x^2 = 2 k (y* - E y) stays
exact. On (1 - a b)^2/2 the learning rate chooses among minima in the same way. `lab.flows.central`, and the landscapes.
"""

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from lab.flows.central import central_flow, gradient_descent, gradient_flow
from lab.gallery.base import Experiment, Outcome, Surroundings
from lab.gallery.experiments.central_flow_panels import (
    draw_factor,
    draw_growth,
    draw_level,
    draw_noise,
    draw_plane,
    draw_variance,
)
from lab.gallery.experiments.central_flow_theory import FACTORS, AtTheEdge
from lab.gallery.frame import Arrays, Figure, panels
from lab.gallery.landscapes.edge_toy import EdgeToy
from lab.landscapes.factorisation import Factorisation
from lab.noise.settling import average
from lab.progress import Tick
from lab.results import Estimate
from lab.settings import SettingError, settings

MOST = 0.9
"""The largest lr past that can be set: beyond it x runs away."""
NUDGE = 1e-6
"""Distance from the cycle, relative, from which its growth is measured."""
FACTOR_STEPS = 2000
"""Or as many as there are."""
LONGEST_FLOW = 1500
"""Steps along which the flows are drawn, at most."""
SECONDS = {"descent": 4e-5, "flow": 4e-3, "noise": 1e-4}
"""A step, for the progress bar."""

Ratio = Annotated[float, Field(gt=0, le=MOST)]
Std = Annotated[float, Field(gt=0, le=100)]


@settings()
class CentralFlowToy(Experiment):
    """Why does the sharpness stay at 2/lr? Two variables in which the edge of stability and the central flow are exact.

    The loss pulls the curvature y to 2/lr + past; gradient descent holds it at 2/lr by oscillating with x^2 = 2 k past,
    which is the variance of the central flow, and settles there slowly (8000 steps). Beyond lr past = 1/2 the cycle is lost
    (try past=5.5). On (1 - a b)^2/2 gradient descent at lr 0.25 ends at sharpness 6.43, gradient flow at 9.18.
    """

    name: ClassVar[str] = "central_flow_toy"

    lr: Annotated[float, Field(gt=0, le=100, description="step size; the edge is at 2/lr")] = 0.1
    pull: Annotated[float, Field(gt=0, le=100, description="k, curvature of y; below 1/lr")] = 0.05
    past: Annotated[float, Field(gt=0, description="y* - 2/lr: how far the loss alone would go beyond the edge")] = 2.0
    start_x: Annotated[float, Field(gt=0, le=1e3, description="x at the start")] = 0.3
    start_y: Annotated[float, Field(ge=0.6, lt=1, description="y at the start, in units of 2/lr")] = 0.95
    steps: Annotated[int, Field(ge=100, le=1_000_000, description="of gradient descent and the noisy walkers")] = 8000
    average: Annotated[float, Field(ge=0, le=0.9999, description="decay of the running mean of the weights")] = 0.95
    ratios: Annotated[
        tuple[Ratio, ...], Field(description="lr past at which the stability of the cycle is measured")
    ] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    noise: Annotated[tuple[Std, ...], Field(description="standard deviations on the gradient")] = (0.3, 1.0, 2.0)
    walkers: Annotated[int, Field(ge=50, le=1_000_000, description="with each noise")] = 300
    factor_lr: Annotated[
        tuple[Annotated[float, Field(gt=0, le=0.5)], ...], Field(description="step sizes for the scalar factorisation")
    ] = (0.2, 0.25)

    def __post_init__(self) -> None:
        if not self.lr * self.pull < 1:
            raise ValueError(f"pull={self.pull:g}: expected less than 1/lr = {1 / self.lr:g}, or y itself oscillates")
        if not self.lr * self.past <= MOST:
            raise ValueError(
                f"past={self.past:g}: expected at most {MOST:g}/lr = {MOST / self.lr:g}; beyond it x runs away"
            )
        self.require_different("ratios", "[0.1,0.5]")
        self.require_different("noise", "[0.3,1.0]")
        self.require_different("factor_lr", "[0.2,0.25]")

    def stages(self) -> dict[str, float]:
        return {
            "gradient descent": SECONDS["descent"] * self.steps,
            "central flow": SECONDS["flow"] * self._shown(),
            "stability": SECONDS["descent"] * self._growth_steps() * len(self.ratios),
            "noise": SECONDS["noise"] * self.steps * (1 + len(self.noise) * self.walkers / 2000),
            "factorisation": SECONDS["descent"] * self._factor_steps() * (2 + len(self.factor_lr)),
        }

    def toy(self, past: float) -> EdgeToy:
        return EdgeToy(pull=self.pull, goal=2 / self.lr + past)

    def _shown(self) -> int:
        """Four times as long as gradient flow takes to the edge."""
        to_edge = math.log1p((1 - self.start_y) * 2 / self.lr / self.past) / (self.lr * self.pull)
        return max(50, min(self.steps, LONGEST_FLOW, math.ceil(4 * to_edge)))

    def _factor_steps(self) -> int:
        return min(self.steps, FACTOR_STEPS)

    def _growth_steps(self) -> int:
        """Twenty times 1/(lr k), in which a cycle far from its bound falls to e^-10."""
        return min(20_000, max(40, math.ceil(20 / (self.lr * self.pull))))

    def simulate(self, around: Surroundings) -> Outcome:
        toy, steps = self.toy(self.past), self._shown()
        start = torch.tensor([self.start_x, self.start_y * 2 / self.lr], dtype=torch.float64)
        tick = around.stage("gradient descent")
        descent = gradient_descent(toy, start, self.lr, self.steps)
        if not descent.isfinite().all():
            raise SettingError(
                f"start_x={self.start_x:g}: gradient descent runs away from there; start nearer to x = 0"
            )
        tick(1.0)
        tick = around.stage("central flow")
        still = torch.tensor([0.0, float(start[1])], dtype=torch.float64)
        flow = central_flow(toy, still, self.lr, steps)
        plain = gradient_flow(toy, still, self.lr, steps)
        tick(1.0)
        growth = [
            (ratio, self.toy(ratio / self.lr).cycle_growth(self.lr), self._growth(ratio))
            for ratio, _ in around.over("stability", sorted(self.ratios))
        ]
        noisy = self._noisy(toy, around, around.stage("noise"))
        around.stage("factorisation")
        factor = Factorisation()
        begin = torch.tensor(FACTORS, dtype=torch.float64)
        paths = [gradient_descent(factor, begin, lr, self._factor_steps()) for lr in sorted(self.factor_lr)]
        smooth = gradient_flow(factor, begin, min(0.05, *self.factor_lr), self._factor_steps() // 4)
        return AtTheEdge(self, toy, descent, flow, plain, growth, noisy, paths, smooth).outcome()

    def _growth(self, ratio: float) -> float:
        """Growth of log|y - 2/lr| a step from a nudged cycle: of its largest value in the second and the last quarter."""
        toy = self.toy(ratio / self.lr)
        square, level = toy.cycle(self.lr)
        start = torch.tensor([square**0.5, level * (1 + NUDGE)], dtype=torch.float64)
        away = (gradient_descent(toy, start, self.lr, self._growth_steps())[:, 1] - level).abs()
        quarter = len(away) // 4
        early = quarter + int(away[quarter : 2 * quarter].argmax())
        late = 3 * quarter + int(away[3 * quarter :].argmax())
        return float((away[late] / away[early]).log()) / (late - early)

    def _noisy(
        self, toy: EdgeToy, around: Surroundings, tick: Tick
    ) -> dict[float, tuple[Estimate, Estimate, Estimate]]:
        """For each noise E y, E x^2, and E[x^2 - 2 k (y* - y)], which is 0: time averages of walkers begun on the cycle."""
        levels = sorted(self.noise)
        square, level = toy.cycle(self.lr)
        generator, size = around.stream(f"{self.name}/noise"), self.walkers * len(levels)
        std = torch.tensor(levels, dtype=torch.float64, device=around.device).repeat_interleave(self.walkers)
        sign = 1 - 2 * torch.randint(2, (size,), generator=generator, device=around.device).double()
        x, y = sign * square**0.5, torch.full_like(sign, level)
        squares, heights, measured = torch.zeros_like(x), torch.zeros_like(x), self.steps - self.steps // 4
        for step in range(self.steps):
            if step >= self.steps // 4:
                squares += x.square() / measured
                heights += y / measured
            noise = torch.randn(2, size, dtype=torch.float64, generator=generator, device=around.device) * std
            x, y = x - self.lr * (x * y + noise[0]), y - self.lr * (x * x / 2 + self.pull * (y - toy.goal) + noise[1])
            if step % 200 == 0:
                tick(step / self.steps)
        shape = (len(levels), self.walkers)
        rows = zip(levels, heights.view(shape), squares.view(shape), strict=True)
        return {one: (average(h), average(s), average(s - 2 * self.pull * (toy.goal - h))) for one, h, s in rows}

    @staticmethod
    def figure(arrays: Arrays, title: str) -> Figure:
        above, below = (draw_level, draw_variance, draw_plane), (draw_growth, draw_noise, draw_factor)
        return panels(arrays, title, above, below, size=(15, 8.6), gridless=(draw_plane, draw_factor))
