"""Tensors as a data set: arrays of any shape, out of a file (`TensorFile`) or of a function of one's own (`lab.data.own`).

    x   real numbers, as they are (nothing is standardised), or whole numbers: tokens, which stay whole
    y   whole numbers (N,): the classes 0..K-1, each at least once; (N, T): such labels at the places of sequences;
        real numbers (N, ...): a regression, for which there are no classes and no accuracy

A training set is made in the order of `lab.data.images`: keep the chosen classes, choose the examples, permute labels.
"""

import hashlib
import pickle
import zipfile
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from lab.data.base import (
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
from lab.settings import SettingError, settings
from lab.streams import stream

NAMES = ("x_train", "y_train", "x_test", "y_test")
SHORT = {"x": "x_train", "y": "y_train"}
"""What a set without a test split may be called."""
EXPECTED = "expected x_train and y_train (or x and y), perhaps x_test and y_test"
LISTED = 100
"""Up to so many classes are listed in the provenance of a run."""


@settings()
class TensorCard(DataCard):
    """The settings of every set of tensors; `assemble` makes a `Dataset` of arrays by them."""

    @property
    @abstractmethod
    def where(self) -> str:
        """What an error begins with: the setting that names the source."""

    def assemble(self, arrays: Mapping[str, Any], facts: Facts) -> Dataset:
        """Look at the arrays, choose classes and examples. Raises SettingError, one line, for what is no data set, and for
        settings that it cannot satisfy.
        """
        tensors = self._tensors(arrays)
        train, test = Split(tensors["x_train"], tensors["y_train"]), None
        if "x_test" in tensors:
            test = Split(tensors["x_test"], tensors["y_test"])
            self._require_alike(train, test)
        classes = train.y.dim() == 1 and not train.y.is_floating_point()
        names = self._class_names(train.y, test)
        if classes:
            train, test, names = self._of_classes(train, test, names)
        elif self.classes != "all":
            kind = "real numbers" if train.y.is_floating_point() else "labels of sequences"
            raise SettingError(f"data.classes={self.classes}: the targets of {self.where} are {kind}; leave it out")
        train, chosen = self._subset(train, classes=classes)
        check_batch_size(self.batch_size, len(train))
        given, label_facts = self.labels(train.y)
        facts = {
            **facts,
            "examples": len(train),
            "test_examples": 0 if test is None else len(test),
            "classes": ", ".join(names) if len(names) <= LISTED else f"0 to {len(names) - 1}",
            "inputs": _described(train.x),
            "targets": _described(train.y),
            **chosen,
            **label_facts,
        }
        return Dataset(Split(train.x, given), test, names, facts)

    def _tensors(self, arrays: Mapping[str, Any]) -> dict[str, Tensor]:
        """The arrays that make a set, by their long names, each looked at."""
        named = {SHORT.get(name, name): (name, value) for name, value in arrays.items()}
        there = [name for name in NAMES if name in named]
        if there not in (list(NAMES), list(NAMES[:2])):
            found = ", ".join(map(str, arrays)) or "nothing"
            raise SettingError(f"{self.where} holds {found}; {EXPECTED}")
        made = {name: self._tensor(*named[name]) for name in there}
        for split in ("train", "test")[: len(there) // 2]:
            x, y = made[f"x_{split}"], made[f"y_{split}"]
            if len(x) != len(y):
                raise SettingError(
                    f"{self.where}: {named[f'x_{split}'][0]} has {len(x)} examples, {named[f'y_{split}'][0]} has {len(y)}; "
                    "expected as many, the first axis the examples"
                )
            if x.is_floating_point() and x.dim() == 1:
                made[f"x_{split}"] = x[:, None]
            if not y.is_floating_point() and y.dim() == 2 and y.shape[1] == 1:
                made[f"y_{split}"] = y[:, 0]  # a column of labels
        return made

    def _tensor(self, name: str, value: Any) -> Tensor:
        """One array as real numbers, or as int64."""
        where = f"{self.where}: {name}"
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
            raise SettingError(
                f"{where} has shape {tuple(value.shape)}; expected one example at least, on the first axis"
            )
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

    def _require_alike(self, train: Split, test: Split) -> None:
        for axis, one, other in (("x", train.x, test.x), ("y", train.y, test.y)):
            if one.shape[1:] != other.shape[1:] or one.is_floating_point() != other.is_floating_point():
                raise SettingError(
                    f"{self.where}: {axis}_train is {_described(one)} an example, {axis}_test {_described(other)}; expected "
                    "the same"
                )

    def _class_names(self, y: Tensor, test: Split | None) -> tuple[str, ...]:
        """ "0" .. "K-1"; none for real targets."""
        if y.is_floating_point():
            return ()
        low, most = int(y.min()), int(y.max())
        if low < 0:
            raise SettingError(f"{self.where}: y_train has the label {low}; expected the labels 0..K-1")
        if y.dim() == 1:
            if most == 0:
                raise SettingError(f"{self.where}: all labels in y_train are 0; expected two classes at least")
            present = y.unique()
            if len(present) <= most:
                gap = next(label for label in range(most) if label == len(present) or int(present[label]) != label)
                raise SettingError(
                    f"{self.where}: y_train has {len(present)} labels from {low} to {most} and none is {gap}; expected "
                    "the classes 0..K-1, each at least once: number them anew, or save targets that are no classes as real "
                    "numbers"
                )
        if test is not None and not 0 <= int(test.y.min()) <= int(test.y.max()) <= most:
            odd = int(test.y.min()) if int(test.y.min()) < 0 else int(test.y.max())
            raise SettingError(f"{self.where}: y_test has the label {odd}; those of y_train are 0..{most}")
        return tuple(map(str, range(most + 1)))

    def _of_classes(
        self, train: Split, test: Split | None, names: tuple[str, ...]
    ) -> tuple[Split, Split | None, tuple[str, ...]]:
        """The examples of the chosen classes, whose labels are numbered anew."""
        chosen = class_indices(self.classes, names)
        if self.classes != "all":
            index, y = keep_classes(train.y, chosen)
            train = Split(train.x[index], y)
            if test is not None:
                index, y = keep_classes(test.y, chosen)
                test = Split(test.x[index], y) if len(y) else None
        require_two_classes(train.y, self.examples)
        return train, test, tuple(names[i] for i in chosen)

    def _subset(self, train: Split, *, classes: bool) -> tuple[Split, Facts]:
        """The chosen examples; balanced over classes, where there are any."""
        if self.examples == "all" or self.examples == len(train):
            return train, {"subset": "none"}
        if self.examples > len(train):
            raise SettingError(
                f"data.examples={self.examples} is larger than the {len(train)} training examples; use data.examples=all or "
                "fewer"
            )
        generator = stream(self.subset_seed, "subset")
        if classes:
            index = class_balanced(train.y, self.examples, generator)
        else:
            index = torch.randperm(len(train), generator=generator)[: self.examples]
        digest = short_hash(index.numpy().astype("<i8").tobytes())
        kind = "class-balanced" if classes else "uniform"
        facts: Facts = {"subset": kind, "subset_seed": self.subset_seed, "subset_sha256": digest}
        return Split(train.x[index], train.y[index]), facts


@settings()
class TensorFile(TensorCard):
    """A file of arrays, x_train y_train [x_test y_test] of any shape: .npz, .pt (a dictionary) or .safetensors.

    Whole numbers in y are classes 0..K-1, real ones a regression (loss=mse). Whole numbers in x are tokens, and stay whole.
    """

    file: Annotated[str, Field(description="the file; must be set")] = ""

    @property
    def where(self) -> str:
        return f"data.file={self.file}"

    def load(self, progress: bool = True) -> Dataset:
        """Read it. Nothing in the file is run: no pickled objects. Raises SettingError as `assemble` does."""
        if not self.file:
            raise SettingError(
                f"data.file is missing: name a file .npz, .pt or .safetensors, e.g. data.file=mine.npz; {EXPECTED} in it"
            )
        file = Path(self.file).expanduser()
        readers = {".npz": _npz, ".pt": _pt, ".pth": _pt, ".safetensors": _safetensors}
        if file.suffix not in readers:
            raise SettingError(f"{self.where}: expected a file whose name ends in .npz, .pt or .safetensors")
        if not file.is_file():
            what = "is no file" if file.exists() else "does not exist"
            raise SettingError(f"{self.where}: {file.absolute()} {what}; data.file is relative to where you are")
        try:
            arrays = readers[file.suffix](file)
            with file.open("rb") as opened:
                sha256 = hashlib.file_digest(opened, "sha256").hexdigest()[:16]
        except OSError as error:
            raise SettingError(f"{self.where} cannot be read ({error.strerror or error})") from None
        return self.assemble(arrays, {"source": "file of tensors", "sha256": sha256})


def _described(tensor: Tensor) -> str:
    """Shape of an example and type: (3, 32, 32) float32."""
    return f"{tuple(tensor.shape[1:])} {str(tensor.dtype).removeprefix('torch.')}"


def _npz(file: Path) -> dict[str, Any]:
    try:
        with np.load(file, allow_pickle=False) as content:
            return {name: content[name] for name in content.files if name in (*NAMES, *SHORT)} or dict.fromkeys(content)
    except (ValueError, zipfile.BadZipFile, EOFError, AttributeError, TypeError) as error:
        pickled = "Object arrays" in str(error) or "pickled" in str(error)
        what = (
            "holds an array of objects" if pickled and zipfile.is_zipfile(file) else "is no whole file of numpy.savez"
        )
        raise SettingError(
            f"data.file={file} {what}; save arrays of numbers: numpy.savez(file, x_train=..., y_train=...)"
        ) from None


def _pt(file: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        what = (
            "holds objects other than tensors"
            if "WeightsUnpickler" in str(error) or "GLOBAL" in str(error)
            else "is no whole file"
        )
        raise SettingError(
            f'data.file={file} {what}; save tensors: torch.save({{"x_train": x, "y_train": y}}, file)'
        ) from None
    if not isinstance(content, dict):
        raise SettingError(
            f"data.file={file} holds a {type(content).__name__}; expected a dictionary of tensors, x_train and y_train"
        )
    return content


def _safetensors(file: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise SettingError(f"data.file={file} is no whole file of safetensors ({error})") from None
