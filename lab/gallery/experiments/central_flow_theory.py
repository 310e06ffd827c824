"""The toy at the edge, beside its cycle and the central flow."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lab.flows.central import CentralFlow, average_amplitude
from lab.gallery.base import Measured, Verdict, exact, shown
from lab.gallery.landscapes.edge_toy import CYCLE_BOUND, EdgeToy
from lab.landscapes.factorisation import Factorisation
from lab.results import Estimate

if TYPE_CHECKING:
    from lab.gallery.experiments.central_flow_toy import CentralFlowToy
FACTORS = (3.0, 0.2)
"""Start (a, b) of the scalar factorisation: sharpness 9.04, and 9.18 at the end of gradient flow."""


@dataclass(frozen=True)
class AtTheEdge(Measured):
    """Gradient descent (steps + 1, 2), central flow and gradient flow on the toy; growth beside theory by lr past; E y,
    E x^2 and their balance by noise; descent and gradient flow on the factorisation.
    """

    card: "CentralFlowToy"
    toy: EdgeToy
    descent: Tensor
    central: CentralFlow
    plain: Tensor
    growth: list[tuple[float, float, float]]
    noisy: dict[float, tuple[Estimate, Estimate, Estimate]]
    factor: list[Tensor]
    smooth: Tensor

    @property
    def tail(self) -> Tensor:
        """The last twentieth of the descent."""
        return self.descent[-max(2, self.card.steps // 20) :]

    @cached_property
    def averaged(self) -> Tensor:
        """The running mean of x."""
        return _averaged(self.descent[:, 0], self.card.average)

    @property
    def stable(self) -> bool:
        """Whether the cycle is, by theory."""
        return self.card.lr * self.card.past < CYCLE_BOUND

    def kept(self) -> list[float]:
        """sqrt(d^2 + 4 (a b)^2) with d = (a^2 - b^2) at the start times the product of 1 - lr^2 e^2, e the errors 1 - a b:
        what every step of gradient descent does to a^2 - b^2, which gradient flow keeps."""
        ends = []
        for lr, path in zip(sorted(self.card.factor_lr), self.factor, strict=True):
            a, b = path.unbind(1)
            kept = (a[0] ** 2 - b[0] ** 2) * (1 - lr**2 * (1 - a * b)[:-1].square()).prod()
            ends.append(float((kept**2 + 4 * (a[-1] * b[-1]) ** 2).sqrt()))
        return ends

    def rows(self) -> list[Verdict]:
        (square, level), tail = self.toy.cycle(self.card.lr), self.tail
        held = [
            exact("y at the end of gradient descent", level, float(tail[:, 1].mean())),
            exact("x^2 at the end of gradient descent", square, float(tail[:, 0].square().mean())),
        ]
        rows = [
            *(held if self.stable else []),
            exact("sigma^2 of the central flow at the edge", square, float(self.central.variance[-1])),
            *(exact(f"growth of log|y - 2/lr| a step, lr past = {r:g}", law, seen) for r, law, seen in self.growth),
            *(
                exact(f"E[x^2 - 2 k (y* - y)], noise {std:g}", 0.0, balance)
                for std, (_, _, balance) in self.noisy.items()
            ),
            *(
                exact(f"a^2 + b^2 at the end, lr={lr:g}, from the steps' own law", kept, float(path[-1].square().sum()))
                for lr, path, kept in zip(sorted(self.card.factor_lr), self.factor, self.kept(), strict=True)
            ),
        ]
        return [row for row in rows if math.isfinite(row.measured)]  # what has run away has no number

    def arrays(self) -> dict[str, object]:
        card, theory_at = self.card, np.linspace(0.02, max(0.7, *self.card.ratios), 60)
        return {
            "lr": card.lr,
            "past": card.past,
            "average": card.average,
            "descent": _thinned(self.descent),
            "descent_steps": _thinned(torch.arange(len(self.descent))),
            "averaged": _thinned(self.averaged),
            "early": self.descent[: len(self.plain)],
            "central": self.central.w,
            "variance": self.central.variance,
            "plain": self.plain,
            "square": self.toy.cycle(card.lr)[0],
            "growth": self.growth,
            "growth_theory": [(r, card.toy(r / card.lr).cycle_growth(card.lr)) for r in theory_at],
            "noise": [(std, y.value, y.error, x.value, x.error) for std, (y, x, _) in self.noisy.items()],
            "pull": card.pull,
            "factor_lr": sorted(card.factor_lr),
            "factor": self.factor,
            "smooth": self.smooth,
        }

    def values(self) -> dict[str, float]:
        amplitude = average_amplitude(self.card.average) * self.toy.cycle(self.card.lr)[0] ** 0.5
        return {"two_over_lr": 2 / self.card.lr, "average_amplitude": amplitude}

    def sentence(self) -> str:
        std, (level, _, balance) = next(reversed(self.noisy.items()))
        loud = (
            f"With noise of {std:g} on the gradient E y is {shown(level)}, and the balance "
            f"E x^2 = 2 k (y* - E y) holds to {shown(balance)}."
            if math.isfinite(level.value)
            else f"With noise of {std:g} on the gradient walkers diverge."
        )
        ends = ", ".join(
            f"{float(path[-1].square().sum()):.4g} at lr={lr:g} (edge {2 / lr:.3g})"
            for lr, path in zip(sorted(self.card.factor_lr), self.factor, strict=True)
        )
        return (
            f"{self._held() if self.stable else self._lost()} {loud} On (1 - a b)^2/2 from {FACTORS} gradient descent ends "
            f"at sharpness {ends}, gradient flow at {float(self.smooth[-1].square().sum()):.4g} (theory "
            f"{float(Factorisation().flow_end(self.smooth[0])):.4g})."
        )

    def _held(self) -> str:
        """The sentence on a cycle that is stable."""
        card, edge, tail = self.card, 2 / self.card.lr, self.tail
        square, y, amplitude = float(tail[:, 0].square().mean()), float(tail[:, 1].mean()), 2 * card.pull * card.past
        arrived = abs(y / edge - 1) < 0.01 and abs(square / amplitude - 1) < 0.1
        quiet = float(self.averaged[-len(tail) :].square().mean().sqrt())
        return (
            f"Gradient descent {'is held' if arrived else 'has not settled in these steps and is'} at y = {y:.5g} (theory "
            f"2/lr = {edge:.5g}) though the loss pulls to {edge + card.past:.5g}: x oscillates with x^2 = {square:.4g} "
            f"(theory 2 k (y* - 2/lr) = {amplitude:.4g}), the variance {float(self.central.variance[-1]):.4g} of the "
            f"central flow. An average of the weights with decay {card.average:g} has |x| = {quiet:.2g} (theory "
            f"{average_amplitude(card.average) * amplitude**0.5:.2g} once settled)."
        )

    def _lost(self) -> str:
        """The sentence on a cycle beyond its bound."""
        card, late = self.card, self.descent[len(self.descent) // 2 :, 1]
        return (
            f"At lr (y* - 2/lr) = {card.lr * card.past:.3g}, beyond the theory's bound of 1/2, the cycle is lost: y spreads "
            f"by {float(late.std()):.3g} around {float(late.mean()):.4g} (2/lr = {2 / card.lr:.4g}) and never settles."
        )


def _averaged(x: Tensor, decay: float) -> Tensor:
    """m <- decay m + (1 - decay) x from m = 0, at every step."""
    mean, path = 0.0, []
    for value in x.tolist():
        mean = decay * mean + (1 - decay) * value
        path.append(mean)
    return torch.tensor(path, dtype=x.dtype)


def _thinned(path: Tensor) -> np.ndarray:
    """At most 2000 points, an odd number of steps apart: both phases of the oscillation are seen."""
    return path[:: max(1, len(path) // 2000) // 2 * 2 + 1].numpy()
