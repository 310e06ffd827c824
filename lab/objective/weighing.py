"""How much a batch counts in L = sum_b weight_b loss_b / sum_b weight_b, and each of its rows.

examples   the number of rows
tokens     labels that are not ignored (-100, or the ignore_index of the loss). Of a causal model, which predicts the
           next token, the first label of a row is no target and does not count: which it is, is found by a forward
           pass in which the first labels are other ones (`shifted` in `lab.objective.rows`)
callable   batch -> number
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lab.objective.base import Unsound
from lab.objective.batch import Batch, first_dimensions, in_words, num_rows, selected

Weight = Literal["examples", "tokens"] | Callable[[Batch], Any]
IGNORED = -100


@dataclass(frozen=True)
class Weighing:
    """How batches are weighted; `shifted` whether the first label of a row does not count."""

    by: Weight
    ignored: int = IGNORED
    shifted: bool = False

    def __post_init__(self) -> None:
        if self.by not in ("examples", "tokens") and not callable(self.by):
            raise ValueError(f'weight={self.by!r}: expected "examples", "tokens" or a function of a batch')

    def __str__(self) -> str:
        if self.by == "tokens":
            first = ", the first of every row left out, which a causal model does not predict" if self.shifted else ""
            return f"weighted by tokens (labels other than {self.ignored}{first})"
        return "weighted by examples" if self.by == "examples" else f"weighted by {_name(self.by)}"

    def of_batch(self, batch: Batch) -> float:
        """The weight of a batch, >= 0. Raises Unsound or ValueError where there is none."""
        if self.by == "examples":
            if (rows := num_rows(batch)) is None:
                sizes = first_dimensions(batch)
                differ = (
                    f"tensors whose first dimensions differ ({', '.join(map(str, sizes))})" if sizes else "no tensors"
                )
                raise Unsound(
                    f"a batch {in_words(batch)} has {differ}: how many examples are in it? give weight=lambda batch: number"
                )
            return float(rows)
        if self.by == "tokens":
            return float(self.tokens(batch).sum())
        weight = float(self.by(batch))
        if not 0 <= weight < float("inf"):
            raise ValueError(f"weight(batch) is {weight}; expected a number >= 0")
        return weight

    def of_rows(self, batch: Batch) -> Tensor:
        """The weight of every row (n,), float64."""
        num = num_rows(batch) or 0
        if self.by == "examples":
            return torch.ones(num, dtype=torch.float64)
        if self.by == "tokens":
            return self.tokens(batch).double().cpu()
        rows = [self.of_batch(selected(batch, torch.tensor([i]))) for i in range(num)]
        return torch.tensor(rows, dtype=torch.float64)

    def tokens(self, batch: Batch) -> Tensor:
        """Labels that count, in every row (n,)."""
        labels = labels_of(batch)
        if labels is None:
            raise Unsound(
                f'weight="tokens" counts the labels of a batch, and {in_words(batch)} has none: expected a tensor of whole '
                'numbers under "labels", or as the last of a tuple; give weight=lambda batch: number'
            )
        if self.shifted and labels.dim() > 1:
            labels = labels[:, 1:]
        return (labels != self.ignored).flatten(1).sum(1) if labels.dim() > 1 else (labels != self.ignored).long()


def labels_of(batch: Batch) -> Tensor | None:
    """The labels of a batch, whole numbers (n, ...); None where there are none."""
    if isinstance(batch, Mapping):
        labels = batch.get("labels")
    else:
        labels = batch[-1] if isinstance(batch, tuple | list) and len(batch) else getattr(batch, "labels", None)
    whole = isinstance(labels, Tensor) and labels.dim() > 0 and not labels.is_floating_point()
    return labels if whole else None


def relabelled(batch: Batch, labels: Tensor) -> Batch:
    """The batch with other labels in the place of those of `labels_of`."""
    if isinstance(batch, Mapping):
        return {**batch, "labels": labels}
    if isinstance(batch, tuple | list):
        parts = [*batch[:-1], labels]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    again = copy.copy(batch)
    again.labels = labels
    return again


def _name(by: Any) -> str:
    """The name of a function, or its source where it is one of a line."""
    name = getattr(by, "__name__", type(by).__name__)
    return f"{name}(batch)" if name != "<lambda>" else "a function of the batch"
