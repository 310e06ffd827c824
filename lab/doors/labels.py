"""What a run is called and where it is logged: `name=`, `tags=`, `logger=`, which make no difference to what it does."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from lab.doors.errors import near
from lab.run.cards import typed
from lab.settings import SettingError

NAMES = ("name", "tags", "logger", "debug")
"""Settings that stand alone and make no difference to what a run does; debug says where it lies, and cuts it short."""
LOGGERS = {"tensorboard": "tensorboard", "csv": None, "wandb": "wandb", "mlflow": "mlflow"}
"""The loggers there are, each with the package that it needs."""
LONGEST_NAME, LONGEST_TAG = 100, 64
"""Characters; wandb takes no longer tags."""


@dataclass(frozen=True)
class Labels:
    """name: that of the folder and of the figures, "" for none; tags: words to find the run by; loggers: where it is logged
    beside metrics.jsonl; debug: whether it is only tried, for three steps.
    """

    name: str
    tags: tuple[str, ...]
    loggers: tuple[str, ...]
    debug: bool = False

    @staticmethod
    def of(plain: Mapping[str, Any]) -> "Labels":
        """Of the settings of a run. Raises SettingError, one line, for what is no label and a logger that is not there."""
        debug = plain.get("debug", False)
        if not isinstance(debug, bool):
            raise SettingError(f"debug={typed(debug)}: expected true or false")
        loggers = _loggers(plain.get("logger", ["tensorboard"]))
        return Labels(_name(plain.get("name")), _tags(plain.get("tags")), loggers, debug)


def _name(name: Any) -> str:
    if name is None:
        return ""
    text = name if isinstance(name, str) else typed(name)
    refused = not text.strip() or text[0] in ". " or text[-1] == " " or re.search(r"[/\\\x00-\x1f]", text)
    if refused or len(text) > LONGEST_NAME or isinstance(name, list | dict | bool):
        raise SettingError(
            f"name={text}: expected the name of a folder, at most {LONGEST_NAME} characters without slashes, e.g. "
            "name=mine; a folder elsewhere is hydra.run.dir"
        )
    return text


def _tags(tags: Any) -> tuple[str, ...]:
    values = _list("tags", tags or [], "a,b")
    words = [value if isinstance(value, str) else typed(value) for value in values]
    for word, value in zip(words, values, strict=True):
        if not word.strip() or "," in word or len(word) > LONGEST_TAG or isinstance(value, list | dict):
            raise SettingError(
                f"tags={typed(values)}: expected words without commas, of 1 to {LONGEST_TAG} characters, e.g. tags=[a,b]"
            )
    return tuple(words)


def _loggers(loggers: Any) -> tuple[str, ...]:
    names = _list("logger", loggers, "wandb")
    for name in names:
        if name not in LOGGERS:
            raise SettingError(
                f"logger={typed(names)}: there is no logger {typed(name)}; expected a list of {', '.join(LOGGERS)}"
                f"{near(str(name), list(LOGGERS))}"
            )
        if (package := LOGGERS[name]) and find_spec(package) is None:
            raise SettingError(
                f"logger=[{name}] needs the package {package}, which is not installed: pip install 'edge-lab[{name}]'"
            )
    return tuple(names)


def _list(setting: str, values: Any, example: str) -> Sequence[Any]:
    """A list of different values."""
    if not isinstance(values, list | tuple):
        one = values if isinstance(values, str) and values else example
        raise SettingError(f"{setting}={typed(values)}: expected a list, {setting}=[{one}]; {setting}=[] for none")
    if twice := [value for i, value in enumerate(values) if value in values[:i]]:
        raise SettingError(f"{setting}={typed(values)}: {typed(twice[0])} stands there twice; leave one out")
    return values
