"""The one bridge from a Lightning trainer to the probes.

It hands every due probe a snapshot BEFORE the update (`on_train_batch_start`): afterwards the weights are those of t+1
and the batch still that of t. Values go to the loggers with their own step, for `self.log` would move or lose them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lab.callbacks.adapter import adapt
from lab.callbacks.clipping import Clipping
from lab.callbacks.dashboard import show_figure, show_layout
from lab.callbacks.metrics import MetricsLogger
from lab.curvature.phase import PhaseTracker
from lab.curvature.stability import UpdateRule
from lab.objective import NetworkObjective
from lab.optim.live import Live
from lab.params import trainable
from lab.probes.attempt import Failure, Failures
from lab.probes.base import Examples, Probe
from lab.probes.bench import Bench
from lab.sampling import Sampling
from lab.settings import SettingError


class ProbeCallback(pl.Callback):
    """Drives `probes` through a training run, yours or the lab's, and follows the phase of the run.

    probes      e.g. [Sharpness(every=13)].
    criterion   (outputs, targets) -> mean loss: the loss whose landscape is measured.
    data        (x, y), the training examples as tensors; a probe measures on a fixed, class-balanced subset of them.
                Raises TypeError for anything else, ValueError where x and y differ in length.
    model       what maps x to outputs; default: the LightningModule itself.
    stochastic  whether training uses mini-batches; default: yes for a LightningModule of your own.
    batch_norm, chunk_size, batch_size, sampling, seed, audit   as of `lab.probes.bench.Bench`; the batch is by default as
                large as the first that comes.
    refuses     whether what cannot be measured at all at step 0 (`lab.probes.attempt.REFUSALS`) is raised, as a door does.
    Threshold, preconditioner and steps are those of whichever optimiser holds each weight; what is frozen, thawed or added
    in the run is followed. Where gradients are clipped (`lab.callbacks.clipping`), train/clipped is the share of steps so
    far that were; sharpness/clipped_threshold, clipped_ratio are those of the effective rate lr min(1, c/|g|) of the step.
    Training is bit-identical with and without it, and goes on whatever a probe raises: one warning tells it, and the next
    measurement is tried again, unless the first one was refused. Raises ValueError for two probes of one name, and
    where two write one tag. After (and during) training: `tracker`, `latest`, `summary()`.
    """

    def __init__(
        self,
        probes: Sequence[Probe],
        criterion: Callable[[Tensor, Tensor], Tensor],
        data: tuple[Tensor, Tensor],
        *,
        model: nn.Module | None = None,
        batch_norm: Literal["train", "eval"] = "train",
        chunk_size: int | None = None,
        stochastic: bool = True,
        batch_size: int | None = None,
        sampling: Sampling = "epoch",
        seed: int = 0,
        refuses: bool = False,
        audit: bool = True,
    ):
        if twice := [probe.name for i, probe in enumerate(probes) if probe.name in [p.name for p in probes[:i]]]:
            raise ValueError(f"two probes are named {twice[0]}: each writes under its name; leave one out")
        self.probes, self.refuses = list(probes), refuses
        self.bench = Bench(
            model if model is not None else nn.Module(),  # the LightningModule, as the fit begins
            criterion,
            data,
            batch_norm=batch_norm,
            chunk_size=chunk_size,
            batch_size=batch_size,
            sampling=sampling,
            seed=seed,
            audit=audit,
        )
        self.tracker, self.clipping, self.failures = PhaseTracker(stochastic=stochastic), Clipping(), Failures()
        self.formula = "the threshold"
        self._latest: dict[str, float] = {}
        self._whole_module = model is None
        self._measured = -1
        self._waiting: tuple[int, dict[str, Any], UpdateRule | None] | None = None
        self._told: set[str] = set()
        self._saved: dict[str, dict[str, Tensor]] = {}
        self._kept: dict[str, Any] | None = None

    @property
    def latest(self) -> Mapping[str, float]:
        """The last value of every tag."""
        return self._latest

    def note(self, values: Mapping[str, float]) -> None:
        """Values of the present step; one that is not finite was not measured, and takes the last one away."""
        kept = {tag: value for tag, value in self._latest.items() if tag not in values}
        self._latest = kept | {tag: float(value) for tag, value in values.items() if math.isfinite(value)}

    def objective(self, examples: Examples) -> NetworkObjective:
        """The loss on the fixed, class-balanced probe set of a size."""
        return self.bench.objective(examples)

    def due(self, step: int) -> bool:
        """Whether any probe wants the snapshot of `step`."""
        return any(probe.due(step) for probe in self.failures.heard(self.probes))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        bench, self._run = self.bench, adapt(trainer, pl_module)
        if self._whole_module:
            bench.model = pl_module
        bench.place(pl_module.device, next(bench.model.parameters()).dtype)
        for probe in self.probes if trainable(bench.model) else []:
            try:
                bench.require([probe])
            except SettingError as error:
                if self.refuses:
                    raise
                failure = Failure(probe.name, self._run.step, error, "")
                self._say(self.failures.note(failure, {}, refuses=False))
        for probe in self.probes:
            memory = self._saved.get(type(probe).__name__, {})
            probe.load_state_dict({name: tensor.to(pl_module.device) for name, tensor in memory.items()})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._measured, self._kept, self._run = -1, None, adapt(trainer, pl_module)
        self.bench.optimizers = trainer.optimizers
        self.clipping.begin(trainer, pl_module, lambda: self._judge(trainer))
        now = Live()
        now.follow(self.bench.model, trainer.optimizers, lambda: torch.ones(sum(p.numel() for p in now.params)))
        names = [probe.name for probe in self.probes]
        show_layout(trainer.loggers, names, preconditioned=now.rule is not None and not now.rule.moving.plain)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step = self._run.step
        if step == self._measured or not self.due(step):
            return
        self._measured = step
        if self.bench.batch_examples is None and (together := self._run.together(batch)) is not None:
            self.bench.see_together(together)
        with torch.enable_grad():
            self.measure(trainer, step, [probe for probe in self.failures.heard(self.probes) if probe.due(step)])

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self.clipping.see(optimizer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for step, loss in self._run.losses(outputs):
            self.tracker.add_loss(step, loss)
        if self._run.divergence:
            self.tracker.diverged(self._run.step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The probes that wait for the end, unless the run diverged; not those that have just measured this step.

        What is saved from now on is what was known before: a run that goes on from here is the one that never ended.
        """
        self._judge(trainer)  # no step follows: by the factor of the last one
        self._kept, step = self.state_dict(), self._run.step
        last = [
            probe
            for probe in self.failures.heard(self.probes)
            if probe.at_end and not (step == self._measured and probe.due(step))
        ]
        if last and not self._run.divergence:
            with torch.enable_grad():
                self.measure(trainer, step, last, ended=True)
        self._judge(trainer)
        self.clipping.end()

    def measure(self, trainer: pl.Trainer, step: int, probes: Sequence[Probe], *, ended: bool = False) -> None:
        """These probes on one snapshot, then the phase."""
        self._judge(trainer)
        if not self._follow(step):
            return
        snapshot = self.bench.still(step, batch=self._run.batch(step), ended=ended)
        values, failures = self.bench.measure(probes, snapshot)
        for failure in failures:
            self._say(self.failures.note(failure, self.latest, refuses=self.refuses))
        if (audit := self.bench.audited.told()) is not None:
            values |= audit.numbers()
            for note in audit.notes:
                tell = pl.utilities.rank_zero_warn if "could not decide" in note else pl.utilities.rank_zero_info
                tell(f"the measured loss: {note}")
        self._log(trainer, step, values)
        self._waiting = step, values, snapshot.rule
        if not self.clipping.watched:
            self._judge(trainer)

    def _follow(self, step: int) -> bool:
        """See which weights are trained and move now, and forget what is known of others. Whether there are any."""
        live = self.bench.live
        before = live.params
        if self.bench.follow():
            for probe in self.probes:
                probe.load_state_dict({})
            self.note(dict.fromkeys((tag for tag in self._latest if "sharpness/" in tag), math.nan))
            pl.utilities.rank_zero_warn(
                f"step {step}: the weights that are trained, or move, are others than before ({_size(before)}, now "
                f"{_size(live.params)} trained): measured anew, and the memories of the probes begin anew"
            )
        for text in live.remarks:
            self._say(text)
        return bool(live.params)

    def _say(self, text: str) -> None:
        """A warning, once; "" is none."""
        if text and text not in self._told:
            self._told.add(text)
            pl.utilities.rank_zero_warn(text)

    def _judge(self, trainer: pl.Trainer) -> None:
        """The phase, once it is known what clipping left of the step that was measured; where nothing clips, at once."""
        if self._waiting is None:
            return
        step, measured, rule = self._waiting
        self._waiting = None
        values, ratio = self.clipping.judged(rule and rule.moving, measured.get("sharpness/ratio", math.nan))
        if rule is not None:
            self.formula = self.clipping.formula(rule.moving.formula)
        self._say(self.clipping.told)
        if values:
            self._log(trainer, step, values)
        phase = self.tracker.add_ratio(step, ratio)
        if phase is not None:
            self._log(trainer, step, {"sharpness/phase": float(phase.code)})

    def _log(self, trainer: pl.Trainer, step: int, values: dict[str, Any]) -> None:
        figures = {tag: value for tag, value in values.items() if isinstance(value, Figure)}
        arrays = {tag: value for tag, value in values.items() if isinstance(value, Tensor)}
        numbers = {tag: value for tag, value in values.items() if tag not in figures | arrays}
        self.note(numbers)
        scalars = {tag: self._latest[tag] for tag in numbers if tag in self._latest}
        for logger in trainer.loggers:
            if scalars:
                logger.log_metrics(scalars, step=step)
            for tag, figure in figures.items():
                show_figure(logger, tag, figure, step)
            if isinstance(logger, MetricsLogger):
                logger.log_others(arrays, figures, step)

    def summary(self) -> dict[str, Any]:
        """Phase, entry step, overshoot, level ... of the run so far, and what they are measured in.

        The phase is None where no ratio was measured, as under an optimiser whose threshold is not known. left_out: the
        weights that do not move, in a sentence; clipped: the share of steps on clipped gradients; None for nothing to say.
        """
        compared = [tag for tag in ("sharpness/preconditioned", "sharpness/moved") if tag in self._latest]
        audit = self.bench.audited.found
        return self.tracker.summary() | {
            "quantity": compared[0] if compared else "sharpness/lambda_max",
            "threshold_formula": self.formula,
            "left_out": self.bench.live.left_out or None,
            "clipped": self.clipping.share,
            "failed_probes": self.failures.counts,
            "audit": audit.sentence() if audit else None,
        }

    def notes(self) -> list[str]:
        """What there is to know of the measured loss, in sentences."""
        audit = self.bench.audited.found
        return [f"The measured loss: {note}." for note in audit.notes] if audit else []

    def state_dict(self) -> dict[str, Any]:
        """The memory of the probes and of the phase, as tensors: warm starts and history survive a resume."""
        return self._kept or {
            "phase": self.tracker.state_dict(),
            "latest": dict(self._latest),
            "formula": self.formula,
            "live": self.bench.live.state_dict(),
            "clipping": self.clipping.state_dict(),
            "failures": self.failures.state_dict(),
            "audit": self.bench.audited.state_dict(),
            "probes": {type(probe).__name__: probe.state_dict() for probe in self.probes},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back; the memory of the probes follows at the start of the fit, when the device is known."""
        self.tracker.load_state_dict(state["phase"])
        self._latest, self.formula, self._saved = state["latest"], state["formula"], state["probes"]
        self.bench.live.load_state_dict(state.get("live", {}))
        self.clipping.load_state_dict(state.get("clipping", {}))
        self.failures.load_state_dict(state.get("failures", {}))
        self.bench.audited.load_state_dict(state.get("audit", {}))


def _size(params: Sequence[Tensor]) -> int:
    return sum(p.numel() for p in params)
