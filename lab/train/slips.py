"""What was typed, before Hydra reads it: slips that Hydra lets pass, stumbles over, or tells in words of its own."""

import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Transformer
from hydra.errors import HydraException

from lab.cli import choices, typed
from lab.settings import SettingError

FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")


def at_home(word: str) -> str:
    """setting=~/path with the home folder written out: a shell does that only at the beginning of a word.

    >>> at_home("optimizer.lr=0.1"), at_home("data.root=~/images") == f"data.root={Path.home()}/images"
    ('optimizer.lr=0.1', True)
    """
    return re.sub(r"^([\w./]+=)~(?=/|$)", lambda found: f"{found[1]}{Path.home()}", word)


def require_sound(words: Iterable[str]) -> None:
    """Raise SettingError, one line, for an override that cannot be read or that takes a setting away (its default would be
    used unseen); for a sweep with a value twice (two runs in one folder); for cards and probes that are not named, or
    twice; for a run folder that is a file or has no name, and for no parallel jobs.
    """
    for word in words:
        name, _, value = word.partition("=")
        if word.startswith("~"):
            raise SettingError(
                f"{word}: a setting cannot be taken away; leave it out for its default, or set it, e.g. probe=[] for none"
            )
        if name in FOLDERS and not value:
            raise SettingError(f"{word} names no folder; leave it out for the default")
        if word.startswith("-") or not value:
            continue
        if re.match(r"\+\w", word) and choices(name[1:]):
            raise SettingError(f"{word}: a card is chosen without the +: {word[1:]}")
        override = _read(word)
        values = [override.value()]
        if override.is_choice_sweep():
            values = list(override.sweep_iterator(Transformer.identity))
            _require_once(word, list(override.sweep_iterator()))
        for one in values:
            _require_sound(word, override.key_or_group, one)


def _require_sound(word: str, name: str, value: Any) -> None:
    """One value of one setting."""
    if name == "probe" and isinstance(value, list):
        if unnamed := [one for one in value if not isinstance(one, str)]:
            raise SettingError(
                f"probe={typed(value)}: {typed(unnamed[0])} is not the name of a probe; expected a list of different ones "
                f"of {', '.join(choices('probe'))}"
            )
        _require_once(f"probe={typed(value)}", value)
    elif isinstance(value, list) and choices(name):
        raise SettingError(f"{word}: one card at a time; expected {name}= one of {', '.join(choices(name))}")
    elif name in FOLDERS and (folder := Path(str(value))).exists() and not folder.is_dir():
        raise SettingError(f"{word}: this is a file; choose another {name}")
    elif name == "hydra.launcher.n_jobs" and value == 0:
        raise SettingError(f"{word}: expected a whole number of at least 1, or -1 for as many as there are CPUs")


def _require_once(told: str, values: list[Any]) -> None:
    if twice := [value for i, value in enumerate(values) if value in values[:i]]:
        raise SettingError(f"{told}: {twice[0]} stands there twice; leave one out")


def _read(word: str) -> Override:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        name, _, value = word.partition("=")
        quoted = '{}="{}"'.format(name, value.replace('"', '\\"'))
        cure = f"a text with other signs than letters goes in quotes: {shlex.quote(quoted)}"
        if value[0] in "[{(":
            cure = "expected setting=value, e.g. optimizer.lr=0.1 model.widths=[32,32]"
        raise SettingError(f"{word} cannot be read; {cure}") from None
