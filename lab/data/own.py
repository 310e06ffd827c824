"""Data of one's own: a function that returns tensors, or a map-style data set, named by its path.

    data=own data.path=mine.py:make data.args.n=100        make(n=100)

What it returns is held in memory: (x, y), (x, y, x_test, y_test), a dictionary of these names, a map-style data set whose
examples are pairs (x, y), or a pair of such sets, (train, test). Then it is as `lab.data.tensors` has it. Numbers that it
draws from the global generators of torch, numpy or Python are those of `subset_seed`.
"""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate

from lab.data.base import Dataset, Facts, Seed
from lab.data.tensors import NAMES, TensorCard
from lab.named import NamedCode, running
from lab.settings import SettingError, settings
from lab.streams import seeded

RETURNS = (
    "expected (x, y), (x, y, x_test, y_test), a dictionary of these, a map-style set of pairs (x, y), or (train, test)"
)


@settings()
class OwnData(NamedCode, TensorCard):
    """A function of your own: it returns x, y[, x_test, y_test] or a map-style data set. See data=tensors for x and y."""

    group: ClassVar[str] = "data"
    example: ClassVar[str] = "mine.py:make"
    subset_seed: Annotated[
        Seed, Field(description="of drawn subset, permuted labels and what the code draws, beside the run's seed")
    ] = 0

    @property
    def where(self) -> str:
        return self.setting

    def load(self, progress: bool = True) -> Dataset:
        """Call the code. Raises SettingError where it raises, for what it returns that is no data set, and as
        `TensorCard.assemble` does.
        """
        self.check()
        code = self.loaded()
        with running(self.path, self.setting), seeded(self.subset_seed):
            arrays = self._arrays(code(**self.args))
        facts: Facts = {"source": "code", "sha256": _digest(arrays)}
        return self.assemble(arrays, facts)

    def _arrays(self, made: Any) -> dict[str, Any]:
        """What the code returned, as arrays by name."""
        if isinstance(made, Mapping):
            return dict(made)
        parts = list(made) if isinstance(made, tuple | list) else [made]
        if len(parts) in (2, 4) and all(isinstance(part, np.ndarray | Tensor) for part in parts):
            return dict(zip(NAMES, parts, strict=False))
        if len(parts) in (1, 2) and all(_map_style(part) for part in parts):
            pairs = [pair for part in parts for pair in self._collated(part)]
            return dict(zip(NAMES, pairs, strict=False))
        kinds = ", ".join(type(part).__name__ for part in parts)
        what = f"a {type(made).__name__} of {kinds}" if isinstance(made, tuple | list) else f"a {kinds}"
        raise SettingError(f"{self.setting} returned {what}; {RETURNS}")

    def _collated(self, dataset: Any) -> list[Any]:
        """The examples of a map-style data set as x and y."""
        if isinstance(dataset, TensorDataset):
            parts: Any = dataset.tensors
        else:
            parts = default_collate([dataset[i] for i in range(len(dataset))]) if len(dataset) else []
        if (
            not isinstance(parts, tuple | list)
            or len(parts) != 2
            or not all(isinstance(part, Tensor) for part in parts)
        ):
            raise SettingError(
                f"{self.setting}: the examples of its {type(dataset).__name__} are no pairs (x, y) of numbers; {RETURNS}"
            )
        return list(parts)


def _map_style(part: Any) -> bool:
    """Whether it has a length and examples by number; an array, a text or a list of numbers is no data set."""
    plain = isinstance(part, np.ndarray | Tensor | str | list | tuple | Mapping)
    return not plain and hasattr(part, "__getitem__") and hasattr(part, "__len__")


def _digest(arrays: Mapping[str, Any]) -> str:
    """The first 16 hex digits of the SHA-256 of names, shapes and numbers."""
    digest = hashlib.sha256()
    for name in sorted(map(str, arrays)):
        value = arrays[name]
        if isinstance(value, Tensor) and value.layout == torch.strided:
            value = value.detach().cpu()
            value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        if isinstance(value, np.ndarray) and value.dtype != object:
            digest.update(f"{name} {value.dtype} {value.shape}".encode())
            digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()[:16]
