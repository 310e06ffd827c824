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
from time import monotonic
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, OverrideType
from omegaconf import DictConfig, OmegaConf, read_write

from lab.doors.arguments import as_typed, opened
from lab.doors.fork import FROM, bare
from lab.doors.request import Request, composed, name_run
from lab.run.folder import RunFolder
from lab.run.length import LENGTH
from lab.settings import SettingError, UnknownSetting

RECORD = "multirun.yaml"
"""What is left of a grid in its folder, beside its runs: the configuration of Hydra."""
Failure = tuple[Request, Exception]
Launch = Callable[["Grid", Any], list[Failure]]
"""Makes the cells of a grid that are not done, by a function of a request, and notes those that are: the failures."""


def finished(cell: Request) -> bool:
    """Whether the folder of a cell holds a run that is over."""
    return RunFolder(cell.folder).finished


@dataclass
class Grid:
    """The cells of a grid in order.

    config    the configuration with the first value of whatever was typed, and with that of Hydra.
    head      the same as a request, with all that was typed.
    asked     all cells; cells: those to be made, without those whose settings were refused beforehand.
    over      whether the folder of a cell holds what is asked for, whole.
    done      the folders of cells that are over.
    seconds   what each of the others took that has been made since; jobs: how many are made at once.
    running   the folders of cells that are being made, as far as this process makes them.
    failures  by folder, why a cell was refused or has failed.
    tell      called where that changes.
    """

    config: DictConfig
    head: Request
    cells: list[Request]
    done: set[Path] = field(default_factory=set)
    seconds: list[float] = field(default_factory=list)
    jobs: int = 1
    running: dict[Path, float] = field(default_factory=dict)
    failures: dict[Path, Exception] = field(default_factory=dict)
    over: Callable[[Request], bool] = finished
    tell: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.asked = list(self.cells)
        self._numbers = {cell.folder: number for number, cell in enumerate(self.asked, 1)}
        columns = enumerate(zip(*(cell.overrides for cell in self.asked), strict=True))
        self._varied = [place for place, words in columns if len(set(words)) > 1]

    @staticmethod
    def of(
        config: str,
        first: DictConfig,
        typed: Sequence[Override],
        fixed: Sequence[str],
        over: Callable[[Request], bool] = finished,
    ) -> "Grid":
        """first: the configuration with the first value of whatever is `typed`; fixed: the overrides of Hydra's settings."""
        along = axes(first, typed)
        varied = [values[0].partition("=")[0].lstrip("+") for values in along if len(values) > 1]
        cells = [
            Request.of(cfg, several=True)
            for cfg in _cells(config, first, along, [*fixed, *lengths_named(first, varied)])
        ]
        name_run(first, [str(override.input_line) for override in typed])
        return Grid(first, Request.of(first), cells, over=over)

    @property
    def folder(self) -> Path:
        """Where the cells have their folders."""
        return Path(self.config.hydra.sweep.dir)

    def left(self, cell: int = 0) -> int:
        """How many of the cells from number `cell` on have still to be made."""
        return sum(request.folder not in self.done for request in self.cells[cell:])

    def label(self, cell: Request) -> str:
        """What a cell differs from the others in, as typed; all of it where there are no others."""
        return as_typed(" ".join(bare(cell.overrides[i]) for i in self._varied or range(len(cell.overrides))))

    def number(self, cell: Request) -> str:
        """Which of all cells it is: cell 3 of 16."""
        return f"cell {self._numbers[cell.folder]} of {len(self.asked)}"

    def progress(self, cell: int) -> str:
        """Where the grid is when it comes to number `cell`, and how long the rest will take, judged by those made."""
        request = self.cells[cell]
        return f"{self.number(request)}{self.time_left(', about {:.0f} s to go')}: {self.label(request)}"

    def time_left(self, text: str) -> str:
        """How long the rest will take (s), in a text; "" where no cell has been made that would say it."""
        rest = sum(cell.folder not in self.done and cell.folder not in self.failures for cell in self.cells)
        mean = sum(self.seconds) / len(self.seconds) if self.seconds else math.nan
        return text.format(mean * rest / self.jobs) if self.seconds and rest else ""

    def note_done(self, *cells: Request) -> None:
        """Look on disk which of the cells are over."""
        self.done |= {cell.folder for cell in cells if self.over(cell)}

    def begin(self, cell: Request) -> None:
        """A cell is being made from now on."""
        self.running[cell.folder] = monotonic()
        self.tell()

    def end(self, cell: Request, error: Exception | None = None) -> None:
        """A cell is made, or has failed."""
        begun, new = self.running.pop(cell.folder, None), cell.folder not in self.done
        if error is not None:
            self.failures[cell.folder] = error
        else:
            self.note_done(cell)
            if new and begun is not None:
                self.seconds.append(monotonic() - begun)
        self.tell()

    def refuse(self, cell: Request, error: SettingError) -> None:
        """Leave a cell out for its settings."""
        self.failures[cell.folder] = error
        self.cells = [one for one in self.cells if one.folder != cell.folder]

    def make(self, run: Any, launch: Launch) -> None:
        """Every cell, by a launcher. What ends one of them ends no other, and is kept in `failures`. Raises SettingError
        where not one of them could be made.
        """
        self.note_done(*self.cells)
        try:
            self.failures |= {cell.folder: error for cell, error in launch(self, run)}
        finally:
            if any((cell.folder / "status.json").exists() for cell in self.cells):
                OmegaConf.save(self.config, self.folder / RECORD)
        refused = [cell for cell in self.asked if isinstance(self.failures.get(cell.folder), SettingError)]
        if len(refused) == len(self.asked):
            raise named(self.failures[refused[0].folder], refused[0])


def named(error: Exception, cell: Request) -> Exception:
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
    values = _cards(override) if isinstance(override.value(), Glob) else [*override.sweep_string_iterator()]
    return [f"{key}={value}" for value in values]


def _cards(override: Override) -> list[str]:
    """The cards that a pattern names, also of a folder in it, as edge/*. Raises SettingError for none."""
    loader, group, pattern = GlobalHydra.instance().config_loader(), override.get_key_element(), override.value()
    assert isinstance(pattern, Glob)
    known = loader.get_group_options(group)
    for folder in sorted({name.rpartition("/")[0] for name in pattern.include if "/" in name}):
        known = [*known, *(f"{folder}/{card}" for card in loader.get_group_options(f"{group}/{folder}"))]
    if not (found := pattern.filter(known)):
        raise SettingError(f"{override.input_line}: there is no such card; expected some of {', '.join(known)}")
    return found


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
            _require_same_axes(first, bases[others])
            OmegaConf.copy_cache(first, bases[others])  # ${now:...} is one time for all cells
        cell = bases[others]
        for word in words:
            if word in moving:
                OmegaConf.update(cell, parse(word).key_or_group, parse(word).value())
        name_run(cell, words, number)
        yield cell


def _require_same_axes(first: DictConfig, other: DictConfig) -> None:
    """Raises SettingError for cards that name axes of their own, of which those of the first would be those of all."""
    own = [OmegaConf.to_container(one.hydra.sweeper, resolve=False).get("params") or {} for one in (first, other)]  # type: ignore[union-attr]
    if own[0] != own[1]:
        names = [one.hydra.runtime.choices.get("experiment") for one in (first, other)]
        raise SettingError(
            f"experiment={','.join(map(str, names))}: they are grids over axes of their own, which are not the same; "
            "make each by a command of its own"
        )


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
