"""The code that a run was made with, where its user named some: what is noted of it, and what a folder may say of it.

Settings that are read from a run folder are data: they never name code that is run. Who wants to run it types it again.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lab.named import digest, file_of, source
from lab.run.folder import RunFolder
from lab.settings import SettingError

GROUPS = {
    "data": "lab.data.own.OwnData",
    "model": "lab.models.own.OwnModel",
    "loss": "lab.models.own_loss.OwnLoss",
    "optimizer": "lab.optim.own.OwnOptimizer",
}
"""The groups whose card `own` names code, and the class of that card."""


def named_code(plain: Mapping[str, Any]) -> dict[str, str]:
    """The paths of the code that settings name, by group."""
    cards = {group: plain.get(group) for group in GROUPS}
    return {
        group: str(card.get("path"))
        for group, card in cards.items()
        if isinstance(card, dict) and card.get("_target_") == GROUPS[group]
    }


def code_facts(plain: Mapping[str, Any]) -> dict[str, Any]:
    """For provenance.json: path, file and SHA-256 of the code of each group. It is loaded, if it is not yet."""
    return {group: source(path) for group, path in named_code(plain).items()}


def changed_code(folder: RunFolder, plain: Mapping[str, Any]) -> list[str]:
    """What is no longer as the run of the folder noted it, a text for each group. No code is loaded: files are read."""
    before, texts = folder.read("provenance").get("code") or {}, list[str]()
    for group, path in named_code(plain).items():
        noted = before.get(group) or {}
        file = file_of(path) or (Path(noted["file"]) if noted.get("file") else None)
        if file is not None and file.is_file() and digest(file) != noted.get("sha256"):
            texts.append(f"{group}.path={path}: {file} had sha256 {noted.get('sha256')}, has now {digest(file)}")
    return texts


def require_same_code(folder: RunFolder, plain: Mapping[str, Any]) -> None:
    """Raises SettingError when the folder holds a run of other code: the file behind a path may have changed."""
    for text in changed_code(folder, plain):
        raise SettingError(f"{folder.path} holds a run of other code: {text}; choose another hydra.run.dir")


def require_typed(settings: Mapping[str, Any], typed: Collection[str], groups: Collection[str]) -> None:
    """Raises SettingError where settings that were read from a run folder name code, in one of `groups`, whose path is not
    among the `typed` settings.
    """
    code = {group: path for group, path in named_code(settings).items() if group in groups}
    missing = {group: path for group, path in code.items() if f"{group}.path" not in typed}
    if missing:
        named = ", ".join(f"{group}.path={path}" for group, path in missing.items())
        words = " ".join(f"{group}=own {group}.path={path}" for group, path in missing.items())
        others = " or ".join(f"{group}=" for group in missing)
        raise SettingError(
            f"the run was made with {named}, which is code; type {words} again to run it, or choose another {others}"
        )
