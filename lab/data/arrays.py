"""Arrays that somebody gave, looked at: which of them are inputs and targets, of what kind, and whether they make a set."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lab.data.base import Split
from lab.settings import SettingError

NAMES = ("x_train", "y_train", "x_test", "y_test")
SHORT = {"x": "x_train", "y": "y_train"}
"""What a set without a test split may be called."""
EXPECTED = "expected x_train and y_train (or x and y), perhaps x_test and y_test"


def tensors_of(arrays: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """The arrays that make a set, by their long names, each looked at."""
    named = {SHORT.get(name, name): (name, value) for name, value in arrays.items()}
    there = [name for name in NAMES if name in named]
    if there not in (list(NAMES), list(NAMES[:2])):
        found = ", ".join(map(str, arrays)) or "nothing"
        raise SettingError(f"{where} holds {found}; {EXPECTED}")
    made = {name: _tensor(*named[name], where) for name in there}
    for split in ("train", "test")[: len(there) // 2]:
        x, y = made[f"x_{split}"], made[f"y_{split}"]
        if len(x) != len(y):
            raise SettingError(
                f"{where}: {named[f'x_{split}'][0]} has {len(x)} examples, {named[f'y_{split}'][0]} has {len(y)}; "
                "expected as many, the first axis the examples"
            )
        if x.is_floating_point() and x.dim() == 1:
            made[f"x_{split}"] = x[:, None]
        if not y.is_floating_point() and y.dim() == 2 and y.shape[1] == 1:
            made[f"y_{split}"] = y[:, 0]  # a column of labels
    return made


def _tensor(name: str, value: Any, where: str) -> Tensor:
    """One array as real numbers, or as int64."""
    where = f"{where}: {name}"
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiub":
            raise SettingError(f"{where} has dtype {value.dtype}; expected real or whole numbers")
        kind = np.int64 if value.dtype.kind in "iu" else np.float64 if value.dtype.itemsize > 8 else value.dtype
        value = torch.from_numpy(np.asarray(value, dtype=np.dtype(kind).newbyteorder("="), order="C"))
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_complex() or value.is_quantized:
        kind = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
        raise SettingError(f"{where} is a {kind}; expected an array of real or whole numbers")
    value = value.detach().cpu()
    if not value.dim() or not value.numel():
        raise SettingError(f"{where} has shape {tuple(value.shape)}; expected one example at least, on the first axis")
    if value.dtype == torch.bool and name.startswith("x"):
        value = value.float()
    if not value.is_floating_point():
        return value.long()
    bad = int(value.numel() - value.isfinite().sum())
    if bad:
        first = int((~value.isfinite()).reshape(len(value), -1).any(1).nonzero()[0])
        raise SettingError(
            f"{where} has {bad} numbers that are not finite (NaN or inf), the first in example {first}; take them out"
        )
    return value


def require_alike(train: Split, test: Split, where: str) -> None:
    for axis, one, other in (("x", train.x, test.x), ("y", train.y, test.y)):
        if one.shape[1:] != other.shape[1:] or one.is_floating_point() != other.is_floating_point():
            raise SettingError(
                f"{where}: {axis}_train is {described(one)} an example, {axis}_test {described(other)}; expected "
                "the same"
            )


def class_names(y: Tensor, test: Split | None, where: str) -> tuple[str, ...]:
    """ "0" .. "K-1"; none for real targets."""
    if y.is_floating_point():
        return ()
    low, most = int(y.min()), int(y.max())
    if low < 0:
        raise SettingError(f"{where}: y_train has the label {low}; expected the labels 0..K-1")
    if y.dim() == 1:
        if most == 0:
            raise SettingError(f"{where}: all labels in y_train are 0; expected two classes at least")
        present = y.unique()
        if len(present) <= most:
            gap = next(label for label in range(most) if label == len(present) or int(present[label]) != label)
            raise SettingError(
                f"{where}: y_train has {len(present)} labels from {low} to {most} and none is {gap}; expected "
                "the classes 0..K-1, each at least once: number them anew, or save targets that are no classes as real "
                "numbers"
            )
    if test is not None and not 0 <= int(test.y.min()) <= int(test.y.max()) <= most:
        odd = int(test.y.min()) if int(test.y.min()) < 0 else int(test.y.max())
        raise SettingError(f"{where}: y_test has the label {odd}; those of y_train are 0..{most}")
    return tuple(map(str, range(most + 1)))


def described(tensor: Tensor) -> str:
    """Shape of an example and type: (3, 32, 32) float32."""
    return f"{tuple(tensor.shape[1:])} {str(tensor.dtype).removeprefix('torch.')}"
