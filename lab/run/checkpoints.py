"""Checkpoints: tensors and plain values only, written whole or not at all, and verified before they are believed.

`last.ckpt` is the newest state, `previous.ckpt` the one before, `last_finite.ckpt` the weights before a divergence.
Files are zips made by `torch.save`; torch does not check their CRCs when it loads, so we do: one flipped bit is found.
"""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lab.run.folder import RunFolder, replace
from lab.settings import SettingError

NAMES = ("last", "previous", "best", "last_finite")
"""Checkpoints whose names do not say the step, of which the first at a step has the most in it."""
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


def at(folder: RunFolder, step: int) -> tuple[Path, State]:
    """The checkpoint of a run at `step`, and the state in it. Raises SettingError, one line, where there is none."""
    place, sound, damaged = folder.checkpoints, set[int](), list[str]()
    first = [place / f"step_{step:07d}.ckpt", *(place / f"{name}.ckpt" for name in NAMES)]
    for file in [file for file in first if file.exists()]:
        try:
            state = load(file)
        except ValueError as error:
            damaged.append(str(error))
            continue
        if state["step"] == step:
            return file, state
        sound.add(state["step"])
    sound |= {int(file.stem.rpartition("_")[2]) for file in place.glob("step_*.ckpt")} - {step}
    there = f"there are those of {', '.join(map(str, sorted(sound)))}" if sound else "there is none"
    broken = f"; {damaged[0]}" if damaged else ""
    raise SettingError(f"{folder.path} has no checkpoint at step {step}: {there}{broken}")


def newest_step(folder: RunFolder) -> int:
    """The highest step of the checkpoints of a run. Raises SettingError where there is none."""
    status = folder.read("status")
    if status.get("status") == "finished" and (folder.checkpoints / "last.ckpt").exists():
        return int(status["step"])
    steps = [int(file.stem.rpartition("_")[2]) for file in folder.checkpoints.glob("step_*.ckpt")]
    for file in [file for name in NAMES if (file := folder.checkpoints / f"{name}.ckpt").exists()]:
        try:
            steps.append(int(load(file)["step"]))
        except ValueError:
            continue
    if not steps:
        raise SettingError(f"{folder.path} has no checkpoint to begin from; choose another run")
    return max(steps)


def misfit(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """In what the tensors are not those of a model; None where they are."""
    for kind, names in (("lacks", expected.keys() - tensors.keys()), ("has besides", tensors.keys() - expected.keys())):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            return f"it {kind} {sorted(names)[0]}{more}"
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            return f"{name} has shape {list(tensor.shape)} in the file, {list(expected[name].shape)} in the model"
    return None
