"""The gradient that a training step has: of the loss of its batch, in chunks, with noise where one is chosen."""

import math

import torch
from torch import Tensor, nn

from lab.data.augment import crop_and_flip
from lab.data.base import Split
from lab.data.batches import Batches
from lab.models.losses import Criterion, hits
from lab.optim.joint import Updater
from lab.optim.noise import GradientNoise
from lab.streams import begin_draws, stream


class BatchGradient:
    """Leaves the gradient of the batch of a step in `.grad`. Batches, augmentation and what the network draws, as dropout
    does, are functions of (seed, step).

    train       the examples; whoever moves the model moves them.
    augment     random crop and flip of the batch.
    chunk_size  examples per forward pass; larger batches are summed over chunks weighted by examples.
    noise_norm  the norm of the last noise; NaN where nobody asked for it.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        optimizer: Updater,
        train: Split,
        batches: Batches,
        *,
        augment: bool,
        chunk_size: int | None,
        seed: int,
    ):
        self.model, self.criterion, self.optimizer = model, criterion, optimizer
        self.train, self.batches = train, batches
        self.augment, self.chunk_size, self.seed = augment, chunk_size, seed
        self.noise_norm = math.nan

    def __call__(self, step: int, noise: GradientNoise | None = None, *, measured: bool = False) -> tuple[float, float]:
        """Loss and accuracy of the batch of `step`, NaN where there is none (`lab.models.losses.hits`). measured: the norm
        of the noise is wanted.
        """
        x, y = self._batch(step)
        begin_draws(self.seed, "dropout", step, y.device)
        self.optimizer.zero_grad()
        draw = None
        if noise is not None:
            lr = self.optimizer.param_groups[0]["lr"]
            draw = noise.draw(step, x, y, lr=lr, chunk_size=self.chunk_size, measured=measured)
        size = self.chunk_size or len(y)
        loss = torch.zeros((), dtype=torch.float64, device=y.device)
        correct: Tensor | None = torch.zeros((), dtype=torch.long, device=y.device)
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
            right = hits(outputs.detach(), ys)
            correct = None if correct is None or right is None else correct + right
        if draw is not None:
            draw.finish()
            self.noise_norm = draw.norm
        return float(loss), math.nan if correct is None else float(correct) / y.numel()

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        index = self.batches.index(step)
        x, y = self.train.x, self.train.y
        if index is not None:
            index = index.to(y.device)
            x, y = x[index], y[index]
        if self.augment:
            x = crop_and_flip(x, stream(self.seed, "augment", step))
        return x, y
