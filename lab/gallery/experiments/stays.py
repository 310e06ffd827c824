"""What the stays in a well say: their rate and its words, whether they are memoryless; and the way out, drawn."""

import math

import numpy as np

from lab.escape.renewal import Stays
from lab.escape.survival import exponentiality, per_time, rate, words
from lab.gallery.base import Verdict
from lab.gallery.frame import Arrays, Axes, caption
from lab.results import Rate

HASTY = 0.3
"""Share of stays that end within the burn-in, above which there is no barrier to wait before, and no rate."""


def memoryless(stay: Stays, which: str) -> Verdict:
    """A constant rate spreads exits evenly over the time watched: their mean place in it is a half."""
    k = int(stay.times.exited.sum())
    error = (12 * (k - 1)) ** -0.5
    early = exponentiality(stay.times).early
    return Verdict(f"mean place of exits in the time watched, {which}", 0.5, 0.5 - early * error, error)


def measured_rate(stay: Stays, lr: float) -> Rate:
    """The rate per unit of time lr * step; without a value or a bound where no stay outlasted the burn-in."""
    if not len(stay.times.times):
        return Rate(math.nan, 0.0, math.nan, 0, 0.0, unit="lr * step")
    return per_time(rate(stay.times), lr)


def hasty(stay: Stays) -> bool:
    """Whether too many stays end within the burn-in for a rate to be spoken of."""
    early = stay.times.replaced
    total = early + int(stay.times.exited.sum())
    return early > HASTY * total + math.sqrt(HASTY * (1 - HASTY) * total)  # by more than chance


def rate_in_words(stay: Stays, seen: Rate, barrier: str = "") -> str:
    """A rate in words; NO RATE where replicas leave before they have waited, or break down."""
    early, late = stay.times.replaced, int(stay.times.exited.sum())
    if int(stay.times.failed.sum()):
        return f"NO RATE ({int(stay.times.failed.sum())} replicas diverged)"
    if not hasty(stay):
        return words(seen)
    why = f"NO RATE ({barrier}: no barrier; " if barrier else "NO RATE ("
    said = f"{why}{early} of {early + late} stays end within the burn-in"
    return f"{said}, later ones {seen.value:.2g} per {seen.unit})" if seen.exits else f"{said})"


def bars(rates: list[Rate]) -> np.ndarray:
    """Value, low and high of every rate, (n, 3); NaN where there is none."""
    return np.array([(r.value, r.low if r.exits else np.nan, r.high) for r in rates]).reshape(-1, 3)


def draw_string(axis: Axes, arrays: Arrays) -> None:
    """The loss along the path of least loss, above the well, in thousandths."""
    scale = 1e3
    well, saddle, beyond = arrays["losses"]
    arc, loss = arrays["arc"], (arrays["string"] - well) * scale
    top = int(loss.argmax())
    axis.plot(arc, loss, color="0.35", lw=1.6, marker=".", ms=4, label="string (images)")
    for x, y, mark, color, label in (
        (arc[0], 0.0, "o", "tab:blue", f"start, L = {well:.4f}"),
        (arc[top], (saddle - well) * scale, "^", "tab:red", f"saddle, + {(saddle - well) * scale:.3f}e-3"),
        (arc[-1], (beyond - well) * scale, "s", "tab:green", f"beyond, L = {beyond:.4f}"),
    ):
        axis.plot(x, y, ls="", marker=mark, ms=8, color=color, label=label)
    axis.set(xlabel="arc along the path (weights)", ylabel="loss above the start (1e-3)")
    caption(axis, "the way out", "lower left")
