"""CIFAR-10: 50000 training and 10000 test images of 3 x 32 x 32 pixels in ten classes.

Downloaded once through torchvision (162 MiB, MD5-checked) to `root/cifar-10-batches-py`. The download goes to a
temporary folder beside it and is renamed when whole, so a broken download leaves nothing behind.
Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009).
"""

import contextlib
import http.client
import io
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, extract_archive

from lab.data.base import Dataset, Examples, Facts
from lab.data.images import ImageCard, Images
from lab.settings import SettingError, settings

# What torchvision raises when it cannot fetch (OSError covers URLError and no space), or fetched a broken archive.
DOWNLOAD_ERRORS = (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError)


@settings()
class Cifar10(ImageCard):
    """CIFAR-10, x (N, 3, 32, 32): 50000 training and 10000 test images, downloaded once (162 MiB)."""

    root: Annotated[str, Field(description="folder that holds, or will hold, cifar-10-batches-py")] = "data"

    def load(self, progress: bool = True) -> Dataset:
        """Read, after a download the first time. Raises SettingError, also when it cannot be downloaded."""
        root = Path(self.root).expanduser()
        if not _is_whole(root):
            _fetch(root, progress)
        train, test = CIFAR10(root, train=True), CIFAR10(root, train=False)
        facts: Facts = {"source": "cifar-10-batches-py", "md5": CIFAR10.tgz_md5}  # each file was held against its own
        return self.assemble(_images(train), _images(test), train.classes, facts)


@settings()
class Cifar10Small(Cifar10):
    """CIFAR-10 cut to 5000 class-balanced training images, the usual size of full-batch studies; test split whole."""

    examples: Examples = 5000


def _images(data: CIFAR10) -> Images:
    return Images(torch.from_numpy(data.data).permute(0, 3, 1, 2), torch.tensor(data.targets))


def _is_whole(root: Path) -> bool:
    """Whether every file torchvision will read is there with its MD5."""
    wanted = [*CIFAR10.train_list, *CIFAR10.test_list, [CIFAR10.meta["filename"], CIFAR10.meta["md5"]]]
    return all(check_integrity(root / CIFAR10.base_folder / name, md5) for name, md5 in wanted)


def _fetch(root: Path, progress: bool) -> None:
    """Put a whole cifar-10-batches-py under root, from an archive lying there or from the network, or raise."""
    try:
        with _scratch(root) as scratch:
            archive = root / CIFAR10.filename
            if check_integrity(archive, CIFAR10.tgz_md5):
                extract_archive(str(archive), str(scratch))
            else:
                with contextlib.nullcontext() if progress else contextlib.redirect_stderr(io.StringIO()):
                    CIFAR10(scratch, download=True)
            if not _is_whole(scratch):
                raise RuntimeError("the files fetched are not whole")
            target = root / CIFAR10.base_folder
            shutil.rmtree(target, ignore_errors=True)
            (scratch / CIFAR10.base_folder).rename(target)
    except DOWNLOAD_ERRORS as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise SettingError(
            f"data.root={root} does not hold CIFAR-10 and it cannot be downloaded there ({cause}); set data.root to a "
            f"folder that holds {CIFAR10.base_folder} or {CIFAR10.filename}, or use data=image_folder data.root=FOLDER "
            "for a tree train/<class>/*.png, or data=digits, which needs no download"
        ) from None


@contextlib.contextmanager
def _scratch(root: Path) -> Iterator[Path]:
    """A temporary folder in root (made if missing). Afterwards it is gone, and so are folders made for nothing."""
    missing = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".cifar10-") as scratch:
            yield Path(scratch)
    finally:
        with contextlib.suppress(OSError):  # not empty: the download succeeded, or someone else works here
            for folder in missing:
                folder.rmdir()
