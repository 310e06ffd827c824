"""Split neurons and the origin, beside the law of a saddle."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from lab.escape.network_saddle import NetworkSaddle, mean_time
from lab.escape.saddle import Departure, log_chi
from lab.gallery.base import Measured, Verdict, about, exact, shown
from lab.gallery.experiments.network_saddles import (
    log_growth,
)
from lab.results import EscapeTimes, Estimate

if TYPE_CHECKING:
    from lab.gallery.experiments.escape_split import EscapeSplit


ALIKE = 1e-6
"""Curvatures that differ by less than this part are one: at the origin they come as many times as there are neurons."""


@dataclass(frozen=True)
class SplitLeft:
    """Runs that are to leave a saddle: the theory, when they left, and their root mean square distance at every step."""

    name: str
    theory: Departure
    times: EscapeTimes
    distance: Tensor

    @property
    def mean(self) -> Estimate:
        return mean_time(self.times)


@dataclass(frozen=True)
class Origin:
    """Mean steps to leave the origin from weights of each size, and their slope against log(1/size)."""

    name: str
    means: list[Estimate]
    slope: Estimate


@dataclass(frozen=True)
class SplitNeurons(Measured):
    """The three saddles; growth of a kick; distances (steps, R) of those that stay; what left; times from the origin."""

    card: "EscapeSplit"
    equal: NetworkSaddle
    unequal: NetworkSaddle
    origin: NetworkSaddle
    kick: Estimate
    stayed: Tensor
    leaving: list[SplitLeft]
    starts: list[Origin]

    @property
    def sizes(self) -> list[float]:
        return sorted(self.card.sizes)

    @property
    def gone(self) -> int:
        """Runs that left the equal split."""
        return int((self.stayed > self.card.radius).any(0).sum())

    @property
    def origin_z(self) -> float:
        """Growth per step at the origin."""
        return log_growth(self.origin, self.card.lr / 2)

    @property
    def first(self) -> list[float]:
        """The first whole step after the time at which |x_-| = size |N(0, 1)| z^t is the radius, by size."""
        k = alike(self.origin).shape[1]
        return [(math.log(self.card.radius / size) - log_chi(k)[0]) / self.origin_z + 0.5 for size in self.sizes]

    def rows(self) -> list[Verdict]:
        card = self.card
        rows = [
            about("u'Du, equal split, largest", 0.0, self.equal.variances.max()),
            about(f"runs that left in {card.stay_steps} steps, batch {card.batch_size}", 0.0, self.gone),
            exact("growth per step of a kick, equal split", log_growth(self.equal, card.lr), self.kick),
            *(about(f"steps to leave, {left.name}", left.theory.mean, left.mean) for left in self.leaving),
            about("u'Du, origin, largest", 0.0, self.origin.variances.max()),
        ]
        for start in self.starts:
            means = zip(self.sizes, self.first, start.means, strict=True)
            rows += [about(f"steps from size {size:g}, {start.name}", theory, mean) for size, theory, mean in means]
        factors = (f"steps for a factor e in the size, {start.name}" for start in self.starts)
        return rows + [about(name, 1 / self.origin_z, s.slope) for name, s in zip(factors, self.starts, strict=True)]

    def arrays(self) -> dict[str, object]:
        """Farthest of those that stay against steps, root mean square distances, and the times from the origin."""
        card, parts = self.card, len(self.stayed)
        noise = (card.isotropic, math.sqrt(float(self.unequal.variances[0]) / card.unequal_batch_size))
        return {
            "stay_steps": (np.arange(parts) + 1) * card.stay_steps // parts,
            "stayed": self.stayed.max(1).values,
            **{f"distance_{i}": left.distance for i, left in enumerate(self.leaving)},
            "mean_steps": [left.mean.value for left in self.leaving],
            "slopes": [left.theory.slope for left in self.leaving],
            "lr_noise": card.lr * np.array(noise),
            "radius": card.radius,
            "batches": [card.batch_size, card.unequal_batch_size],
            "share": card.share,
            "sizes": self.sizes,
            "origin": [start.means for start in self.starts],
            "origin_theory": self.first,
        }

    def values(self) -> dict[str, float]:
        return {
            "curvature_equal_split": float(self.equal.curvatures[0]),
            "curvature_unequal_split": float(self.unequal.curvatures[0]),
            "variance_unequal_split": float(self.unequal.variances[0]),
            "curvature_origin": float(self.origin.curvatures[0]),
            "descending_directions_equal_split": float(len(self.equal.curvatures)),
            "farthest_of_those_that_stay": float(self.stayed.max()),
            **{f"ratio_{left.name}": left.mean.value / left.theory.mean for left in self.leaving},
        }

    def sentence(self) -> str:
        card, equal, (noisy, batches) = self.card, self.equal, self.leaving
        theory = equal.descent(lr=card.lr, batch_size=card.batch_size).time(card.radius)
        slopes = [shown(start.slope) for start in self.starts]
        return (
            f"A neuron split in two equal halves: {len(equal.curvatures)} descending directions, the steepest of "
            f"curvature {float(equal.curvatures[0]):.4f}, and u'Du below {_power(float(equal.variances.max()))} in all of "
            f"them. Theory: SGD leaves it {theory if theory.never else f'after {theory}'}. Of {card.replicas} runs at "
            f"batch {card.batch_size}, {self.gone} left in {card.stay_steps} steps; the farthest is within "
            f"{_power(float(self.stayed.max()))} of where it began. Isotropic noise of {card.isotropic:g} leaves in "
            f"{shown(noisy.mean)} steps (theory {noisy.theory.mean:.2f}). Split {card.share:g} to {1 - card.share:g} the "
            f"noise is small, u'Du = {float(self.unequal.variances[0]):.5f}, but not zero: {shown(batches.mean)} steps at "
            f"batch {card.unequal_batch_size} (theory {batches.theory.mean:.2f}). At the origin of an 8-{card.hidden}-2 "
            f"network u'Du is {float(self.origin.variances.max()):.2g} too: a factor e in the size of the initial weights "
            f"costs {slopes[0]} steps of gradient descent and {slopes[1]} of SGD at batch {card.batch_size} (theory "
            f"{1 / self.origin_z:.3f})."
        )


def alike(saddle: NetworkSaddle) -> Tensor:
    """The directions (P, k) of the most negative curvature, as often as it is repeated."""
    values = saddle.curvatures
    return saddle.directions[:, : int((values < values[0] * (1 - ALIKE)).sum())]


def _power(value: float) -> str:
    """The next power of ten, in words; 0 as it is."""
    return f"1e{math.ceil(math.log10(value)):d}" if value > 0 else "round-off"
