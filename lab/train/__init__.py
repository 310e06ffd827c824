"""python -m lab.train: train a network and measure its loss landscape while it trains.

Settings come from `conf/` through Hydra; each group is one validated dataclass. Nothing is written before all of them
are known to be sound. The same command again returns at once when the run is finished and resumes a killed one.

This is the door only: torch is imported when the settings are checked and Lightning when a run begins, so that help,
slips of the user and finished runs answer at once.
"""

import shlex
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lab.cli import config_dir, one_line_errors, quiet, remove_if_empty
from lab.run.folder import RunFolder
from lab.run.identity import require_same_data, require_unchanged
from lab.run.summary import sentence
from lab.settings import SettingError


def main() -> None:
    """The command line."""
    with one_line_errors("train"):
        hydra.main(version_base=None, config_path=config_dir(), config_name="train")(train)()


def train(cfg: DictConfig) -> float | None:
    """One run from its configuration. Returns the last training loss, for sweepers."""
    runtime = HydraConfig.get()
    sweep = runtime.mode == RunMode.MULTIRUN
    folder = _relative(Path(runtime.runtime.output_dir))
    try:
        return _train(cfg, folder, runtime, bar=not sweep or runtime.launcher.get("n_jobs", 1) == 1)
    except SettingError as error:
        raise (SettingError(f"{folder.name}: {error}") if sweep else error) from None
    finally:
        remove_if_empty(folder)  # Hydra makes it before it asks us; a refused run leaves nothing


def _train(cfg: DictConfig, path: Path, runtime: Any, *, bar: bool) -> float | None:
    """Look what the folder holds, check the settings, and only then load Lightning and train."""
    folder, plain = RunFolder(path), _plain(cfg)
    require_unchanged(folder, plain)
    if folder.read("status").get("status") in ("finished", "diverged"):
        summary = folder.read("summary")
        report(folder, summary, again=True)
        return summary["last_loss"]
    from lab.train.settings import read_settings

    settings = read_settings(cfg)
    parts = settings.build()
    require_same_data(folder, parts.dataset.facts)
    parts.use_threads(jobs=runtime.launcher.get("n_jobs", 1) or 1)

    from lab.train.run import Run

    quiet()
    command = f"python -m lab.train {shlex.join(runtime.overrides.task)}".strip()
    run = Run(parts, plain, title=_title(runtime), command=command, bar=bar)
    summary = run.carry_out(folder, begin=lambda: _keep_hydra(folder.path, cfg))
    report(folder, summary)
    return summary["last_loss"]


def report(folder: RunFolder, summary: dict[str, Any], *, again: bool = False) -> None:
    """The result in one plain paragraph, and where to look."""
    print("\nThis run was already finished." if again else "")
    print(sentence(summary))
    print()
    for figure in sorted(folder.figures.glob("*.png")):
        print(f"  figure       {figure}")
    print(f"  run folder   {folder.path}")
    print(f"  dashboard    tensorboard --logdir {folder.path}    (Custom Scalars; set smoothing to 0)\n", flush=True)


def _plain(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain values, for provenance.json."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items()}


def _relative(path: Path) -> Path:
    """As the user would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _title(runtime: Any) -> str:
    experiment, overrides = runtime.runtime.choices.get("experiment"), runtime.job.override_dirname
    return ": ".join(part for part in (experiment, overrides.replace(",", ", ")) if part) or "default settings"


def _keep_hydra(path: Path, cfg: DictConfig) -> None:
    """.hydra/ as Hydra would write it, once the run is known to be sound."""
    place = path / ".hydra"
    place.mkdir(exist_ok=True)
    OmegaConf.save(cfg, place / "config.yaml")
    OmegaConf.save(HydraConfig.get().overrides.task, place / "overrides.yaml")
