"""Images: the settings that all sets of images share, and how pixels are scaled.

A training set is made in this order: keep the chosen classes, choose the examples, check the batch size, permute labels,
standardise

    x = (pixel / 255 - mean) / std,

mean and std (population, ddof=0) always over the WHOLE training split, before classes or examples are chosen, so that
a subset is a subset of the same points; the test split is scaled with the training statistics. Pixels stay uint8 until
the chosen ones are converted, block by block.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from lab.data.base import (
    BatchSize,
    DataCard,
    Dataset,
    Facts,
    Split,
    check_batch_size,
    class_balanced,
    class_indices,
    keep_classes,
    require_two_classes,
    short_hash,
)
from lab.settings import settings
from lab.streams import stream

Standardise = Literal["channel", "pixel", "none"]

# 256 * 255^2 < 2^24: in blocks of 256 images the sums of pixels and of their squares are exact even in float32.
# Blocks go through numpy, which uses one thread: torch's threads cost these short loops a factor of 60 on shared cores.
BLOCK = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Raw images of one split: pixels (N, C, H, W) uint8, possibly memory-mapped; y (N,) int64."""

    pixels: Tensor
    y: Tensor


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
        y, label_facts = self.labels(y)
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
        facts |= label_facts
        return Dataset(Split(standardised(train.pixels, index, mean, std), y), test_split, names, facts)


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
