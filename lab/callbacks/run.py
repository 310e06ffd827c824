"""What a run leaves on disk while it trains: training curves, evaluations, checkpoints, status."""

from typing import Any

import pytorch_lightning as pl
from torch.utils._pytree import tree_map

from lab.callbacks.dashboard import flush
from lab.callbacks.guests import Guests
from lab.callbacks.outcome import show_waterfall
from lab.callbacks.probe import ProbeCallback
from lab.module import SupervisedModule, evaluate
from lab.run import checkpoints
from lab.run.agenda import Steps, every
from lab.run.checkpoints import State
from lab.run.folder import RunFolder
from lab.run.keeping import Keeper, Kept
from lab.run.signals import cut_off

NOTHING = Kept.of(None)
"""No checkpoint but the newest two stays."""


class EvaluationCallback(pl.Callback):
    """Stands behind the ProbeCallback: a test set takes long, and the first sharpness is what a user waits for."""

    def __init__(self, keeper: "RunCallback"):
        self.keeper = keeper

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Steps, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, SupervisedModule)
        self.keeper.evaluate_due(trainer, pl_module)


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
        keep: Kept = NOTHING,
        state: State | None = None,
        guests: Guests | None = None,
    ):
        self.folder, self.probes, self.state, self.guests = folder, probes, state, guests or Guests()
        self._evaluated, self._over = -1, False
        self._before: dict[str, Any] | None = None
        self.evaluates, self.saves = every(evaluate_every), every(checkpoint_every, first=1)
        self.keeper = Keeper(folder, keep)

    def due(self, step: int) -> bool:
        """Whether there is something to do before update `step`."""
        return self.evaluates(step) or self.saves(step) or self.keeper.kept.due(step)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take up the checkpoint only now that the model has its device and precision: earlier, bits would be lost."""
        assert isinstance(pl_module, SupervisedModule)
        if self.state is not None:
            pl_module.model.load_state_dict(self.state["model"])
            pl_module.optimizer.load_state_dict(self.state["optimizer"])
            self.probes.load_state_dict(self.state["probes"])
            if pl_module.escape is not None:
                memory = self.state.get("escape", {})
                pl_module.escape.load_state_dict({name: kept.to(pl_module.device) for name, kept in memory.items()})
            self.keeper.recall(self.state.get("best", {}))
            pl_module.stopping.load_state_dict(self.state.get("stop", {}))
            self.guests.load_state_dict(self.state.get("callbacks", {}))
            self.state = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Steps, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, SupervisedModule)
        if self.saves(batch.begin):
            self.save(trainer, pl_module)
        self.keep(pl_module)
        # Containers of its own: those of the probes are written to while they measure.
        before = tree_map(lambda leaf: leaf, self.probes.state_dict()) if self.evaluates(batch.begin) else None
        self._before = before

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
            self.save(trainer, pl_module)  # before what only the end adds: the state from which a longer run goes on
            self._over = True
            self.keep(pl_module)
            self.evaluate(trainer, pl_module)
        show_waterfall(self.folder, trainer.loggers, pl_module.step)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """SIGTERM ends a run where its state is whole, see `lab.run.signals`: no update made so far is lost. After the last
        one the state is saved already, without what only the end adds.
        """
        if isinstance(exception, SystemExit) and isinstance(pl_module, SupervisedModule) and not self._over:
            self.save(trainer, pl_module)

    def evaluate_due(self, trainer: pl.Trainer, module: SupervisedModule) -> None:
        """The evaluation before the next update, if it is due. What is saved meanwhile does not hold what the probes have
        just measured.
        """
        if self.evaluates(module.step):
            self.evaluate(trainer, module)
        self._before = None

    def evaluate(self, trainer: pl.Trainer, module: SupervisedModule) -> None:
        """test/loss and test/accuracy of the present weights, which are kept where they are the best; once a step."""
        data, best = module.test_data, self.keeper.kept.best
        if (data is None and not best) or (self._evaluated == module.step and not self.guests):
            return
        self._evaluated = module.step
        with cut_off(), self.probes.costs.working("test/loss and test/accuracy", 0, 0.0, lambda: 0):
            measured = evaluate(module.model, module.criterion, module.gradient.train if data is None else data)
        if data is not None:
            values = {f"test/{name}": value for name, value in measured.items()}
            for logger in trainer.loggers:
                logger.log_metrics(values, step=module.step)
            self.probes.note(values)
        if best and finite(module):
            quantity = "train/loss" if data is None else "test/loss"
            regular = self.evaluates(module.step)
            self.keeper.offer(quantity, measured["loss"], lambda: self._state(module), regular=regular)

    def keep(self, module: SupervisedModule) -> None:
        """The state of the present step where it is to stay."""
        if self.keeper.kept.due(module.step) and finite(module):
            self.keeper.keep(self._state(module))

    def save(self, trainer: pl.Trainer, module: SupervisedModule) -> None:
        """Model, optimiser, probes and phase at the present step, unless the weights have diverged unnoticed so far."""
        if not finite(module):
            return
        checkpoints.save(self.folder.checkpoints / "last.ckpt", self._state(module))
        self.folder.status("running", step=module.step)
        flush(trainer.loggers)

    def _state(self, module: SupervisedModule) -> State:
        state = {
            "step": module.step,
            "model": module.model.state_dict(),
            "optimizer": module.optimizer.state_dict(),
            "probes": self._before or self.probes.state_dict(),
        }
        if module.escape is not None:
            state["escape"] = module.escape.state_dict()
        if module.stopping:
            state["stop"] = module.stopping.state_dict()
        if self.guests:
            state["callbacks"] = self.guests.state_dict()
        return state | ({"best": self.keeper.record} if self.keeper.record else {})


def finite(module: SupervisedModule) -> bool:
    """Whether all weights are finite."""
    return all(bool(parameter.isfinite().all()) for parameter in module.model.parameters())
