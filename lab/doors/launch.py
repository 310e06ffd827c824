"""Who makes the cells of a grid: this process, one after the other, or a launcher of Hydra."""

import io
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict, read_write

from lab.doors.fork import inherited
from lab.doors.grid import Failure, Grid, Launch, lengths_named
from lab.doors.request import Request
from lab.doors.slurm import submitted
from lab.doors.words import literal
from lab.run.folder import RunFolder
from lab.settings import asked_threads


def launch_of(grid: Grid) -> Launch:
    """The launcher that the settings of Hydra choose."""
    launchers: dict[str, Launch] = {"basic": in_turn, "slurm": submitted}
    return launchers.get(grid.config.hydra.runtime.choices["hydra/launcher"], plugged)


def in_turn(grid: Grid, run: Any) -> list[Failure]:
    """Every cell in this process, one after the other."""
    failures = list[Failure]()
    for i, cell in enumerate(grid.cells):
        print(f"\n{grid.progress(i)}", file=sys.stderr, flush=True)
        begin, new = monotonic(), cell.folder not in grid.done
        try:
            run(cell)
        except Exception as error:
            failures.append((cell, error))
        if new:
            grid.seconds.append(monotonic() - begin)
            grid.note_done(cell)
    return failures


def plugged(grid: Grid, run: Any) -> list[Failure]:
    """By a launcher of Hydra, whose workers compose each cell for themselves."""
    begun = {cell.folder.name: cell for cell in grid.cells if inherited(cell.overrides)}
    launcher = Plugins.instance().instantiate_launcher(config=grid.config, **_for_plugin(run, begun))
    size = grid.config.hydra.sweeper.get("max_batch_size") or len(grid.cells)
    failures = list[Failure]()
    for begin in range(0, len(grid.cells), size):
        batch = grid.cells[begin : begin + size]
        jobs = launcher.launch([_sent(cell) for cell in batch], initial_job_idx=begin)
        for cell, job in zip(batch, jobs, strict=True):
            try:
                with redirect_stderr(io.StringIO()):  # Hydra announces the error
                    _ = job.return_value
            except Exception as error:
                failures.append((cell, error))
    grid.note_done(*grid.cells)
    return failures


def launched(run: Any, begun: Mapping[str, Request], threads: int | None, cfg: DictConfig) -> Any:
    """One cell in the process of a launcher, which keeps the configuration of Hydra apart and has made the folder, and may
    have set OMP_NUM_THREADS there: `threads` is what the user's own says.

    begun: by the name of the folder, cells that begin from another run: of these it was sent more than what was typed.
    """
    with open_dict(whole := cfg.copy()):
        whole.hydra = HydraConfig.get()
    request = replace(Request.of(whole, several=True), threads=threads)
    if (cell := begun.get(request.folder.name)) is not None:
        request = replace(request, overrides=cell.overrides, names=cell.names)
    try:
        return run(request)
    finally:
        RunFolder(request.folder).remove_if_empty()


def _sent(cell: Request) -> list[str]:
    """The overrides that a worker composes a cell by, behind the settings of the run it begins from."""
    before = inherited(cell.overrides)
    folder = [f"hydra.sweep.subdir={literal(cell.folder.name)}"] if before else []
    return [*before, *cell.overrides, *folder]


def search(config: DictConfig, typed: Sequence[Override], run: Any) -> None:
    """Runs that a sweeper of Hydra chooses, e.g. by what the runs before them returned. `config`: without the axes."""
    lengths_named(config, [override.key_or_group for override in typed if override.is_sweep_override()])
    with read_write(config.hydra):
        config.hydra.overrides.task = [override.input_line for override in typed]
    Plugins.instance().instantiate_sweeper(config=config, **_for_plugin(run)).sweep(list(config.hydra.overrides.task))


def _for_plugin(run: Any, begun: Mapping[str, Request] | None = None) -> dict[str, Any]:
    """What a plugin of Hydra is given beside the configuration."""
    context = HydraContext(GlobalHydra.instance().config_loader(), Callback())  # type: ignore[arg-type]
    return {"hydra_context": context, "task_function": partial(launched, run, begun or {}, asked_threads())}
