"""The LightningModule of the lab: model, loss, optimiser, and the updates of one chunk.

Lightning's per-step machinery costs 0.25 to 1.2 ms, more than a step of a small network. So a "batch" of the trainer is a
chunk of updates (see `lab.run.agenda`), optimisation is manual, the data lie in memory, and the lab counts its own
updates in `step`. Batches and augmentation are functions of (seed, step): a resumed run goes on bit for bit.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter, process_time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lab.data.augment import crop_and_flip
from lab.data.base import Dataset, Split
from lab.data.batches import Batches
from lab.optim.escape import Escape
from lab.optim.noise import GradientNoise
from lab.run import signals
from lab.run.agenda import Agenda, Chunk
from lab.streams import stream

Criterion = Callable[[Tensor, Tensor], Tensor]
TIMED, TIMED_SECONDS = 25, 2.0
"""What noise costs is timed on so many steps with it and as many without, or for so long."""


@dataclass
class Progress:
    """What one chunk of updates did: the loss of every step, and the training curves of the logged ones."""

    losses: list[tuple[int, float]]
    curves: list[tuple[int, dict[str, float]]]


class SupervisedModule(pl.LightningModule):
    """Trains `model` on `dataset.train` by `optimizer`, whose learning rate at step t is its initial one times factor(t).

    batches     which examples make the batch of a step.
    agenda      the chunks of the run and the steps whose training curves are logged.
    factor      learning-rate multiplier of a step.
    augment     random crop and flip of the batch.
    chunk_size  examples per forward pass; larger batches are summed over chunks weighted by examples.
    max_loss    a larger loss counts as divergence, as does one that is not finite: training stops, the weights before
                update `finite_step`, the last with a good loss, are put back, `divergence` says why. The loss that the
                last update leaves is looked at too.
    noise       what is added to the gradient before the optimiser has it; `noise_cost` says in the end how many steps
                without it a step took.
    escape      asked before every update whether the weights stand at a saddle, which it moves them off.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        optimizer: torch.optim.Optimizer,
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
        escape: Escape | None = None,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.model, self.criterion, self.optimizer = model, criterion, optimizer
        self.batches, self.agenda, self.factor = batches, agenda, factor
        self.augment, self.chunk_size, self.max_loss, self.seed = augment, chunk_size, max_loss, seed
        self.train_data, self.test_data = dataset.train, dataset.test
        self.step = self.finite_step = agenda.begin
        self.divergence = ""
        self.noise, self.noise_cost, self.escape = noise, math.nan, escape
        self._noise_norm, self._rest_seconds = math.nan, math.inf
        self.progress = Progress([], [])
        self._trainable = [p for p in model.parameters() if p.requires_grad]
        self._state: list[Tensor] = []
        self._last_finite: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer

    def on_fit_start(self) -> None:
        """The data go where the model is, once; by now its tensors have their device and precision."""
        dtype = self._trainable[0].dtype
        self.train_data = _to(self.train_data, self.device, dtype)
        self.test_data = None if self.test_data is None else _to(self.test_data, self.device, dtype)
        self._state = [*self._trainable, *self.model.buffers()]
        self._last_finite = [tensor.detach().clone() for tensor in self._state]
        self.set_lr(self.step)

    def set_lr(self, step: int) -> None:
        """The learning rate of update `step`, before anyone looks at the optimiser."""
        for group in self.optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * self.factor(step)

    def transfer_batch_to_device(self, batch: Chunk, device: torch.device, dataloader_idx: int) -> Chunk:
        """A chunk is two numbers; the data are on the device already."""
        return batch

    def training_step(self, chunk: Chunk) -> None:
        """The updates of one chunk; what they did is in `progress`."""
        self.progress = progress = Progress([], [])
        for step in range(chunk.begin, chunk.end):
            if signals.asked():
                break
            if self.escape is not None:
                told = self.escape.look(step, self.model, self.train_data, self.optimizer)
                progress.curves += [(step, told)] if told else []
            loss, accuracy = self._gradient(step, self.noise, measured=self.agenda.logs(step))
            if self._diverged(loss):
                break
            begin = self._clock()
            self._keep(step)
            self.optimizer.step()
            progress.losses.append((step, loss))
            if self.agenda.logs(step):
                progress.curves.append((step, self._curves(loss, accuracy)))
            self.step = step + 1
            self.set_lr(self.step)
            self._rest_seconds = min(self._rest_seconds, self._clock() - begin)
        if self.step == self.agenda.total and not self.divergence:
            self._look_back()
            if self.noise is not None:
                self._time_noise(self.noise)

    def on_train_batch_end(self, outputs: Any, batch: Chunk, batch_idx: int) -> None:
        """After the callbacks, which have logged the updates that were made: stop here if SIGTERM has come meanwhile."""
        if signals.asked() and self.step < self.agenda.total and not self.divergence:
            signals.leave()

    @torch.no_grad()
    def evaluate(self, data: Split, *, chunk_size: int = 1000) -> dict[str, float]:
        """Mean loss and accuracy in eval mode."""
        training, loss, correct = self.model.training, 0.0, 0
        self.model.eval()
        for x, y in zip(data.x.split(chunk_size), data.y.split(chunk_size), strict=True):
            outputs = self.model(x)
            loss += float(self.criterion(outputs, y)) * len(y) / len(data)
            correct += int((outputs.argmax(1) == y).sum())
        self.model.train(training)
        return {"loss": loss, "accuracy": correct / len(data)}

    def batch_index(self, step: int) -> Tensor | None:
        """The examples of the batch of `step`, None for all of them."""
        return self.batches.index(step)

    def _gradient(
        self, step: int, noise: GradientNoise | None = None, *, measured: bool = False
    ) -> tuple[float, float]:
        """Loss and accuracy of the batch of `step`, its gradient left in `.grad`, with noise where one is given."""
        x, y = self._batch(step)
        self.optimizer.zero_grad()
        draw = None
        if noise is not None:
            lr = self.optimizer.param_groups[0]["lr"]
            draw = noise.draw(step, x, y, lr=lr, chunk_size=self.chunk_size, measured=measured)
        size = self.chunk_size or len(y)
        loss = torch.zeros((), dtype=torch.float64, device=y.device)
        correct = torch.zeros((), dtype=torch.long, device=y.device)
        for i, (xs, ys) in enumerate(zip(x.split(size), y.split(size), strict=True)):
            outputs = self.model(xs)
            part = self.criterion(outputs, ys)
            share = len(ys) / len(y)
            weighted = part * share if share < 1 else part
            if draw is None:
                weighted.backward()
            else:
                draw.backward(weighted, outputs, slice(i * size, i * size + len(ys)))
            loss += part.detach() * share
            correct += (outputs.detach().argmax(1) == ys).sum()
        if draw is not None:
            draw.finish()
            self._noise_norm = draw.norm
        return float(loss), float(correct) / len(y)

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        index = self.batch_index(step)
        x, y = self.train_data.x, self.train_data.y
        if index is not None:
            index = index.to(y.device)
            x, y = x[index], y[index]
        if self.augment:
            x = crop_and_flip(x, stream(self.seed, "augment", step))
        return x, y

    def _curves(self, loss: float, accuracy: float) -> dict[str, float]:
        """The training curves of the step just made: loss and accuracy of its batch, norms of gradient and update."""
        gradients = [p.grad for p in self._trainable if p.grad is not None]
        moves = [
            p.detach() - old for p, old in zip(self._trainable, self._last_finite, strict=False)
        ]  # buffers come last
        noise = {"train/noise_norm": self._noise_norm} if math.isfinite(self._noise_norm) else {}
        return {
            "train/loss": loss,
            "train/accuracy": accuracy,
            "train/grad_norm": _norm(gradients),
            "train/update_norm": _norm(moves),
            "train/lr": self.optimizer.param_groups[0]["lr"],
        } | noise

    @torch.no_grad()
    def _keep(self, step: int) -> None:
        """The state before update `step`, whose loss is finite."""
        self.finite_step = step
        for kept, tensor in zip(self._last_finite, self._state, strict=True):
            kept.copy_(tensor)

    def _look_back(self) -> None:
        """What the last update did, which no step after it sees: the loss of the batch that would be next."""
        with self._buffers_kept():
            loss, _ = self._gradient(self.step)
        # Saturated units hide infinite weights from the loss.
        if not self._diverged(loss) and not all(bool(p.isfinite().all()) for p in self._trainable):
            self._diverge("a weight is no longer finite")

    def _time_noise(self, noise: GradientNoise) -> None:
        """`noise_cost`: gradients with and without noise in turn, beside the rest of a step, each at its fastest: whatever
        else the machine does only makes them slower.
        """
        took: dict[bool, list[float]] = {False: [], True: []}
        with self._buffers_kept():
            for _ in range(TIMED):
                for noisy in took:
                    begin = self._clock()
                    self._gradient(self.step - 1, noise if noisy else None)
                    took[noisy].append(self._clock() - begin)
                if sum(map(sum, took.values())) > TIMED_SECONDS:
                    break
        rest = self._rest_seconds if math.isfinite(self._rest_seconds) else 0.0  # no step was made: a resumed end
        self.noise_cost = (min(took[True]) + rest) / (min(took[False]) + rest)

    def _clock(self) -> float:
        """Seconds of this process, which other ones do not lengthen; on a GPU those of the clock on the wall."""
        return perf_counter() if self.device.type == "cuda" else process_time()

    @contextmanager
    def _buffers_kept(self) -> Iterator[None]:
        """Put the buffers back: BatchNorm counts batches that are no part of the run."""
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        yield
        for buffer, kept in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(kept)

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
        for tensor, old in zip(self._state, self._last_finite, strict=True):
            tensor.copy_(old)
        self.trainer.should_stop = True


def _to(split: Split, device: torch.device, dtype: torch.dtype) -> Split:
    return Split(split.x.to(device=device, dtype=dtype), split.y.to(device))


def _norm(tensors: list[Tensor]) -> float:
    """Euclidean norm of all entries, summed in float64 on their device, which is waited for once."""
    return math.sqrt(float(sum(t.double().square().sum() for t in tensors)))
