"""Checkpoints: tensors and plain values only, written whole or not at all, and verified before they are believed.

`last.ckpt` is the newest state, `previous.ckpt` the one before, `last_finite.ckpt` the weights before a divergence.
Files are zips made by `torch.save`; torch does not check their CRCs when it loads, so we do: one flipped bit is found.
"""

import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from lab.run.folder import replace

State = dict[str, Any]
"""step, model, optimizer, probes, phase: nested dictionaries of tensors and plain values."""


def save(file: Path, state: State) -> None:
    """Write `state` to `file`; a `last.ckpt` that stood there becomes `previous.ckpt` beside it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    if file.name == "last.ckpt" and file.exists():
        file.replace(file.with_name("previous.ckpt"))
    replace(file, buffer.getvalue())


def load(file: Path) -> State:
    """The state in `file`, on the CPU. Raises ValueError, in one line, when the file is damaged."""
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
        if damaged is None:
            return torch.load(file, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, RuntimeError, EOFError) as error:
        damaged = str(error)
    raise ValueError(f"{file} is damaged ({damaged})")


def newest(folder: Path) -> State | None:
    """The newest sound checkpoint of `folder`; None where there is none."""
    for name in ("last.ckpt", "previous.ckpt"):
        if (folder / name).exists():
            try:
                return load(folder / name)
            except ValueError:
                continue
    return None
