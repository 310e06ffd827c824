"""trainer.callbacks=[mycallbacks.py:Printer]: Lightning callbacks of the researcher's own in a run of the lab.

A "batch" of the trainer is a chunk of updates (begin, end), cut where something is measured and after 50 at the latest:
`pl_module.step` counts the updates made, `pl_module.updates` has what those of the chunk did, `pl_module.model` is the
model. What a callback raises ends the run with one line. Its `state_dict` goes into the checkpoints of the run, and back on
a resume.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from lab.named import load, running, source
from lab.settings import SettingError

HOOKS = [name for name in dir(pl.Callback) if name.startswith(("on_", "setup", "teardown"))]


class Guests:
    """The callbacks that these paths name, each made without arguments, and what they want to be kept.

    Raises SettingError, one line, for what is no callback.
    """

    def __init__(self, paths: Sequence[str] = ()):
        if twice := [path for i, path in enumerate(paths) if path in paths[:i]]:
            raise SettingError(f"trainer.callbacks: {twice[0]} stands there twice; leave one out")
        self.callbacks = {path: _guest(path) for path in paths}

    def __bool__(self) -> bool:
        return bool(self.callbacks)

    def sources(self) -> list[dict[str, str | None]]:
        """Path, file and hash of the code of each, for the provenance."""
        return [source(path) for path in self.callbacks]

    def state_dict(self) -> dict[str, Any]:
        """By path. Raises SettingError where it is more than tensors and plain values."""
        kept = {}
        for path, callback in self.callbacks.items():
            with running(path, f"trainer.callbacks=[{path}]: state_dict"):
                state = callback.state_dict()
            if (odd := _odd(state)) is not None:
                raise SettingError(
                    f"trainer.callbacks=[{path}]: its state_dict holds a {odd}; a checkpoint holds tensors and plain values"
                )
            kept[path] = state
        return kept

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        for path, callback in self.callbacks.items():
            if state.get(path):
                with running(path, f"trainer.callbacks=[{path}]: load_state_dict"):
                    callback.load_state_dict(state[path])


def _guest(path: str) -> pl.Callback:
    setting = f"trainer.callbacks=[{path}]"
    kind = load(path, "trainer.callbacks")
    if isinstance(kind, type) and not issubclass(kind, pl.Callback):
        raise SettingError(
            f"{setting} is no Lightning callback; expected a class that inherits pytorch_lightning.Callback"
        )
    with running(path, f"{setting}: made without arguments, it"):
        made = kind()
    if not isinstance(made, pl.Callback):
        raise SettingError(f"{setting} makes a {type(made).__name__}; expected a Lightning callback")
    if isinstance(made, Checkpoint):
        raise SettingError(f"{setting}: the lab keeps the checkpoints of its runs; set trainer.checkpoint_every")
    for hook in HOOKS:
        if getattr(type(made), hook, None) is not getattr(pl.Callback, hook):
            setattr(made, hook, _told(getattr(made, hook), path, f"{setting}: {hook}"))
    return made


def _told(hook: Callable[..., Any], path: str, setting: str) -> Callable[..., Any]:
    """The hook, whose exceptions are one line."""

    @wraps(hook)
    def call(*arguments: Any, **named: Any) -> Any:
        with running(path, setting):
            return hook(*arguments, **named)

    return call


def _odd(value: Any) -> str | None:
    """The type of what a checkpoint cannot hold; None where there is nothing of the kind."""
    if isinstance(value, dict):
        return next(filter(None, map(_odd, [*value.keys(), *value.values()])), None)
    if isinstance(value, list | tuple):
        return next(filter(None, map(_odd, value)), None)
    plain = value is None or isinstance(value, bool | int | float | str | bytes | torch.Tensor)
    return None if plain else type(value).__name__
