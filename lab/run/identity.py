"""Is this command the run that the folder holds? Settings are compared as plain values, without loading torch."""

import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from pydoc import locate
from typing import Any

from lab.run.cards import card_names
from lab.run.code import require_same_code
from lab.run.folder import RunFolder
from lab.run.length import LENGTH, growth
from lab.settings import SettingError, knobs

PLACE = ("trainer.threads", "trainer.stop", "trainer.keep", "data.cache", "name", "tags", "logger", "debug")
"""Settings that say how, when to stop or what to keep, not what: they may change between a run and its resumption."""


def flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {"optimizer": "sgd", "optimizer.lr": 0.1, ...}: two cards may share all their settings."""
    items: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, dict):
            if not prefix and "_target_" in value:
                items[name] = card_names().get(value["_target_"], value["_target_"])
            items |= flat(value, f"{prefix}{name}.")
        elif name != "_target_":
            items[prefix + name] = value if isinstance(value, bool | int | float | str) else str(value)
    return items


def as_begun(folder: RunFolder, plain: dict[str, Any], *, typed: bool = False) -> dict[str, Any]:
    """The settings as those of an earlier version, where the run is of one: no budget and the numbers of then for "auto"
    before there was one, unless one was `typed`; and for "auto" the number that was the default, where it stands for this.
    """
    before = folder.read("provenance").get("settings", {}).get("probe")
    probes = plain.get("probe")
    if not isinstance(before, dict) or not isinstance(probes, dict):
        return plain
    budgeted = "budget" in before
    if typed and not budgeted:
        return plain
    as_then = {
        name: {key: _then(before.get(name, {}), card, key, budgeted=budgeted) for key in card}
        for name, card in probes.items()
        if isinstance(card, dict)
    }
    return plain | {"probe": as_then | ({"budget": probes["budget"]} if budgeted else {})}


def _then(before: Mapping[str, Any], card: Mapping[str, Any], key: str, *, budgeted: bool) -> Any:
    """The value of a setting of a probe in a run that has `before`."""
    value = card[key]
    if value != "auto" or key not in before or before[key] == "auto":
        return value
    stands_for = getattr(locate(str(card.get("_target_"))), "auto", {}).get(key) if budgeted else before[key]
    return before[key] if before[key] == stands_for else value


def require_unchanged(folder: RunFolder, plain: dict[str, Any], *, grows: bool = False) -> None:
    """Raises SettingError when the folder holds a run with other settings or of other code, or a measurement.

    grows: steps and epochs say how far, not what: they may grow, and SettingError is raised where they shrink. A setting
    that there was not when the run was made has to have its default.
    """
    provenance = folder.read("provenance")
    if "checkpoint" in provenance:
        raise SettingError(f"{folder.path} holds a measurement of lab.measure; choose another hydra.run.dir")
    before = provenance.get("settings")
    if before is None:
        return
    apart = (*PLACE, *LENGTH) if grows else PLACE
    for name, (old, new) in differences(before, plain).items():
        if name not in apart:
            raise SettingError(f"{folder.path} holds a run with {name}={old}, not {new}; choose another hydra.run.dir")
    require_same_code(folder, plain)
    if grows:
        growth(folder, plain)


def differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings that differ, in order, with the value before and now. One that there was not then had its default."""
    old, new = flat(before), flat(now)
    return {
        name: (old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not (name not in old and new[name] == _default(name, now))
    }


def _default(name: str, plain: Mapping[str, Any]) -> Any:
    """The default of a setting as `flat` says it, of its card where it is of one; null for one that stands alone."""
    *path, knob = name.split(".")
    holder: Any = plain
    for part in path:
        holder = holder[part]
    if not path:
        return str(None)
    kind = locate(str(holder.get("_target_")))
    default = knobs(kind)[knob].default if isinstance(kind, type) and knob in knobs(kind) else None
    return flat({knob: list(default) if isinstance(default, tuple) else default})[knob]


def require_no_run(folder: RunFolder) -> None:
    """Raises SettingError when the folder holds a run, whose measurements those of a checkpoint would replace."""
    provenance = folder.read("provenance")
    if provenance and "checkpoint" not in provenance:
        raise SettingError(
            f"{folder.path} holds a run, which a measurement would overwrite; choose another hydra.run.dir"
        )


def require_same_data(
    folder: RunFolder, facts: Mapping[str, Any], *, cure: str = "choose another hydra.run.dir"
) -> None:
    """Raises SettingError when the folder holds a run on other data: the files behind a setting may have changed."""
    before = folder.read("provenance").get("data")
    if before is None:
        return
    for name in sorted(before):  # a run of an earlier version may not have noted all of them
        if before[name] != facts.get(name):
            raise SettingError(
                f"{folder.path} holds a run on other data: {name} was {before[name]}, is now {facts.get(name)}; {cure}"
            )


def data_files(plain: Mapping[str, Any]) -> str | None:
    """A digest of names, sizes and times of change of the files data.root/train|test/<class>/*, or of data.file; None where
    there are none.

    Equal digests mean equal data; different ones do not mean different data: files may have been copied or touched.
    Costs a look at every file and opens none, about 10 s a million.
    """
    if (named := plain["data"].get("file")) and Path(named).expanduser().is_file():
        stat = Path(named).expanduser().stat()
        return f"1 file, {sha256(f'{stat.st_size} {stat.st_mtime_ns}'.encode()).hexdigest()[:16]}"
    if not (root := plain["data"].get("root")):
        return None
    digest, count = sha256(), 0
    for split in ("train", "test"):
        for folder in sorted(path for path in (Path(root).expanduser() / split).glob("*") if path.is_dir()):
            with os.scandir(folder) as entries:
                files = sorted((entry for entry in entries if entry.is_file()), key=lambda entry: entry.name)
            for file in files:
                line = f"{split}/{folder.name}/{file.name}\0{file.stat().st_size}\0{file.stat().st_mtime_ns}\n"
                digest.update(os.fsencode(line))
            count += len(files)
    return f"{count} files, {digest.hexdigest()[:16]}" if count else None


def same_data_files(folder: RunFolder, plain: Mapping[str, Any]) -> bool:
    """Whether the files of the data are as the run of the folder left them, or nothing can be said: a run without files
    of images, or files that are gone.
    """
    before = folder.read("provenance").get("data_files")
    return before is None or data_files(plain) in (before, None)
