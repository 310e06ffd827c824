"""The one way in: settings are composed and looked at, folders found, and then runs made."""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from hydra.types import RunMode

from lab.doors.arguments import short
from lab.doors.fork import inherited
from lab.doors.grid import Grid, axes, finished, first_of, named
from lab.doors.labels import NAMES
from lab.doors.launch import launch_of, search
from lab.doors.pages import show
from lab.doors.request import Request, cards_at_hand, composed
from lab.doors.words import Override, Words, search_path
from lab.settings import SettingError, UnknownSetting

SWEEPING = ("hydra/launcher=", "hydra.launcher.", "hydra/sweeper=", "hydra.sweeper.", "hydra.sweep.")
"""How overrides begin that only a grid has a use for."""
MODES = ("-m", "--multirun", "-r", "--run")
"""Flags that say how many runs there are, which a page has no use for."""


@dataclass(frozen=True)
class Door:
    """A program whose runs have settings.

    config  the file in conf/ where they begin.
    look    raises SettingError for a run whose settings cannot be right; returns what is to be said of it beforehand.
    run     makes one run.
    over    whether the folder of a run of a grid holds it, as long as it is asked for.
    whole   raises SettingError for what the settings say of a grid as one, and cannot be right.
    """

    config: str
    look: Callable[[Request], Iterable[str]]
    run: Callable[[Request], Any]
    over: Callable[[Request], bool] = finished
    whole: Callable[[Grid], None] = lambda grid: None

    def open(self, words: Words) -> Grid | None:
        """Show a page, make a run, or a grid of runs, which is returned. Raises SettingError, and what Hydra raises.

        Nothing is written before the settings are known to be sound, those of a grid in one of its cells at least.
        """
        if words.shows:
            self._show(words)
            return None
        fixed, typed = _apart(words)
        fixed = [*search_path(words), *fixed]
        with cards_at_hand(words.config_dir):
            first = composed(self.config, [*fixed, *first_of(typed)])
            if not (words.several or first.hydra.mode == RunMode.MULTIRUN) or words.single:
                _require_one(words.parsed)
                request = Request.of(composed(self.config, words.overrides) if _sweeps(typed) else first)
                self._look(request)
                self.run(request)
                return None
            _require_many(words.parsed)
            if first.hydra.runtime.choices["hydra/sweeper"] != "basic":
                search(first, typed, self.run)
                return None
            grid = Grid.of(self.config, first, typed, fixed, self.over)
            launch = launch_of(grid)
            self.whole(grid)
            self._look(*grid.cells, refuse=grid.refuse)
            grid.make(self.run, launch)
            return grid

    def _show(self, words: Words) -> None:
        """The page that was asked for; of a grid that of its first run, after a line with what the others differ in."""
        flags = [flag for flag in words.flags if flag not in MODES]
        if words.several or words.page is not None:
            fixed, typed = _apart(words)
            with cards_at_hand(words.config_dir):
                first = composed(self.config, [*search_path(words), *fixed, *first_of(typed)])
                values = axes(first, typed)
            if (words.several or first.hydra.mode == RunMode.MULTIRUN) and not words.single:
                if words.page is not None:
                    print(f"# {_described(values)}; these are the settings of the first")
                chosen = [value[0] for value in values]
                show(self.config, [*flags, *fixed, *self._asked(words, chosen), *chosen])
                return
        show(self.config, [*flags, *self._asked(words, words.overrides), *words.overrides])

    @staticmethod
    def _asked(words: Words, overrides: Sequence[str]) -> list[str]:
        """What a page of settings shows of the run that `from=` names."""
        return inherited(overrides) if words.page is not None else []

    def _look(self, *requests: Request, refuse: Callable[[Request, SettingError], None] | None = None) -> None:
        """At all of them, and then say what is to be said, each line once. What is refused of some is told, and no more;
        what is refused of all, or there is no `refuse`, is raised.
        """
        notes, refused = set[str](), list[tuple[Request, SettingError]]()
        for request in requests:
            try:
                notes |= set(self.look(request))
            except UnknownSetting:
                raise
            except SettingError as error:
                refused.append((request, error))
        if refused and (refuse is None or len(refused) == len(requests)):
            raise named(refused[0][1], refused[0][0]) from None
        for note in sorted(notes):
            print(note, file=sys.stderr)
        for request, refusal in refused:
            print(f"refused: {named(refusal, request)}", file=sys.stderr)
            if refuse is not None:
                refuse(request, refusal)


def _apart(words: Words) -> tuple[list[str], list[Override]]:
    """The settings of Hydra that were typed, and the others."""
    fixed = [str(override.input_line) for override in words.parsed if override.is_hydra_override()]
    return fixed, [override for override in words.parsed if not override.is_hydra_override()]


def _described(values: Sequence[Sequence[str]]) -> str:
    """How many runs a grid has and what they differ in.

    >>> _described([["steps=3"], ["seed=0", "seed=1"], ["data.batch_size=8", "data.batch_size=full"]])
    '4 runs, one for each of seed=0,1 data.batch_size=8,full'
    """
    varied = [
        (axis[0].partition("=")[0], [word.partition("=")[2] for word in axis]) for axis in values if len(axis) > 1
    ]
    listed = " ".join(f"{name}={','.join(axis)}" for name, axis in varied)
    return f"{prod(map(len, values))} runs, one for each of {listed}" if varied else "1 run"


def _sweeps(overrides: Iterable[Override]) -> bool:
    return any(override.is_sweep_override() for override in overrides)


def _require_one(overrides: Iterable[Override]) -> None:
    """Raise SettingError for what only a grid can make use of."""
    for word in (str(override.input_line) for override in overrides):
        if word.startswith("compare") and word != "compare=none":
            raise SettingError(
                "compare= compares the runs of a grid, and this is one run; add -m and an axis, or leave it out"
            )
        if word.startswith(SWEEPING):
            raise SettingError(f"{short(word)} says how the runs of a grid are made, and this is one run here; add -m")


def _require_many(overrides: Iterable[Override]) -> None:
    """Raise SettingError for what only a single run can make use of."""
    for override in overrides:
        if override.key_or_group in NAMES and override.is_sweep_override():
            raise SettingError(
                f"{override.input_line}: runs do not differ in {override.key_or_group}; give one for all"
            )
        if override.key_or_group == "hydra.run.dir":
            raise SettingError("hydra.run.dir is the folder of one run, and these are several; set hydra.sweep.dir")
        if override.is_hydra_override() and override.is_sweep_override():
            word = short(str(override.input_line))
            raise SettingError(f"{word}: the axes of a grid are settings of its runs, and this is none")
