"""What was typed: flags and overrides, and the slips that Hydra lets pass, stumbles over, or tells in words of its own."""

import re
import shlex
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, Transformer
from hydra.errors import HydraException

from lab.doors.arguments import opened, placed, require_arguments
from lab.doors.pages import takes_list
from lab.doors.slips import flag_answer
from lab.run.cards import choices, typed
from lab.settings import SettingError

EXPECTED = "expected setting=value, e.g. optimizer.lr=0.1 model.widths=[32,32]"
FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")
SWITCHES = (
    "--help -h",
    "--hydra-help",
    "--version",
    "--resolve",
    "--shell-completion -sc",
    "--run -r",
    "--multirun -m",
)
"""Hydra's flags without a value."""
PAGE = "--cfg -c"
INFO = "--info -i"
INFO_PAGES = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
OPTIONS = ("--package -p", INFO, "--config-dir -cd")
"""Hydra's flags with a value."""
HYDRA_FLAGS = tuple(flag for flags in (PAGE, *SWITCHES, *OPTIONS) for flag in flags.split())
EXPERIMENTS = {"simulate": "simulation"}
"""The folder of the experiments of a door, where it is not `experiment`."""


class OneLineParser(ArgumentParser):
    """Raises SettingError in place of a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise SettingError(f"{message}; see --help")


@dataclass(frozen=True)
class Words:
    """The command line, read once.

    flags       with their values, to be put before the overrides: Hydra does not read those on both sides of a flag.
    overrides   everything else.
    several     -m: one run for each combination of values.
    single      --run: one run, whatever the experiment says.
    shows       the flags that ask for a page in place of a run (--help, --cfg job, ...).
    page        what --cfg asks for: the settings of the run (job), of Hydra, or all.
    config_dir  a folder with more cards.
    """

    flags: tuple[str, ...]
    overrides: tuple[str, ...]
    several: bool = False
    single: bool = False
    shows: bool = False
    page: str | None = None
    config_dir: str | None = None

    @staticmethod
    def of(arguments: Iterable[str], door: str = "train") -> "Words":
        """Raises SettingError for a flag that does not exist, and for overrides that `require_sound` refuses."""
        typed = [quoted(opened(at_home(placed(word)))) for word in arguments]
        for i, word in enumerate(typed):
            if word in INFO.split() and typed[i + 1 : i + 2] not in [[page] for page in INFO_PAGES]:
                typed[i] = "--info=all"
        if answer := flag_answer(typed, HYDRA_FLAGS, door):
            raise SettingError(answer)
        words = sorted(typed, key=lambda word: "=" in word and not word.startswith("-"))
        parser = OneLineParser(add_help=False)
        parser.add_argument("overrides", nargs="*")
        parser.add_argument(*PAGE.split(), choices=["job", "hydra", "all"])
        for flag in SWITCHES:
            parser.add_argument(*flag.split(), action="store_true")
        for flag in OPTIONS:
            parser.add_argument(*flag.split())
        options = vars(parser.parse_args(words))
        overrides, folder = options.pop("overrides"), options.pop("config_dir")
        several, single = options.pop("multirun"), options.pop("run")
        require_sound(overrides, several=several, experiments=EXPERIMENTS.get(door, "experiment"))
        require_arguments(overrides)
        flags = tuple(word for word in words if word not in overrides)
        return Words(flags, tuple(overrides), several, single, any(options.values()), options["cfg"], folder)

    @cached_property
    def parsed(self) -> list[Override]:
        """The overrides as Hydra reads them."""
        return OverridesParser.create().parse_overrides(list(self.overrides))


def search_path(words: Words) -> list[str]:
    """The override that adds the folder of --config-dir to those that are searched for cards."""
    if words.config_dir is None:
        return []
    typed = [path for o in words.parsed if o.key_or_group == "hydra.searchpath" for path in o.value()]  # type: ignore[union-attr]
    paths = [*typed, f"file://{Path(words.config_dir).absolute()}"]
    return [f"hydra.searchpath=[{','.join(f'{path!r}' for path in paths)}]"]


def at_home(word: str) -> str:
    """setting=~/path with the home folder written out: a shell does that only at the beginning of a word.

    >>> at_home("optimizer.lr=0.1"), at_home("data.root=~/images") == f"data.root={Path.home()}/images"
    ('optimizer.lr=0.1', True)
    """
    return re.sub(r"^([\w./]+=)~(?=/|$)", lambda match: f"{match[1]}{Path.home()}", word)


def quoted(word: str) -> str:
    """A word with conditions as one writes them, trainer.stop=[train/loss<1e-3], in the quotes that Hydra's grammar wants.

    >>> quoted("trainer.stop=[train/loss < 1e-3,'a/b>.9']"), quoted("optimizer.lr=0.1")
    ("trainer.stop=['train/loss < 1e-3','a/b>.9']", 'optimizer.lr=0.1')
    """
    name, equals, value = word.partition("=")
    if name.lstrip("+") != "trainer.stop":
        return word
    return f"{name}{equals}" + re.sub(
        r"""("[^"]*"|'[^']*')|([^\[\],"']*[<>][^\[\],"']*)""",
        lambda match: match[1] or f"'{match[2].strip()}'",
        value,
    )


def literal(value: Any) -> str:
    """A plain value as Hydra's grammar has it.

    >>> literal("it's"), literal([1, None, True, 1e-3]), literal({"a": 1, "b": [2]})
    ("'it\\\\'s'", '[1,null,true,0.001]', '{a:1,b:[2]}')
    """
    if isinstance(value, str):
        return "'" + value.replace("'", "\\'").replace("${", "\\${") + "'"
    if isinstance(value, dict):
        keys = [re.sub(r"([^\w.-])", r"\\\1", str(key)) for key in value]
        return "{" + ",".join(f"{key}:{literal(inner)}" for key, inner in zip(keys, value.values(), strict=True)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(literal, value)) + "]"
    return typed(value)


def require_sound(words: Sequence[str], *, several: bool = True, experiments: str = "experiment") -> None:
    """Raise SettingError, one line, for an override that cannot be read or that takes a setting away (its default would be
    used unseen); for a sweep with a value twice (two runs in one folder); for cards and probes that are not named, or
    twice; for a run folder that is a file or has no name, and for no parallel jobs. several: -m was typed;
    experiments: the folder of their cards.
    """
    for word in words:
        name, _, value = word.partition("=")
        if not name:
            raise SettingError(f"{word} names no setting; expected e.g. optimizer=sgd")
        if word.startswith("~"):
            raise SettingError(
                f"{word}: a setting cannot be taken away; leave it out for its default, or set it, e.g. probe=[] for none"
            )
        if name in FOLDERS and not value:
            raise SettingError(f"{word} names no folder; leave it out for the default")
        if "=" not in word:
            meant = f"; did you mean experiment={word}?" if word in choices(experiments) else f"; {EXPECTED}"
            raise SettingError(f"{word} cannot be read{meant}")
        if not value:
            continue
        if value == "None" and not choices(name):
            raise SettingError(f"{word}: none is written null here; write {name}=null")
        if re.match(r"\+\w", word) and choices(name[1:]):
            raise SettingError(f"{word}: a card is chosen without the +: {word[1:]}")
        override = _read(word)
        if isinstance(override.value(), Glob):
            _require_cards(word, override.key_or_group, several=several)
            continue
        values = [override.value()]
        if override.is_choice_sweep():
            values = list(override.sweep_iterator(Transformer.identity))
            if several or not takes_list(override.key_or_group):
                _require_once(word, list(override.sweep_iterator()))
        for one in values:
            _require_sound(word, override.key_or_group, one)


def _require_cards(word: str, name: str, *, several: bool) -> None:
    """Raise SettingError for a pattern of cards where there are none, or where they are no axis of a grid."""
    if not choices(name) or name == "probe":
        raise SettingError(f"{word}: glob(...) is for cards of which a run has one, as loss=glob(*)")
    if not several:
        raise SettingError(f"{word} is several values; add -m for a run with each")


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
    elif not isinstance(value, str) and choices(name):
        expected = "a list, e.g. probe=[]" if name == "probe" else f"one of {', '.join(choices(name))}"
        raise SettingError(f"{name}={typed(value)} is not the name of a card; expected {expected}")
    elif name in FOLDERS and (folder := Path(str(value))).exists() and not folder.is_dir():
        raise SettingError(f"{word}: this is a file; choose another {name}")
    elif name == "hydra.launcher.n_jobs" and value == 0:
        raise SettingError(f"{word}: expected a whole number of at least 1, or -1 for as many as there are CPUs")


def _require_once(where: str, values: list[Any]) -> None:
    if twice := [value for i, value in enumerate(values) if value in values[:i]]:
        raise SettingError(f"{where}: {twice[0]} stands there twice; leave one out")


def _read(word: str) -> Override:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        name, _, value = word.partition("=")
        quoted = '{}="{}"'.format(name, value.replace('"', '\\"'))
        cure = f"a text with other signs than letters goes in quotes: {shlex.quote(quoted)}"
        if value[0] in "[{(":
            cure = EXPECTED
        raise SettingError(f"{word} cannot be read; {cure}") from None
