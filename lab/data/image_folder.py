"""Any folder of images as a data set: `root/train/<class>/*` and, where there is one, `root/test/<class>/*`.

The images are decoded once, in a pool of threads, and kept in the cache of `image_cache.py`.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import Field
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from lab.data.base import Count, Dataset, Facts
from lab.data.image_cache import USER, DecodedSplit, ImageCache
from lab.data.images import ImageCard, Images
from lab.settings import SettingError, settings, usable_cpus

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
CACHE_FORMAT = 1
FILES_PER_TASK = 64


@settings()
class ImageFolder(ImageCard):
    """Any tree of images train/<class>/*, optionally test/<class>/*; x (N, 3, H, W). Decoded once, then memory-mapped.

    Greyscale is repeated to three channels. Classes come in the natural order of their names.
    """

    root: Annotated[str, Field(description="folder that holds train/ and perhaps test/; must be set")] = ""
    image_size: Annotated[
        Count | None,
        Field(description="pixels, to which the central square of each is resized; null: images agree in size"),
    ] = None
    cache: Annotated[
        str | None,
        Field(
            min_length=1,
            description="of decoded images: user (~/.cache/lab) | beside (in root) | a folder | null: decode in every run",
        ),
    ] = USER

    def load(self, progress: bool = True) -> Dataset:
        """Decode the first time, memory-map afterwards. Raises SettingError that names the folder or file at fault."""
        if not self.root:
            raise SettingError(
                "data.root is empty; set data.root=FOLDER to a folder that holds train/<class>/<images> and, "
                "if you have one, test/<class>/<images>"
            )
        root = Path(self.root).expanduser()
        if not (root / "train").is_dir():
            raise SettingError(
                f"data.root={root} holds no folder train; data=image_folder expects {root}/train/<class>/<images>"
            )
        train = _list_split(root, "train")
        if len(train.class_names) < 2:
            raise SettingError(
                f"data.root={root}: {root / 'train'} holds one class folder, {train.class_names[0]}, but at least two "
                "classes are needed; add another folder of images"
            )
        cache = ImageCache(root, self.cache, tell=progress)
        train_pixels, train_sha256 = cache.pixels(_decoded_split(train, self.image_size, progress))
        facts: Facts = {"source": "image tree", "train_sha256": train_sha256[:16]}
        if not (root / "test").is_dir():
            cache.report()
            return self.assemble(Images(train_pixels, train.y), None, train.class_names, facts)
        test = _list_split(root, "test")
        _require_same_classes(root, train, test)
        test_pixels, test_sha256 = cache.pixels(_decoded_split(test, self.image_size, progress))
        cache.report()
        if train_pixels.shape[1:] != test_pixels.shape[1:]:
            raise _mixed_sizes(train.files[0], train_pixels.shape[1:], test.files[0], test_pixels.shape[1:])
        facts["test_sha256"] = test_sha256[:16]
        return self.assemble(Images(train_pixels, train.y), Images(test_pixels, test.y), train.class_names, facts)


@dataclasses.dataclass(frozen=True, eq=False)
class _Listing:
    """The images of one split: class names and files in natural order, labels (N,), and a digest of the tree."""

    split: str
    class_names: tuple[str, ...]
    files: tuple[str, ...]
    y: Tensor
    fingerprint: str


def _natural(name: str) -> tuple[list[str | int], str]:
    """A sorting key that puts image2 before image10; names equal but for leading zeros are kept apart by the name."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)], name


def _list_split(root: Path, split: str) -> _Listing:
    with os.scandir(root / split) as entries:
        names = sorted((e.name for e in entries if e.is_dir() and not e.name.startswith(".")), key=_natural)
    files: list[str] = []
    labels: list[int] = []
    digest = hashlib.sha256()
    for label, name in enumerate(names):
        folder = root / split / name
        with os.scandir(folder) as entries:
            images = [e for e in entries if e.name.lower().endswith(EXTENSIONS) and not e.name.startswith(".")]
        images = sorted((e for e in images if e.is_file()), key=lambda entry: _natural(entry.name))
        if not images:
            raise SettingError(
                f"data.root={root}: {folder} holds no images ({', '.join(EXTENSIONS)}); fill or remove it"
            )
        for entry in images:
            stat = entry.stat()
            digest.update(
                f"{name}/{entry.name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape")
            )
        files += [entry.path for entry in images]
        labels += [label] * len(images)
    if not files:
        raise SettingError(
            f"data.root={root}: {root / split} holds no class folders; expected {split}/<class>/<images>"
        )
    return _Listing(split, tuple(names), tuple(files), torch.tensor(labels), f"{len(files)}:{digest.hexdigest()}")


def _require_same_classes(root: Path, train: _Listing, test: _Listing) -> None:
    if train.class_names != test.class_names:
        odd = sorted(set(train.class_names) ^ set(test.class_names), key=_natural)
        raise SettingError(
            f"data.root={root}: train and test must hold the same class folders, but only one of them has "
            f"{', '.join(odd)}; add or remove these"
        )


def _mixed_sizes(first: str, first_shape: tuple[int, ...], other: str, other_shape: tuple[int, ...]) -> SettingError:
    """Shapes end in (height, width)."""
    sizes = [f"{shape[-1]}x{shape[-2]}" for shape in (first_shape, other_shape)]
    return SettingError(
        f"data.root: images differ in size, {first} is {sizes[0]} and {other} is {sizes[1]} (width x height); "
        "set data.image_size=PIXELS to resize them all"
    )


def _decode(path: str, image_size: int | None) -> np.ndarray:
    """Pixels (3, H, W) uint8 of one file."""
    try:
        with Image.open(path) as file:
            mode, image = file.mode, file.convert("RGB")
    except Exception as error:  # decoders raise anything from OSError to struct.error; all mean that this file is bad
        cause = " ".join(str(error).split())
        raise SettingError(f"data.root: {path} cannot be decoded ({cause}); replace or remove it") from None
    if mode == "F" or mode.startswith("I"):  # convert("RGB") would clip these at 255
        raise SettingError(f"data.root: {path} has more than 8 bits per channel (mode {mode}); convert it to 8 bits")
    if image_size is not None and image.size != (image_size, image_size):
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)


def _decode_all(listing: _Listing, image_size: int | None, shape: tuple[int, ...], progress: bool) -> Iterator[bytes]:
    """The pixels of all files in order, some files at a time. All must have `shape` (3, H, W)."""

    def decode_some(files: tuple[str, ...]) -> bytes:
        images = []
        for path in files:
            images.append(_decode(path, image_size))
            if images[-1].shape != shape:
                raise _mixed_sizes(listing.files[0], shape, path, images[-1].shape)
        return np.stack(images).tobytes()

    tasks = [listing.files[i : i + FILES_PER_TASK] for i in range(0, len(listing.files), FILES_PER_TASK)]
    bar = Progress(console=Console(stderr=True), disable=not progress, transient=True)
    with bar, ThreadPoolExecutor(min(len(tasks), usable_cpus())) as pool:
        task = bar.add_task(f"decoding {listing.split} images", total=len(listing.files))
        for files, block in zip(tasks, pool.map(decode_some, tasks), strict=True):
            yield block
            bar.advance(task, len(files))


def _decoded_split(listing: _Listing, image_size: int | None, progress: bool) -> DecodedSplit:
    """The images of a split for the cache."""

    def decode() -> tuple[list[int], Iterator[bytes]]:
        shape = _decode(listing.files[0], image_size).shape
        return [len(listing.files), *shape], _decode_all(listing, image_size, shape, progress)

    return DecodedSplit(listing.split, f"{listing.split}-{image_size or 'native'}", _expected_header(listing), decode)


def _expected_header(listing: _Listing) -> dict[str, object]:
    """What the JSON must say for a cache to belong to this tree."""
    return {
        "format": CACHE_FORMAT,
        "fingerprint": listing.fingerprint,
        "class_names": list(listing.class_names),
        "labels_sha256": hashlib.sha256(listing.y.numpy().astype("<i8").tobytes()).hexdigest(),
    }
