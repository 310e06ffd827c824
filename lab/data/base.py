"""What every data set is once loaded, the settings all data cards share, how examples are chosen and scaled.

A card of `conf/data/` is one frozen pydantic dataclass with `load() -> Dataset`. A training set is made in this order:
keep the chosen classes, choose the examples, check the batch size, permute labels, standardise. For images

    x = (pixel / 255 - mean) / std,

mean and std (population, ddof=0) always over the WHOLE training split, before classes or examples are chosen, so that
a subset is a subset of the same points; the test split is scaled with the training statistics. Pixels stay uint8 until
the chosen ones are converted, block by block.
"""

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
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
Standardise = Literal["channel", "pixel", "none"]
ClassIndex = Annotated[int, Field(ge=0, strict=True)]
Classes = Annotated[
    Literal["all"] | Annotated[int, Field(ge=2, strict=True)] | tuple[ClassIndex | str, ...],
    Field(description="all | K for the first K >= 2 | list of indices or names, renumbered 0..K-1 in that order"),
]
Facts = dict[str, int | float | str]

# 256 * 255^2 < 2^24: in blocks of 256 images the sums of pixels and of their squares are exact even in float32.
# Blocks go through numpy, which uses one thread: torch's threads cost these short loops a factor of 60 on shared cores.
BLOCK = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Examples ready to train on: x (N, ...) float32, standardised; y (N,) int64 labels in 0..K-1."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A training split, a test split (None where there is none), the K class names in label order, and `facts`.

    `facts` goes to the provenance of a run: what was chosen, how it was scaled, and for a drawn subset its seed and the
    first 16 hex digits of the SHA-256 of the chosen indices (int64, little endian, into the whole training split).
    """

    train: Split
    test: Split | None
    class_names: tuple[str, ...]
    facts: Facts

    @property
    def num_classes(self) -> int:
        """K, the number of classes asked for (a small subset need not contain them all)."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one example: (64,) for digits, (3, 32, 32) for CIFAR-10."""
        return tuple(self.train.x.shape[1:])


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Raw images of one split: pixels (N, C, H, W) uint8, possibly memory-mapped; y (N,) int64."""

    pixels: Tensor
    y: Tensor


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
        changed = int((given != y).sum())
        return given, {"random_labels": self.random_labels, "labels_changed": changed, "subset_seed": self.subset_seed}


@settings()
class ImageCard(DataCard):
    """The settings every set of images has; `assemble` turns raw images into a `Dataset` by these settings."""

    batch_size: BatchSize = 128
    root: str = ""
    augment: Annotated[
        bool, Field(description="random crop (4 pixels of zero padding) and horizontal flip of training batches")
    ] = False
    standardise: Annotated[
        Standardise,
        Field(description="channel | pixel (by mean and std of each, of the whole training split) | none (pixel/255)"),
    ] = "channel"

    def assemble(self, train: Images, test: Images | None, class_names: Sequence[str], facts: Facts) -> Dataset:
        """Choose classes and examples, standardise. `facts` of the caller (where the images came from) are kept.

        With `examples` an integer below the number available, a class-balanced subset is drawn from
        `stream(subset_seed, "subset")`; otherwise the examples stay in file order. Memory: the float32 result.
        Raises SettingError as `class_balanced`, `class_indices` and `check_batch_size` do.
        """
        chosen = class_indices(self.classes, class_names)
        index, y = keep_classes(train.y, chosen)
        require_two_classes(y, self.examples)
        facts = {**facts, "subset": "none"}
        if self.examples != "all" and self.examples != len(y):
            drawn = class_balanced(y, self.examples, stream(self.subset_seed, "subset"))
            index, y = index[drawn], y[drawn]
            digest = short_hash(index.numpy().astype("<i8").tobytes())
            facts |= {"subset": "class-balanced", "subset_seed": self.subset_seed, "subset_sha256": digest}
        check_batch_size(self.batch_size, len(y))
        y, told = self.labels(y)
        mean, std = image_statistics(train.pixels, self.standardise)
        test_index, test_y = keep_classes(test.y, chosen) if test is not None else (index[:0], y[:0])
        test_split = None
        if test is not None and len(test_y):
            test_split = Split(standardised(test.pixels, test_index, mean, std), test_y)
        names = tuple(class_names[i] for i in chosen)
        facts |= {
            "examples": len(y),
            "test_examples": len(test_y),
            "classes": ", ".join(names),
            "standardise": self.standardise,
            "statistics": describe_statistics(self.standardise, mean, std, len(train.y)),
        }
        facts |= told
        return Dataset(Split(standardised(train.pixels, index, mean, std), y), test_split, names, facts)


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


def image_statistics(pixels: Tensor, standardise: Standardise) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation of pixel/255, float64, of (N, C, H, W) uint8 images.

    Shapes (C, 1, 1) for "channel", (C, H, W) for "pixel"; (0, 1) for "none". The sums are integers and exact, so a
    pixel that never varies has std exactly 0; there std is given as 1, and x = 0 on the training split.

    >>> black, white = torch.zeros(1, 1, 1, 1, dtype=torch.uint8), torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)
    >>> [float(moment) for moment in image_statistics(torch.cat([black, white]), "channel")]
    [0.5, 0.5]
    """
    if standardise == "none":
        return torch.zeros(1, 1, 1, dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.float64)
    total = np.zeros(pixels.shape[1:], dtype=np.int64)
    squares = np.zeros_like(total)
    for block in pixels.split(BLOCK):
        values = block.numpy().astype(np.float32)
        total += values.sum(0).astype(np.int64)
        squares += np.square(values, out=values).sum(0).astype(np.int64)
    count = len(pixels)
    if standardise == "channel":
        count *= total[0].size
        total, squares = total.sum((1, 2), keepdims=True), squares.sum((1, 2), keepdims=True)
    # count * sum p^2 - (sum p)^2 passes 2^63 for the channels of CIFAR-10: Python integers, a few thousand of them.
    spread = (count * squares.astype(object) - total.astype(object) ** 2).astype(np.float64)
    std = torch.from_numpy(np.sqrt(spread)) / count / 255
    return torch.from_numpy(total / count / 255), torch.where(std > 0, std, 1.0)


def standardised(pixels: Tensor, index: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """x (len(index), C, H, W) float32 = (pixel/255 - mean)/std of the chosen uint8 images; one block at a time.

    >>> white = torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)
    >>> standardised(white, torch.tensor([0]), torch.full((1, 1, 1), 0.5), torch.full((1, 1, 1), 0.25)).item()
    2.0
    """
    x = np.empty((len(index), *pixels.shape[1:]), dtype=np.float32)
    centre, scale = (255 * mean).float().numpy(), (255 * std).float().numpy()
    for start in range(0, len(index), BLOCK):
        out = x[start : start + BLOCK]
        np.subtract(pixels.numpy()[index[start : start + BLOCK].numpy()], centre, out=out)
        np.divide(out, scale, out=out)
    return torch.from_numpy(x)


def describe_statistics(standardise: Standardise, mean: Tensor, std: Tensor, num_images: int) -> str:
    """One line for the provenance: the numbers themselves per channel, a hash of them per pixel."""
    if standardise == "none":
        return "none: x = pixel/255"
    source = f"all {num_images} training images"
    if standardise == "channel":
        numbers = [" ".join(f"{value:.6f}" for value in moment.flatten().tolist()) for moment in (mean, std)]
        return f"{source}: mean {numbers[0]}, std {numbers[1]} of pixel/255"
    digest = short_hash(torch.stack([mean, std]).numpy().astype("<f8").tobytes())
    return f"{source}: mean and std of each pixel, sha256 {digest}"


def short_hash(content: bytes) -> str:
    """The first 16 hex digits of the SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]
