"""Decoded images on disk: made once, memory-mapped by later runs, replaced when the files they were made from change.

Each split is one uint8 file with a small JSON beside it that says what it was made from. It is used only if the tree
(names, sizes, modification times) and its own bytes (SHA-256) are still those, and is made again otherwise. Processes
that want the same cache at once wait for the one that makes it.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from lab.data.base import short_hash
from lab.settings import SettingError

USER, BESIDE = "user", "beside"
"""The choices of data.cache besides a folder and null."""
MEGABYTE = 1_000_000


@dataclass(frozen=True, eq=False)
class DecodedSplit:
    """What the cache of a split is to hold.

    split   train or test; name: that of its files, which tells image sizes apart.
    header  what its JSON must say for it to belong to the tree.
    decode  gives the shape (N, 3, H, W) and the pixels, block by block. Raises SettingError.
    """

    split: str
    name: str
    header: dict[str, object]
    decode: Callable[[], tuple[list[int], Iterator[bytes]]]


class ImageCache:
    """The cache of the images in `root`: in the user's cache folder, beside the images, in a folder, or (None) nowhere.

    One beside the images that is still valid is used where the user's cache folder is meant. Where that folder cannot be
    written the images stay in memory, which is told; a folder that was chosen and cannot be written raises SettingError.
    """

    def __init__(self, root: Path, choice: str | None, *, tell: bool = True):
        self.root, self.choice, self.tell = root, choice, tell
        self.folder = _folder(root, choice)
        self.made: list[Path] = []

    def pixels(self, decoded: DecodedSplit) -> tuple[Tensor, str]:
        """Memory-mapped pixels (N, 3, H, W) uint8 and the SHA-256 of their bytes; decoded first where no cache is valid."""
        beside = _folder(self.root, BESIDE)
        for folder in filter(None, (self.folder, beside if self.choice == USER else None)):
            if (cached := _read(folder / decoded.name, decoded.header)) is not None:
                return cached
        if self.folder is not None:
            try:
                with _alone(self.folder, self._say) as alone:
                    cached = _read(self.folder / decoded.name, decoded.header)
                    return cached if cached is not None else self._make(self.folder, decoded, alone)
            except OSError as error:
                self._do_without(self.folder, error)
        return _in_memory(decoded)

    def report(self) -> None:
        """Tell where the cache is and how large, if it was made by this object."""
        if self.made:
            size = sum(file.stat().st_size for file in self.made if file.exists()) / MEGABYTE
            self._say(
                f"data.root={self.root}: the decoded images are kept for later runs in {self.folder} ({size:.3g} MB); "
                "data.cache= says where"
            )

    def _make(self, folder: Path, decoded: DecodedSplit, alone: bool) -> tuple[Tensor, str]:
        if alone:
            _remove_scratch(folder)
        shape, blocks = decoded.decode()
        digest, path = hashlib.sha256(), folder / decoded.name
        with _written_whole(path.with_suffix(".uint8")) as file:
            for block in blocks:
                file.write(block)
                digest.update(block)
        header = decoded.header | {"root": str(self.root), "shape": shape, "sha256": digest.hexdigest()}
        with _written_whole(path.with_suffix(".json")) as file:
            file.write(json.dumps(header, indent=1).encode())
        self.made.append(path.with_suffix(".uint8"))
        _remove_stale(folder, decoded)
        if self.choice == USER and (beside := _folder(self.root, BESIDE)):
            _remove_stale(beside, decoded)
        return _map(path, shape), digest.hexdigest()

    def _do_without(self, folder: Path, error: OSError) -> None:
        if self.choice != USER:
            raise SettingError(
                f"data.cache={self.choice}: {folder} cannot be written ({error.strerror}); choose another folder, or null "
                "to decode the images anew in every run"
            ) from None
        self.folder = None
        self._say(
            f"data.root={self.root}: the decoded images cannot be kept in {folder} ({error.strerror}), so that every run "
            "decodes them anew; set data.cache=DIR or data.cache=beside"
        )

    def _say(self, line: str) -> None:
        if self.tell:
            print(line, file=sys.stderr, flush=True)


def _folder(root: Path, choice: str | None) -> Path | None:
    """The folder of the cache of `root`; in folders that several may share, one whose name is a hash of the place."""
    if choice is None:
        return None
    if choice == BESIDE:
        return root / ".lab_cache"
    place = short_hash(os.fsencode(root.resolve()))
    return (user_cache() / "lab" if choice == USER else Path(choice).expanduser()) / place


def user_cache() -> Path:
    """The folder for what programs can make again: XDG_CACHE_HOME, which must be absolute, else ~/.cache.

    Where a user has no home it is one that cannot be made.
    """
    named, home = Path(os.environ.get("XDG_CACHE_HOME", "")), os.path.expanduser("~")
    return named if named.is_absolute() else Path(os.devnull if home == "~" else home) / ".cache"


def _read(path: Path, expected: dict[str, object]) -> tuple[Tensor, str] | None:
    """The cached pixels and their SHA-256, or None when there are none, they are damaged or of another tree."""
    try:
        header = json.loads(path.with_suffix(".json").read_bytes())
        if any(header.get(key) != value for key, value in expected.items()):
            return None
        with path.with_suffix(".uint8").open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return (_map(path, header["shape"]), sha256) if sha256 == header["sha256"] else None
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _map(path: Path, shape: list[int]) -> Tensor:
    size = int(np.prod(shape))
    return torch.from_file(str(path.with_suffix(".uint8")), shared=False, size=size, dtype=torch.uint8).view(shape)


def _in_memory(decoded: DecodedSplit) -> tuple[Tensor, str]:
    """The same without a file."""
    shape, blocks = decoded.decode()
    pixels, digest, end = np.empty(int(np.prod(shape)), dtype=np.uint8), hashlib.sha256(), 0
    for block in blocks:
        begin, end = end, end + len(block)
        pixels[begin:end] = np.frombuffer(block, dtype=np.uint8)
        digest.update(block)
    return torch.from_numpy(pixels).view(shape), digest.hexdigest()


@contextlib.contextmanager
def _alone(folder: Path, say: Callable[[str], None]) -> Iterator[bool]:
    """The folder is made and ours alone within the block; False where the file system knows no locks.

    Raises OSError where the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        alone = True
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process, which decodes the images for {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            alone = False
        yield alone


def _remove_scratch(folder: Path) -> None:
    """What processes that were killed have left half-written."""
    for file in folder.glob(".*.uint8-*"):
        file.unlink(missing_ok=True)


def _remove_stale(folder: Path, decoded: DecodedSplit) -> None:
    """Caches of the same split, of whatever image size, that belong to a tree that is no more."""
    for file in folder.glob(f"{decoded.split}-*.json"):
        with contextlib.suppress(OSError):
            if _fingerprint(file) != decoded.header["fingerprint"]:
                file.unlink(missing_ok=True)
                file.with_suffix(".uint8").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()  # where nothing else is in it


def _fingerprint(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes()).get("fingerprint")
    except (ValueError, AttributeError):
        return None


@contextlib.contextmanager
def _written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears at `path` only when it is whole and on disk; after an error nothing is left."""
    scratch = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        with scratch.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
