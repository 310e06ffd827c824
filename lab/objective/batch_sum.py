"""A loss as a weighted sum over batches, each drawn, brought to the device and run by itself."""

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lab.objective.base import Unsound
from lab.objective.batch import Batch, brought, num_bytes, num_rows, selected
from lab.objective.calling import Calling, Forward, Loss
from lab.objective.forward import eager
from lab.objective.functional import Findings, ModuleLoss
from lab.objective.rows import BatchLook, look_at_batches
from lab.objective.samples import sample_of, spread
from lab.objective.source import BatchSource
from lab.objective.weighing import Weighing

PREFIX = "network."
"""Where the network is in `Calling`."""


@dataclass(kw_only=True)
class BatchFindings(Findings):
    """What was found out about a network and its loss on batches, once, for all subsets of these."""

    graph_per_byte: dict[torch.dtype, float] = field(default_factory=dict)


class BatchSum(ModuleLoss):
    """L(w) = sum_b weight_b loss_b(w) / sum_b weight_b over the batches of a source.

    asked  how batches are weighted, as it was asked for; sample: a few rows of a batch that counts.
    """

    _known: BatchFindings

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | None,
        source: BatchSource,
        forward: Forward | None,
        asked: Weighing,
        batch_norm: Literal["eval", "train"],
    ):
        super().__init__(model, batch_norm)
        self.asked, self._known = asked, BatchFindings()
        self._calling = Calling(self.model, loss, forward)
        self._take(source)
        self.sample = sample_of(source, asked)

    def _take(self, source: BatchSource) -> None:
        self.source, self._weights = source, tuple[float, ...]()
        self.num_examples = source.num_examples

    @property
    def weighing(self) -> Weighing:
        """How batches are weighted, as found on the data."""
        return replace(self.asked, shifted=self.look.shifted) if self.asked.by == "tokens" else self.asked

    def _looked(self) -> BatchLook:
        return look_at_batches(self)

    @property
    def weights_of_batches(self) -> tuple[float, ...]:
        """The weight of every batch. Raises ValueError where all are zero."""
        if not self._weights:
            weighing = self.weighing
            weights = tuple(weighing.of_batch(batch) for batch in self.source)
            if not sum(weights):
                raise ValueError(f"all batches have weight zero, {weighing}: there is nothing to average over")
            self._weights = weights
        return self._weights

    def parts(self, w: Tensor) -> Iterator[tuple[float, Tensor]]:
        """One part a batch, by its share; those of weight 0 are left out."""
        for share, batch in self._shares():
            yield share, self.loss_of(w, batch)

    def composition(self, w: Tensor) -> Iterator[tuple[float, Tensor, Callable[[Tensor], Tensor]]]:
        """One part a batch. Raises TypeError where the outputs are no single tensor."""
        for share, batch in self._shares():
            there = brought(batch, w)
            outputs = self._run(w, partial(self._called, w, there, outputs=True))
            if not isinstance(outputs, Tensor) or not outputs.dim():
                raise TypeError(
                    f"the network returns a {type(outputs).__name__} of a batch, no tensor of outputs, and so has no "
                    "Gauss-Newton matrix; give forward=lambda model, batch: model(...).logits, and a loss of them"
                )
            yield share, outputs, partial(self._loss_at, there)

    def loss_of(self, w: Tensor, batch: Batch) -> Tensor:
        """The loss of a batch of the caller's choosing, a scalar differentiable in w."""
        loss = self._run(w, partial(self._called, w, brought(batch, w)))
        if w.requires_grad and not loss.requires_grad:
            raise Unsound("the loss of a batch does not depend on the parameters; is there a no_grad or detach?")
        return loss.to(w.dtype)

    def _loss_at(self, batch: Batch, outputs: Tensor) -> Tensor:
        """The loss of a batch that was brought, of outputs of the caller's choosing."""
        with eager():
            return self._calling.loss_of(outputs, batch)

    def alone(self, batch: Batch) -> Self:
        """The loss of one batch, whatever its weight."""
        one = self.over(BatchSource([batch]))
        one.asked = Weighing(_one)
        return one

    def few(self, most: int) -> Self:
        """The loss over at most so many rows of the sample."""
        if (rows := num_rows(self.sample)) is None:
            return self.over(BatchSource([self.sample]))
        return self.over(BatchSource([selected(self.sample, spread(rows, most))]))

    def over(self, source: BatchSource) -> Self:
        """The same loss on other batches."""
        part = copy.copy(self)
        part._take(source)
        return part

    def graph_bytes(self, w: Tensor) -> int:
        """As of the largest batch, scaled by the size of all."""
        return round(sum(self.source.found.sizes) * self.graph_per_byte(w)) + len(self.source)

    def graph_per_byte(self, w: Tensor) -> float:
        """Memory of the twice differentiable graph for a byte of a batch, as of the largest one."""
        if w.dtype not in self._known.graph_per_byte:
            sizes = self.source.found.sizes
            batch = next(one for b, one in enumerate(self.source) if sizes[b] == max(sizes))
            size = self._saved_bytes(w, lambda leaf: self.loss_of(leaf, batch))
            self._known.graph_per_byte[w.dtype] = size / max(1, num_bytes(batch))
        return self._known.graph_per_byte[w.dtype]

    def _shares(self) -> Iterator[tuple[float, Batch]]:
        """Every batch that counts, with its share of the weight."""
        weights, total = self.weights_of_batches, sum(self.weights_of_batches)
        if len(weights) > 1 and not self.batch_statistics:
            self._warn_coupled()
        for weight, batch in zip(weights, self.source, strict=True):
            if weight:
                yield weight / total, batch

    def _warn_coupled(self) -> None:
        """Warn once that the loss depends on its batches, where that is not the known way of BatchNorm."""
        if self.coupled and not self._known.warned:
            self._known.warned = True
            warnings.warn(self.coupled, stacklevel=4)

    def _called(self, w: Tensor, batch: Batch, outputs: bool = False) -> Any:
        """The loss of a batch that was brought, or its outputs, by a network with the weights w."""
        named = {PREFIX + name: tensor for name, tensor in self._tensors(w).items()}
        return functional_call(self._calling, named, (batch, outputs))

    def _run_few(self, w: Tensor) -> None:
        w = w.detach()
        try:
            self._called(w, brought(self.sample, w))
        except (RuntimeError, ValueError):
            self._called(w, brought(self.source.first(), w))


def _one(batch: Batch) -> float:
    return 1.0
