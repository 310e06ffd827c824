"""The loss of a network on batches that are no (x, y), and its subsets and single examples: `BatchesObjective`."""

from collections.abc import Iterable
from typing import Literal, Self

import torch
from torch import Tensor, nn

from lab.objective.base import Unsound, with_gradients
from lab.objective.batch import Batch, brought, num_bytes, num_rows, selected
from lab.objective.batch_sum import BatchSum
from lab.objective.calling import Forward, Loss
from lab.objective.chunks import CHUNK_BYTES
from lab.objective.gather import picked, regrouped
from lab.objective.modes import Modes
from lab.objective.network import warn_half
from lab.objective.rows import not_mean
from lab.objective.singles import example_gradients
from lab.objective.source import BatchSource
from lab.objective.weighing import IGNORED, Weighing, Weight


class BatchesObjective(BatchSum):
    """L(w) = sum_b weight_b loss_b(w) / sum_b weight_b over batches b of any structure: dicts, tuples, sequences of tokens.

    model      as of `NetworkObjective`.
    loss       (outputs, batch) -> scalar, the MEAN over what the batch is weighted by. Of a tuple or list it is given the
               last element, the targets, unless its second parameter is called `batch`. None: the model computes the loss
               itself, as `.loss` of its outputs.
    data       batches: a list, a DataLoader, anything that can be gone through again. Small ones are held in memory, of
               others one batch at a time; each is brought to the device of w, its real numbers to the dtype of w. What
               changes from pass to pass (shuffling, augmentation) is refused, and so is a generator (ValueError).
    forward    (model, batch) -> outputs. None: a dict is given by those of its names that forward has, a tuple or list by
               position but for the last (with loss=None all of it), else the batch itself.
    weight     of a batch: "examples", its rows (the first dimension of its tensors); "tokens", its labels other than -100
               (or the `ignore_index` of the loss), without the first of every row where the model predicts the next token,
               which is found out; or a function of the batch. Batches of weight 0 are left out. `weighing` says which.
    batch_norm as of `NetworkObjective`; with "train" the statistics are those of each batch.

    Example i is row i of the batches in order. Its gradient is g_i = N t_i / (sum_j t_j) * d loss_i/dw, with t_i its weight
    (1, or its tokens) and loss_i the loss of the row alone, so that mean_i g_i is the gradient. A mini-batch B (`restrict`)
    has the loss that training descends on it, sum_B t_i loss_i / sum_B t_i: by tokens a ratio, to which the factors of
    `lab.sampling` apply as far as the tokens of batches are alike. Where the loss of a batch is no mean over its rows L is
    defined by its batches (a warning tells), and single examples have no gradients (Unsound).

    >>> batches = [{"input": torch.tensor([[1.0], [3.0]]), "y": torch.tensor([[1.0], [2.0]])}]
    >>> loss = BatchesObjective(nn.Linear(1, 1, bias=False), lambda f, batch: (f - batch["y"]).square().mean(), batches)
    >>> w = torch.ones(1)  # mean of (w x - y)^2
    >>> loss.value(w), loss.grad(w), loss.hvp(w, torch.ones(1)), loss.example_grads(w).T
    (tensor(0.5000), tensor([3.]), tensor([10.]), tensor([[0., 6.]]))
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | None,
        data: Iterable[Batch] | BatchSource,
        *,
        forward: Forward | None = None,
        weight: Weight = "examples",
        batch_norm: Literal["eval", "train"] = "eval",
    ):
        if getattr(loss, "reduction", "mean") not in ("mean", "batchmean"):
            raise ValueError(f'{type(loss).__name__} has reduction={loss.reduction!r}; expected "mean"')  # type: ignore[union-attr]
        ignored = getattr(loss, "ignore_index", IGNORED)
        source = data if isinstance(data, BatchSource) else BatchSource(data)
        super().__init__(model, loss, source, forward, Weighing(weight, ignored), batch_norm)
        self._order: Tensor | None = None
        self._means_seen = False
        warn_half(self.model)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.source)} batches, {self.num_examples} examples, {self.weighing})"

    def over(self, source: BatchSource) -> Self:
        part = super().over(source)
        part._order = None
        return part

    def require_single_examples(self) -> None:
        """Raise TypeError where there are no examples, Unsound where the loss of a batch is no mean over its rows. All
        batches are looked at, once: two values.
        """
        if self.num_examples is None:
            raise TypeError("the tensors of a batch share no first dimension: it has no examples")
        if self.coupled:
            cure = '; use batch_norm="eval"' if self.batch_statistics else ""
            raise Unsound(f"{self.coupled}; single examples have no gradients of their own{cure}")
        if not self._means_seen:
            for batch in self.source:
                if coupled := not_mean(self, batch, self.look, self.weighing):
                    raise Unsound(f"{coupled}; single examples have no gradients of their own")
            self._means_seen = True

    def restrict(self, index: Tensor) -> Self:
        """As `Objective.restrict`: the examples `index` in memory, in batches of up to as many rows as the largest has;
        those of different shapes, as sequences that were padded to different lengths, do not share a batch.
        """
        batches, order = regrouped(self.source, self._rows, self._places(index))
        part = self.over(BatchSource(batches))
        part._order = order
        return part

    def some_batches(self, chosen: Tensor) -> Self:
        """The loss over these batches, by number, only."""
        wanted = set(chosen.tolist())
        return self.over(BatchSource([batch for b, batch in enumerate(self.source) if b in wanted]))

    @with_gradients
    def example_grads(self, w: Tensor, index: Tensor | None = None) -> Tensor:
        """Per-example gradients g_i (b, P), by vmap in chunks, or one by one where it cannot go. Zero for examples of
        weight 0. Raises as `require_single_examples`.
        """
        self.require_single_examples()
        self.find_modes(w)
        index = self._places(torch.arange(self.num_examples or 0) if index is None else index)
        gradients, weighing = w.new_zeros(len(index), len(w)), self.weighing
        scale = (self.num_examples or 0) / sum(self.weights_of_batches)
        for batch, rows, places in picked(self.source, self._rows, index):
            weights = scale * weighing.of_rows(batch)[rows]
            counts = weights > 0
            if bool(counts.any()):
                found = self._gradients_of(w.detach(), brought(batch, w), rows[counts])
                gradients[places[counts].to(w.device)] = weights[counts].to(w)[:, None] * found
        return gradients

    def with_running_statistics(self) -> Self:
        if not self.batch_statistics:
            return self
        part = self.over(self.source)
        part.batch_norm, part._order = "eval", self._order
        part.modes = Modes(self.model, "eval")
        return part

    @property
    def _rows(self) -> tuple[int, ...]:
        return tuple(rows or 0 for rows in self.source.found.rows)

    def _places(self, index: Tensor) -> Tensor:
        """Where the examples `index` are, counted through all batches. Raises TypeError where there are none."""
        if self.num_examples is None:
            raise TypeError("the tensors of a batch share no first dimension: it has no examples, and no mini-batches")
        index = torch.arange(self.num_examples)[index.cpu()]
        return index if self._order is None else self._order[index]

    def _gradients_of(self, w: Tensor, batch: Batch, rows: Tensor) -> Tensor:
        """The gradients of the losses of single rows (b, P)."""

        def loss(w: Tensor, row: Tensor, _: Tensor) -> Tensor:
            return self.loss_of(w, selected(batch, row))

        size = self.graph_per_byte(w) * num_bytes(batch) / (num_rows(batch) or 1)
        rows = rows.to(w.device)
        at_once = max(1, min(len(rows), int(CHUNK_BYTES // max(1, size))))
        return example_gradients(loss, w, rows, rows, chunk_size=at_once, known=self.vectorised)
