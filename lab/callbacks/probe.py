"""The one bridge from a Lightning trainer to the probes.

It hands every due probe a snapshot BEFORE the update (`on_train_batch_start`): afterwards the weights are those of t+1
and the batch still that of t. Values go to the loggers with their own step, for `self.log` would move or lose them.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lab.callbacks.clipping import Clipping
from lab.callbacks.dashboard import show_figure, show_layout
from lab.callbacks.metrics import MetricsLogger
from lab.curvature.phase import PhaseTracker
from lab.curvature.stability import UpdateRule
from lab.module import SupervisedModule
from lab.objective import NetworkObjective, at_least_single
from lab.optim.live import Live
from lab.params import flatten, trainable, weights
from lab.probes.attempt import Failure, Failures, Losses, attempt, joined
from lab.probes.audited import Audited
from lab.probes.base import Examples, Probe, Snapshot
from lab.probes.sets import probe_set, require_probe_sets
from lab.run.signals import cut_off
from lab.sampling import Sampling
from lab.settings import SettingError


class ProbeCallback(pl.Callback):
    """Drives `probes` through a training run, yours or the lab's, and follows the phase of the run.

    probes      e.g. [Sharpness(every=13)].
    criterion   (outputs, targets) -> mean loss: the loss whose landscape is measured.
    data        (x, y), the training examples as tensors; a probe measures on a fixed, class-balanced subset of them.
                Raises TypeError for anything else, ValueError where x and y differ in length.
    model       what maps x to outputs; default: the LightningModule itself.
    batch_norm  "train": every module in the mode it has as a step begins, dropout off; "eval": all of them in eval mode.
    chunk_size  examples per chunk; None: as many as are fast, or where they see each other, as in train-mode BatchNorm,
                those of a batch of training: there it is part of the definition.
    stochastic  whether training uses mini-batches; default: yes for a LightningModule of your own.
    batch_size  examples in a batch of training (None: all), and how they are drawn, for the probes of the noise: `sampling`
                epoch | with_replacement | without_replacement.
    audit       whether the loss is held against its laws before its first number (`lab.objective.audit`), once a run, for a
                few gradients: where one is broken nothing is measured.
    refuses     whether what cannot be measured at all at step 0 (`lab.probes.attempt.REFUSALS`) is raised, as a door does.
    Threshold, preconditioner and steps are those of whichever optimiser holds each weight; what is frozen, thawed or added
    in the run is followed. Where gradients are clipped (`lab.callbacks.clipping`), train/clipped is the share of steps so
    far that were; sharpness/clipped_threshold, clipped_ratio are those of the effective rate lr min(1, c/|g|) of the step.
    Training is bit-identical with and without it, and goes on whatever a probe raises: one warning tells it, and the next
    measurement is tried again, unless the first one was refused. Raises ValueError for two probes of one name, and
    where two write one tag. After (and during) training: `tracker`, `summary()`.
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
        self.probes, self.criterion, self.data, self.seed = list(probes), criterion, _pair(data), seed
        self.model, self.batch_norm, self.chunk_size = model, batch_norm, chunk_size
        self.batch_size, self.sampling, self.refuses = batch_size, sampling, refuses
        self.tracker = PhaseTracker(stochastic=stochastic)
        self.latest: dict[str, float] = {}
        self.formula = "the threshold"
        self.objectives: dict[Examples, NetworkObjective] = {}
        self._measured = -1
        self._batch_examples: int | None = None
        self.live, self.clipping = Live(), Clipping()
        self._waiting: tuple[int, dict[str, Any], UpdateRule | None] | None = None
        self._told: set[str] = set()
        self.failures, self.audited = Failures(), Audited(wanted=audit, seed=seed)
        self._saved: dict[str, dict[str, Tensor]] = {}
        self._kept: dict[str, Any] | None = None
        self._updates, self._micro_losses = 0, list[float]()

    def require_sets(self) -> None:
        """Raise SettingError, one line, for a probe set that the data cannot give."""
        require_probe_sets(self.probes, len(self.data[1]), self.objective)

    def due(self, step: int) -> bool:
        """Whether any probe wants the snapshot of `step`."""
        return any(probe.due(step) for probe in self.failures.heard(self.probes))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.model = self.model or pl_module
        dtype = next(self.model.parameters()).dtype
        x, y = self.data
        x = x.to(pl_module.device, dtype) if x.is_floating_point() else x.to(pl_module.device)
        self.data = x, y.to(pl_module.device)
        self.objectives.clear()
        for probe in self.probes if trainable(self.model) else []:
            try:
                require_probe_sets([probe], len(self.data[1]), self.objective)
            except SettingError as error:
                if self.refuses:
                    raise
                failure = Failure(probe.name, _step(trainer, pl_module), error, "")
                self._say(self.failures.note(failure, {}, refuses=False))
        for probe in self.probes:
            memory = self._saved.get(type(probe).__name__, {})
            probe.load_state_dict({name: tensor.to(pl_module.device) for name, tensor in memory.items()})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._measured, self._updates, self._kept = -1, trainer.global_step, None
        self.clipping.begin(trainer, pl_module, lambda: self._judge(trainer))
        assert self.model is not None
        now = Live()
        now.follow(self.model, trainer.optimizers, lambda: torch.ones(sum(p.numel() for p in now.params)))
        names = [probe.name for probe in self.probes]
        show_layout(trainer.loggers, names, preconditioned=now.rule is not None and not now.rule.moving.plain)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step = _step(trainer, pl_module)
        if step == self._measured or not self.due(step):
            return
        self._measured = step
        self._note_batch(pl_module, batch)
        with torch.enable_grad():
            self.measure(
                trainer, pl_module, step, [probe for probe in self.failures.heard(self.probes) if probe.due(step)]
            )

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self.clipping.see(optimizer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The probes that wait for the end, unless the run diverged; not those that have just measured this step.

        What is saved from now on is what was known before: a run that goes on from here is the one that never ended.
        """
        self._judge(trainer)  # no step follows: by the factor of the last one
        self._kept, step = self.state_dict(), _step(trainer, pl_module)
        last = [
            probe
            for probe in self.failures.heard(self.probes)
            if probe.at_end and not (step == self._measured and probe.due(step))
        ]
        if last and not (isinstance(pl_module, SupervisedModule) and pl_module.divergence):
            with torch.enable_grad():
                self.measure(trainer, pl_module, step, last, ended=True)
        self._judge(trainer)
        self.clipping.end()

    def measure(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        step: int,
        probes: Sequence[Probe],
        *,
        ended: bool = False,
    ) -> None:
        """These probes on one snapshot, then the phase."""
        self._judge(trainer)
        if not self._follow(trainer, step):
            return
        live = self.live
        snapshot = Snapshot(
            step,
            at_least_single(flatten(live.params)),
            lambda examples: self.audited(self.objective(examples)),
            live.rule,
            lambda: self._batch(pl_module, step),
            self.seed,
            batch_size=self.batch_size,
            sampling=self.sampling,
            num_train=len(self.data[1]),
            direction=live.direction,
            replicate=live.replicate,
            ended=ended,
        )
        measured, failures = _measured(probes, snapshot, self)
        for failure in failures:
            self._say(self.failures.note(failure, self.latest, refuses=self.refuses))
        if (audit := self.audited.told()) is not None:
            measured |= audit.numbers()
            for note in audit.notes:
                tell = pl.utilities.rank_zero_warn if "could not decide" in note else pl.utilities.rank_zero_info
                tell(f"the measured loss: {note}")
        self._log(trainer, step, measured)
        self._waiting = step, measured, live.rule
        if not self.clipping.watched:
            self._judge(trainer)

    def _follow(self, trainer: pl.Trainer, step: int) -> bool:
        """See which weights are trained and move now, and forget what is known of others. Whether there are any."""
        assert self.model is not None
        model, before = self.model, self.live.params
        if not all(a is b for a, b in itertools.zip_longest(trainable(model), before)):
            self.objectives.clear()

        def gradient() -> Tensor:
            try:
                return self.objective("auto").grad(weights(model))
            except Exception:  # the probes will meet it, and say so
                return torch.ones(sum(p.numel() for p in trainable(model)))

        changed = self.live.follow(model, trainer.optimizers, gradient)
        if changed:
            for probe in self.probes:
                probe.load_state_dict({})
            self.latest = {tag: value for tag, value in self.latest.items() if "sharpness/" not in tag}
            pl.utilities.rank_zero_warn(
                f"step {step}: the weights that are trained, or move, are others than before ({_size(before)}, now "
                f"{_size(self.live.params)} trained): measured anew, and the memories of the probes begin anew"
            )
        for text in self.live.remarks:
            self._say(text)
        return bool(self.live.params)

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

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(pl_module, SupervisedModule):
            for step, loss in pl_module.progress.losses:
                self.tracker.add_loss(step, loss)
            if pl_module.divergence:
                self.tracker.diverged(pl_module.step)
        elif outputs is not None:
            loss = outputs.get("loss", math.nan) if isinstance(outputs, dict) else outputs
            self._micro_losses.append(float(loss))
            if trainer.global_step > self._updates:  # with accumulated gradients not every batch is an update
                self.tracker.add_loss(self._updates, sum(self._micro_losses))
                self._updates, self._micro_losses = trainer.global_step, []

    def objective(self, examples: Examples) -> NetworkObjective:
        """The loss on the fixed, class-balanced probe set of a size; built once."""
        if examples not in self.objectives:
            assert self.model is not None
            self.objectives[examples] = self._loss(probe_set(self.data, examples, self.seed))
        return self.objectives[examples]

    def _loss(self, data: tuple[Tensor, Tensor]) -> NetworkObjective:
        assert self.model is not None
        loss = NetworkObjective(
            self.model, self.criterion, data, chunk_size=self.chunk_size, batch_norm=self.batch_norm
        )
        if self.chunk_size is None and self._batch_examples is not None and loss.coupled:
            loss = loss.in_chunks(self._batch_examples)
        return loss

    def _note_batch(self, pl_module: pl.LightningModule, batch: Any) -> None:
        """How many examples training sees together, where they may see each other."""
        if isinstance(pl_module, SupervisedModule) or self._batch_examples is not None:
            return
        lengths = [len(t) for t in tree_leaves(batch) if isinstance(t, Tensor) and t.dim()]
        self._batch_examples = self.batch_size or (lengths[0] if lengths else None)
        self.objectives.clear()

    def summary(self) -> dict[str, Any]:
        """Phase, entry step, overshoot, level ... of the run so far, and what they are measured in.

        The phase is None where no ratio was measured, as under an optimiser whose threshold is not known. left_out: the
        weights that do not move, in a sentence; clipped: the share of steps on clipped gradients; None for nothing to say.
        """
        compared = [tag for tag in ("sharpness/preconditioned", "sharpness/moved") if tag in self.latest]
        return self.tracker.summary() | {
            "quantity": compared[0] if compared else "sharpness/lambda_max",
            "threshold_formula": self.formula,
            "left_out": self.live.left_out or None,
            "clipped": self.clipping.share,
            "failed_probes": self.failures.counts,
            "audit": self.audited.found.sentence() if self.audited.found else None,
        }

    def notes(self) -> list[str]:
        """What there is to know of the measured loss, in sentences."""
        return [f"The measured loss: {note}." for note in self.audited.found.notes] if self.audited.found else []

    def state_dict(self) -> dict[str, Any]:
        """The memory of the probes and of the phase, as tensors: warm starts and history survive a resume."""
        return self._kept or {
            "phase": self.tracker.state_dict(),
            "latest": dict(self.latest),
            "formula": self.formula,
            "live": self.live.state_dict(),
            "clipping": self.clipping.state_dict(),
            "failures": self.failures.state_dict(),
            "audit": self.audited.state_dict(),
            "probes": {type(probe).__name__: probe.state_dict() for probe in self.probes},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back; the memory of the probes follows at the start of the fit, when the device is known."""
        self.tracker.load_state_dict(state["phase"])
        self.latest, self.formula, self._saved = state["latest"], state["formula"], state["probes"]
        self.live.load_state_dict(state.get("live", {}))
        self.clipping.load_state_dict(state.get("clipping", {}))
        self.failures.load_state_dict(state.get("failures", {}))
        self.audited.load_state_dict(state.get("audit", {}))

    def _batch(self, pl_module: pl.LightningModule, step: int) -> NetworkObjective | None:
        """The loss on the batch about to be used, unaugmented; None for a full batch or a foreign module."""
        if not isinstance(pl_module, SupervisedModule):
            return None
        index = pl_module.batch_index(step)
        if index is None:
            return None
        index = index.to(self.data[1].device)
        return self._loss((self.data[0][index], self.data[1][index]))

    def _log(self, trainer: pl.Trainer, step: int, values: dict[str, Any]) -> None:
        figures = {tag: value for tag, value in values.items() if isinstance(value, Figure)}
        arrays = {tag: value for tag, value in values.items() if isinstance(value, Tensor)}
        numbers = {tag: value for tag, value in values.items() if tag not in figures | arrays}
        scalars = {tag: float(value) for tag, value in numbers.items() if math.isfinite(value)}
        self.latest = {tag: value for tag, value in self.latest.items() if tag not in numbers} | scalars
        for logger in trainer.loggers:
            if scalars:
                logger.log_metrics(scalars, step=step)
            for tag, figure in figures.items():
                show_figure(logger, tag, figure, step)
            if isinstance(logger, MetricsLogger):
                logger.log_others(arrays, figures, step)


def _measured(probes: Sequence[Probe], snapshot: Snapshot, losses: Losses) -> tuple[dict[str, Any], list[Failure]]:
    """What the probes find, and those that failed. Where they are cut off their memories are those before: the snapshot is
    measured again.
    """
    memories = [probe.state_dict() for probe in probes]
    found, failures = dict[str, Any](), list[Failure]()
    try:
        with cut_off():
            for probe in probes:
                values = attempt(probe, snapshot, losses)
                if isinstance(values, Failure):
                    failures.append(values)
                else:
                    found = joined(found, values, probe.name)
    except BaseException:
        for probe, memory in zip(probes, memories, strict=True):
            probe.load_state_dict(memory)
        raise
    return found, failures


def _pair(data: Any) -> tuple[Tensor, Tensor]:
    """`data` if it is (x, y), tensors of equal length. Raises TypeError or ValueError, one line."""
    parts = list(data) if isinstance(data, tuple | list) else []
    if len(parts) != 2 or not all(isinstance(part, Tensor) for part in parts):
        of = f" of {len(parts)}: {', '.join(type(part).__name__ for part in parts)}" if parts else ""
        raise TypeError(
            f"ProbeCallback: data is a {type(data).__name__}{of}; expected (x, y), the training examples as two tensors: "
            "dataset.tensors of a TensorDataset, torch.utils.data.default_collate(list(dataset)) of another"
        )
    x, y = parts
    if x.shape[:1] != y.shape[:1] or not x.numel():
        raise ValueError(
            f"ProbeCallback: data=(x, y) of shapes {tuple(x.shape)} and {tuple(y.shape)}; expected as many targets y as "
            "inputs x, one at least"
        )
    return x, y


def _step(trainer: pl.Trainer, pl_module: pl.LightningModule) -> int:
    """Updates made so far: the lab's own counter, or the trainer's."""
    return pl_module.step if isinstance(pl_module, SupervisedModule) else trainer.global_step


def _size(params: Sequence[Tensor]) -> int:
    return sum(p.numel() for p in params)
