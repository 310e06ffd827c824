"""The 1797 handwritten digits (8 x 8 pixels, values 0..16) that come with scikit-learn: no download, 0.2 ms a step.

x = (pixel/16 - mean)/s with the per-pixel mean and ONE scalar s, the population standard deviation of all pixel/16
values BEFORE centring; both over all 1797 images, whatever is chosen. The file order is class-mixed, so the first n
rows serve as the training set (n = 200 and 500 are the sets of many edge-of-stability measurements).
Source: scikit-learn `load_digits`, the test part of UCI "Optical Recognition of Handwritten Digits" (1998).
"""

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from sklearn.datasets import load_digits

from lab.data.base import (
    DataCard,
    Dataset,
    Examples,
    Facts,
    Split,
    check_batch_size,
    class_indices,
    keep_classes,
    require_two_classes,
    short_hash,
)
from lab.settings import SettingError, settings


@settings()
class Digits(DataCard):
    """scikit-learn's 1797 digits, x (N, 64): come with the installation, 0.2 ms a step. File order is class-mixed."""

    examples: Annotated[
        Examples, Field(description="training examples: the first n rows (the others are the test split) | all")
    ] = "all"

    def load(self, progress: bool = True) -> Dataset:
        """File order, float64 arithmetic cast to float32; `test` is None when no row remains. Raises SettingError."""
        bunch = load_digits()
        pixels = bunch.data / 16
        mean, scale = pixels.mean(axis=0), float(pixels.std())
        x = torch.from_numpy((pixels - mean) / scale).float()
        class_names = tuple(str(name) for name in bunch.target_names)
        chosen = class_indices(self.classes, class_names)
        index, y = keep_classes(torch.from_numpy(bunch.target).long(), chosen)
        x = x[index]

        count = len(y) if self.examples == "all" else self.examples
        if count > len(y):
            raise SettingError(
                f"data.examples={count} is larger than the {len(y)} examples there are; use data.examples=all or fewer"
            )
        require_two_classes(y[:count], self.examples)
        check_batch_size(self.batch_size, count)
        given, label_facts = self.labels(y[:count])
        names = tuple(class_names[i] for i in chosen)
        facts: Facts = {
            "examples": count,
            "test_examples": len(y) - count,
            "classes": ", ".join(names),
            "subset": "none" if count == len(y) else "first rows in file order",
            "standardise": "(pixel/16 - per-pixel mean) / one scalar",
            "sha256": short_hash(bunch.data.astype(np.uint8).tobytes() + bunch.target.astype("<i8").tobytes()),
            "statistics": f"all {len(pixels)} images: scalar {scale:.6f}",
        }
        facts |= label_facts
        test = Split(x[count:], y[count:]) if count < len(y) else None
        return Dataset(Split(x[:count], given), test, names, facts)
