"""Is this command the run that the folder holds? Settings are compared as plain values, without loading torch."""

from collections.abc import Mapping
from typing import Any

from lab.run.folder import RunFolder
from lab.settings import SettingError

PLACE = ("trainer.threads",)
"""Settings that say how, not what: they may change between a run and its resumption."""


def flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {"optimizer.lr": 0.1, ...}."""
    items: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, dict):
            items |= flat(value, f"{prefix}{name}.")
        elif name != "_target_":
            items[prefix + name] = value if isinstance(value, bool | int | float | str) else str(value)
    return items


def require_unchanged(folder: RunFolder, plain: dict[str, Any]) -> None:
    """Raises SettingError when the folder holds a run with other settings."""
    before = folder.read("provenance").get("settings")
    if before is None:
        return
    old, new = ({k: v for k, v in flat(s).items() if k not in PLACE} | _targets(s) for s in (before, plain))
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise SettingError(
                f"{folder.path} holds a run with {name}={old.get(name)}, not {new.get(name)}; "
                "choose another hydra.run.dir"
            )


def require_same_data(folder: RunFolder, facts: Mapping[str, Any]) -> None:
    """Raises SettingError when the folder holds a run on other data: the files behind a setting may have changed."""
    before = folder.read("provenance").get("data")
    if before is None:
        return
    for name in sorted(before.keys() | facts.keys()):
        if before.get(name) != facts.get(name):
            raise SettingError(
                f"{folder.path} holds a run on other data: {name} was {before.get(name)}, is now {facts.get(name)}; "
                "choose another hydra.run.dir"
            )


def _targets(plain: dict[str, Any]) -> dict[str, Any]:
    """Which class stands behind each card, e.g. {"optimizer": "Sgd"}: two of them may share all their settings."""
    cards = {name: value for name, value in plain.items() if isinstance(value, dict) and "_target_" in value}
    return {name: value["_target_"].rpartition(".")[2] for name, value in cards.items()}
