"""One run: the parts put together with Lightning, and carried out in a folder."""

import logging
import shlex
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger

from lab.callbacks.guests import Guests
from lab.callbacks.metrics import MetricsLogger
from lab.callbacks.outcome import show_outcome
from lab.callbacks.probe import ProbeCallback
from lab.callbacks.progress import ProgressCallback
from lab.callbacks.run import EvaluationCallback, RunCallback
from lab.doors.labels import Labels
from lab.doors.parts import Parts
from lab.models.memory import channels_last
from lab.module import SupervisedModule
from lab.optim.clip import GradientClip
from lab.params import layout
from lab.run import checkpoints, signals
from lab.run.agenda import Agenda
from lab.run.code import code_facts
from lab.run.folder import RunFolder
from lab.run.identity import data_files, flat
from lab.run.keeping import Kept
from lab.run.length import past
from lab.run.provenance import provenance
from lab.run.stopping import Stopping
from lab.run.summary import sentence
from lab.train import debug, ending, loggers
from lab.train.outcome import outcome


class TrainingRun:
    """One run: put together without touching the disk, then carried out in a folder. `remark`: what is to be said of it."""

    def __init__(self, parts: Parts, plain: dict[str, Any], *, title: str, command: str, bar: bool = True):
        self.labels, self.real, self.watch, self.remark = Labels.of(plain), parts, debug.Stopwatch(), ""
        parts = debug.trial(parts) if self.labels.debug else parts
        self.parts, self.settings, self.plain = parts, parts.settings, plain
        self.title, self.command, self.bar = title, command, bar
        self.module: SupervisedModule | None = None
        trainer, train = parts.settings.trainer, parts.dataset.train
        self.stopping = ending.stopping(parts.settings, tests=parts.dataset.test is not None)
        self.guests = Guests(trainer.callbacks)
        self.probes = ProbeCallback(
            parts.settings.probes,
            parts.criterion,
            (train.x, train.y),
            model=parts.model,
            batch_norm=trainer.batch_norm,
            chunk_size=parts.measured_chunk,
            stochastic=not parts.batches.is_full
            or getattr(parts.settings.data, "augment", False)
            or parts.noise is not None,
            batch_size=None if parts.batches.is_full else parts.batches.batch_size,
            sampling=parts.batches.sampling,
            seed=parts.settings.seed,
            refuses=True,
            audit=parts.settings.audit,
            budget=parts.settings.budget,
        )
        self.probes.bench.require(self.probes.probes)

    def carry_out(self, folder: RunFolder, *, begin: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Train from the newest checkpoint (or the start) to the end. Returns the summary, which is on disk too.

        `begin` is called once the folder is ours. Raises SettingError when another process has it.
        """
        with folder.owned(), signals.noted():
            try:
                if self.labels.debug:
                    debug.clear(folder)
                begin()
                summary = self._carry_out(folder)
            except BaseException as error:
                stopped = isinstance(error, KeyboardInterrupt | SystemExit)
                reason = "interrupted" if stopped else f"{type(error).__name__}: {error}"
                with suppress(OSError):  # a full disk takes no status either
                    ending.failed(folder, reason, reached=self.module.step if self.module else None)
                if not stopped:
                    raise
                word = f"interrupted; {ending.resumption(folder)}"
                # Lightning turns Ctrl-C into exit code 1, and its exception for SIGTERM has none of its own.
                if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
                    raise KeyboardInterrupt(word) from None
                print(word, file=sys.stderr, flush=True)
                signals.leave()
            if signals.asked():  # too late for this run, not for what comes after it
                signals.leave()
            return summary

    def _carry_out(self, folder: RunFolder) -> dict[str, Any]:
        state = checkpoints.newest(folder.checkpoints)
        step = state["step"] if state else 0
        folder.start_clock()
        if state:
            print(f"{folder.path} goes on from step {step} of {self.parts.total}", file=sys.stderr)
        folder.status("running", step=step)  # first: a finished run that is made longer is over no more
        folder.forget_from(step)
        facts: dict[str, Any] = {
            "data": self.parts.dataset.facts,
            "data_files": data_files(self.plain),
            "model": self._model_facts(),
            "code": code_facts(self.plain),
            **past(folder, self.plain, step),
        }
        if self.guests:
            facts["callbacks"] = self.guests.sources()
        folder.write("provenance", provenance(self.command, self.plain, **facts))
        with loggers.opened(self.labels, folder, loggers.entry(self.plain, self.labels, folder), step) as opened:
            module = self._train(folder, step, state, opened)
            summary = outcome(self.settings, self.probes, module, folder)
            summary |= {"title": self.title, "tags": list(self.labels.tags), "seconds": folder.seconds}
            show_outcome(folder, opened, flat(self.plain), summary, shlex.split(self.command))
            loggers.tell(opened, summary, sentence(summary))
        if self.labels.debug:
            self.remark = debug.told(self.real, self.parts, self.probes.latest, self.watch, self.labels.loggers)
        folder.write("summary", summary)
        end = "diverged" if module.divergence else "finished"
        folder.status(end, step=module.step, reason=ending.reason(module), seconds=summary["seconds"])
        return summary

    def _train(
        self, folder: RunFolder, begin: int, state: checkpoints.State | None, opened: list[Logger]
    ) -> SupervisedModule:
        parts, settings = self.parts, self.settings.trainer
        keeper = RunCallback(
            folder,
            self.probes,
            evaluate_every=settings.evaluate_every,
            checkpoint_every=settings.checkpoint_every,
            keep=Kept.of(settings.keep),
            state=state,
            guests=self.guests,
        )
        events = (self.probes.due, keeper.due, lambda step: self.labels.debug)
        agenda = Agenda(begin, parts.total, events, settings.log_every)
        self.module = module = module_of(parts, self.stopping, agenda)
        if settings.lays_channels_last():
            channels_last(parts.model)
        stop = [loggers.StopLogger(self.stopping, parts.total)] if self.stopping else []
        progress = ProgressCallback(self.probes, parts.total, bar=self.bar)
        trainer = pl.Trainer(
            accelerator=settings.lightning_accelerator(),
            precision=settings.step_precision(),
            devices=1,
            max_epochs=1,
            logger=[*opened, MetricsLogger(folder), *stop],
            callbacks=[
                keeper,
                self.probes,
                EvaluationCallback(keeper),
                progress,
                *self.guests.callbacks.values(),
                self.watch,
            ],
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            default_root_dir=folder.path,
        )
        trainer.fit(module, train_dataloaders=agenda)
        return module

    def _model_facts(self) -> dict[str, Any]:
        return {
            "parameters": layout(self.parts.model).size,
            "measured_batch_norm": self.settings.trainer.batch_norm,
            "measured_chunk": self.parts.measured_chunk,
        }


def module_of(parts: Parts, stopping: Stopping, agenda: Agenda) -> SupervisedModule:
    """The module that trains the parts of a run."""
    settings = parts.settings
    return SupervisedModule(
        parts.model,
        parts.criterion,
        parts.optimizer,
        parts.dataset,
        parts.batches,
        agenda,
        factor=lambda step: settings.schedule.factor(step, parts.total),
        augment=getattr(settings.data, "augment", False),
        chunk_size=parts.chunk_size,
        max_loss=settings.trainer.max_loss,
        seed=settings.seed,
        noise=parts.noise,
        escape=parts.escape,
        clip=GradientClip(settings.trainer.clip_norm, settings.trainer.clip_value),
        stopping=stopping,
    )


def quiet() -> None:
    """Silence the hints of Lightning that do not apply here (the data are tensors in memory, steps are ours), and say what
    is left in one line, without the place in the code that Python puts before it.
    """
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*`training_step` returned `None`.*",
        ".*GPU available but not.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*`srun` command is available.*",
    ):
        warnings.filterwarnings("ignore", message=message)
