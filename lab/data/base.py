"""What every data set is once loaded, the settings all data cards share, how examples are chosen.

A card of `conf/data/` is one frozen pydantic dataclass with `load() -> Dataset`.
"""

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from lab.sampling import Sampling
from lab.settings import SettingError, settings
from lab.streams import stream

Count = Annotated[int, Field(gt=0, strict=True)]
Seed = Annotated[int, Field(ge=0, strict=True)]
Examples = Annotated[
    Count | Literal["all"], Field(description="training examples: all | n, drawn class-balanced from subset_seed")
]
BatchSize = Annotated[Count | Literal["full"], Field(description="examples per step: full (gradient descent) | n")]
ClassIndex = Annotated[int, Field(ge=0, strict=True)]
Classes = Annotated[
    Literal["all"] | Annotated[int, Field(ge=2, strict=True)] | tuple[ClassIndex | str, ...],
    Field(description="all | K for the first K >= 2 | list of indices or names, renumbered 0..K-1 in that order"),
]
Facts = dict[str, int | float | str]


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Examples ready to train on: x (N, ...) real numbers, of images and digits standardised, or int64 tokens; y (N,) int64
    labels in 0..K-1, (N, T) such labels of the places of a sequence, or (N, ...) real numbers.
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A training split, a test split (None where there is none), the K class names in label order (none where targets are
    real numbers), and `facts`.

    `facts` goes to the provenance of a run: what was chosen, how it was scaled, and for a drawn subset its seed and the
    first 16 hex digits of the SHA-256 of the chosen indices (int64, little endian, into the whole training split).
    """

    train: Split
    test: Split | None
    class_names: tuple[str, ...]
    facts: Facts

    @property
    def num_classes(self) -> int | None:
        """K, the number of classes asked for (a small subset need not contain them all); None for real targets."""
        return len(self.class_names) or None

    @property
    def num_outputs(self) -> int:
        """How many outputs a model has for an example: one for each class, or for each number of a real target."""
        return self.num_classes or self.train.y[0].numel()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one example: (64,) for digits, (3, 32, 32) for CIFAR-10."""
        return tuple(self.train.x.shape[1:])


@settings()
class DataCard(ABC):
    """The settings every data set has; permuted labels as in Zhang et al. (2017)."""

    examples: Examples = "all"
    classes: Classes = "all"
    batch_size: BatchSize = "full"
    sampling: Annotated[
        Sampling,
        Field(description="epoch (each example once) | with_replacement | without_replacement (a draw per step)"),
    ] = "epoch"
    random_labels: Annotated[
        float,
        Field(ge=0, le=1, description="share of the training examples whose labels are permuted among themselves"),
    ] = 0.0
    subset_seed: Annotated[Seed, Field(description="of drawn subset and permuted labels, beside the run's seed")] = 0

    @abstractmethod
    def load(self, progress: bool = True) -> Dataset:
        """Read (once: download, decode), choose and standardise. `progress` shows bars for what takes seconds.

        Raises SettingError, one line, for settings the data cannot satisfy and for data that cannot be had.
        """

    def labels(self, y: Tensor) -> tuple[Tensor, Facts]:
        """The labels to train on, from the true ones of the chosen examples, and what is to be said of them."""
        if self.random_labels == 0:
            return y, {}
        given = permuted(y, self.random_labels, stream(self.subset_seed, "random labels"))
        changed = int((given != y).reshape(len(y), -1).any(1).sum())
        return given, {"random_labels": self.random_labels, "labels_changed": changed, "subset_seed": self.subset_seed}


def class_balanced(y: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices (count,) int64 into y of `count` different examples, as equally many of each class as possible.

    Class sizes in the choice differ by at most 1, unless a class runs short: then all of it is taken and the others
    fill up. The classes that get one more are random, the order is shuffled (never sorted by class).
    Raises SettingError when count > N or when fewer than two classes would be present.

    >>> y = torch.tensor([0] * 90 + [1] * 9 + [2])
    >>> y[class_balanced(y, 11, torch.Generator().manual_seed(0))].bincount()  # of class 2 there is one
    tensor([5, 5, 1])
    """
    if count > len(y):
        raise SettingError(
            f"data.examples={count} is larger than the {len(y)} training examples; use data.examples=all or fewer"
        )
    shuffled = torch.randperm(len(y), generator=generator)
    # Number the members of each class 0, 1, 2, ... in shuffled order and take the lowest numbers of all classes first.
    number = torch.empty_like(shuffled)
    for label in y.unique():
        members = (y[shuffled] == label).nonzero().squeeze(1)
        number[members] = torch.arange(len(members))
    chosen = shuffled[torch.argsort(number, stable=True)[:count]]
    require_two_classes(y[chosen], count)
    return chosen[torch.randperm(count, generator=generator)]


def permuted(y: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """The labels y with those of round(share N) random examples permuted among themselves: every class keeps its size.

    A permuted label may be the old one: of K equal classes one in K is.

    >>> y = torch.arange(3).repeat(100)
    >>> given = permuted(y, 0.5, torch.Generator().manual_seed(0))
    >>> given.bincount(), bool(81 < (given != y).sum() < 119)  # 150 moved, 100 changed on average
    (tensor([100, 100, 100]), True)
    """
    moved = torch.randperm(len(y), generator=generator)[: round(share * len(y))]
    given = y.clone()
    given[moved] = y[moved[torch.randperm(len(moved), generator=generator)]]
    return given


def require_two_classes(y: Tensor, examples: int | str) -> None:
    """Raise SettingError unless labels of two classes are present: one-class sets never reach the edge of stability."""
    if (present := len(y.unique())) < 2:
        raise SettingError(
            f"data.examples={examples} leaves {len(y)} examples of {present} class(es), but at least two classes are "
            "needed; raise data.examples or widen data.classes"
        )


def class_indices(classes: Classes, class_names: Sequence[str]) -> tuple[int, ...]:
    """The indices into `class_names` that the setting `classes` means, in its order. Raises SettingError.

    >>> class_indices(2, ["cat", "dog", "frog"]), class_indices(("frog", 0), ["cat", "dog", "frog"])
    ((0, 1), (2, 0))
    """
    total = len(class_names)
    if classes == "all":
        return tuple(range(total))
    if isinstance(classes, int):
        if classes > total:
            raise SettingError(f"data.classes={classes} is larger than the {total} classes there are; use at most that")
        return tuple(range(classes))
    shown = "[" + ",".join(map(str, classes)) + "]"
    for entry in classes:
        if not (entry in class_names if isinstance(entry, str) else entry < total):
            raise SettingError(
                f"data.classes={shown} asks for {entry}; use 0..{total - 1} or names of: {', '.join(class_names)}"
            )
    chosen = tuple(class_names.index(entry) if isinstance(entry, str) else entry for entry in classes)
    if len(chosen) < 2 or len(set(chosen)) < len(chosen):
        raise SettingError(f"data.classes={shown} must name at least two classes, each once; name others or use all")
    return chosen


def keep_classes(y: Tensor, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The indices of examples whose label is in `chosen`, in file order, and their labels renumbered 0..K-1.

    >>> keep_classes(torch.tensor([0, 1, 2, 2]), (2, 0))
    (tensor([0, 2, 3]), tensor([1, 0, 0]))
    """
    renumber = torch.full((max(int(y.max()), *chosen) + 1,), -1)
    renumber[list(chosen)] = torch.arange(len(chosen))
    labels = renumber[y]
    return (labels >= 0).nonzero().squeeze(1), labels[labels >= 0]


def check_batch_size(batch_size: BatchSize, num_examples: int) -> None:
    """Raise SettingError when a batch is larger than the training set."""
    if batch_size != "full" and batch_size > num_examples:
        raise SettingError(
            f"data.batch_size={batch_size} is larger than the {num_examples} training examples; "
            "use data.batch_size=full for gradient descent"
        )


def short_hash(content: bytes) -> str:
    """The first 16 hex digits of the SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]
