"""The LightningModule of the lab: model, loss, optimiser, and the updates of one chunk.

Lightning's per-step machinery costs 0.25 to 1.2 ms, more than a step of a small network. So a "batch" of the trainer is a
chunk of updates (see `lab.run.agenda`), optimisation is manual, the data lie in memory, and the lab counts its own
updates in `step`. Batches and augmentation are functions of (seed, step): a resumed run goes on bit for bit.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter, process_time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lab.data.base import Dataset, Split
from lab.data.batches import Batches
from lab.models.losses import Criterion, hits
from lab.optim.clip import GradientClip
from lab.optim.escape import EscapeMethod
from lab.optim.gradient import BatchGradient
from lab.optim.joint import Updater, members_of
from lab.optim.noise import GradientNoise
from lab.run import signals
from lab.run.agenda import Agenda, Steps
from lab.run.stopping import Stopping

TIMED, TIMED_SECONDS = 25, 2.0
"""What noise costs is timed on so many steps with it and as many without, or for so long."""


@dataclass
class Updates:
    """What one chunk of updates did: the loss of every step, and the training curves of the logged ones."""

    losses: list[tuple[int, float]]
    curves: list[tuple[int, dict[str, float]]]

    def log(self, step: int, curves: dict[str, float]) -> dict[str, float]:
        """A point of the training curves, by tag, less what is not measured (NaN)."""
        values = {f"train/{name}": value for name, value in curves.items() if not math.isnan(value)}
        self.curves.append((step, values))
        return values


class SupervisedModule(pl.LightningModule):
    """Trains `model` on `dataset.train` by `optimizer`, whose learning rate at step t is its initial one times factor(t).

    agenda      the chunks of the run and the steps whose training curves are logged.
    factor      learning-rate multiplier of a step.
    batches, augment, chunk_size  see `lab.optim.gradient`.
    max_loss    a larger loss counts as divergence, as does one that is not finite: training stops, the weights before
                update `finite_step`, the last with a good loss, are put back, `divergence` says why. The loss that the
                last update leaves is looked at too.
    noise       what is added to the gradient before the optimiser has it; `noise_cost` says in the end how many steps
                without it a step took.
    escape      asked before every update whether the weights stand at a saddle, which it moves them off.
    clip        of the gradient, after the noise; train/grad_norm is that before it.
    stopping    conditions that end the run before the update of the step at which one is met.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        optimizer: Updater,
        dataset: Dataset,
        batches: Batches,
        agenda: Agenda,
        *,
        factor: Callable[[int], float] = lambda step: 1.0,
        augment: bool = False,
        chunk_size: int | None = None,
        max_loss: float = math.inf,
        seed: int = 0,
        noise: GradientNoise | None = None,
        escape: EscapeMethod | None = None,
        clip: GradientClip | None = None,
        stopping: Stopping | None = None,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.model, self.criterion, self.optimizer = model, criterion, optimizer
        self.agenda, self.factor = agenda, factor
        self.gradient = BatchGradient(
            model, criterion, optimizer, dataset.train, batches, augment=augment, chunk_size=chunk_size, seed=seed
        )
        self.test_data, self.max_loss, self.noise, self.escape = dataset.test, max_loss, noise, escape
        self.clip, self.stopping = clip or GradientClip(), stopping or Stopping()
        self.step = self.finite_step = agenda.begin
        self.divergence, self.noise_cost, self._rest_seconds = "", math.nan, math.inf
        self.updates = Updates([], [])
        self._trainable = [p for p in model.parameters() if p.requires_grad]
        self._state, self._last_finite = list[Tensor](), list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return members_of(self.optimizer)

    def on_fit_start(self) -> None:
        """The data go where the model is, once; by now its tensors have their device and precision."""
        dtype = self._trainable[0].dtype
        self.gradient.train = _to(self.gradient.train, self.device, dtype)
        self.test_data = None if self.test_data is None else _to(self.test_data, self.device, dtype)
        self._state = [*self._trainable, *self.model.buffers()]
        self._last_finite = [tensor.detach().clone() for tensor in self._state]
        self.set_lr(self.step)

    def set_lr(self, step: int) -> None:
        """The learning rate of update `step`, before anyone looks at the optimiser."""
        for group in self.optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * self.factor(step)

    def transfer_batch_to_device(self, batch: Steps, device: torch.device, dataloader_idx: int) -> Steps:
        """A chunk is two numbers; the data are on the device already."""
        return batch

    def training_step(self, steps: Steps) -> None:
        """The updates of one chunk; what they did is in `updates`."""
        self.updates = updates = Updates([], [])
        for step in range(steps.begin, steps.end):
            if signals.asked():
                break
            if self.escape is not None and not self.stopping.reason:
                escaped = self.escape.look(step, self.model, self.gradient.train, self.optimizer)
                updates.curves += [(step, escaped)] if escaped else []
            logged = self.agenda.logs(step)
            buffers = [buffer.clone() for buffer in self.model.buffers()] if self.stopping else []
            loss, accuracy = self.gradient(step, self.noise, measured=logged)
            if self._diverged(loss) or self._stops(step, loss, accuracy, buffers):
                break
            begin = clock(self.device)
            self._keep(step)
            grad_norm = _norm([p.grad for p in self._trainable if p.grad is not None]) if logged else math.nan
            self.clip(self.optimizer)
            self.optimizer.step()
            updates.losses.append((step, loss))
            if logged:
                moves = zip(self._trainable, self._last_finite, strict=False)  # buffers come last
                curves = {"loss": loss, "accuracy": accuracy, "grad_norm": grad_norm}
                curves["update_norm"] = _norm([p.detach() - old for p, old in moves])
                curves["lr"] = self.optimizer.param_groups[0]["lr"]
                self.stopping.see(step, updates.log(step, curves | {"noise_norm": self.gradient.noise_norm}))
            self.step = step + 1
            self.set_lr(self.step)
            self._rest_seconds = min(self._rest_seconds, clock(self.device) - begin)
        if self.step == self.agenda.total and not self.divergence:
            with buffers_kept(self.model):  # what the last update did, which no step after it sees
                loss, _ = self.gradient(self.step)
            if not self._diverged(loss) and not all(bool(p.isfinite().all()) for p in self._trainable):
                self._diverge("a weight is no longer finite")  # saturated units hide it from the loss
            if self.noise is not None:
                with buffers_kept(self.model):
                    self.noise_cost = cost_of(self.noise, self.gradient, self.step - 1, self._rest_seconds)

    def on_train_batch_end(self, outputs: Any, batch: Steps, batch_idx: int) -> None:
        """After the callbacks, which have logged the updates that were made: stop here if SIGTERM has come meanwhile."""
        if signals.asked() and self.step < self.agenda.total and not self.divergence:
            signals.leave()

    def _stops(self, step: int, loss: float, accuracy: float, buffers: list[Tensor]) -> bool:
        """Whether a condition is met before update `step`, which is not made then; buffers: those before its batch."""
        if stops := self.stopping.see(step, {"train/loss": loss, "train/accuracy": accuracy}):
            put_back(self.model.buffers(), buffers)
            self.updates.losses.append((step, loss))
            self.updates.log(step, {"loss": loss, "accuracy": accuracy})
            self.trainer.should_stop = True
        return stops

    @torch.no_grad()
    def _keep(self, step: int) -> None:
        """The state before update `step`, whose loss is finite."""
        self.finite_step = step
        for kept, tensor in zip(self._last_finite, self._state, strict=True):
            kept.copy_(tensor)

    def _diverged(self, loss: float) -> bool:
        """Whether the loss is not finite or too large; if so the run has diverged."""
        if math.isfinite(loss) and loss <= self.max_loss:
            return False
        limit = "" if not math.isfinite(loss) else f", above the bound {self.max_loss:g}"
        self._diverge(f"the training loss became {loss:g}{limit}")
        return True

    @torch.no_grad()
    def _diverge(self, reason: str) -> None:
        """Back to the last state whose loss was finite."""
        self.divergence = reason
        put_back(self._state, self._last_finite)
        self.trainer.should_stop = True


@torch.no_grad()
def evaluate(model: nn.Module, criterion: Criterion, data: Split, *, chunk_size: int = 1000) -> dict[str, float]:
    """Mean loss in eval mode, and accuracy where there is one (`lab.models.losses.hits`)."""
    training, loss, correct, labels = model.training, 0.0, 0, 0
    model.eval()
    for x, y in zip(data.x.split(chunk_size), data.y.split(chunk_size), strict=True):
        outputs = model(x)
        loss += float(criterion(outputs, y)) * len(y) / len(data)
        if (right := hits(outputs, y)) is not None:
            correct, labels = correct + int(right), labels + y.numel()
    model.train(training)
    return {"loss": loss} | ({"accuracy": correct / labels} if labels else {})


def cost_of(noise: GradientNoise, gradient: BatchGradient, step: int, rest: float) -> float:
    """How many steps without the noise a step with it takes, whose rest takes `rest` (s; inf where no step was made: a
    resumed end). Gradients with and without noise take turns, and count at their fastest: whatever else the machine does
    only makes them slower.
    """
    took: dict[bool, list[float]] = {False: [], True: []}
    device = gradient.train.x.device
    for _ in range(TIMED):
        for noisy in took:
            begin = clock(device)
            gradient(step, noise if noisy else None)
            took[noisy].append(clock(device) - begin)
        if sum(map(sum, took.values())) > TIMED_SECONDS:
            break
    rest = rest if math.isfinite(rest) else 0.0
    return (min(took[True]) + rest) / (min(took[False]) + rest)


def clock(device: torch.device) -> float:
    """Seconds of this process, which other ones do not lengthen; on a GPU those of the clock on the wall."""
    return perf_counter() if device.type == "cuda" else process_time()


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put the buffers back: BatchNorm counts batches that are no part of the run."""
    buffers = [buffer.clone() for buffer in model.buffers()]
    yield
    put_back(model.buffers(), buffers)


@torch.no_grad()
def put_back(tensors: Iterable[Tensor], kept: Iterable[Tensor]) -> None:
    """The values that were kept of these tensors."""
    for tensor, old in zip(tensors, kept, strict=True):
        tensor.copy_(old)


def _to(split: Split, device: torch.device, dtype: torch.dtype) -> Split:
    """On the device, and where they are real numbers in the precision: tokens and labels stay whole numbers."""
    x, y = (t.to(device=device, dtype=dtype if t.is_floating_point() else t.dtype) for t in (split.x, split.y))
    return Split(x, y)


def _norm(tensors: list[Tensor]) -> float:
    """Euclidean norm of all entries, summed in float64 on their device, which is waited for once."""
    return math.sqrt(float(sum(t.double().square().sum() for t in tensors)))
