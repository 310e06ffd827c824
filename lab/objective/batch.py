"""One batch, of whatever structure: tensors in dicts, tuples, lists and dataclasses, with other things beside them.

Its rows are the examples: the first dimension that all its tensors share, the sequences of a `PackedSequence` among them.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import fields, is_dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

Batch = Any
"""What a loader yields: a tensor, a dict, a tuple, ..."""


def mapped(batch: Batch, function: Callable[[Any], Any]) -> Batch:
    """The same structure with function(leaf) in place of every leaf; lists of plain things are leaves."""
    if isinstance(batch, Tensor | PackedSequence) or _plain_list(batch):
        return function(batch)
    if isinstance(batch, Mapping):
        changed = {key: mapped(value, function) for key, value in batch.items()}
        if type(batch) is dict or not isinstance(batch, MutableMapping):
            return changed
        again = copy.copy(batch)  # a dict of somebody's own, as of a tokenizer, keeps what else it has
        for key, value in changed.items():
            again[key] = value
        return again
    if isinstance(batch, tuple | list):
        parts = [mapped(part, function) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(batch, **{f.name: mapped(getattr(batch, f.name), function) for f in fields(batch) if f.init})
    return function(batch)


def leaves(batch: Batch) -> list[Any]:
    """Every leaf, in order."""
    found = list[Any]()
    mapped(batch, found.append)
    return found


def tensors(batch: Batch) -> list[Tensor]:
    """Every tensor with a first dimension, in order; of packed sequences the data."""
    every = [leaf.data if isinstance(leaf, PackedSequence) else leaf for leaf in leaves(batch)]
    return [leaf for leaf in every if isinstance(leaf, Tensor) and leaf.dim()]


def num_rows(batch: Batch) -> int | None:
    """The first dimension that all tensors share; None where they differ, or where there is none."""
    sizes = {rows for leaf in leaves(batch) if (rows := _rows_of(leaf)) is not None}
    return sizes.pop() if len(sizes) == 1 else None


def first_dimensions(batch: Batch) -> list[int]:
    """Those of all tensors, each once, in order."""
    return list(dict.fromkeys(rows for leaf in leaves(batch) if (rows := _rows_of(leaf)) is not None))


def selected(batch: Batch, rows: Tensor) -> Batch:
    """The rows (m,) only, of a batch whose `num_rows` is known."""
    num = num_rows(batch)

    def of_leaf(leaf: Any) -> Any:
        if isinstance(leaf, PackedSequence):
            padded, lengths = pad_packed_sequence(leaf, batch_first=True)
            there = rows.to(lengths.device)
            return pack_padded_sequence(padded[rows.to(padded.device)], lengths[there], True, enforce_sorted=False)
        if isinstance(leaf, Tensor):
            return leaf[rows.to(leaf.device)] if leaf.dim() else leaf
        if isinstance(leaf, np.ndarray):
            return leaf[rows.cpu().numpy()] if leaf.ndim and len(leaf) == num else leaf
        if _plain_list(leaf) and len(leaf) == num:
            return type(leaf)(leaf[i] for i in rows.tolist())
        return leaf

    return mapped(batch, of_leaf)


def brought(batch: Batch, w: Tensor) -> Batch:
    """On the device of w; real numbers in its precision, whole ones as they are."""

    def of_leaf(leaf: Any) -> Any:
        numbers = leaf.data if isinstance(leaf, PackedSequence) else leaf
        if isinstance(numbers, Tensor) and numbers.is_floating_point():
            return leaf.to(device=w.device, dtype=w.dtype)
        return leaf.to(w.device) if callable(getattr(leaf, "to", None)) else leaf

    return mapped(batch, of_leaf)


def num_bytes(batch: Batch) -> int:
    """Memory of the tensors."""
    return sum(t.numel() * t.element_size() for t in tensors(batch))


def digest(batch: Batch) -> bytes:
    """A hash of structure, shapes and contents."""
    sum_ = blake2b(digest_size=16)
    for part in _traced(batch):
        sum_.update(part)
    return sum_.digest()


def joinable(batch: Batch) -> tuple[Any, ...]:
    """What batches have in common that `joined` puts together: structure, shapes but for the rows, what is not cut."""
    num, form = num_rows(batch), list[Any]()

    def note(leaf: Any) -> str:
        if isinstance(leaf, Tensor) and leaf.dim():
            form.append((tuple(leaf.shape[1:]), leaf.dtype, leaf.device))
        elif _plain_list(leaf) and len(leaf) == num:
            form.append(len(form))
        else:
            form.append(digest(leaf))
        return ""

    return (repr(mapped(batch, note)), *form)


def joined(batches: Sequence[Batch]) -> Batch:
    """The rows of batches of one `joinable` form, as one batch."""
    columns = iter(list(zip(*map(leaves, batches), strict=True)))

    def of_leaf(leaf: Any) -> Any:
        parts = next(columns)
        if isinstance(leaf, Tensor) and leaf.dim():
            return torch.cat(parts)
        if _plain_list(leaf) and len(leaf) == num_rows(batches[0]):
            return type(leaf)(item for part in parts for item in part)
        return leaf

    return mapped(batches[0], of_leaf) if len(batches) > 1 else batches[0]


def in_words(batch: Batch) -> str:
    """What a batch is, for a message: dict(input_ids (8, 32), labels (8, 32))."""
    if isinstance(batch, Tensor):
        return str(tuple(batch.shape))
    if isinstance(batch, Mapping):
        return f"dict({', '.join(f'{key} {in_words(value)}' for key, value in batch.items())})"
    if isinstance(batch, tuple | list) and not isinstance(batch, PackedSequence) and not _plain_list(batch):
        return f"{type(batch).__name__}({', '.join(map(in_words, batch))})"
    return type(batch).__name__


def _plain_list(batch: Batch) -> bool:
    """A list or tuple without any tensor inside, as of strings."""
    if not isinstance(batch, list | tuple) or isinstance(batch, PackedSequence):
        return False
    return not any(
        isinstance(part, Tensor | PackedSequence | Mapping | np.ndarray)
        or is_dataclass(part)
        or (isinstance(part, list | tuple) and not _plain_list(part))
        for part in batch
    )


def _rows_of(leaf: Any) -> int | None:
    if isinstance(leaf, PackedSequence):
        return int(leaf.batch_sizes[0])
    return len(leaf) if isinstance(leaf, Tensor) and leaf.dim() else None


def _traced(batch: Batch) -> Iterator[bytes]:
    """Structure and contents, in bytes."""
    yield type(batch).__name__.encode()
    if isinstance(batch, Tensor):
        yield f"{tuple(batch.shape)} {batch.dtype}".encode()
        flat = batch.detach().cpu().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    elif isinstance(batch, np.ndarray):
        yield f"{batch.shape} {batch.dtype}".encode()
        yield repr(batch.tolist()).encode() if batch.dtype.hasobject else batch.tobytes()
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield repr(key).encode()
            yield from _traced(value)
    elif isinstance(batch, tuple | list):
        for value in batch:
            yield from _traced(value)
    elif isinstance(batch, str | bytes | int | float | complex | bool | None):
        yield repr(batch).encode()
    elif hasattr(batch, "__dict__"):
        yield from _traced({key: value for key, value in vars(batch).items() if not callable(value)})
