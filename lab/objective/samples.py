"""Which batches and rows a network is looked at on: ones that count."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from lab.objective.batch import Batch, selected
from lab.objective.source import BatchSource
from lab.objective.weighing import Weighing

FEW = 8
"""Rows of a sample."""


def sample_of(source: BatchSource, asked: Weighing) -> Batch:
    """Rows of the first batch that counts; all of it where it cannot be cut."""
    counting = [b for b, (weight, _) in enumerate(_counting(source, asked)) if weight]
    b = counting[0] if counting else 0
    batch, rows = next(one for i, one in enumerate(source) if i == b), source.found.rows[b]
    if rows is None or not counting:
        return batch
    if asked.by == "tokens":
        there = (replace(asked, shifted=True).of_rows(batch) > 0).nonzero()[:, 0]
        return selected(batch, there[spread(len(there), FEW)])
    return selected(batch, spread(rows, FEW))


def ends_of(source: BatchSource, asked: Weighing) -> list[Batch]:
    """The first and the last batch of several rows that count."""
    counting = [b for b, (weight, rows) in enumerate(_counting(source, asked)) if weight and rows != 1]
    return [batch for b, batch in enumerate(source) if counting and b in (counting[0], counting[-1])]


def spread(rows: int, most: int) -> Tensor:
    """At most so many rows, over all of them."""
    return torch.linspace(0, rows - 1, min(rows, most)).round().long()


def _counting(source: BatchSource, asked: Weighing) -> Iterator[tuple[float, int | None]]:
    """Weight and rows of every batch, of which the first label of a row takes no part: it may be no target."""
    weighing = replace(asked, shifted=True)
    for batch, rows in zip(source, source.found.rows, strict=True):
        yield weighing.of_batch(batch), rows
