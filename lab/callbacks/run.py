"""What a run leaves on disk while it trains: training curves, evaluations, checkpoints, status."""

from typing import Any

import pytorch_lightning as pl

from lab.callbacks.dashboard import flush, show_figure
from lab.callbacks.guests import Guests
from lab.callbacks.probe import ProbeCallback
from lab.module import SupervisedModule, evaluate
from lab.run import checkpoints
from lab.run.agenda import Steps, every
from lab.run.checkpoints import State
from lab.run.figures import save, waterfall_figure
from lab.run.folder import RunFolder
from lab.run.signals import cut_off


class RunCallback(pl.Callback):
    """Logs curves, evaluates on the test set and saves checkpoints at their rhythms, and keeps `status.json` true.

    Stands before the ProbeCallback: a checkpoint at step t does not yet hold the measurement of step t, so a resumed run
    makes it again, bit for bit.
    """

    def __init__(
        self,
        folder: RunFolder,
        probes: ProbeCallback,
        *,
        evaluate_every: int | None,
        checkpoint_every: int | None,
        state: State | None = None,
        guests: Guests | None = None,
    ):
        self.folder, self.probes, self.state, self.guests = folder, probes, state, guests or Guests()
        self._evaluated = -1
        self.evaluates, self.saves = every(evaluate_every), every(checkpoint_every, first=1)

    def due(self, step: int) -> bool:
        """Whether there is something to do before update `step`."""
        return self.evaluates(step) or self.saves(step)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take up the checkpoint only now that the model has its device and precision: earlier, bits would be lost."""
        assert isinstance(pl_module, SupervisedModule)
        if self.state is not None:
            pl_module.model.load_state_dict(self.state["model"])
            pl_module.optimizer.load_state_dict(self.state["optimizer"])
            self.probes.load_state_dict(self.state["probes"])
            if pl_module.escape is not None:
                memory = self.state["escape"]
                pl_module.escape.load_state_dict({name: kept.to(pl_module.device) for name, kept in memory.items()})
            pl_module.stopping.load_state_dict(self.state.get("stop", {}))
            self.guests.load_state_dict(self.state.get("callbacks", {}))
            self.state = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Steps, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, SupervisedModule)
        if self.saves(batch.begin):
            self.save(trainer, pl_module)
        if self.evaluates(batch.begin):
            self.evaluate(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Steps, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, SupervisedModule)
        for step, curves in pl_module.updates.curves:
            for logger in trainer.loggers:
                logger.log_metrics(curves, step=step)
        if pl_module.divergence:  # the module has put back the weights before it
            state = {"step": pl_module.finite_step, "model": pl_module.model.state_dict()}
            checkpoints.save(self.folder.checkpoints / "last_finite.ckpt", state)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, SupervisedModule)
        if not pl_module.divergence:
            self.evaluate(trainer, pl_module)
            self.save(trainer, pl_module)
        measurements = self.folder.all_arrays("spectrum")
        if len(measurements) > 1:
            figure = waterfall_figure(measurements)
            save(figure, self.folder.figures / "spectrum_waterfall.png")
            for logger in trainer.loggers:
                show_figure(logger, "spectrum/waterfall", figure, pl_module.step)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """SIGTERM ends a run where its state is whole, see `lab.run.signals`: no update made so far is lost."""
        if isinstance(exception, SystemExit) and isinstance(pl_module, SupervisedModule):
            self.save(trainer, pl_module)

    def evaluate(self, trainer: pl.Trainer, module: SupervisedModule) -> None:
        """test/loss and test/accuracy of the present weights, once."""
        if module.test_data is None or (self._evaluated == module.step and not self.guests):
            return
        self._evaluated = module.step
        with cut_off():
            measured = evaluate(module.model, module.criterion, module.test_data)
        values = {f"test/{name}": value for name, value in measured.items()}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=module.step)
        self.probes.note(values)

    def save(self, trainer: pl.Trainer, module: SupervisedModule) -> None:
        """Model, optimiser, probes and phase at the present step, unless the weights have diverged unnoticed so far."""
        if not all(bool(parameter.isfinite().all()) for parameter in module.model.parameters()):
            return
        state = {
            "step": module.step,
            "model": module.model.state_dict(),
            "optimizer": module.optimizer.state_dict(),
            "probes": self.probes.state_dict(),
        }
        if module.escape is not None:
            state["escape"] = module.escape.state_dict()
        if module.stopping:
            state["stop"] = module.stopping.state_dict()
        if self.guests:
            state["callbacks"] = self.guests.state_dict()
        checkpoints.save(self.folder.checkpoints / "last.ckpt", state)
        self.folder.status("running", step=module.step)
        flush(trainer.loggers)
