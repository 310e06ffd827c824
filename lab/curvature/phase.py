"""Which phase of training is this? A judgement from two series: the loss of every step, and sharpness / threshold.

The edge of stability is entered at the first step at which the ratio, interpolated between measurements, is at least 1
AND the loss rose on more than 10 % of the last 20 steps. Either sign alone is early: a ratio of 1 is reached before the
oscillation has grown, and the loss of momentum rises at the start. It is left again when both signs are gone, for the
sharpness of ReLU networks and of cross entropy can come down. Evaluated on 24 full-batch runs: 19 of 19 that cross are
found, none of 5 controls is.

With mini-batches the loss of a step says nothing about stability (it rises on half of all steps), so the ratio decides.
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
FITTED = 0.01
"""Loss over initial loss below which the data count as interpolated."""
STOCHASTIC_EXIT = 0.9
"""Ratio below which a mini-batch run has left the edge."""


class Phase(StrEnum):
    """The phases of a run, as they are written to the logs."""

    BELOW = "below the edge"
    SHARPENING = "progressive sharpening"
    EDGE = "edge of stability"
    CATAPULT = "catapult"
    INTERPOLATED = "interpolated before the edge"
    DIVERGED = "diverged"

    @property
    def code(self) -> int:
        """The number logged as `sharpness/phase`: 0 to 5 in the order above."""
        return list(Phase).index(self)


class PhaseTracker:
    """Fed with the loss of every step and the ratio of every measurement, it knows the present phase and the history.

    stochastic: the losses are those of mini-batches.
    """

    def __init__(self, *, stochastic: bool = False):
        self.stochastic = stochastic
        self.phase = Phase.BELOW
        self.losses: list[float] = []
        self.ratios: list[tuple[int, float]] = []
        self.changes: list[tuple[int, Phase]] = []
        self.entry_step: int | None = None
        self._first_step = 0
        self._at_edge = False

    def add_loss(self, step: int, loss: float) -> None:
        """The loss of the update `step`, in order and without gaps."""
        if not self.losses:
            self._first_step = step
        self.losses.append(loss)

    def add_ratio(self, step: int, ratio: float) -> Phase:
        """sharpness / threshold measured before update `step`; returns the phase it makes."""
        if not math.isfinite(ratio):
            return self.phase
        before = self.ratios[-1] if self.ratios else (step, ratio)
        self.ratios.append((step, ratio))
        for s in range(before[0] + 1, step + 1):
            self._advance(s, before[1] + (ratio - before[1]) * (s - before[0]) / (step - before[0]))
        return self._become(step, self._judge())

    def diverged(self, step: int) -> Phase:
        """The run ended at `step` because loss or weights left the finite."""
        return self._become(step, Phase.DIVERGED)

    @property
    def ratio(self) -> float:
        """The last ratio; NaN before the first measurement."""
        return self.ratios[-1][1] if self.ratios else math.nan

    def rises(self, steps: int, *, until: int | None = None) -> float:
        """Share of the last `steps` steps (up to and including `until`) whose loss is above that of the step before."""
        end = len(self.losses) if until is None else until - self._first_step + 1
        window = self.losses[max(0, end - steps - 1) : max(0, end)]
        if len(window) < 2:
            return 0.0
        return sum(b > a for a, b in pairwise(window)) / (len(window) - 1)

    def crossing_step(self) -> int | None:
        """The first step at which the interpolated ratio comes up to 1 from below."""
        for (s0, r0), (s1, r1) in pairwise(self.ratios):
            if r0 < 1 <= r1:
                return round(s0 + (1 - r0) / (r1 - r0) * (s1 - s0))
        return None

    def summary(self) -> dict[str, Any]:
        """What `summary.json` says of the run; None where there is nothing to say."""
        crossing = self.crossing_step()
        last_half = [r for s, r in self.ratios if s >= (self.ratios[0][0] + self.ratios[-1][0]) / 2]
        mean = sum(last_half) / len(last_half) if last_half else None
        return {
            "phase": str(self.phase),
            "phases": [[step, str(phase)] for step, phase in self.changes],
            "crossing_step": crossing,
            "entry_step": self.entry_step,
            "overshoot": max((r for s, r in self.ratios if s >= crossing), default=None) if crossing else None,
            "level": mean,
            "level_low": min(last_half, default=None),
            "level_high": max(last_half, default=None),
            "first_ratio": self.ratios[0][1] if self.ratios else None,
            "last_ratio": self.ratios[-1][1] if self.ratios else None,
            "max_ratio": max((r for _, r in self.ratios), default=None),
            "loss_rises": self.rises(len(self.losses) // 2) if self.losses else None,
            "first_loss": self.losses[0] if self.losses else None,
            "last_loss": self.losses[-1] if self.losses else None,
        }

    def _advance(self, step: int, ratio: float) -> None:
        """One step of the rule: enter and leave the edge."""
        if self._in_catapult():
            return
        if self.stochastic:
            self._at_edge = ratio >= (STOCHASTIC_EXIT if self._at_edge else 1.0)
        else:
            oscillates = self.rises(WINDOW, until=step - 1) > RISES
            self._at_edge = (ratio >= 1 or oscillates) if self._at_edge else (ratio >= 1 and oscillates)
        if self._at_edge and self.entry_step is None:
            self.entry_step = step

    def _in_catapult(self) -> bool:
        """Started above the edge, threw the loss above its initial value, and it is not back yet."""
        return self.ratios[0][1] > 1 and self._rose_above_start() and min(self.losses[-WINDOW:]) >= self.losses[0]

    def _rose_above_start(self) -> bool:
        return len(self.losses) > 1 and max(self.losses[1 : 1 + WINDOW]) > self.losses[0]

    def _judge(self) -> Phase:
        if self._in_catapult():
            return Phase.CATAPULT
        if self._at_edge:
            return Phase.EDGE
        window = [ratio for _, ratio in self.ratios[-5:]]
        rising = window[-1] > (1 + RISING) * window[0] or window[-1] >= 1
        if rising and len(window) > 1:
            return Phase.SHARPENING
        recent = self.losses[-WINDOW:]
        fitted = bool(recent) and sum(recent) / len(recent) < FITTED * self.losses[0]
        return Phase.INTERPOLATED if fitted and self.entry_step is None else Phase.BELOW

    def _become(self, step: int, phase: Phase) -> Phase:
        if phase != self.phase or not self.changes:
            self.changes.append((step, phase))
        self.phase = phase
        return phase

    def state_dict(self) -> dict[str, Tensor]:
        """Everything as tensors, for a checkpoint."""
        return {
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "ratios": torch.tensor(self.ratios, dtype=torch.float64).reshape(-1, 2),
            "changes": torch.tensor([(step, phase.code) for step, phase in self.changes]).long().reshape(-1, 2),
            "marks": torch.tensor(
                [self._first_step, self._at_edge, -1 if self.entry_step is None else self.entry_step]
            ),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.losses = state["losses"].tolist()
        self.ratios = [(int(step), ratio) for step, ratio in state["ratios"].tolist()]
        self.changes = [(step, list(Phase)[code]) for step, code in state["changes"].tolist()]
        self._first_step, at_edge, entry = state["marks"].tolist()
        self._at_edge, self.entry_step = bool(at_edge), None if entry < 0 else entry
        self.phase = self.changes[-1][1] if self.changes else Phase.BELOW
