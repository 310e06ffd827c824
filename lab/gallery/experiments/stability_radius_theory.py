"""Times and radii of the walkers, beside the exact chain."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from lab.gallery.base import Measured, Verdict, exact, shown
from lab.gallery.experiments.stability_radius_figure import KINDS, NAMES, Kind
from lab.gallery.experiments.stability_radius_linear import LinearStability
from lab.noise.settling import average
from lab.results import EscapeTimes, Estimate

if TYPE_CHECKING:
    from lab.gallery.experiments.stability_radius import StabilityRadius
LEAST = 5
"""Walkers that leave, and stay, where a share is compared or a mean is told in spite of those that stay."""


@dataclass(frozen=True)
class ExactStay:
    """Mean exit time, the share inside after `longest`, and the radius."""

    mean: float
    stays: float
    radius: float


@dataclass(frozen=True)
class Stayed(Measured):
    """What theory says of every kind of noise and curvature, the exit times, the largest |x| (walkers, curvatures) of every
    walker, and growth where the noise vanishes at the minimum.
    """

    card: "StabilityRadius"
    laws: dict[tuple[Kind, float], ExactStay]
    times: dict[tuple[Kind, float], EscapeTimes]
    reached: dict[Kind, Tensor]
    linear: LinearStability

    @cached_property
    def radii(self) -> dict[tuple[Kind, float], Estimate]:
        """In which the share stays for the horizon."""
        h, share = sorted(self.card.curvatures), self.card.share
        return {(kind, c): _quantile(self.reached[kind][:, i], share) for kind in KINDS for i, c in enumerate(h)}

    def mean(self, case: tuple[Kind, float]) -> Estimate:
        """Mean time to leave in units of lr x step: time watched over exits, which is the mean where all have left."""
        found = self.times[case]
        t, gone = self.card.lr * found.times, int(found.exited.sum())
        if gone < len(t):
            value = float(t.sum()) / gone if gone >= LEAST else math.nan
            return Estimate(value, value / math.sqrt(max(1, gone)), 0, "censored")
        return average(t)

    def rows(self) -> list[Verdict]:
        card, rows = self.card, list[Verdict]()
        for (kind, c), law in self.laws.items():
            stay, of = law.stays * card.walkers, f"h = {c:g}, {NAMES[kind]}"
            if stay < 0.01:
                rows.append(exact(f"time to leave, {of}", law.mean, self.mean((kind, c))))
            elif LEAST < stay < card.walkers - LEAST:
                rows.append(exact(f"share gone by {card.longest:g}, {of}", 1 - law.stays, _left(self.times[kind, c])))
        rows += [
            exact(f"radius, h = {c:g}, {NAMES[kind]}", law.radius, self.radii[kind, c])
            for (kind, c), law in self.laws.items()
        ]
        growths = zip(self.linear.tried, self.linear.expected, self.linear.seen, strict=True)
        return rows + [
            Verdict(f"typical growth a step, lr {lr:.3g}", float(theory), value, error)
            for lr, theory, (value, error) in growths
        ]

    def arrays(self) -> dict[str, object]:
        card = self.card

        def table(of: Callable[[tuple[Kind, float]], float]) -> np.ndarray:
            return np.array([[of((kind, c)) for c in sorted(card.curvatures)] for kind in KINDS])

        return {
            "h": sorted(card.curvatures),
            "mean": table(lambda case: self.laws[case].mean),
            "measured": table(lambda case: self.mean(case).value),
            "measured_error": table(lambda case: self.mean(case).error),
            "longest": card.longest,
            "radius": table(lambda case: self.laws[case].radius),
            "reached": table(lambda case: self.radii[case].value),
            "reached_error": table(lambda case: self.radii[case].error),
            "settings": (card.radius, card.share, card.horizon, card.batch_size),
            **vars(self.linear),
        }

    def values(self) -> dict[str, float]:
        edges = ("mean_square_lr", "typical_lr", "gradient_descent_lr")
        return {name: float(edge) for name, edge in zip(edges, self.linear.edges, strict=True)}

    def sentence(self) -> str:
        card = self.card
        low, high = min(card.curvatures), max(card.curvatures)

        def stay(kind: Kind) -> str:
            mean = " and ".join(f"{self.laws[kind, c].mean:.3g} (h = {c:g})" for c in (low, high))
            gone = ", ".join(f"{_left(self.times[kind, c]).value:.0%}" for c in (low, high))
            return f"{mean} in theory (gone by {card.longest:g}: {gone})"

        def reach(kind: Kind) -> str:
            return f"{shown(self.radii[kind, low])} to {shown(self.radii[kind, high])}"

        square, edge, full = self.linear.edges
        return (
            f"A minimum h x^2/2 under SGD of noise that does not vanish is left for good, sooner or later, at every "
            f"curvature: the mean time out of |x| < {card.radius:g} (in lr x steps) is {stay('aligned')} where the noise is "
            f"proportional to h, {stay('isotropic')} where it is the same for all. As h goes from {low:g} to {high:g}, the "
            f"radius in which {card.share:.0%} stay for a time of {card.horizon:g} goes from {reach('aligned')} under noise "
            f"~ h and from {reach('isotropic')} under the same noise: neither is the 1/h of the popular theorem, which "
            f"would be a factor {low / high:.3g}. Where the noise vanishes at the minimum the learning rate decides: second "
            f"moments grow beyond {square:.4g}, typical runs beyond {edge:.4g} (full batch: {full:.4g})."
        )


def _left(found: EscapeTimes) -> Estimate:
    n = len(found.times)
    share = float(found.exited.double().mean())
    return Estimate(share, math.sqrt(share * (1 - share) / n), 0, "walkers")


def _quantile(values: Tensor, share: float) -> Estimate:
    """With the standard error of the order statistics: half of what one of a binomial count moves it, to both sides."""
    ordered, n = values.sort().values, len(values)
    spread = math.sqrt(n * share * (1 - share))
    low, high = (ordered[min(n - 1, max(0, round(n * share + side * spread)))] for side in (-1, 1))
    return Estimate(float(values.quantile(share)), float(high - low) / 2, 0, "walkers")
