"""What the probes have measured so far in a run, and the phase that follows from it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lab.callbacks.budgeting import costs_of
from lab.callbacks.clipping import Clipping
from lab.callbacks.dashboard import show_figure
from lab.callbacks.metrics import MetricsLogger
from lab.curvature.phase import PhaseTracker
from lab.curvature.stability import UpdateRule
from lab.objective import Audit, BatchesObjective, NetworkObjective
from lab.probes.attempt import Failures
from lab.probes.base import Examples, Probe
from lab.probes.bench import Bench
from lab.probes.budget import Budget

DOUBT = 0.1
"""Relative error of the sharpness beyond which no phase is told by it."""


class Probing:
    """Probes on the snapshots of a bench: the last values, the failures, the phase. `ProbeCallback` says when.

    refuses  whether what cannot be measured at all at step 0 (`lab.probes.attempt.REFUSALS`) is raised.
    budget   what measurements may take; None: what they take.
    """

    def __init__(
        self, probes: Sequence[Probe], bench: Bench, *, stochastic: bool, refuses: bool, budget: Budget | None = None
    ):
        self.probes, self.bench, self.refuses = list(probes), bench, refuses
        self.tracker, self.clipping, self.failures = PhaseTracker(stochastic=stochastic), Clipping(), Failures()
        self.formula, self.doubt, self.costs = "the threshold", "", costs_of(bench, budget)
        self._parts: dict[str, Any] = {"live": bench.live, "clipping": self.clipping, "failures": self.failures}
        self._parts |= {"audit": bench.audited, "costs": self.costs}
        self._latest: dict[str, float] = {}
        self._waiting: tuple[int, dict[str, Any], UpdateRule | None] | None = None
        self._said: set[str] = set()

    @property
    def latest(self) -> Mapping[str, float]:
        """The last value of every tag."""
        return self._latest

    def note(self, values: Mapping[str, float]) -> None:
        """Values of the present step; one that is not finite was not measured, and takes the last one away."""
        kept = {tag: value for tag, value in self._latest.items() if tag not in values}
        self._latest = kept | {tag: float(value) for tag, value in values.items() if math.isfinite(value)}

    def objective(self, examples: Examples) -> NetworkObjective | BatchesObjective:
        """The loss on the fixed, class-balanced probe set of a size."""
        return self.bench.objective(examples)

    def due(self, step: int) -> bool:
        """Whether any probe wants the snapshot of `step`."""
        return any(probe.due(step) for probe in self.failures.heard(self.probes))

    def measure(
        self,
        loggers: Sequence[Logger],
        step: int,
        probes: Sequence[Probe],
        batch: Tensor | None,
        *,
        ended: bool = False,
    ) -> None:
        """These probes on one snapshot, whose mini-batch has the examples `batch`, then the phase."""
        ratio = self.latest.get("sharpness/ratio", math.nan)
        if not (probes := list(probes) if ended else self.costs.wanted(probes, step, ratio=ratio)):
            return
        begin = self.costs.clock()
        self.judge(loggers)
        if not self._follow(step):
            return
        snapshot = self.bench.still(step, batch=batch, ended=ended)
        if not (probes := self.costs.foretell(probes, snapshot)):
            return
        values, failures = self.bench.measure(probes, snapshot, lambda probe: self.costs.around(probe, snapshot))
        for failure in failures:
            self.say(self.failures.note(failure, self.latest, refuses=self.refuses))
        self._log(loggers, step, values | _heard(self.bench.audited.told()))
        self.costs.made(probes, values, snapshot, self.costs.clock() - begin)
        self._waiting, self.known_loss = (step, values, snapshot.rule), snapshot.known_loss("auto")
        if not self.clipping.watched:
            self.judge(loggers)

    def _follow(self, step: int) -> bool:
        """See which weights are trained and move now, and forget what is known of others. Whether there are any."""
        live, before = self.bench.live, self.bench.live.params
        if self.bench.follow():
            for probe in self.probes:
                probe.load_state_dict({})
            self.note(dict.fromkeys((tag for tag in self._latest if "sharpness/" in tag), math.nan))
            rank_zero_warn(
                f"step {step}: the weights that are trained, or move, are others than before ({_size(before)}, now "
                f"{_size(live.params)} trained): measured anew, and the memories of the probes begin anew"
            )
        for text in live.remarks:
            self.say(text)
        return bool(live.params)

    def say(self, text: str) -> None:
        """A warning, once; "" is none."""
        if text and text not in self._said:
            self._said.add(text)
            rank_zero_warn(text)

    def judge(self, loggers: Sequence[Logger]) -> None:
        """The phase, once it is known what clipping left of the step that was measured; where nothing clips, at once."""
        if self._waiting is None:
            return
        (step, measured, rule), self._waiting = self._waiting, None
        values, ratio = self.clipping.judged(rule and rule.moving, measured.get("sharpness/ratio", math.nan))
        if rule is not None:
            self.formula = self.clipping.formula(rule.moving.formula)
        self.say(self.clipping.told)
        if doubt := in_doubt(measured):
            self.say("" if self.doubt else f"no phase is told: {doubt}")
            ratio, self.doubt = math.nan, doubt
        if values:
            self._log(loggers, step, values)
        if (phase := self.tracker.add_ratio(step, ratio)) is not None:
            self._log(loggers, step, {"sharpness/phase": float(phase.code)})

    def _log(self, loggers: Sequence[Logger], step: int, values: Mapping[str, Any]) -> None:
        numbers, figures, arrays = _apart(values)
        self.note(numbers)
        scalars = {tag: self._latest[tag] for tag in numbers if tag in self._latest}
        for logger in loggers:
            _hand_over(logger, step, scalars, figures, arrays)

    def summary(self) -> dict[str, Any]:
        """Phase, entry step, overshoot, level ... of the run so far, and what they are measured in.

        The phase is None where no ratio was measured, as where no threshold is known (no_threshold: why). left_out: the
        weights that do not move, in a sentence; clipped: the share of steps on clipped gradients; None: nothing to say.
        """
        compared = [tag for tag in ("sharpness/preconditioned", "sharpness/moved") if tag in self._latest]
        audit = self.bench.audited.found
        return self.tracker.summary() | {
            "quantity": compared[0] if compared else "sharpness/lambda_max",
            "threshold_formula": self.formula,
            "left_out": self.bench.live.left_out or None,
            "no_threshold": self.bench.live.refusal or self.doubt or None,
            "clipped": self.clipping.share,
            "failed_probes": self.failures.counts,
            "audit": audit.sentence() if audit else None,
        }

    def notes(self) -> list[str]:
        """What there is to know of the measured loss, in sentences."""
        audit = self.bench.audited.found
        return [f"The measured loss: {note}." for note in (audit.notes if audit else ())] + self.costs.notes()

    def known(self) -> dict[str, Any]:
        """What has been measured so far, and the memory of the probes, as tensors and plain values."""
        return {
            "phase": self.tracker.state_dict(),
            "latest": dict(self._latest),
            "formula": self.formula,
            **{name: part.state_dict() for name, part in self._parts.items()},
            "probes": {type(probe).__name__: probe.state_dict() for probe in self.probes},
        }

    def recall(self, state: Mapping[str, Any]) -> None:
        """Take it back, the memory of the probes aside."""
        self.tracker.load_state_dict(state["phase"])
        self._latest, self.formula = state["latest"], state["formula"]
        for name, part in self._parts.items():
            part.load_state_dict(state.get(name, {}))


def in_doubt(measured: Mapping[str, Any]) -> str:
    """Why the ratio of a measurement tells no phase: its error is more than `DOUBT` of it; "" where it does."""
    name = next((n for n in ("preconditioned", "moved", "lambda_max") if f"sharpness/{n}" in measured), "")
    value, error = (measured.get(f"{head}sharpness/{name}", math.nan) for head in ("", "error/"))
    if not (isinstance(value, float) and isinstance(error, float) and DOUBT * abs(value) < error < math.inf):
        return ""
    return (
        f"lambda_max is {value:.3g} +- {error:.2g} on {measured.get('cost/sharpness/examples', math.nan):.0f} examples, "
        "which says too little; a larger budget, or none, measures more of them"
    )


def _heard(audit: Audit | None) -> dict[str, float]:
    """The numbers of an audit, where there is one to tell of."""
    for note in audit.notes if audit else ():
        tell = rank_zero_warn if "could not decide" in note else rank_zero_info
        tell(f"the measured loss: {note}")
    return audit.numbers() if audit else {}


def _apart(values: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, Figure], dict[str, Tensor]]:
    """Numbers, figures and arrays."""
    figures = {tag: value for tag, value in values.items() if isinstance(value, Figure)}
    arrays = {tag: value for tag, value in values.items() if isinstance(value, Tensor)}
    return {tag: value for tag, value in values.items() if tag not in figures | arrays}, figures, arrays


def _hand_over(
    logger: Logger, step: int, scalars: dict[str, float], figures: dict[str, Figure], arrays: dict[str, Tensor]
) -> None:
    if scalars:
        logger.log_metrics(scalars, step=step)
    for tag, figure in figures.items():
        show_figure(logger, tag, figure, step)
    if isinstance(logger, MetricsLogger):
        logger.log_others(arrays, figures, step)


def _size(params: Sequence[Tensor]) -> int:
    return sum(p.numel() for p in params)
