"""Several runs by one command: which cells there are, how far they are, and their comparison when all are done.

Hydra's sweeper takes the axes apart and its launcher carries out the cells, each a run in a folder of its own. An
experiment that is several runs names its axes in `hydra.sweeper.params` and sets `hydra.mode: MULTIRUN`; a typed setting
replaces the axis of that name. Cells that are finished return at once, so the same command goes on where it was killed.
"""

import math
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict

from lab.cli import card, cell_name
from lab.run.folder import RunFolder
from lab.settings import SettingError
from lab.train.scaling import scaled
from lab.train.selection import selected

DONE = ("finished", "diverged")


class CellError(SettingError):
    """A mistake in the settings of a cell, which the message names."""


@dataclass
class Sweep:
    """The cells of the sweep that this process carries out; `config` is Hydra's, without the values of the axes."""

    config: DictConfig
    seconds: list[float] = field(default_factory=list)

    @cached_property
    def composed(self) -> list[DictConfig]:
        """The configuration of every cell, with Hydra's. To be asked first after Hydra has composed all of them itself, and
        before it ends.
        """
        hydra = self.config.hydra
        axes = [f"{name}={values}" for name, values in (hydra.sweeper.params or {}).items()]
        parsed = OverridesParser.create().parse_overrides([*axes, *hydra.overrides.task])
        [combinations] = BasicSweeper.split_arguments(parsed, None)
        return [
            compose(hydra.job.config_name, [*hydra.overrides.hydra, *overrides], return_hydra_config=True)
            for overrides in combinations
        ]

    @cached_property
    def cells(self) -> dict[Path, tuple[str, ...]]:
        """The folder of every cell, in order, and its overrides."""
        hydras = [cell.hydra for cell in self.composed]
        return {Path(hydra.sweep.dir) / hydra.sweep.subdir: tuple(hydra.overrides.task) for hydra in hydras}

    @cached_property
    def slip(self) -> str:
        """What is wrong with the settings of the first cell that has a mistake; "" where all of them can be read."""
        from lab.train.settings import read_settings

        for folder, cell in zip(self.cells, self.composed, strict=True):
            settings = cell.copy()
            with open_dict(settings):
                del settings["hydra"]
            try:
                read_settings(scaled(selected(settings, cell.hydra.overrides.task)))
            except SettingError as error:
                return f"{folder.name}: {error}"
        return ""

    def left(self, cell: int) -> int:
        """How many of the cells from number `cell` on have still to be made."""
        return sum(not _done(folder) for folder in list(self.cells)[cell:])

    def said(self, cell: int) -> str:
        """Where the sweep is when it comes to number `cell`, and how long the rest will take, judged by those made."""
        left = self.left(cell)
        mean = sum(self.seconds) / len(self.seconds) if self.seconds else math.nan
        togo = f", about {mean * left:.0f} s to go" if self.seconds and left else ""
        mine, every = list(self.cells.values())[cell], self.cells.values()
        varied = [one for one, *others in zip(mine, *every, strict=True) if len(set(others)) > 1]
        return f"cell {cell + 1} of {len(self.cells)}{togo}: {' '.join(varied or mine)}"

    def compare(self) -> None:
        """The figure over all cells and its paragraph, where the settings ask for them."""
        if self.config.get("compare") is None:
            return
        from lab.report import carry_out

        hydra = self.config.hydra
        if waiting := self.left(0):
            print(f"{waiting} of {len(self.cells)} cells are not finished; repeat the command to compare them.")
            return
        name, place = cell_name(hydra.job.override_dirname), Path(hydra.sweep.dir) / "figures"
        title = hydra.runtime.choices.get("experiment") or "sweep"
        typed = hydra.job.override_dirname.replace(",", ", ")
        title = f"{title}: {typed}" if typed else title
        comparison = carry_out(card(self.config.compare, "compare"), self.cells, place / name, title)
        print(f"\n{comparison.sentence}\n")
        print(f"  figure    {place / name}.png")
        print(f"  numbers   {place / name}.json\n", flush=True)


class Watch(Callback):
    """Told by Hydra of the sweep and of its cells; `sweep` is that of this process, None in workers and for one run.

    Hydra turns what a callback raises into a warning: nothing here may fail, and what may is done by the door.
    """

    sweep: ClassVar[Sweep | None] = None

    def __init__(self) -> None:
        self._begin, self._made = math.nan, False

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        Watch.sweep = Sweep(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if Watch.sweep is not None:
            _ = Watch.sweep.cells  # where workers made them, nobody has asked yet

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._begin = monotonic()
        self._made = Watch.sweep is not None and not _done(Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if Watch.sweep is not None and self._made:
            Watch.sweep.seconds.append(monotonic() - self._begin)


def announce(cell: int) -> None:
    """Say on stderr which cell of the sweep begins; nothing for one run or in a worker, which does not know."""
    if Watch.sweep is not None:
        print(f"\n{Watch.sweep.said(cell)}", file=sys.stderr, flush=True)


def require_comparable() -> None:
    """Raise CellError where the runs are to be compared and the settings of one are wrong: then none begins."""
    if Watch.sweep is not None and Watch.sweep.config.get("compare") is not None and Watch.sweep.slip:
        raise CellError(Watch.sweep.slip)


def _done(folder: Path) -> bool:
    return RunFolder(folder).read("status").get("status") in DONE
