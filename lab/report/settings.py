"""What is asked of a report, as typed: settings of its card, and paths, whose names may hold any sign."""

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path
from typing import Annotated

from pydantic import Field

from lab.compare.strangers import shown
from lab.run.cards import card
from lab.settings import SettingError, UnknownSetting, knobs, settings


@settings()
class ReportSettings:
    """Which runs a report shows, in which order, along which axes, and where it is written."""

    where: Annotated[
        tuple[str, ...],
        Field(description="only runs that meet all of these, e.g. [optimizer.lr>=0.1,status=finished]"),
    ] = ()
    sort: Annotated[
        str | None,
        Field(
            description="a setting or result that orders the runs, -NAME from the largest; null: the settings that vary"
        ),
    ] = None
    x: Annotated[
        str | None,
        Field(
            description="setting along the horizontal axis of the phase diagrams; null: the batch size, else what varies"
        ),
    ] = None
    y: Annotated[
        str | None, Field(description="setting along the vertical axis; null: the learning rate, else what varies")
    ] = None
    tags: Annotated[
        tuple[str, ...] | None,
        Field(
            description="what the diagrams and curves show, any logged tag; null: the usual ones, as far as measured"
        ),
    ] = None
    out: Annotated[
        str | None, Field(description="folder of the report; null: report/ in the folder that holds all the runs")
    ] = None


LISTS = ("where", "tags")


@dataclass(frozen=True)
class ReportWords:
    """The command line: paths, and the settings."""

    paths: tuple[str, ...]
    settings: ReportSettings

    @staticmethod
    def of(words: Sequence[str]) -> "ReportWords":
        """Sort the words. Raises SettingError for a flag, and for a setting that does not exist or has no such value."""
        known, values, paths = knobs(ReportSettings), dict[str, object](), list[str]()
        for word in words:
            name, equals, value = word.partition("=")
            if word.startswith("-") and not Path(word).exists():
                bare = name.lstrip("-")
                meant = f"{bare}={value or 'VALUE'}" if bare in known else "setting=value"
                raise SettingError(f"{word}: settings are typed without dashes; write {meant}, or see --help")
            if equals and name in known:
                if name in values:
                    raise SettingError(f"{word}: {name} stands there twice; leave one out")
                values[name] = _value(name, value)
            elif equals and re.fullmatch(r"\w+", name) and not (Path(word).exists() or glob.glob(word)):
                raise SettingError(f"unknown setting {name}{_near(name, list(known))}")
            else:
                paths.append(word)
        target = f"{ReportSettings.__module__}.{ReportSettings.__qualname__}"
        try:
            made = card({"_target_": target} | values, "report")
        except UnknownSetting:
            raise
        except SettingError as error:
            raise SettingError(str(error).removeprefix("report.")) from None
        if not paths:
            raise SettingError("no folder is named; expected e.g. python -m lab.report outputs/train")
        return ReportWords(tuple(paths), made)

    def named(self) -> list[Path]:
        """The folders that were typed, of a glob the part before it. Raises SettingError for what is not there."""
        found = []
        for word in self.paths:
            path = Path(word).expanduser()
            if not os.path.lexists(path):
                if not glob.has_magic(word):
                    raise SettingError(_missing(word))
                fixed = list(takewhile(lambda part: not glob.has_magic(part), path.parts))
                path = Path(*fixed)
            found.append(path)
        return found


def _missing(word: str) -> str:
    """One line for a path that is not there."""
    name, equals, _ = word.partition("=")
    if equals and "/" not in word and re.fullmatch(r"[\w.]+", name):
        return f"{shown(word)}: there is no such folder; to show only such runs: where=[{shown(word)}]"
    return f"{shown(word)}: there is no such folder"


def _value(name: str, text: str) -> object:
    if text in ("null", ""):
        return () if name == "where" else None
    if name in LISTS:
        return split(text)
    return str(Path(text).expanduser()) if name == "out" else text


def split(text: str) -> list[str]:
    """The entries of a list as typed, with or without brackets; a comma in brackets or quotes parts nothing.

    >>> split("[optimizer.lr>0.1,model.widths=[32,32]]"), split("a/b"), split("'a,b',c")
    (['optimizer.lr>0.1', 'model.widths=[32,32]'], ['a/b'], ['a,b', 'c'])
    """
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    entries = re.findall(r"""((?:\[[^\]]*\]|'[^']*'|"[^"]*"|[^,])+)""", inner)
    return [entry.strip().strip("'\"") for entry in entries if entry.strip()]


def _near(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}=?" if close else f"; expected {'= '.join(known)}=, or a folder"
