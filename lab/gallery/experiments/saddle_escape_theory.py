"""How long walkers stay at saddles, beside the law."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lab.escape.saddle import Departure
from lab.gallery.base import (
    Measured,
    Verdict,
    about,
    array,
    exact,
    shown,
)
from lab.noise.settling import average
from lab.results import Estimate

if TYPE_CHECKING:
    from lab.gallery.experiments.saddle_escape import SaddleEscape
CROWDED = 0.03
"""Above it the law is compared as the approximation that it is: it is 0.1 % early at twice that."""
KICK, KICK_GROWS, KICKED = 1e-8, 1e4, 16


@dataclass(frozen=True)
class LeftSaddles(Measured):
    """First steps outside by noise, by number of directions, and of the factorisation; the furthest without noise
    downwards; the kicked network and the growth rates.
    """

    card: "SaddleEscape"
    left: dict[float, Tensor]
    many: dict[int, Tensor]
    furthest: float
    bent: Tensor
    kicked: Tensor
    kick: Estimate
    noisy: Estimate

    @property
    def slope(self) -> Estimate | None:
        """Of the mean against log(1/noise), weighted; None where there is one noise."""
        if len(self.left) < 2:
            return None
        x = -np.log(list(self.left))
        y, error = array([average(times) for times in self.left.values()]).T
        weight = error**-2
        away = x - np.average(x, weights=weight)
        total = float((weight * away**2).sum())
        return Estimate(float((weight * away * y).sum()) / total, total**-0.5, 0, "weighted fit")

    @property
    def there(self) -> Departure:
        """Half way to the minimum of the factorisation, by theory."""
        return self.card.descent(self.card.middle).time(self.card.half_way)

    def rows(self) -> list[Verdict]:
        card, middle = self.card, self.card.middle
        theory = {s: card.descent(s).time(card.radius) for s in self.left}
        wide = {k: card.descent(middle, k).time(card.radius) for k in self.many}
        rows = [
            _beside(f"steps to leave, noise {s:g}", law.mean, average(self.left[s]), law) for s, law in theory.items()
        ]
        rows += [
            _beside(f"their spread, noise {s:g}", law.std, _spread(self.left[s]), law) for s, law in theory.items()
        ]
        if self.slope is not None:
            rows.append(_beside("slope against log(1/noise)", 1 / card.log_z, self.slope, theory[max(self.left)]))
        rows += [
            _beside(f"steps to leave, {k} descending", law.mean, average(self.many[k]), law) for k, law in wide.items()
        ]
        return [
            *rows,
            exact("furthest without noise downwards", 0.0, self.furthest),
            about("steps to leave, factorisation", self.there.mean, average(self.bent)),
            exact("growth a step, deep linear", card.log_z, self.kick.value),
            about("growth a step, autoregression", card.log_z, self.noisy),
        ]

    def arrays(self) -> dict[str, object]:
        card, left, many, middle = self.card, self.left, self.many, self.card.middle
        steps = np.unique(np.linspace(0, max(float(t.quantile(0.995)) for t in left.values()), 200).astype(int))
        sizes = np.geomspace(min(left) / 2, max(left) * 2, 50)
        numbers = np.unique(np.geomspace(1, max(many), 30).astype(int))
        bent = average(self.bent)
        return {
            "noise": list(left),
            "left": [average(t) for t in left.values()],
            "sizes": sizes,
            "law": [card.descent(s).time(card.radius).mean for s in sizes],
            "steps": steps,
            "inside": [_inside(t, steps) for t in left.values()],
            "inside_law": [card.descent(s).survival(torch.from_numpy(steps), card.radius) for s in left],
            "directions": list(many),
            "many": [average(t) for t in many.values()],
            "numbers": numbers,
            "many_law": [card.descent(middle, int(k)).time(card.radius).mean for k in numbers],
            "factorisation": (middle, self.there.mean, bent.value, bent.error),
            "kicked": self.kicked.numpy() / KICK,
            "log_z": card.log_z,
            "middle": middle,
            "furthest": self.furthest,
        }

    def values(self) -> dict[str, float]:
        return {
            "log_growth": self.card.log_z,
            "kick_growth": self.kick.value,
            "autoregression": self.noisy.value,
            "furthest_without_noise": self.furthest,
        }

    def sentence(self) -> str:
        card, ball = self.card, f", heavy ball {self.card.momentum:g}" * (self.card.momentum > 0)
        noises = "; ".join(
            f"{s:g}: {shown(average(t))} (theory {card.descent(s).time(card.radius).mean:.4g})"
            for s, t in self.left.items()
        )
        parts = [
            f"Steps that SGD (lr {card.lr:g}{ball}) needs to leave a saddle of curvature -{card.curvature:g}, by the size "
            f"of its noise: {noises}."
        ]
        if self.slope is not None:
            parts.append(
                f"Each factor e less noise costs {shown(self.slope)} steps more (theory, "
                f"1/log z: {1 / card.log_z:.4g}), so a large batch is late by a logarithm, not trapped."
            )
        if len(self.many) > 1:
            few, lots = min(self.many), max(self.many)
            took = {k: shown(average(self.many[k])) for k in (few, lots)}
            parts.append(f"With {lots} descending directions it takes {took[lots]} steps, with {few} {took[few]}.")
        moved = (
            f"the furthest has come {self.furthest:.2g} along it"
            if self.furthest
            else "nobody has moved along it at all"
        )
        parts.append(
            f"Without noise in the descending direction (u'Du = 0) {moved}: never by noise. Where the saddle is not "
            f"quadratic, (t - ab)^2/2 left half way to its minimum, it takes {shown(average(self.bent))} steps (law "
            f"{self.there.mean:.4g}). A deep linear network kicked off its saddle leaves by {self.kick.value:.7g} a step "
            f"(theory, log z: {card.log_z:.7g}); under noise autoregression finds {shown(self.noisy)}."
        )
        return " ".join(parts)


def _beside(quantity: str, theory: float, measured: Estimate, law: Departure) -> Verdict:
    """Beside the law of a saddle, which is exact where the noise is small."""
    return (about if law.crowding > CROWDED else exact)(quantity, theory, measured)


def _spread(times: Tensor) -> Estimate:
    """Standard deviation; its error from the fourth moment."""
    std, n = float(times.std()), len(times)
    kurtosis = float((times - times.mean()).pow(4).mean()) / std**4
    return Estimate(std, std * math.sqrt((kurtosis - 1) / (4 * n)), 0, "walkers")


def _inside(times: Tensor, steps: np.ndarray) -> np.ndarray:
    """Share of walkers that are inside after so many steps."""
    return 1 - np.searchsorted(times.sort().values.numpy(), steps, side="right") / len(times)
