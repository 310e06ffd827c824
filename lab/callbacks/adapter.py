"""What differs between the lab's own module and anybody's: who counts the steps, and what is known of batch and loss."""

import math
from typing import Any

import pytorch_lightning as pl
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lab.module import SupervisedModule


class Foreign:
    """A LightningModule of which nothing is known but what Lightning hands around."""

    def __init__(self, trainer: pl.Trainer, module: pl.LightningModule):
        self.trainer = trainer
        self._updates, self._micro_losses = trainer.global_step, list[float]()

    @property
    def step(self) -> int:
        """Updates made so far."""
        return self.trainer.global_step

    @property
    def total(self) -> int | None:
        """Updates of the whole run, where that is known."""
        total = self.trainer.estimated_stepping_batches
        return int(total) if math.isfinite(total) and total > 0 else None

    @property
    def divergence(self) -> str:
        """How the run diverged; "" as long as it has not."""
        return ""

    def batch(self, step: int) -> Tensor | None:
        """The examples (m,) of the batch of `step`; None for all of them, or where nobody knows."""
        return None

    def together(self, batch: Any) -> int | None:
        """How many examples training sees in one forward pass; None where the bench knows."""
        lengths = [len(t) for t in tree_leaves(batch) if isinstance(t, Tensor) and t.dim()]
        return lengths[0] if lengths else None

    def losses(self, outputs: Any) -> list[tuple[int, float]]:
        """Step and loss of the updates just made, from what training_step returned. With accumulated gradients not every
        batch is an update.
        """
        if outputs is None:
            return []
        loss = outputs.get("loss", math.nan) if isinstance(outputs, dict) else outputs
        self._micro_losses.append(float(loss))
        if self.trainer.global_step <= self._updates:
            return []
        made = [(self._updates, sum(self._micro_losses))]
        self._updates, self._micro_losses = self.trainer.global_step, []
        return made


class Own(Foreign):
    """The module of the lab, which counts its own steps."""

    def __init__(self, trainer: pl.Trainer, module: SupervisedModule):
        super().__init__(trainer, module)
        self.module = module

    @property
    def step(self) -> int:
        return self.module.step

    @property
    def total(self) -> int | None:
        return self.module.agenda.total

    @property
    def divergence(self) -> str:
        return self.module.divergence

    def batch(self, step: int) -> Tensor | None:
        return self.module.gradient.batches.index(step)

    def together(self, batch: Any) -> int | None:
        return None

    def losses(self, outputs: Any) -> list[tuple[int, float]]:
        return self.module.updates.losses


class Counted(Foreign):
    """A loop without a trainer: whoever sees its updates counts them."""

    def __init__(self) -> None:
        self.made = 0

    @property
    def step(self) -> int:
        return self.made

    def together(self, batch: Any) -> int | None:
        return None


def adapt(trainer: pl.Trainer, module: pl.LightningModule) -> Foreign:
    """What the probes ask of a module that is trained."""
    return Own(trainer, module) if isinstance(module, SupervisedModule) else Foreign(trainer, module)
