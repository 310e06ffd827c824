"""arrays/<probe>_<step>.npz of a folder that anybody may have made: numbers only, bounded, nothing unpickled."""

import io
import math
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from lab.compare.strangers import Unreadable, opened

MAX_ARRAYS = 64 << 20
"""Bytes of the arrays of one file, unpacked."""
MAX_FILES = 10_000
"""Files that are looked at."""


def array_files(folder: Path, probe: str) -> dict[int, str]:
    """The files of a probe by step, ascending, as names within the folder."""
    try:
        with os.scandir(folder / "arrays") as entries:
            names = [entry.name for entry, _ in zip(entries, range(MAX_FILES), strict=False)]
    except OSError:
        return {}
    matches = [match for name in names if (match := re.fullmatch(rf"{re.escape(probe)}_(\d{{1,18}})\.npz", name))]
    return {int(match[1]): f"arrays/{match[0]}" for match in sorted(matches, key=lambda match: int(match[1]))}


def read_arrays(folder: Path, name: str) -> dict[str, np.ndarray]:
    """The arrays of numbers in one file. Raises Unreadable for what is none, or too large when it is unpacked."""
    with opened(folder, name, MAX_ARRAYS) as handle:
        try:
            with zipfile.ZipFile(handle) as archive:  # type: ignore[arg-type]
                members = archive.infolist()
                if sum(member.file_size for member in members) > MAX_ARRAYS:
                    raise Unreadable(f"{name} is too large when it is unpacked")
                return {member.filename.removesuffix(".npy"): _array(archive.read(member)) for member in members}
        except Unreadable:
            raise
        except Exception as error:  # zipfile and numpy raise errors of many kinds for broken files
            raise Unreadable(f"{name} holds no arrays ({type(error).__name__})") from None


def _array(content: bytes) -> np.ndarray:
    """One array out of the bytes of a .npy file, whose header is held against what there is."""
    buffer = io.BytesIO(content)
    version = npy.read_magic(buffer)
    read: Any = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(buffer)
    rest = len(content) - buffer.tell()
    if dtype.kind not in "fiub" or math.prod(shape) * dtype.itemsize != rest:
        raise Unreadable("an array is not what its header says")
    return np.frombuffer(content, dtype, offset=buffer.tell()).reshape(shape, order="F" if fortran else "C")
