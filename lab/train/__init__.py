"""python -m lab.train: train a network and measure its loss landscape while it trains.

Settings come from `conf/` through Hydra; each group is one validated dataclass. Nothing is written before all of them
are known to be sound. The same command again returns at once when the run is finished and resumes a killed one.

This is the door only: torch is imported when the settings are checked and Lightning when a run begins, so that help,
slips of the user and finished runs answer at once.
"""

import shlex
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lab.cli import config_dir, one_line_errors, quiet, remove_if_empty
from lab.run.folder import RunFolder
from lab.run.identity import require_same_data, require_unchanged, same_data_files
from lab.run.signals import ended
from lab.run.summary import DEFAULT, sentence
from lab.settings import SettingError
from lab.train.memory import memory_told
from lab.train.scaling import scaled
from lab.train.selection import foreign, plain, selected, told
from lab.train.slips import at_home, require_sound
from lab.train.sweep import DONE, Watch, announce, cells_looked_at, record_kept

SWEEPING = ("hydra/launcher=", "hydra.launcher.", "hydra/sweeper=", "hydra.sweeper.", "hydra.sweep.")
"""How overrides begin that only a sweep has a use for."""


def main() -> None:
    """The command line."""
    Watch.sweep = None
    with one_line_errors("train"):
        # Flags first: Hydra does not read overrides on both sides of one.
        words = sorted(map(at_home, sys.argv[1:]), key=lambda word: "=" in word and not word.startswith("-"))
        require_sound(words)
        sys.argv[1:] = words
        with record_kept(), cells_looked_at():
            hydra.main(version_base=None, config_path=config_dir(), config_name="train")(train)()
        if Watch.sweep is not None:
            Watch.sweep.compare()


def train(cfg: DictConfig) -> float | None:
    """One run from its configuration. Returns the last training loss, for sweepers."""
    runtime = HydraConfig.get()
    sweep = runtime.mode == RunMode.MULTIRUN
    folder = _relative(Path(runtime.runtime.output_dir))
    try:
        with ended():
            _require_fit(runtime, sweep=sweep)
            return _train(
                scaled(selected(cfg, runtime)),
                folder,
                runtime,
                left_out=[] if sweep else foreign(cfg, runtime.overrides.task, runtime.runtime.choices),
                bar=not sweep or runtime.launcher.get("n_jobs", 1) == 1,
            )
    except SettingError as error:
        slip = f"{folder.name}: {error}".replace("another hydra.run.dir", "another hydra.sweep.dir")
        raise SettingError(slip if sweep else str(error)) from None
    finally:
        remove_if_empty(folder)  # Hydra makes it before it asks us; a refused run leaves nothing


@memory_told()
def _train(cfg: DictConfig, path: Path, runtime: Any, *, left_out: list[str], bar: bool) -> float | None:
    """Look what the folder holds, check the settings, and only then load Lightning and train."""
    folder, values = RunFolder(path), plain(cfg)
    brief = runtime.mode == RunMode.MULTIRUN
    require_unchanged(folder, values)
    summary = folder.read("summary")
    if summary and folder.read("status").get("status") in DONE:
        if not same_data_files(folder, values):
            from lab.train.settings import read_settings

            require_same_data(folder, read_settings(cfg).data.load().facts)
        announce(runtime.job.num if brief else 0)
        report(folder, summary, again=True, brief=brief)
        return summary["last_loss"]
    from lab.train.settings import read_settings

    settings = read_settings(cfg)
    parts = settings.build()
    require_same_data(folder, parts.dataset.facts)
    parts.use_threads(jobs=runtime.launcher.get("n_jobs", 1) or 1)

    from lab.train.run import Run

    for setting in left_out:
        print(told(setting, runtime.runtime.choices), file=sys.stderr)
    announce(runtime.job.num if brief else 0)
    quiet()
    command = f"python -m lab.train {shlex.join(runtime.overrides.task)}".strip()
    run = Run(parts, values, title=_title(runtime), command=command, bar=bar)
    summary = run.carry_out(folder, begin=lambda: _keep_hydra(folder.path, cfg))
    report(folder, summary, brief=brief)
    return summary["last_loss"]


def report(folder: RunFolder, summary: dict[str, Any], *, again: bool = False, brief: bool = False) -> None:
    """The result in one plain paragraph, and where to look. brief: for one of many runs, the paragraph and the folder."""
    paragraph = sentence(summary)
    if brief:
        print(f"{'already finished: ' if again else ''}{paragraph}\n  run folder   {folder.path}", flush=True)
        return
    print("\nThis run was already finished." if again else "")
    print(paragraph)
    print()
    for figure in sorted(folder.figures.glob("*.png")):
        print(f"  figure       {figure}")
    print(f"  run folder   {folder.path}")
    print(f"  dashboard    tensorboard --logdir {folder.path}    (Custom Scalars; set smoothing to 0)\n", flush=True)


def _require_fit(runtime: Any, *, sweep: bool) -> None:
    """Raise SettingError for what only a sweep, or only a single run, can make use of."""
    if sweep and any(override.startswith("hydra.run.dir=") for override in runtime.overrides.hydra):
        raise SettingError("hydra.run.dir is the folder of one run, and these are several; set hydra.sweep.dir")
    if not sweep and any(override.startswith("compare") for override in runtime.overrides.task):
        raise SettingError(
            "compare= compares the runs of a grid, and this is one run; add -m and an axis, or leave it out"
        )
    if not sweep and (launching := [word for word in runtime.overrides.hydra if word.startswith(SWEEPING)]):
        raise SettingError(f"{launching[0]} says how the runs of a grid are made, and this is one run here; add -m")


def _relative(path: Path) -> Path:
    """As the user would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _title(runtime: Any) -> str:
    experiment, overrides = runtime.runtime.choices.get("experiment"), runtime.job.override_dirname
    return ": ".join(part for part in (experiment, overrides.replace(",", ", ")) if part) or DEFAULT


def _keep_hydra(path: Path, cfg: DictConfig) -> None:
    """.hydra/ as Hydra would write it, once the run is known to be sound."""
    place = path / ".hydra"
    place.mkdir(exist_ok=True)
    OmegaConf.save(cfg, place / "config.yaml")
    OmegaConf.save(HydraConfig.get().overrides.task, place / "overrides.yaml")
