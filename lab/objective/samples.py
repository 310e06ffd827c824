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
    counts, batch, rows = next((one for one in _counting(source, asked) if one[0]), (0.0, source.first(), None))
    if rows is None or not counts:
        return batch
    if asked.by == "tokens":
        there = (replace(asked, shifted=True).of_rows(batch) > 0).nonzero()[:, 0]
        return selected(batch, there[spread(len(there), FEW)])
    return selected(batch, spread(rows, FEW))


def ends_of(source: BatchSource, asked: Weighing) -> list[Batch]:
    """The first and the last batch of several rows that count."""
    ends = list[Batch]()
    for weight, batch, rows in _counting(source, asked):
        if weight and rows != 1:
            ends = [*ends[:1], batch]
    return ends


def spread(rows: int, most: int) -> Tensor:
    """At most so many rows, over all of them."""
    return torch.linspace(0, rows - 1, min(rows, most)).round().long()


def _counting(source: BatchSource, asked: Weighing) -> Iterator[tuple[float, Batch, int | None]]:
    """Weight of every batch, the batch, and its rows; the first label of a row takes no part, for it may be no target."""
    weighing = replace(asked, shifted=True)
    for batch, rows in zip(source, source.found.rows, strict=True):
        yield weighing.of_batch(batch), batch, rows
