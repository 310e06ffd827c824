"""When is training at the edge of stability? A rule on two series: the loss of every step, and sharpness / threshold.

The edge of stability is entered at the first step at which, within the last 20 steps, the ratio (interpolated between
measurements) was at least 1 AND the loss rose on more than 10 % of them. Either sign alone is early: a ratio of 1 is
reached before the oscillation has grown, and the loss of momentum rises at the start. They need not meet at one step:
the oscillation itself takes the ratio down, under Adam before a tenth of the steps has risen. Of the full-batch runs of
tests/test_edge_facts.py all that cross are found and no control is.

It is left again, for the sharpness of ReLU networks and of cross entropy can come down, when neither sign was seen for
200 steps, or at once when the loss is calm and the ratio below 0.8. Not sooner: life at the edge is a cycle of bursts
and of climbs back to 1, which lasted 143 steps at most in the runs looked at (Adam; Nesterov 137, gradient descent 29).

A run that begins at or above 1 is above the edge until it comes down. It has not reached the edge from there by falling
towards it: it enters when it has been below 1 and has come up again, or when it stays, that is when it was not thrown and
shows both signs 20 steps later. A catapult is the start of such a run that throws the loss above its initial value, until
the loss is back below it. That may take three steps, so it is read off the losses and dated by them, not by the
measurements; its rises are none of the edge.

With mini-batches the loss of a step says nothing about stability (it rises on half of all steps), so the ratio decides:
the edge is entered by coming up to 1 from below, and by nothing else.

Why these signs: along an eigenvector of curvature h gradient descent multiplies the error by 1 - lr h at every step. Above
h = 2/lr, where the ratio passes 1, it changes sign and grows, and lets the loss rise as soon as that direction dominates;
what is left of the descent and the higher orders let it fall again. Cohen et al. 2021 (arXiv 2103.00065); Lewkowycz et al.
2020 (arXiv 2003.02218) for the catapult.
"""

import math
from collections.abc import Sequence
from enum import StrEnum
from itertools import pairwise

WINDOW = 20
"""Steps over which the rises of the loss are counted."""
RISES = 0.1
"""Share of rising steps that counts as oscillation."""
QUIET = 200
"""Steps without a sign of the edge after which a full-batch run has left it."""
FAR = 0.8
"""Ratio below which a full-batch run whose loss does not oscillate has left the edge at once."""
STOCHASTIC_EXIT = 0.9
"""Ratio below which a mini-batch run has left the edge."""
THROWN = 1.5
"""Loss over initial loss that is a catapult with mini-batches, whose losses scatter; on the full batch any rise is."""
NEVER = -(10**9)
"""The step of what has not happened yet."""


class Phase(StrEnum):
    """The phases of a run, as they are written to the logs."""

    BELOW = "below the edge"
    SHARPENING = "progressive sharpening"
    EDGE = "edge of stability"
    CATAPULT = "catapult"
    INTERPOLATED = "interpolated before the edge"
    DIVERGED = "diverged"
    ABOVE = "above the edge"

    @property
    def code(self) -> int:
        """The number logged as `sharpness/phase`: 0 to 6 in the order above."""
        return list(Phase).index(self)


class LossSeries:
    """The loss of every step: how often it rose, and whether it was thrown above its first value and came back."""

    def __init__(self, stochastic: bool):
        self.values: list[float] = []
        self.first_step = 0
        self.thrown = self.back = math.inf  # first step above the initial loss, first one below it again
        self._throw = THROWN if stochastic else 1.0

    def add(self, step: int, loss: float) -> None:
        """The loss of the next step; that of one that is known changes nothing."""
        if not self.values:
            self.first_step = step
        elif step < self.first_step + len(self.values):
            return
        self.values.append(loss)
        if self.thrown == math.inf and len(self.values) <= 1 + WINDOW and loss > self.values[0] * self._throw:
            self.thrown = step
        elif self.thrown < step < self.back and loss < self.values[0]:
            self.back = step

    def share_of_rises(self, steps: int) -> float:
        """Share of the last `steps` steps whose loss is above that of the step before."""
        window = self.values[-steps - 1 :]
        return sum(b > a for a, b in pairwise(window)) / max(1, len(window) - 1)

    def rises_before(self, step: int, since: float) -> int:
        """How many of the last WINDOW losses before update `step`, none older than that of `since`, were a rise."""
        end = max(0, step - self.first_step)
        begin = max(0, end - WINDOW - 1, int(since) - self.first_step)
        return sum(b > a for a, b in pairwise(self.values[begin:end]))


class EdgeRule:
    """Whether a run is at the edge, or in a catapult, update by update: the rule at the head of this file.

    >>> losses = LossSeries(stochastic=True)  # whose rises say nothing
    >>> rule = EdgeRule(losses, stochastic=True)
    >>> rule.begin([0.5])
    >>> [str(rule.advance(step, ratio)) for step, ratio in enumerate([0.9, 1.01, 0.95, 0.89])]
    ['None', 'edge of stability', 'edge of stability', 'None']
    """

    def __init__(self, losses: LossSeries, stochastic: bool):
        self.losses, self.stochastic = losses, stochastic
        self.entry_step: int | None = None
        self.at_edge = False
        self.began_above = False  # the first ratio was above 1
        self.from_above = False  # at or above 1 ever since the first ratio
        self.last_above = self.last_sign = NEVER

    def begin(self, ratios: Sequence[float]) -> None:
        """The ratios measured so far, the first one at least."""
        self.began_above, self.from_above = ratios[0] > 1, all(ratio >= 1 for ratio in ratios)

    def in_catapult(self, step: int) -> bool:
        return self.began_above and self.losses.thrown < step <= self.losses.back

    def advance(self, step: int, ratio: float) -> Phase | None:
        """The phase in which update `step` is made, as far as this rule says: catapult, edge, or None."""
        self.from_above = self.from_above and ratio >= 1
        if self.in_catapult(step):
            return Phase.CATAPULT
        if self.stochastic:
            self.at_edge = ratio >= (STOCHASTIC_EXIT if self.at_edge else 1.0) and not self.from_above
        else:
            self.at_edge = self._shows_edge(step, ratio)
        if not self.at_edge:
            return None
        if self.entry_step is None:
            self.entry_step = step
        return Phase.EDGE

    def _shows_edge(self, step: int, ratio: float) -> bool:
        landed = self.began_above and self.losses.back < step
        calm = self.losses.back if landed else self.losses.first_step
        oscillates = self.losses.rises_before(step, calm) > RISES * WINDOW
        if ratio >= 1 and (not self.from_above or step - calm >= WINDOW):
            self.last_above = step
        if ratio >= 1 or oscillates:
            self.last_sign = step
        if self.at_edge:
            return oscillates or (ratio >= FAR and step - self.last_sign < QUIET)
        return oscillates and step - self.last_above < WINDOW
