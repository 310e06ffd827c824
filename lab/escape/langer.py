"""The rate of leaving a well over a saddle at temperature T, from the Hessians that are measured there.

    kappa = (|l_s| / 2 pi) sqrt(det H_a / |det H_s|) exp(-dL / T)        per unit of time lr * steps

for dw = -grad L dt + sqrt(2 T) dW from the minimum a over a saddle s of index 1, l_s its negative eigenvalue and
dL = L(s) - L(a): Eyring (1935), Kramers (1940) and, in many dimensions, Langer (1969). No parameter is fitted. It is the
leading order for T -> 0: relative errors are of order T / dL, and of the anharmonicity of soft directions. Where it means
nothing `refusals` says so, and why.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from lab.points.dense import Stationary

SOFT = 0.35
"""Spread of the softest direction, sqrt(T / lambda_min), over the way to the saddle: beyond, the well is no bowl."""
LEAST_BARRIER = 2.0
"""dL / T below which there is no barrier to speak of."""
BACK = 2.0
"""The barrier back, over that forth: below, replicas that have left return before they are seen."""


@dataclass(frozen=True)
class Langer:
    """Escape from the minimum `well` over `saddle` to the minimum `beyond`. ValueError where they are not what they say."""

    well: Stationary
    saddle: Stationary
    beyond: Stationary

    def __post_init__(self) -> None:
        for point, index, name in (
            (self.well, 0, "well"),
            (self.saddle, 1, "saddle"),
            (self.beyond, 0, "minimum beyond"),
        ):
            if point.index != index:
                raise ValueError(f"the {name} has {point.index} negative eigenvalues; expected {index}")
            if bool((point.eigenvalues == 0).any()):
                raise ValueError(f"the {name} has an eigenvalue 0: it is no isolated critical point")
        if not self.saddle.value > max(self.well.value, self.beyond.value):
            raise ValueError("the saddle is no higher than the minima on its sides")

    @property
    def barrier(self) -> float:
        """dL = L(s) - L(a)."""
        return self.saddle.value - self.well.value

    @property
    def back(self) -> float:
        """L(s) - L(b)."""
        return self.saddle.value - self.beyond.value

    @property
    def distance(self) -> float:
        """|a - s|."""
        return float((self.well.w - self.saddle.w).norm())

    @property
    def prefactor(self) -> float:
        """(|l_s| / 2 pi) sqrt(det H_a / |det H_s|), per unit of time."""
        logs = self.well.eigenvalues.log().sum() - self.saddle.eigenvalues.abs().log().sum()
        return float(self.saddle.eigenvalues[0].abs() / (2 * math.pi) * (logs / 2).exp())

    def rate(self, temperature: float) -> float:
        """kappa per unit of time. Raises ValueError for a temperature that is not positive."""
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: expected a number > 0")
        return self.prefactor * math.exp(-self.barrier / temperature)

    def refusals(self, temperature: float, labels: Tensor | None = None) -> list[str]:
        """Why the formula does not hold here, a sentence each; empty where nothing speaks against it.

        labels: where replicas of a thermal run went, by a converged quench (`Quenched.labels` with the well as 0 and the
        minimum beyond as 1): any other minimum among them refutes the picture of two wells.
        """
        sentences = []
        lowest = float(self.well.eigenvalues[0])
        spread, way = math.sqrt(temperature / lowest), self.distance
        if spread > SOFT * way:
            sentences.append(
                f"the softest direction of the well (curvature {lowest:.2g}) spreads over sqrt(T / lambda_min) = "
                f"{spread:.2g}, more than {SOFT} of the way to the saddle, {way:.2g}: the well is no bowl"
            )
        if self.barrier < LEAST_BARRIER * temperature:
            sentences.append(f"the barrier is {self.barrier / temperature:.2g} T only: replicas leave without waiting")
        if self.back < BACK * self.barrier:
            sentences.append(
                f"the barrier back is {self.back / self.barrier:.2g} times that forth, less than {BACK:g}: replicas return "
                "before they are seen"
            )
        sentences += third_minimum(labels) if labels is not None else []
        return sentences

    @property
    def direction(self) -> Tensor:
        """The unstable direction (P,) of the saddle, of length 1, towards the minimum beyond."""
        u = self.saddle.vectors[:, 0]
        return u if float(u @ (self.beyond.w - self.saddle.w)) > 0 else -u


def third_minimum(labels: Tensor) -> list[str]:
    """A sentence, if a converged quench ended in other minima than the two (0 and 1), or did not converge."""
    sentences = []
    other, lost = int((labels == -1).sum()), int((labels == -2).sum())
    if other:
        sentences.append(f"the converged quench found {other} of {len(labels)} replicas in a third minimum")
    if lost:
        sentences.append(f"the quench of {lost} of {len(labels)} replicas did not converge")
    return sentences
