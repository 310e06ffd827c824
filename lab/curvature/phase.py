"""Which phase of training is this? A judgement from two series: the loss of every step, and sharpness / threshold.

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

Few measurements are no phase: none is told, divergence aside, unless `FEWEST` of them lie in the window it speaks of, the
time since the edge was entered or the last half of what was measured.

Cohen et al. 2021 (arXiv 2103.00065); Lewkowycz et al. 2020 (arXiv 2003.02218) for the catapult.
"""

import math
from collections.abc import Mapping
from enum import StrEnum
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

WINDOW = 20
"""Steps over which the rises of the loss are counted."""
RISES = 0.1
"""Share of rising steps that counts as oscillation."""
RISING = 0.02
"""Relative growth of the ratio over the last five measurements that counts as sharpening."""
QUIET = 200
"""Steps without a sign of the edge after which a full-batch run has left it."""
FAR = 0.8
"""Ratio below which a full-batch run whose loss does not oscillate has left the edge at once."""
FITTED = 0.01
"""Loss over initial loss below which the data count as interpolated."""
STOCHASTIC_EXIT = 0.9
"""Ratio below which a mini-batch run has left the edge."""
THROWN = 1.5
"""Loss over initial loss that is a catapult with mini-batches, whose losses scatter; on the full batch any rise is."""
FEWEST = 5
"""Measurements in the window that a phase speaks of, at least."""
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


class PhaseTracker:
    """Fed with the loss of every step and the ratio of every measurement, it knows the present phase and the history.

    stochastic: the losses are those of mini-batches, or of augmented examples. `phase` is None as long as too few ratios
    were measured to tell one, as under an optimiser whose threshold is not known; `changes` and `entry_step` are what would
    be told. In `changes` the edge and a catapult begin at their own step, known at the measurement that follows; every other
    phase begins at the measurement that shows it.
    """

    def __init__(self, *, stochastic: bool = False):
        self.stochastic = stochastic
        self.losses: list[float] = []
        self.ratios: list[tuple[int, float]] = []
        self.changes: list[tuple[int, Phase]] = []
        self.entry_step: int | None = None
        self._first_step = 0
        self._at_edge = False
        self._from_above = False  # at or above 1 ever since the first measurement
        self._last_above = self._last_sign = NEVER
        self._thrown = self._back = math.inf  # of a catapult: first step above the initial loss, first below it again
        self._throw = THROWN if stochastic else 1.0

    def add_loss(self, step: int, loss: float) -> None:
        """The loss of the update `step`, in order and without gaps."""
        if not self.losses:
            self._first_step = step
        self.losses.append(loss)
        if self._thrown == math.inf and len(self.losses) <= 1 + WINDOW and loss > self.losses[0] * self._throw:
            self._thrown = step
        elif self._thrown < step < self._back and loss < self.losses[0]:
            self._back = step

    def add_ratio(self, step: int, ratio: float) -> Phase | None:
        """sharpness / threshold measured before update `step`; returns the phase, None where it cannot be told.

        A ratio that is not finite, or of a step that is known, changes nothing, and None is returned.
        """
        if not math.isfinite(ratio) or (self.ratios and step <= self.ratios[-1][0]):
            return None
        if not self.ratios:
            self._from_above = ratio >= 1
        before = self.ratios[-1] if self.ratios else (step, ratio)
        self.ratios.append((step, ratio))
        for s in range(before[0] + 1, step + 1):
            self._advance(s, before[1] + (ratio - before[1]) * (s - before[0]) / (step - before[0]))
        self._become(step, self._judge(step))
        return self.phase

    def diverged(self, step: int) -> Phase:
        """The run ended at `step` because loss or weights left the finite."""
        self._become(step, Phase.DIVERGED)
        return Phase.DIVERGED

    @property
    def phase(self) -> Phase | None:
        """The present phase; None where it cannot be told."""
        told = self._told()
        return told[-1][1] if told else None

    @property
    def ratio(self) -> float:
        """The last ratio; NaN before the first measurement."""
        return self.ratios[-1][1] if self.ratios else math.nan

    def rises(self, steps: int) -> float:
        """Share of the last `steps` steps whose loss is above that of the step before."""
        window = self.losses[-steps - 1 :]
        return sum(b > a for a, b in pairwise(window)) / max(1, len(window) - 1)

    def crossing_step(self) -> int | None:
        """The first step at which the interpolated ratio comes up to 1 from below."""
        for (s0, r0), (s1, r1) in pairwise(self.ratios):
            if r0 < 1 <= r1:
                return round(s0 + (1 - r0) / (r1 - r0) * (s1 - s0))
        return None

    def summary(self) -> dict[str, Any]:
        """What `summary.json` says of the run; None where there is nothing to say.

        crossing_step is where the ratio first came up to 1 from below, entry_step where the edge of stability began by the
        rule above: the first "edge of stability" of phases has that step. level is the mean of the measurements (there are
        level_measurements) over the last half of the run, or since the entry into the edge where that came later and there
        are `FEWEST` since.
        """
        crossing, told = self.crossing_step(), self._told()
        since, level = self._window()
        return {
            "phase": str(told[-1][1]) if told else None,
            "phases": [[step, str(phase)] for step, phase in told],
            "crossing_step": crossing,
            "entry_step": self.entry_step if len(level) >= FEWEST else None,
            "overshoot": None if crossing is None else max(r for s, r in self.ratios if s >= crossing),
            "level_since": math.ceil(since) if level else None,
            "level": sum(level) / len(level) if level else None,
            "level_low": min(level, default=None),
            "level_high": max(level, default=None),
            "level_measurements": len(level) or None,
            "first_ratio": self.ratios[0][1] if self.ratios else None,
            "last_ratio": self.ratios[-1][1] if self.ratios else None,
            "max_ratio": max((r for _, r in self.ratios), default=None),
            "loss_rises": self.rises(len(self.losses) // 2) if self.losses else None,
            "first_loss": self.losses[0] if self.losses else None,
            "last_loss": self.losses[-1] if self.losses else None,
        }

    def _window(self) -> tuple[float, list[float]]:
        """The step since which the run is told, and the ratios since then."""
        half = (self.ratios[0][0] + self.ratios[-1][0]) / 2 if self.ratios else 0.0
        since = max(half, self.entry_step or 0)
        late = [ratio for step, ratio in self.ratios if step >= since]
        return (since, late) if len(late) >= FEWEST else (half, [ratio for step, ratio in self.ratios if step >= half])

    def _told(self) -> list[tuple[int, Phase]]:
        """The changes, where enough was measured; else divergence alone."""
        few = len(self._window()[1]) < FEWEST
        return [(step, phase) for step, phase in self.changes if not few or phase == Phase.DIVERGED]

    def _advance(self, step: int, ratio: float) -> None:
        """One step of the rule: enter and leave the edge."""
        self._from_above = self._from_above and ratio >= 1
        if self._in_catapult(step):
            self._become(step, Phase.CATAPULT)
            return
        if self.stochastic:
            self._at_edge = ratio >= (STOCHASTIC_EXIT if self._at_edge else 1.0) and not self._from_above
        else:
            self._at_edge = self._signs_of_the_edge(step, ratio)
        if self._at_edge:
            self._become(step, Phase.EDGE)
            if self.entry_step is None:
                self.entry_step = step

    def _signs_of_the_edge(self, step: int, ratio: float) -> bool:
        calm = self._back if self.ratios[0][1] > 1 and self._back < step else self._first_step
        oscillates = self._rises_before(step, calm) > RISES * WINDOW
        if ratio >= 1 and (not self._from_above or step - calm >= WINDOW):
            self._last_above = step
        if ratio >= 1 or oscillates:
            self._last_sign = step
        if self._at_edge:
            return oscillates or (ratio >= FAR and step - self._last_sign < QUIET)
        return oscillates and step - self._last_above < WINDOW

    def _rises_before(self, step: int, since: float) -> int:
        """How many of the last WINDOW losses before update `step`, none older than that of `since`, were a rise."""
        end = max(0, step - self._first_step)
        begin = max(0, end - WINDOW - 1, int(since) - self._first_step)
        return sum(b > a for a, b in pairwise(self.losses[begin:end]))

    def _in_catapult(self, step: int) -> bool:
        return self.ratios[0][1] > 1 and self._thrown < step <= self._back

    def _judge(self, step: int) -> Phase:
        if self._in_catapult(step):
            return Phase.CATAPULT
        if self._at_edge:
            return Phase.EDGE
        if self._from_above:
            return Phase.ABOVE
        window = [ratio for _, ratio in self.ratios[-5:]]
        rising = window[-1] > (1 + RISING) * window[0] or window[-1] >= 1
        if rising and len(window) > 1:
            return Phase.SHARPENING
        recent = self.losses[-WINDOW:]
        fitted = bool(recent) and sum(recent) / len(recent) < FITTED * self.losses[0]
        return Phase.INTERPOLATED if fitted and self.entry_step is None else Phase.BELOW

    def _become(self, step: int, phase: Phase) -> None:
        if not self.changes or phase != self.changes[-1][1]:
            self.changes.append((step, phase))

    def state_dict(self) -> dict[str, Tensor]:
        """Everything as tensors, for a checkpoint."""
        return {
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "ratios": torch.tensor(self.ratios, dtype=torch.float64).reshape(-1, 2),
            "changes": torch.tensor([(step, phase.code) for step, phase in self.changes]).long().reshape(-1, 2),
            "marks": torch.tensor(
                [
                    self._first_step,
                    self._at_edge,
                    -1 if self.entry_step is None else self.entry_step,
                    self._last_above,
                    self._last_sign,
                ]
            ),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._first_step, at_edge, entry, self._last_above, self._last_sign = state["marks"].tolist()
        self.losses, self._thrown, self._back = [], math.inf, math.inf
        for i, loss in enumerate(state["losses"].tolist()):
            self.add_loss(self._first_step + i, loss)
        self.ratios = [(int(step), ratio) for step, ratio in state["ratios"].tolist()]
        self.changes = [(step, list(Phase)[code]) for step, code in state["changes"].tolist()]
        self._at_edge, self.entry_step = bool(at_edge), None if entry < 0 else entry
        self._from_above = bool(self.ratios) and all(ratio >= 1 for _, ratio in self.ratios)


def rhythm(steps: int) -> int | None:
    """Steps between measurements, odd, with which a run of `steps` has a phase; None where it is too short for any.

    The last half, less one step between measurements where nothing is known at the first, holds `FEWEST` of them.
    """
    every = steps // (2 * FEWEST - 1)
    return (every - 1) // 2 * 2 + 1 if every else None
