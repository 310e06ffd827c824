"""Who makes the cells of a grid: this process, one after the other, or a launcher of Hydra."""

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from functools import partial
from pathlib import Path
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
from lab.doors.launchers import InTurn, Joblib, chosen, of_hydra
from lab.doors.pool import gpus_here, in_processes, make_here
from lab.doors.request import Request
from lab.doors.slurm import submitted
from lab.doors.slurm.card import SlurmCard
from lab.doors.watch import watched
from lab.doors.words import literal
from lab.run.folder import RunFolder
from lab.settings import asked_threads

RESULTS = "optimization_results.yaml"
"""What a sweeper of Hydra leaves that searches for the best settings."""


def launch_of(grid: Grid) -> Launch:
    """The launcher that the settings choose. Raises SettingError for a setting of it that cannot be right."""
    card = chosen(grid.config.hydra.launcher)
    if isinstance(card, SlurmCard):
        return watched(submitted, lines=False)
    if isinstance(card, Joblib):
        return watched(partial(_parallel, card))
    basic = grid.config.hydra.runtime.choices["hydra/launcher"] == "basic"
    return watched(in_turn if basic or isinstance(card, InTurn) else plugged)


def in_turn(grid: Grid, run: Any) -> list[Failure]:
    """Every cell in this process, one after the other."""
    return [failure for cell in grid.cells for failure in make_here(grid, run, cell)]


def _parallel(card: Joblib, grid: Grid, run: Any) -> list[Failure]:
    gpus = gpus_here() if grid.left() else []
    return in_processes(grid, run, jobs=card.jobs(grid.left(), len(gpus)), gpus=gpus)


def plugged(grid: Grid, run: Any) -> list[Failure]:
    """By a launcher of Hydra, whose workers compose each cell for themselves."""
    begun = {cell.folder.name: cell for cell in grid.cells if inherited(cell.overrides)}
    launcher = Plugins.instance().instantiate_launcher(config=grid.config, **_for_plugin(run, begun))
    size = grid.config.hydra.sweeper.get("max_batch_size") or len(grid.cells)
    failures = list[Failure]()
    for begin in range(0, len(grid.cells), size):
        batch = grid.cells[begin : begin + size]
        try:
            jobs = launcher.launch([_sent(cell) for cell in batch], initial_job_idx=begin)
        except Exception as error:  # of one job, and the others are waited for no more
            grid.note_done(*batch)
            failures += [(cell, error) for cell in batch if cell.folder not in grid.done]
            continue
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
        config.hydra.launcher = of_hydra(config.hydra.launcher)
        config.hydra.overrides.task = [override.input_line for override in typed]
    Plugins.instance().instantiate_sweeper(config=config, **_for_plugin(run)).sweep(list(config.hydra.overrides.task))
    if (results := Path(config.hydra.sweep.dir, RESULTS)).is_file():
        print(f"\n{results.read_text()}  results   {results}", flush=True)


def _for_plugin(run: Any, begun: Mapping[str, Request] | None = None) -> dict[str, Any]:
    """What a plugin of Hydra is given beside the configuration."""
    context = HydraContext(GlobalHydra.instance().config_loader(), Callback())  # type: ignore[arg-type]
    return {"hydra_context": context, "task_function": partial(launched, run, begun or {}, asked_threads())}
