"""Losses and ratios step by step, as training at and below the edge has them, and a tracker that follows them."""

from collections.abc import Callable

from lab.curvature.phase import PhaseTracker

Series = Callable[[int], float]


def falling(step: int) -> float:
    """A loss that falls at every step."""
    return 0.99**step


def oscillating(step: int) -> float:
    """A loss that falls on average and rises at every other step."""
    return 0.99**step * (1.1 if step % 2 else 1.0)


def follow(
    ratio: Series, loss: Series, *, steps: int, every: int = 5, tracker: PhaseTracker | None = None, begin: int = 0
) -> PhaseTracker:
    """The tracker of a run in which `ratio` is measured before the updates 0, every, 2 every, ..."""
    tracker = tracker or PhaseTracker()
    for step in range(begin, steps):
        if step % every == 0:
            tracker.add_ratio(step, ratio(step))
        tracker.add_loss(step, loss(step))
    return tracker


def ramp(step: int) -> float:
    """0.5 at the start, 1 at step 100, 1.25 from step 150 on."""
    return min(0.5 + step / 200, 1.25)


def thrown(step: int) -> float:
    """1, 2, 3, then back below 1 at step 3 and falling."""
    return (1.0, 2.0, 3.0)[step] if step < 3 else 0.5 * 0.99**step


RUNS: dict[str, tuple[Series, Series]] = {
    "edge with pauses": (
        lambda step: 1.05 if step % 230 < 10 else 0.9,
        lambda step: oscillating(step) if step % 230 < 30 else falling(step),
    ),
    "catapult": (lambda step: 3.0 if step < 13 else ramp(step), thrown),
    "above and staying": (lambda _: 1.3, lambda step: 1.0 if step == 0 else 0.8 * oscillating(step)),
    "above and down": (lambda step: 2.4 if step < 6 else 0.7, falling),
    "both signs apart": (
        lambda step: 1.0 if 100 <= step <= 110 else 0.9,
        lambda step: oscillating(step) if 108 < step < 120 else falling(step),
    ),
    "sharpening into the edge": (ramp, lambda step: oscillating(step) if step > 120 else falling(step)),
}
