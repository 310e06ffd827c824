"""The watch as a callback of Lightning, and how it ends in any loop."""

import math
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from torch import optim

from lab.callbacks.adapter import adapt
from lab.callbacks.by_hand import HandClipping
from lab.callbacks.updates import Update, UpdateHooks, lr_of
from lab.callbacks.watching import Watching
from lab.params import trainable
from lab.run.underway import reason_of
from lab.settings import SettingError


class WatchedFit(Watching):
    """A watch that a trainer of Lightning drives."""

    hooks: UpdateHooks | None = None
    by_hand: HandClipping | None = None
    _lr = math.nan
    _logged: dict[str, Any] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.leave_optimizers()
        super().on_fit_start(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.settle_budget(adapt(trainer, pl_module).total)
        super().on_train_start(trainer, pl_module)
        self.total = self.total or (trainer.max_steps if trainer.max_steps > 0 else None)
        if trainer.is_global_zero:
            self.begin(self._run.step)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.batch_size is None and (examples := self._run.together(batch)) is not None:
            self.take_batch_size(examples * trainer.accumulate_grad_batches * trainer.world_size)
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: optim.Optimizer
    ) -> None:
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        self._lr = lr_of(trainer.optimizers)

    def add_loss(self, step: int, loss: float) -> None:
        self.curve(Update(step, loss, True, self._lr))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.reached()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self.left("")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.left(reason_of(exception))

    def log(self, values: Mapping[str, float]) -> None:
        """Numbers by tag, as {"test/accuracy": 0.9}, at the present step: in the folder, on the dashboard, in `latest`.

        test/loss and test/accuracy are in the figure and the sentence of the run. train/loss is the loss of the step, in
        its block: SettingError outside of one.
        """
        values = dict(values)
        if "train/loss" in values:
            if self.hooks is None or not self.hooks.open:
                raise SettingError(
                    "train/loss is that of an update: give it to watch.step(loss), or log it in the block"
                )
            self._curves.give(values.pop("train/loss"))
        numbers = {tag: float(value) for tag, value in values.items()}
        step, before = self._run.step, self._logged
        self._logged = {"step": step, "values": numbers | (before["values"] if before.get("step") == step else {})}
        self.note(numbers)
        self.record.log(step, numbers)

    def begin_counted(self, step: int) -> None:
        """A run of a loop that counts its steps here begins at `step`."""
        self._run, self._count.made = self._count, step
        self.prepare(next(self.bench.model.parameters()).device)
        self.settle_budget(self.total)
        self.costs.begin(self.total, next(self.bench.model.parameters()).device, step)
        self.begin(step)
        self.costs.step_begins(step)
        self._measured = self._loaded.get("measured", -1)
        self.log(self._loaded.get("logged", {}).get("values", {}))  # which the folder has dropped from this step on

    def state_dict(self) -> dict[str, Any]:
        """As that of the base, and what was logged at the present step."""
        return super().state_dict() | {"logged": self._logged if self._logged.get("step") == self._run.step else {}}

    def watch_updates(self, optimizers: list[optim.Optimizer]) -> None:
        """These make the updates of a plain loop: count them, and see what becomes of the gradients of measured steps."""
        self.bench.optimizers = optimizers
        self.by_hand = self.clipping = self._parts["clipping"] = HandClipping()
        self.hooks = UpdateHooks(optimizers, self.say, self.by_hand.meet)
        self.by_hand.arm(trainable(self.bench.model))

    def stepped(self, lr: float) -> None:
        """The update of a block was made."""
        if self.by_hand is not None:
            self.by_hand.stepped()
            self.judge([])
        self.updated(lr)
        if self.by_hand is not None and self.due(self._run.step):
            self.by_hand.arm(trainable(self.bench.model))

    def take_batch_size(self, examples: int) -> None:
        """A step takes so many examples, as it turns out."""
        self.batch_size = self.bench.batch_size = examples

    def leave_optimizers(self) -> None:
        """No hooks from now on: a trainer says by itself when updates are made, or the run is over."""
        if self.hooks is not None:
            self.hooks.remove()
        if self.by_hand is not None:
            self.by_hand.end()
        self.hooks = self.by_hand = None

    def left(self, reason: str) -> None:
        """As `lab.run.underway.Underway.left`."""
        if reason:
            self.stopped(reason)
        self.finish()
        self.leave_optimizers()

    def stopped(self, reason: str) -> None:
        """As `lab.run.underway.Underway.stopped`."""
        self.record.stopped(reason)
