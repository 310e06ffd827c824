"""Several runs by one command: which cells there are, how far they are, and who makes them.

An experiment that is several runs names its axes in `hydra.sweeper.params` and sets `hydra.mode: MULTIRUN`; a typed
setting replaces the axis of that name. All cells are looked at before the first is made. Cells that are finished return
at once, so the same command goes on where it was killed.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf, read_write

from lab.doors.arguments import as_typed, opened
from lab.doors.fork import FROM
from lab.doors.request import Request, composed, name_run
from lab.run.folder import RunFolder
from lab.run.length import LENGTH
from lab.settings import SettingError, UnknownSetting

RECORD = "multirun.yaml"
"""What is left of a grid in its folder, beside its runs: the configuration of Hydra."""
Failure = tuple[Request, Exception]
Launch = Callable[["Grid", Any], list[Failure]]
"""Makes the cells of a grid that are not done, by a function of a request, and notes those that are: the failures."""


@dataclass
class Grid:
    """The cells of a grid in order.

    config   the configuration with the first value of whatever was typed, and with that of Hydra.
    head     the same as a request, with all that was typed.
    done     the folders of cells that are finished.
    seconds  what each of the others took that has been made since.
    """

    config: DictConfig
    head: Request
    cells: list[Request]
    done: set[Path] = field(default_factory=set)
    seconds: list[float] = field(default_factory=list)

    @staticmethod
    def of(config: str, first: DictConfig, typed: Sequence[Override], fixed: Sequence[str]) -> "Grid":
        """first: the configuration with the first value of whatever is `typed`; fixed: the overrides of Hydra's settings."""
        along = axes(first, typed)
        varied = [values[0].partition("=")[0].lstrip("+") for values in along if len(values) > 1]
        cells = [
            Request.of(cfg, several=True)
            for cfg in _cells(config, first, along, [*fixed, *lengths_named(first, varied)])
        ]
        name_run(first, [str(override.input_line) for override in typed])
        return Grid(first, Request.of(first), cells)

    @property
    def folder(self) -> Path:
        """Where the cells have their folders."""
        return Path(self.config.hydra.sweep.dir)

    def left(self, cell: int = 0) -> int:
        """How many of the cells from number `cell` on have still to be made."""
        return sum(request.folder not in self.done for request in self.cells[cell:])

    def progress(self, cell: int) -> str:
        """Where the grid is when it comes to number `cell`, and how long the rest will take, judged by those made."""
        left = self.left(cell)
        mean = sum(self.seconds) / len(self.seconds) if self.seconds else math.nan
        time_left = f", about {mean * left:.0f} s to go" if self.seconds and left else ""
        mine, every = self.cells[cell].overrides, [request.overrides for request in self.cells]
        varied = [one for one, *others in zip(mine, *every, strict=True) if len(set(others)) > 1]
        return f"cell {cell + 1} of {len(self.cells)}{time_left}: {as_typed(' '.join(varied or mine))}"

    def note_done(self, *cells: Request) -> None:
        """Look on disk which of the cells are finished."""
        self.done |= {cell.folder for cell in cells if RunFolder(cell.folder).finished}

    def make(self, run: Any, launch: Launch) -> None:
        """Every cell, by a launcher. What one of them raises does not keep the others from being made, and is raised in the
        end.
        """
        self.note_done(*self.cells)
        try:
            for cell, error in launch(self, run):
                raise named(error, cell) if isinstance(error, SettingError) else error
        finally:
            if any((cell.folder / "status.json").exists() for cell in self.cells):
                OmegaConf.save(self.config, self.folder / RECORD)


def named(error: SettingError, cell: Request) -> SettingError:
    """The same error with the cell that it is of, where there are several; a name that is unknown is so in all of them."""
    if not cell.several or isinstance(error, UnknownSetting):
        return error
    return SettingError(f"{cell.folder.name}: {error}".replace("another hydra.run.dir", "another hydra.sweep.dir"))


def axes(first: DictConfig, typed: Sequence[Override]) -> list[list[str]]:
    """The values of every setting of a grid as overrides: of those that its experiment names, and of those `typed`.

    Those that have a range in place of values are left out where a sweeper of Hydra chooses, else SettingError is raised.
    """
    ranges = [o for o in typed if o.is_sweep_override() and not o.is_discrete_sweep()]
    if ranges and first.hydra.runtime.choices["hydra/sweeper"] == "basic":
        raise SettingError(f"{ranges[0].input_line}: a grid has single values, e.g. optimizer.lr=0.1,0.2")
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    params, asked = first.hydra.sweeper.params or {}, {override.get_key_element() for override in typed}
    named = [
        opened(f"{name}={0 if name in asked else params[name]}") for name in params
    ]  # an axis that is typed: its place
    kept = [override for override in [*parser.parse_overrides(named), *typed] if override not in ranges]
    return list({override.get_key_element(): _values(override) for override in kept}.values())


def first_of(overrides: Iterable[Override]) -> list[str]:
    """The overrides with the first of their values; those are left out that have a range in place of values."""
    kept = [override for override in overrides if override.is_discrete_sweep() or not override.is_sweep_override()]
    return [_values(o)[0] if o.is_sweep_override() else str(o.input_line) for o in kept]


def _values(override: Override) -> list[str]:
    """An override for each of the values of one."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def _cells(config: str, first: DictConfig, axes: Sequence[Sequence[str]], fixed: Sequence[str]) -> Iterator[DictConfig]:
    """The configuration of every cell, with that of Hydra. It is the caller's until the next one: cells that choose the
    same cards share one, in which only the values on the axes change (10 ms a cell; composing takes 100).
    """
    bases = dict[tuple[str, ...], DictConfig]()
    parse = cache(OverridesParser.create().parse_override)
    moving = {word for axis in axes if len(axis) > 1 for word in axis if _is_value(parse(word))}
    for number, words in enumerate(itertools.product(*axes)):
        others = tuple(word for word in words if word not in moving)
        if others not in bases:
            bases[others] = composed(config, [*fixed, *words])
            OmegaConf.copy_cache(first, bases[others])  # ${now:...} is one time for all cells
        cell = bases[others]
        for word in words:
            if word in moving:
                OmegaConf.update(cell, parse(word).key_or_group, parse(word).value())
        name_run(cell, words, number)
        yield cell


def lengths_named(cfg: DictConfig, axes: Iterable[str]) -> list[str]:
    """The override, which `cfg` is given too, that has lengths on the axes in the names of the folders, where they stand for
    different runs: elsewhere a longer run is the same one.
    """
    naming = cfg.hydra.job.config.override_dirname
    kept = [
        key for key in naming.exclude_keys if not (key in (*LENGTH, "trainer.stop", "trainer.keep") and key in axes)
    ]
    if len(kept) == len(naming.exclude_keys):
        return []
    word = f"hydra.job.config.override_dirname.exclude_keys=[{','.join(kept)}]"
    with read_write(cfg.hydra):
        naming.exclude_keys = kept
        cfg.hydra.overrides.hydra = [*cfg.hydra.overrides.hydra, word]  # a worker composes its cell by these
    return [word]


def _is_value(override: Override) -> bool:
    """Whether an override only puts a value in the place of another: it chooses no card or run, and adds nothing."""
    if override.key_or_group == FROM:
        return False
    group = GlobalHydra.instance().config_loader().get_group_options(override.key_or_group)
    return override.type == OverrideType.CHANGE and not group and not isinstance(override.value(), dict)
