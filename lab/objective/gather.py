"""Examples out of the batches they come in: those asked for, put together as new batches where their shapes allow."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from lab.objective.batch import Batch, joinable, joined, num_rows, selected

Rows = tuple[Batch, Tensor, Tensor]


def picked(batches: Iterable[Batch], rows: tuple[int, ...], index: Tensor) -> Iterator[Rows]:
    """Of every batch that has some of the examples `index` (m,): the batch, which of its rows, and their places in index.

    rows: how many each batch has; examples are counted through all of them.
    """
    starts = torch.tensor((0, *rows)).cumsum(0)
    owners = torch.bucketize(index, starts[1:], right=True)
    wanted = set(owners.tolist())
    for b, batch in enumerate(batches):
        if b in wanted:
            places = (owners == b).nonzero()[:, 0]
            yield batch, index[places] - starts[b], places
            wanted.discard(b)
        if not wanted:
            return


def regrouped(batches: Iterable[Batch], rows: tuple[int, ...], index: Tensor) -> tuple[list[Batch], Tensor]:
    """The examples `index` (m,) in new batches of up to as many rows as the largest had, and the place (m,) of each in them.

    Examples of one form (structure, shapes) share batches: sequences that were padded to different lengths do not.
    """
    most, forms = max(rows), defaultdict[Any, list[tuple[Batch, Tensor]]](list)
    for batch, chosen, places in picked(batches, rows, index):
        part = selected(batch, chosen)
        forms[joinable(part)].append((part, places))
    made, order = list[Batch](), list[Tensor]()
    for parts in forms.values():
        whole, places = joined([part for part, _ in parts]), torch.cat([places for _, places in parts])
        for few in torch.arange(len(places)).split(most):
            made.append(selected(whole, few) if len(few) < len(places) else whole)
            order.append(places[few])
    if sum(num_rows(batch) or 0 for batch in made) != len(index):
        raise ValueError("the examples of a batch cannot be told apart by the first dimension of its tensors")
    return made, torch.cat(order).argsort()
