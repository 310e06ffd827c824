"""python -m lab.simulate experiment=NAME: an experiment whose truth is known, measured and held against its theory.

Where do I add one? A file `lab/gallery/experiments/<name>.py` with one subclass of `Experiment` (`base.py` there), and its
card `conf/simulation/<name>.yaml`: `# @package _global_`, the command, one line that says what it shows, `_target_`, and
every knob with its default and a comment. Nothing lists the experiments: the help page and `experiment=` find them by their
cards, tests/simulate/ by walking the package of the gallery.

The settings of an experiment stand at the top of the configuration (`k=3 walkers=1000`). This is the door only: torch
is imported when the settings are checked, so that help, the user's slips and finished runs answer at once.
"""

import difflib
import re
import shlex
import sys
import textwrap
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lab.cli import PAGE_WIDTH, choices, config_dir, one_line_errors, remove_if_empty
from lab.run.folder import RunFolder
from lab.run.identity import require_unchanged
from lab.settings import SettingError
from lab.simulate.report import report

GROUP = "simulation"
"""The folder of the cards. Hydra's own group `experiment` belongs to lab.train, whose cards are of another kind."""
PLACE = ("threads",)
"""Settings that say how, not what."""


def main() -> None:
    """The command line."""
    with one_line_errors("simulate"):
        words = sys.argv[1:]
        if not words:
            print(welcome())
        elif chosen(words) and {"--help", "-h"} & set(words):
            print(page(chosen(words)[0]))
        else:
            sys.argv = [sys.argv[0], *(re.sub("^experiment=", f"{GROUP}=", word) for word in words)]
            _hydra(words)


def chosen(words: list[str]) -> list[str]:
    """The experiments that the command line names. Raises SettingError for one that does not exist."""
    named = [word.removeprefix("experiment=") for word in words if word.startswith("experiment=")]
    names = [name.strip() for value in named for name in value.split(",")]
    for name in names:
        if name not in choices(GROUP):
            near = difflib.get_close_matches(name, choices(GROUP), n=1)
            hint = f"; did you mean experiment={near[0]}?" if near else ""
            raise SettingError(f"experiment={name} does not exist; expected one of {', '.join(choices(GROUP))}{hint}")
    return names


def simulate(cfg: DictConfig) -> None:
    """One run from its configuration."""
    runtime = HydraConfig.get()
    sweep = runtime.mode == RunMode.MULTIRUN
    folder = _relative(Path(runtime.runtime.output_dir))
    try:
        if sweep and any(override.startswith("hydra.run.dir=") for override in runtime.overrides.hydra):
            raise SettingError("hydra.run.dir is the folder of one run, and these are several; use hydra.sweep.dir")
        _simulate(cfg, RunFolder(folder), runtime, sweep=sweep)
    except SettingError as error:
        raise (SettingError(f"{folder.name}: {error}") if sweep else error) from None
    finally:
        remove_if_empty(folder)  # Hydra makes it before it asks us; a refused run leaves nothing


def _simulate(cfg: DictConfig, folder: RunFolder, runtime: Any, *, sweep: bool) -> None:
    """Look what the folder holds, check the settings, and only then load torch and simulate."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    settings = {str(name): value for name, value in plain.items()}
    if "_target_" not in settings:
        raise SettingError(f"no experiment is chosen; expected experiment={'|'.join(choices(GROUP))}")
    what = {name: value for name, value in settings.items() if name not in PLACE}
    require_unchanged(folder, what)
    if folder.read("status").get("status") == "finished":
        report(folder, again=True)
        return
    from lab.simulate.run import Run
    from lab.simulate.settings import read_settings

    experiment, shared = read_settings(settings)
    shared.use_threads(experiment, runtime.launcher.get("n_jobs", 1) or 1)
    typed = [re.sub(f"^{GROUP}=", "experiment=", word) for word in runtime.overrides.task]
    title = ": ".join(filter(None, (experiment.name, runtime.job.override_dirname.replace(",", ", "))))
    bar = not sweep or runtime.launcher.get("n_jobs", 1) == 1
    command = f"python -m lab.simulate {shlex.join(typed)}"
    Run(experiment, shared, shared.device(experiment)).carry_out(
        folder, plain=what, command=command, title=title, bar=bar
    )
    report(folder)


def _hydra(words: list[str]) -> None:
    """Hand over to Hydra, and say in terms of the chosen experiment which setting it does not know."""
    names = chosen(words)
    try:
        hydra.main(version_base=None, config_path=config_dir(), config_name="simulate")(simulate)()
    except ConfigCompositionException as error:
        unknown = re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", str(error))
        if unknown is None:
            raise
        raise SettingError(_unknown(unknown[1] or unknown[2], names)) from None


def _unknown(setting: str, names: list[str]) -> str:
    """One line on a setting that the chosen experiment does not have."""
    if not names:
        return f"{setting}: no experiment is chosen; expected experiment={'|'.join(choices(GROUP))}"
    if len(names) > 1:
        return f"{setting}: several experiments at once take no settings of their own; start them one at a time"
    known = knobs(names[0])
    near = difflib.get_close_matches(setting, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
    return f"{setting} is not a setting of experiment={names[0]}; {hint}"


def knobs(name: str) -> list[str]:
    """The settings of an experiment, those that all share last."""
    own = [str(key) for key in OmegaConf.load(_card(name)) if key != "_target_"]  # type: ignore[union-attr]
    return [*own, "seed", "accelerator", "threads"]


def summary_of(name: str) -> str:
    """What an experiment shows, in one line: the third of its card."""
    return _card(name).read_text().splitlines()[2].removeprefix("# ")


def listed(indent: int) -> str:
    """Every experiment with what it shows, for a help page; lines after the first are indented."""
    wide = max(map(len, choices(GROUP)))
    lines = []
    for name in choices(GROUP):
        said = textwrap.wrap(summary_of(name), PAGE_WIDTH - indent - wide - 2)
        lines += [f"{name:<{wide}}  {said[0]}", *(" " * (wide + 2) + line for line in said[1:])]
    return ("\n" + " " * indent).join(lines)


def welcome() -> str:
    """What to type, for who typed nothing."""
    example = f"python -m lab.simulate experiment={choices(GROUP)[0]}"
    wide = len(f"{example} --help")
    return (
        "python -m lab.simulate experiment=NAME [setting=value ...]\n\n"
        f"  {listed(2)}\n\n"
        f"  {example:<{wide}}   run it\n"
        f"  {example} --help   its settings\n"
        f"  {'python -m lab.simulate --help':<{wide}}   what all experiments share"
    )


def page(name: str) -> str:
    """The help page of one experiment: its card, where every setting has a comment."""
    lines = [line for line in _card(name).read_text().splitlines()[1:] if not line.startswith("_target_")]
    shared = "seed, accelerator, threads and hydra.run.dir: see python -m lab.simulate --help"
    return (
        "\n".join(line.removeprefix("#").removeprefix(" ") if line.startswith("#") else line for line in lines)
        + f"\n\n{shared}"
    )


def _card(name: str) -> Path:
    return Path(config_dir()) / GROUP / f"{name}.yaml"


def _relative(path: Path) -> Path:
    """As the user would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


OmegaConf.register_new_resolver("lab.experiments", listed, replace=True)
OmegaConf.register_new_resolver("lab.first_experiment", lambda: choices(GROUP)[0], replace=True)
