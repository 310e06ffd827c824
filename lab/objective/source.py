"""Batches that can be gone through again and again, the same every time: a list, a DataLoader, anything iterable anew.

A loss is a function of w only where its data stay. So the first two passes are compared, count, shapes and contents, and
every later one is held against them: what shuffles or augments is refused, never silently measured. Going through a loader
draws random numbers; those of torch, numpy, Python and the loader are put back, so that a training is as without.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lab.objective.base import memory_of
from lab.objective.batch import Batch, digest, num_bytes, num_rows
from lab.objective.modes import restore, states

HELD_BYTES, HELD_SHARE = 2**30, 8
"""Batches are held in memory up to so many bytes, and up to one part in so many of the memory there is."""
MOST_WITHOUT_LENGTH = 10_000
"""Batches after which data that have no length are taken to have no end."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Surveyed:
    """What came of going through the batches once: rows (None: unknown), bytes and hash of each."""

    rows: tuple[int | None, ...]
    sizes: tuple[int, ...]
    digests: tuple[bytes, ...]


class BatchSource:
    """The batches of `data`, once a loop, always the same.

    Small ones (`HELD_BYTES`) are held in memory; of others one batch at a time is, drawn anew in every pass.
    Raises TypeError for what is no iterable of batches, ValueError for what can be gone through once only, is empty, does
    not end, or changes from pass to pass. Cost: two passes, one for a list.
    """

    def __init__(self, data: Iterable[Batch]):
        _require_batches(data)
        if iter(data) is data:
            raise ValueError(
                f"data is a {type(data).__name__}, which can be gone through once only, and a loss is evaluated again and "
                "again; give list(...) of it, or the loader it comes from"
            )
        self.data = _own(data)
        self._held: list[Batch] | None = list(data) if isinstance(data, list | tuple) else None
        with _unchanged(data):
            first = self._survey()
            again = first if isinstance(data, list | tuple) else self._survey()
        if not first.rows:
            raise ValueError("data has no batches; expected one at least")
        if first != again:
            raise ValueError(_changes(first, again))
        self.found = first

    @property
    def held(self) -> bool:
        """Whether all batches are in memory."""
        return self._held is not None

    @property
    def num_examples(self) -> int | None:
        """Rows of all batches; None where one does not tell."""
        return None if None in self.found.rows else sum(rows for rows in self.found.rows if rows is not None)

    def __len__(self) -> int:
        return len(self.found.rows)

    def __iter__(self) -> Iterator[Batch]:
        """Every batch in turn. Raises ValueError where one is another than it was."""
        if self._held is not None:
            yield from self._held
            return
        count = 0
        for batch in _isolated(self.data):
            if count >= len(self) or digest(batch) != self.found.digests[count]:
                raise ValueError(_CHANGED.format(f"batch {count} is another than before"))
            yield batch
            count += 1
        if count < len(self):
            raise ValueError(_CHANGED.format(f"{count} batches, {len(self)} before"))

    def first(self) -> Batch:
        """The first batch."""
        return next(iter(self))

    def _survey(self) -> Surveyed:
        """One pass; what is small enough is held."""
        rows, sizes, digests, kept = list[int | None](), list[int](), list[bytes](), list[Batch]()
        limit, fixed = min(HELD_BYTES, memory_of(CPU) // HELD_SHARE), isinstance(self.data, list | tuple)
        for batch in self.data:
            rows.append(num_rows(batch))
            sizes.append(num_bytes(batch))
            digests.append(b"" if fixed else digest(batch))
            if self._held is None and sum(sizes) <= limit:
                kept.append(batch)
            if len(rows) > MOST_WITHOUT_LENGTH and not _has_length(self.data):
                raise ValueError(
                    f"data has no length and did not end after {MOST_WITHOUT_LENGTH} batches; give a part of it, as "
                    "list(itertools.islice(data, 100))"
                )
        if self._held is None and sum(sizes) <= limit:
            self._held = kept
        return Surveyed(tuple(rows), tuple(sizes), tuple(digests))


_CHANGED = (
    "the batches change from pass to pass ({}), and with them the loss: it is no function of the weights; give a loader "
    "that neither shuffles nor augments (shuffle=False), or fixed batches: list(loader)"
)


def _require_batches(data: Any) -> None:
    """Raise TypeError or ValueError, one line, for what holds no batches."""
    wanted = (
        "expected (x, y), the training examples as two tensors, or batches: a list of dicts or tuples, a DataLoader or "
        "another iterable"
    )
    if isinstance(data, Tensor | Mapping):
        raise TypeError(f"data is a {type(data).__name__}, one batch at most; {wanted}, as [data]")
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise TypeError(
            f"data is a {type(data).__name__} of single examples; {wanted}, as DataLoader(data, batch_size=64)"
        )
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise TypeError(f"data is a {type(data).__name__}; {wanted}")
    if isinstance(data, tuple | list):
        kinds = {(part.dim(), part.dtype) for part in data if isinstance(part, Tensor)}
        numbers = any(isinstance(part, np.ndarray | np.generic | int | float) for part in data)
        if numbers or len(kinds) > 1 or (kinds and isinstance(data, tuple)):
            of = ", ".join(type(part).__name__ for part in data[:4])
            raise TypeError(f"data is a {type(data).__name__} of {len(data)}: {of}; {wanted}")


def _changes(first: Surveyed, again: Surveyed) -> str:
    """How two passes differ."""
    if len(first.rows) != len(again.rows):
        return _CHANGED.format(f"{len(first.rows)} in the first, {len(again.rows)} in the second")
    if first.rows != again.rows:
        return _CHANGED.format("of other shapes in the second")
    changed = sum(a != b for a, b in zip(first.digests, again.digests, strict=True))
    return _CHANGED.format(f"{changed} of {len(first.rows)} have other contents in the second")


def _own(data: Iterable[Batch]) -> Iterable[Batch]:
    """A loader of its own, whose workers are not those of a training that is in the middle of a pass."""
    if not isinstance(data, DataLoader):
        return data
    own = copy.copy(data)
    own._iterator = None
    return own


def _has_length(data: Any) -> bool:
    try:
        return len(data) >= 0
    except TypeError:
        return False


def _generators(data: Any) -> list[torch.Generator]:
    """The generators of a loader and its samplers."""
    places = [data, *(getattr(data, name, None) for name in ("sampler", "batch_sampler"))]
    places.append(getattr(places[-1], "sampler", None))
    found = [getattr(place, "generator", None) for place in places]
    return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())


@contextmanager
def _unchanged(data: Any) -> Iterator[None]:
    """Random states are put back afterwards."""
    kept = states(CPU)
    others = [(generator, generator.get_state()) for generator in _generators(data)]
    try:
        yield
    finally:
        restore(kept, CPU)
        for generator, state in others:
            generator.set_state(state)


def _isolated(data: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, with the random states put back after each: what is done with them draws nothing."""
    with _unchanged(data):
        batches = iter(data)
    while True:
        with _unchanged(data):
            try:
                batch = next(batches)
            except StopIteration:
                return
        yield batch
