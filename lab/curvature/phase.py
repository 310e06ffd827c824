"""Which phase of training is this? What the rule of `lab.curvature.edge` says, and beside it what the ratios show.

The ratio is sharpness / threshold, 1 where the quadratic model of the loss turns unstable. A measurement that is neither in
a catapult nor at the edge is above the edge if the run has never come down to it; else the ratio is growing (progressive
sharpening), or the data are fitted before the edge was reached, or nothing happens below the edge.

Few measurements are no phase: none is reported, divergence aside, unless `FEWEST` of them lie in the window it speaks of,
the time since the edge was entered or the last half of what was measured.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lab.curvature.edge import WINDOW, EdgeRule, LossSeries, Phase

RISING = 0.02
"""Relative growth of the ratio over the last five measurements that counts as sharpening."""
FITTED = 0.01
"""Loss over initial loss below which the data count as interpolated."""
FEWEST = 5
"""Measurements in the window that a phase speaks of, at least."""


class PhaseTracker:
    """Given the loss of every step and the ratio of every measurement, it knows the present phase and the history.

    stochastic: the losses are those of mini-batches, or of augmented examples. `phase` is None as long as too few ratios
    were measured for one, as under an optimiser whose threshold is not known; `changes` and `entry_step` are what would
    be reported. In `changes` the edge and a catapult begin at their own step, known at the measurement that follows; every
    other phase begins at the measurement that shows it.

    >>> tracker = PhaseTracker()
    >>> for step in range(100):
    ...     phase = tracker.add_ratio(step, 0.5 + 0.004 * step) if step % 5 == 0 else None
    ...     tracker.add_loss(step, 0.99**step)
    >>> str(tracker.phase), tracker.entry_step
    ('progressive sharpening', None)
    """

    def __init__(self, *, stochastic: bool = False):
        self.stochastic = stochastic
        self.ratios: list[tuple[int, float]] = []
        self.changes: list[tuple[int, Phase]] = []
        self._losses = LossSeries(stochastic)
        self.losses = self._losses.values
        self._edge = EdgeRule(self._losses, stochastic)

    @property
    def entry_step(self) -> int | None:
        """The first step at the edge."""
        return self._edge.entry_step

    def add_loss(self, step: int, loss: float) -> None:
        """The loss of the update `step`, in order and without gaps."""
        self._losses.add(step, loss)

    def add_ratio(self, step: int, ratio: float) -> Phase | None:
        """sharpness / threshold measured before update `step`; returns the phase, None where there is none.

        A ratio that is not finite, or of a step that is known, changes nothing, and None is returned.
        """
        if not math.isfinite(ratio) or (self.ratios and step <= self.ratios[-1][0]):
            return None
        if not self.ratios:
            self._edge.begin([ratio])
        before = self.ratios[-1] if self.ratios else (step, ratio)
        self.ratios.append((step, ratio))
        for s in range(before[0] + 1, step + 1):
            phase = self._edge.advance(s, before[1] + (ratio - before[1]) * (s - before[0]) / (step - before[0]))
            if phase is not None:
                self._become(s, phase)
        self._become(step, self._judge(step))
        return self.phase

    def diverged(self, step: int) -> Phase:
        """The run ended at `step` because loss or weights left the finite."""
        self._become(step, Phase.DIVERGED)
        return Phase.DIVERGED

    @property
    def phase(self) -> Phase | None:
        """The present phase; None where too little was measured for one."""
        changes = self._reported()
        return changes[-1][1] if changes else None

    @property
    def ratio(self) -> float:
        """The last ratio; NaN before the first measurement."""
        return self.ratios[-1][1] if self.ratios else math.nan

    def summary(self) -> dict[str, Any]:
        """What `summary.json` says of the run; None where there is nothing to say.

        crossing_step is where the ratio first came up to 1 from below, entry_step where the edge of stability began by the
        rule above: the first "edge of stability" of phases has that step. level is the mean of the measurements (there are
        level_measurements) over the last half of the run, or since the entry into the edge where that came later and there
        are `FEWEST` since.
        """
        crossing, changes, losses = crossing_step(self.ratios), self._reported(), self.losses
        since, level = self._window()
        ratios = [ratio for _, ratio in self.ratios]
        return {
            "phase": str(changes[-1][1]) if changes else None,
            "phases": [[step, str(phase)] for step, phase in changes],
            "crossing_step": crossing,
            "entry_step": self.entry_step if len(level) >= FEWEST else None,
            "overshoot": None if crossing is None else max(r for s, r in self.ratios if s >= crossing),
            "level_since": math.ceil(since) if level else None,
            "level": sum(level) / len(level) if level else None,
            "level_low": min(level, default=None),
            "level_high": max(level, default=None),
            "level_measurements": len(level) or None,
            "first_ratio": ratios[0] if ratios else None,
            "last_ratio": ratios[-1] if ratios else None,
            "max_ratio": max(ratios, default=None),
            "loss_rises": self._losses.share_of_rises(len(losses) // 2) if losses else None,
            "first_loss": losses[0] if losses else None,
            "last_loss": losses[-1] if losses else None,
        }

    def _window(self) -> tuple[float, list[float]]:
        """The step since which the summary holds, and the ratios since then."""
        half = (self.ratios[0][0] + self.ratios[-1][0]) / 2 if self.ratios else 0.0
        since = max(half, self.entry_step or 0)
        late = [ratio for step, ratio in self.ratios if step >= since]
        return (since, late) if len(late) >= FEWEST else (half, [ratio for step, ratio in self.ratios if step >= half])

    def _reported(self) -> list[tuple[int, Phase]]:
        """The changes, where enough was measured; else divergence alone."""
        few = len(self._window()[1]) < FEWEST
        return [(step, phase) for step, phase in self.changes if not few or phase == Phase.DIVERGED]

    def _judge(self, step: int) -> Phase:
        """The phase at a measurement."""
        if self._edge.in_catapult(step):
            return Phase.CATAPULT
        if self._edge.at_edge:
            return Phase.EDGE
        if self._edge.from_above:
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
        edge, entry = self._edge, -1 if self.entry_step is None else self.entry_step
        return {
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "ratios": torch.tensor(self.ratios, dtype=torch.float64).reshape(-1, 2),
            "changes": torch.tensor([(step, phase.code) for step, phase in self.changes]).long().reshape(-1, 2),
            "marks": torch.tensor([self._losses.first_step, edge.at_edge, entry, edge.last_above, edge.last_sign]),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """As it was when `state_dict` was called."""
        self.__init__(stochastic=self.stochastic)  # type: ignore[misc]
        first_step, at_edge, entry, self._edge.last_above, self._edge.last_sign = state["marks"].tolist()
        for i, loss in enumerate(state["losses"].tolist()):
            self.add_loss(first_step + i, loss)
        self.ratios = [(int(step), ratio) for step, ratio in state["ratios"].tolist()]
        self.changes = [(step, list(Phase)[code]) for step, code in state["changes"].tolist()]
        self._edge.at_edge, self._edge.entry_step = bool(at_edge), None if entry < 0 else entry
        if self.ratios:
            self._edge.begin([ratio for _, ratio in self.ratios])


def crossing_step(ratios: Sequence[tuple[int, float]]) -> int | None:
    """The first step at which the ratio, interpolated between (step, ratio), comes up to 1 from below.

    >>> crossing_step([(0, 0.5), (10, 1.5)])
    5
    """
    for (s0, r0), (s1, r1) in pairwise(ratios):
        if r0 < 1 <= r1:
            return round(s0 + (1 - r0) / (r1 - r0) * (s1 - s0))
    return None


def rhythm(steps: int) -> int | None:
    """Steps between measurements, odd, with which a run of `steps` has a phase; None where it is too short for any.

    The last half, less one step between measurements where nothing is known at the first, holds `FEWEST` of them.
    """
    every = steps // (2 * FEWEST - 1)
    return (every - 1) // 2 * 2 + 1 if every else None
