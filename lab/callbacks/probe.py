"""The one bridge from a Lightning trainer to the probes.

It hands every due probe a snapshot BEFORE the update (`on_train_batch_start`): afterwards the weights are those of t+1
and the batch still that of t. Values go to the loggers with their own step, for `self.log` would move or lose them.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn

from lab.callbacks.adapter import adapt
from lab.callbacks.dashboard import show_layout
from lab.callbacks.probing import Probing
from lab.objective import Weight
from lab.optim.live import Live
from lab.params import trainable
from lab.probes.attempt import Failure
from lab.probes.base import Probe
from lab.probes.bench import Bench
from lab.probes.budget import Budget, budget_of
from lab.sampling import Sampling
from lab.settings import SettingError


class ProbeCallback(Probing, pl.Callback):
    """Drives `probes` through a training run, yours or the lab's, and follows the phase of the run.

    probes      e.g. [Sharpness(every=13)].
    criterion   (outputs, targets) -> mean loss: the loss whose landscape is measured. None: the model computes it.
    data        (x, y), the training examples as tensors, of which a probe measures on a fixed, class-balanced subset; or
                batches, as a list or a DataLoader that does not shuffle: see `lab.probes.bench.Bench`, also for `forward`
                and `weight`. Raises TypeError for anything else, ValueError where x and y differ in length.
    model       what maps x to outputs; default: the LightningModule itself.
    stochastic  whether training uses mini-batches; default: yes for a LightningModule of your own.
    batch_norm, chunk_size, batch_size, sampling, seed, audit   as of `lab.probes.bench.Bench`; the batch is by default as
                large as the first that comes.
    refuses     whether what cannot be measured at all at step 0 (`lab.probes.attempt.REFUSALS`) is raised, as a door does.
    budget      what measurements may take (`lab.probes.governor`): a share of the training time, "products:500" or None.
    Threshold, preconditioner and steps are those of whichever optimiser holds each weight; what is frozen, thawed or added
    in the run is followed. Where gradients are clipped (`lab.callbacks.clipping`), train/clipped is the share of steps so
    far that were; sharpness/clipped_threshold, clipped_ratio are those of the effective rate lr min(1, c/|g|) of the step.
    Training is bit-identical with and without it, and goes on whatever a probe raises: one warning tells it, and the next
    measurement is tried again, unless the first was refused. Raises ValueError for two probes of one name, or that write one
    tag. After (and during) training: `tracker`, `latest`, `summary()`.
    """

    total: int | None = None

    def __init__(
        self,
        probes: Sequence[Probe],
        criterion: Callable[[Any, Any], Tensor] | None,
        data: tuple[Tensor, Tensor] | Iterable[Any],
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
        forward: Callable[[nn.Module, Any], Any] | None = None,
        weight: Weight = "examples",
        budget: float | str | Budget | None = None,
    ):
        if twice := [probe.name for i, probe in enumerate(probes) if probe.name in [p.name for p in probes[:i]]]:
            raise ValueError(f"two probes are named {twice[0]}: each writes under its name; leave one out")
        bench = Bench(
            model if model is not None else nn.Module(),  # the LightningModule, as the fit begins
            criterion,
            data,
            batch_norm=batch_norm,
            chunk_size=chunk_size,
            batch_size=batch_size,
            sampling=sampling,
            seed=seed,
            audit=audit,
            forward=forward,
            weight=weight,
        )
        super().__init__(probes, bench, stochastic=stochastic, refuses=refuses, budget=budget_of(budget))
        self._whole_module, self._measured = model is None, -1
        self._saved: dict[str, dict[str, Tensor]] = {}
        self._kept: dict[str, Any] | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._run = adapt(trainer, pl_module)
        if self._whole_module:
            self.bench.model = pl_module
        self.prepare(pl_module.device)

    def prepare(self, device: torch.device) -> None:
        """The data and the memories of the probes go where the weights are, and each probe says what it demands."""
        self.bench.place(device, next(self.bench.model.parameters()).dtype)
        require_each(self, self._run.step)
        for probe in self.probes:
            probe.ruled = {}  # what the budget of another run has asked of the same card
            memory = self._saved.get(type(probe).__name__, {})
            probe.load_state_dict({name: tensor.to(device) for name, tensor in memory.items()})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._measured, self._kept, self._run = -1, None, adapt(trainer, pl_module)
        self.costs.begin(self._run.total or self.total, pl_module.device, self._run.step)
        self.bench.optimizers = trainer.optimizers
        self.clipping.begin(trainer, pl_module, lambda: self.judge(trainer.loggers))
        lay_out(self, trainer.loggers, tested=getattr(pl_module, "test_data", None) is not None)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.look(trainer.loggers, lambda: self._run.together(batch))
        self.costs.step_begins(self._run.step)

    def look(self, loggers: Sequence[Logger], together: Callable[[], int | None] = lambda: None) -> None:
        """The probes that are due at the present step, before its update, once. together: as of `Bench.see_together`."""
        step = self._run.step
        if step == self._measured or not self.due(step):
            return
        self._measured = step
        if self.bench.batch_examples is None and (examples := together()) is not None:
            self.bench.see_together(examples)
        with torch.enable_grad():
            due = [probe for probe in self.failures.heard(self.probes) if probe.due(step)]
            self.measure(loggers, step, due, self._run.batch(step))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self.clipping.see(optimizer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.costs.step_ends(self._run.step)
        for step, loss in self._run.losses(outputs):
            self.add_loss(step, loss)
        if self._run.divergence:
            self.tracker.diverged(self._run.step)

    def add_loss(self, step: int, loss: float) -> None:
        """The loss of the update `step` that was made."""
        self.tracker.add_loss(step, loss)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.look_back(trainer.loggers)

    def look_back(self, loggers: Sequence[Logger]) -> None:
        """The probes that wait for the end, unless the run diverged; not those that have just measured this step.

        What is saved from now on is what was known before: a run that goes on from here is the one that never ended.
        """
        self.judge(loggers)  # no step follows: by the factor of the last one
        self._kept, step = self.known(), self._run.step
        last = [
            probe
            for probe in self.failures.heard(self.probes)
            if (probe.at_end and not (step == self._measured and probe.due(step))) or self.costs.waits(probe)
        ]
        if last and not self._run.divergence:
            with torch.enable_grad():
                self.measure(loggers, step, last, self._run.batch(step), ended=True)
        self.judge(loggers)
        self.clipping.end()

    def state_dict(self) -> dict[str, Any]:
        """The memory of the probes and of the phase, as tensors: warm starts and history survive a resume."""
        return self._kept or self.known()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back; the memory of the probes follows at the start of the fit, when the device is known."""
        self.recall(state)
        self._saved = state["probes"]


def require_each(probing: Probing, step: int) -> None:
    """Each probe says what it demands of model and data; what cannot be had is raised or told."""
    for probe in probing.probes if trainable(probing.bench.model) else []:
        try:
            probing.bench.require([probe])
        except SettingError as error:
            if probing.refuses:
                raise
            probing.say(probing.failures.note(Failure(probe.name, step, error, ""), {}, refuses=False))


def lay_out(probing: Probing, loggers: Sequence[Logger], *, tested: bool = False) -> None:
    """The custom-scalars page of the loggers, for the probes and the optimisers of the bench; tested: on test data, too."""
    bench, now = probing.bench, Live()
    now.follow(bench.model, bench.optimizers, lambda: torch.ones(sum(p.numel() for p in now.params)))
    preconditioned = now.rule is not None and not now.rule.moving.plain
    show_layout(loggers, probing.probes, preconditioned=preconditioned, tested=tested)
