"""The watch as a callback of the Trainer of Hugging Face; the only file that needs `transformers`.

A look is taken at `on_pre_optimizer_step`: after the batches of the step, so that accumulation and evaluations are over and
the model is in the mode in which it is trained, and before the update. `on_step_begin` comes while an evaluation may have
left the model in eval mode. Gradients are clipped by then: where their norm lies at the bound they were, by a factor that
nobody tells, and no phase is judged by that step.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lab.callbacks.updates import Update, bare, lr_of

if TYPE_CHECKING:
    from lab.callbacks.watch import Watch

STATE = "watch.pt"
"""The state of the watch, within a checkpoint of the Trainer."""


class HuggingFaceWatch(TrainerCallback):
    """Drives a watch through `Trainer.train`: steps are those of the Trainer, train/loss is what it logs, and test/loss what
    it evaluates. Its checkpoints hold the state of the watch, and a resumed training goes on from it.
    """

    def __init__(self, watch: "Watch"):
        self.watch, self._here, self._lr = watch, False, math.nan
        self._optimizers: list[torch.optim.Optimizer] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._here = state.is_world_process_zero
        if not self._here:
            return
        watch, self._optimizers = self.watch, [bare(kwargs["optimizer"])]
        kept = _checkpoint(args, state) / STATE
        if state.global_step and kept.exists():
            watch.load_state_dict(torch.load(kept, map_location="cpu", weights_only=True))
        elif state.global_step:
            watch.say(
                f"no state of the watch in {kept.parent}: it goes on from step {state.global_step}, measured anew"
            )
        watch.bench.optimizers, watch.total = self._optimizers, watch.total or state.max_steps
        if watch.batch_size is None:
            watch.take_batch_size(args.train_batch_size * args.gradient_accumulation_steps * args.world_size)
            watch.bench.see_together(args.train_batch_size)
        # What the Trainer never logs in the run is not waited for.
        watch.losses_told = args.logging_strategy != "no" and state.logging_steps <= state.max_steps
        watch.begin_counted(state.global_step)
        watch.clipping.watched = bool(
            args.max_grad_norm
        )  # the phase waits until it is known whether a step was clipped

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._here:
            self._lr = lr_of(self._optimizers)
            self.watch.observe()
            if args.max_grad_norm:
                self.watch.clipping.see_bound(self._optimizers, args.max_grad_norm)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._here:
            self.watch.judge([])
            self.watch.updated(self._lr)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **kwargs: Any
    ) -> None:
        """The mean loss of the updates since the last time, at the last of them."""
        if self._here and self.watch.begun and logs and "loss" in logs:
            self.watch.flush()
            self.watch.curve(Update(state.global_step - 1, float(logs["loss"]), False, math.nan))

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, float] | None = None, **kwargs: Any
    ) -> None:
        known = {f"test/{name}": (metrics or {}).get(f"eval_{name}") for name in ("loss", "accuracy")}
        if self._here and self.watch.begun:
            self.watch.log({tag: value for tag, value in known.items() if value is not None})

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._here and (folder := _checkpoint(args, state)).is_dir():
            torch.save(self.watch.state_dict(), folder / STATE)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._here:
            self.watch.close()


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    """Where the Trainer puts the checkpoint of the present step."""
    return Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
