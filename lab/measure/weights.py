"""Saved weights: read from a file without running any code of it, and put into a model by their names.

Programs keep them in all manner of places: at the top of the file or in a dictionary of it, under the names of the module or
behind those of what it was wrapped in. No list of such places is kept: the weights are the tensors whose names and shapes
are those of the model, and where that is no one set there is none.
"""

import errno
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lab.run import checkpoints
from lab.run.checkpoints import misfit
from lab.settings import SettingError

WRAPPERS = ("module", "_orig_mod")
"""Parts of names that DataParallel, DDP and torch.compile put in, wherever in the model they stand."""
DEPTH = 3
"""Dictionaries within dictionaries that are looked through."""
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Saved:
    """What a file holds: sets of tensors by name, the step they belong to, the state of the optimiser where there is one.

    sets   the tensors of every dictionary in the file, by its place, "" for the file itself.
    """

    file: Path
    sets: Mapping[str, Weights]
    step: int
    optimizer: dict[str, Any] | None


def read(file: Path) -> Saved:
    """What is in `file`: a file of torch, or of safetensors. Raises SettingError, one line."""
    state = _safetensors(file) if file.suffix == ".safetensors" else _load(file)
    if not (sets := dict(_sets(state))):
        raise SettingError(
            f"{file} holds no weights by name; expected what torch.save(model.state_dict(), file) leaves"
        )
    steps = [state.get(name) for name in ("step", "global_step")]
    step = next((number for number in steps if isinstance(number, int) and not isinstance(number, bool)), 0)
    optimizer = state.get("optimizer")
    return Saved(file, sets, step, optimizer if isinstance(optimizer, dict) else None)


def load_into(model: nn.Module, saved: Saved) -> None:
    """The saved weights into `model`, less a prefix they share and the names of wrappers (module., model., _orig_mod.).

    Raises SettingError, one line, where none of the sets fits, where several that differ do, and for what is not finite.
    """
    expected = model.state_dict()
    named = [(place, tensors) for at, weights in saved.sets.items() for place, tensors in _named(at, weights, expected)]
    fit = {place: tensors for place, tensors in named if misfit(tensors, expected) is None}
    if not fit:
        nearest = max((tensors for _, tensors in named), key=lambda tensors: len(tensors.keys() & expected.keys()))
        raise SettingError(
            f"{saved.file} does not fit the model: {misfit(nearest, expected)}; set model= and data= as it was trained"
        )
    tensors = next(iter(fit.values()))
    others = list(fit.values())[1:]
    if any(not other[name].equal(tensor) for other in others for name, tensor in tensors.items()):
        raise SettingError(
            f"{saved.file} holds several sets of weights that fit the model: {', '.join(fit)}; save the one that is meant "
            "alone: torch.save(weights, file)"
        )
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise SettingError(f"{saved.file}: {name} is not finite; there is nothing to measure")
    model.load_state_dict(tensors)


def _sets(state: Any, place: str = "", depth: int = DEPTH) -> Iterator[tuple[str, Weights]]:
    """The tensors of every dictionary, with its place."""
    if not isinstance(state, dict):
        return
    if tensors := {name: v for name, v in state.items() if isinstance(name, str) and isinstance(v, Tensor)}:
        yield place, tensors
    for name, inner in state.items() if depth else ():
        yield from _sets(inner, f"{place}.{name}".removeprefix("."), depth - 1)


def _named(place: str, weights: Weights, expected: Weights) -> Iterator[tuple[str, Weights]]:
    """What the tensors may be called, with their place: as they are or without wrappers, less a prefix, and only those that
    have it, where the first name of the model tells one.
    """
    first = next(iter(expected))
    bare = {".".join(part for part in name.split(".") if part not in WRAPPERS): v for name, v in weights.items()}
    for names in (weights, bare) if bare.keys() != weights.keys() else (weights,):
        prefixes = {name[: -len(first)] for name in names if name.endswith(first)}
        for prefix in sorted(prefix for prefix in prefixes if not prefix or prefix.endswith(".")) or [""]:
            tensors = {name.removeprefix(prefix): v for name, v in names.items() if name.startswith(prefix)}
            yield ".".join(filter(None, [place, prefix + "*"])), tensors


def _safetensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file in that format, which holds nothing else."""
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise SettingError(f"{file}: reading it takes the package safetensors; pip install safetensors") from None
    try:
        return load_file(file)
    except SafetensorError as error:
        raise SettingError(f"{file} is no whole file of safetensors ({error}); name another checkpoint") from None
    except OSError as error:
        raise SettingError(f"{file} cannot be read ({error.strerror or error})") from None


def _load(file: Path) -> Any:
    try:
        if zipfile.is_zipfile(file):
            return checkpoints.load(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        classes = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds a {classes[1]}" if classes else "it is no torch file"
        raise SettingError(
            f"{file} cannot be loaded as tensors and plain values: {reason}; "
            "save with torch.save(model.state_dict(), file)"
        ) from None
    except (ValueError, RuntimeError, EOFError, KeyError, IndexError, AttributeError) as error:
        text = " ".join(str(error).split())
        raise SettingError(text if str(file) in text else _no_checkpoint(file)) from None
    except OSError as error:
        cut = error.errno == errno.EINVAL  # torch seeks beyond the end of a file that was cut off
        raise SettingError(_no_checkpoint(file) if cut else f"{file} cannot be read ({error.strerror})") from None


def _no_checkpoint(file: Path) -> str:
    what = "is empty" if not file.stat().st_size else "is no torch file, or was cut off"
    previous = file.with_name("previous.ckpt")
    return f"{file} {what}; " + (f"use {previous}" if previous.exists() else "name another checkpoint")
