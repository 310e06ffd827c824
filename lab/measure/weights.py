"""Saved weights: read from a file without running any code of it, and put into a model by their names."""

import errno
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lab.run import checkpoints
from lab.settings import SettingError

NESTS = ("model", "state_dict", "model_state_dict")
"""Names under which checkpoints of other programs keep the weights."""


@dataclass(frozen=True)
class Saved:
    """What a file holds: the weights by name, the step they belong to, the state of the optimiser where there is one."""

    file: Path
    weights: Mapping[str, Tensor]
    step: int
    optimizer: dict[str, Any] | None


def read(file: Path) -> Saved:
    """The weights in `file`, plain or nested as in a checkpoint. Raises SettingError, one line."""
    state = _load(file)
    nest = next((name for name in NESTS if isinstance(state, dict) and isinstance(state.get(name), dict)), None)
    weights = state[nest] if nest else state
    if not isinstance(weights, dict) or not weights or not all(isinstance(v, Tensor) for v in weights.values()):
        raise SettingError(
            f"{file} holds no weights by name; expected what torch.save(model.state_dict(), file) leaves"
        )
    step = next((state[n] for n in ("step", "global_step") if nest and isinstance(state.get(n), int)), 0)
    optimizer = state.get("optimizer") if nest else None
    return Saved(file, weights, step, optimizer if isinstance(optimizer, dict) else None)


def load_into(model: nn.Module, saved: Saved) -> None:
    """The saved weights into `model`, less a prefix they share (module., model., _orig_mod.). Raises SettingError."""
    expected = model.state_dict()
    first = next(iter(expected))
    prefixes = {name[: -len(first)] for name in saved.weights if name.endswith(first)}
    prefixes = {prefix for prefix in prefixes if not prefix or prefix.endswith(".")} or {""}
    stripped = [{n.removeprefix(p): v for n, v in saved.weights.items() if n.startswith(p)} for p in sorted(prefixes)]
    found = next((weights for weights in stripped if weights.keys() == expected.keys()), stripped[0])
    advice = "set model= and data= as it was trained"
    for kind, names in (("lacks", expected.keys() - found.keys()), ("has besides", found.keys() - expected.keys())):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise SettingError(f"{saved.file} does not fit the model: it {kind} {sorted(names)[0]}{more}; {advice}")
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            raise SettingError(
                f"{saved.file} does not fit the model: {name} has shape {list(tensor.shape)} in the file, "
                f"{list(expected[name].shape)} in the model; {advice}"
            )
    for name, tensor in found.items():
        if not bool(tensor.isfinite().all()):
            raise SettingError(f"{saved.file}: {name} is not finite; there is nothing to measure")
    model.load_state_dict(found)


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
