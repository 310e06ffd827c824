"""What a run leaves on disk while it trains: training curves, evaluations, checkpoints, status."""

from typing import Any

import pytorch_lightning as pl

from lab.callbacks.probe import ProbeCallback
from lab.module import SupervisedModule
from lab.run import checkpoints
from lab.run.agenda import Chunk, every
from lab.run.folder import RunFolder


class RunCallback(pl.Callback):
    """Logs curves, evaluates on the test set and saves checkpoints at their rhythms, and keeps `status.json` true.

    Stands before the ProbeCallback: a checkpoint at step t does not yet hold the measurement of step t, so a resumed run
    makes it again, bit for bit.
    """

    def __init__(
        self, folder: RunFolder, probes: ProbeCallback, *, evaluate_every: int | None, checkpoint_every: int | None
    ):
        self.folder, self.probes = folder, probes
        self.evaluates, self.saves = every(evaluate_every), every(checkpoint_every, first=1)

    def due(self, step: int) -> bool:
        """Whether there is something to do before update `step`."""
        return self.evaluates(step) or self.saves(step)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Chunk, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, SupervisedModule)
        if self.saves(batch.begin):
            self.save(pl_module)
        if self.evaluates(batch.begin):
            self.evaluate(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Chunk, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, SupervisedModule)
        for step, curves in pl_module.progress.curves:
            for logger in trainer.loggers:
                logger.log_metrics(curves, step=step)
        if pl_module.divergence:
            self.save(pl_module, name="last_finite.ckpt")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, SupervisedModule)
        if not pl_module.divergence:
            self.evaluate(trainer, pl_module)
            self.save(pl_module)

    def evaluate(self, trainer: pl.Trainer, module: SupervisedModule) -> dict[str, float]:
        """test/loss and test/accuracy of the present weights."""
        if module.test_data is None:
            return {}
        values = {f"test/{name}": value for name, value in module.evaluate(module.test_data).items()}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=module.step)
        self.probes.latest |= values
        return values

    def save(self, module: SupervisedModule, name: str = "last.ckpt") -> None:
        """Model, optimiser, probes and phase at the present step."""
        state = {
            "step": module.step,
            "model": module.model.state_dict(),
            "optimizer": module.optimizer.state_dict(),
            "probes": self.probes.state_dict(),
        }
        checkpoints.save(self.folder.checkpoints / name, state)
        self.folder.status("running", step=module.step)
