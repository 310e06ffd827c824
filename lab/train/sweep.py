"""Several runs by one command: which cells there are, how far they are, and their comparison when all are done.

Hydra's sweeper takes the axes apart and its launcher carries out the cells, each a run in a folder of its own. An
experiment that is several runs names its axes in `hydra.sweeper.params` and sets `hydra.mode: MULTIRUN`; a typed setting
replaces the axis of that name. Cells that are finished return at once, so the same command goes on where it was killed.
"""

import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from time import monotonic, time
from typing import Any, ClassVar

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, open_dict

from lab.cli import card, cell_name
from lab.run.folder import RunFolder, replace
from lab.run.identity import require_unchanged
from lab.settings import SettingError
from lab.train.scaling import scaled
from lab.train.selection import foreign, plain, selected, told

DONE = ("finished", "diverged")
RECORD = "multirun.yaml"
"""What Hydra leaves of a sweep in its folder, before it has looked at any of the cells."""


@dataclass
class Sweep:
    """The cells of the sweep that this process carries out; `config` is Hydra's, without the values of the axes; `before`
    is the record of the sweep that lay in its folder, with its time in ns; `cells` are the folders, in order, with the
    overrides of each.
    """

    config: DictConfig
    before: tuple[bytes, int] | None = None
    seconds: list[float] = field(default_factory=list)
    cells: dict[Path, tuple[str, ...]] = field(default_factory=dict)

    def look_at(self, loader: ConfigLoader, cells: Iterable[Sequence[str]]) -> None:
        """Compose every cell and read its settings. Raises SettingError for the first that cannot be made, by its name."""
        said = set[str]()
        for cfg in composed(loader, self.config, cells):
            hydra = cfg.hydra
            folder, overrides = Path(hydra.sweep.dir) / hydra.sweep.subdir, tuple(hydra.overrides.task)
            with open_dict(cfg):
                del cfg["hydra"]
            try:
                _require_sound(RunFolder(folder), scaled(selected(cfg, hydra)))
            except SettingError as error:
                slip = str(error).replace("another hydra.run.dir", "another hydra.sweep.dir")
                raise SettingError(f"{folder.name}: {slip}") from None
            self.cells[folder] = overrides
            said |= {told(setting, hydra.runtime.choices) for setting in foreign(cfg, overrides, hydra.runtime.choices)}
        for line in sorted(said):
            print(line, file=sys.stderr)

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
        words = sorted((word.lstrip("+") for word in hydra.overrides.task), key=lambda word: word.partition("=")[0])
        chosen = [word for word in words if word.startswith("compare")]  # no part of the names of the runs
        name = cell_name(",".join(filter(None, (hydra.job.override_dirname, *chosen))))
        place = Path(hydra.sweep.dir) / "figures"
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
        record = Path(config.hydra.sweep.dir) / RECORD
        Watch.sweep = Sweep(config, (record.read_bytes(), record.stat().st_mtime_ns) if record.is_file() else None)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._begin = monotonic()
        self._made = Watch.sweep is not None and not _done(Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if Watch.sweep is not None and self._made:
            Watch.sweep.seconds.append(monotonic() - self._begin)


@contextmanager
def record_kept() -> Iterator[None]:
    """A sweep that is refused before any of its runs was made leaves the record of the one before it as it was."""
    begin = time()
    try:
        yield
    except BaseException:
        sweep = Watch.sweep
        if sweep is not None and sweep.before is not None:
            file = Path(sweep.config.hydra.sweep.dir) / RECORD
            if not any(status.stat().st_mtime >= begin for status in file.parent.glob("*/status.json")):
                content, changed = sweep.before
                replace(file, content)
                os.utime(file, ns=(changed, changed))
        raise


@contextmanager
def cells_looked_at() -> Iterator[None]:
    """Within the block the sweeper looks at the settings of all cells, whatever launches them, before the first begins.

    Hydra's own look, which this one replaces, composes each of them (0.1 s) and does not know what their settings mean.
    """
    before = Sweeper.validate_batch_is_legal

    def look(sweeper: Any, batch: Sequence[Sequence[str]]) -> None:
        if Watch.sweep is not None and not Watch.sweep.cells:
            every = [
                cell for cells in sweeper.overrides for cell in cells
            ]  # batch: with max_batch_size not all of them
            Watch.sweep.look_at(sweeper.hydra_context.config_loader, every)

    Sweeper.validate_batch_is_legal = look  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Sweeper.validate_batch_is_legal = before  # type: ignore[method-assign]


def composed(loader: ConfigLoader, config: DictConfig, cells: Iterable[Sequence[str]]) -> Iterator[DictConfig]:
    """The configuration of every cell, with Hydra's, as Hydra composes it; `config` is that without the overrides.

    The cards are put together once for all cells that choose the same ones; the other overrides cost 10 ms a cell.
    """
    parser = OverridesParser.create()
    read = cache(parser.parse_override)
    is_group = cache(lambda name: bool(loader.get_group_options(name)))
    chosen = dict[tuple[str, ...], DictConfig]()
    for words in cells:
        overrides = [read(word) for word in words]
        cards = tuple(word for word, override in zip(words, overrides, strict=True) if is_group(override.key_or_group))
        if cards not in chosen:
            chosen[cards] = loader.load_sweep_config(config, list(cards))
        cell = chosen[cards].copy()
        others = [override for override in overrides if not is_group(override.key_or_group)]
        ConfigLoaderImpl._apply_overrides_to_config(others, cell)
        naming = cell.hydra.job.config.override_dirname
        cell.hydra.job.override_dirname = get_overrides_dirname(
            overrides, list(naming.exclude_keys), naming.item_sep, naming.kv_sep
        )
        cell.hydra.overrides.task = list(words)
        yield cell


def announce(cell: int) -> None:
    """Say on stderr which cell of the sweep begins; nothing for one run or in a worker, which does not know."""
    if Watch.sweep is not None and Watch.sweep.cells:
        print(f"\n{Watch.sweep.said(cell)}", file=sys.stderr, flush=True)


def _require_sound(folder: RunFolder, cfg: DictConfig) -> None:
    """Raises SettingError for a cell whose folder holds another run, or whose settings cannot be right."""
    require_unchanged(folder, plain(cfg))
    if not _done(folder.path):
        from lab.train.settings import read_settings  # torch: not for a sweep that is finished

        read_settings(cfg)


def _done(folder: Path) -> bool:
    return RunFolder(folder).read("status").get("status") in DONE
