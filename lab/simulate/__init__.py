"""python -m lab.simulate experiment=NAME: an experiment whose truth is known, measured and held against its theory.

Where do I add one? A file `lab/gallery/experiments/<name>.py` with one subclass of `Experiment` (`base.py` there), and its
card `conf/simulation/<name>.yaml`: `# @package _global_`, the command, one line that says what it shows, `_target_`, and
every knob with its default and a comment. Nothing lists the experiments: the help page and `experiment=` find them by their
cards, tests/simulate/ by walking the package of the gallery.

The settings of an experiment stand at the top of the configuration (`k=3 walkers=1000`). This is the door only: torch
is imported when the settings are checked, so that help, the user's slips and finished runs answer at once.
"""

import re
import shlex
import sys
import textwrap
from pathlib import Path
from typing import Any

from lab.doors.door import Door
from lab.doors.ending import close
from lab.doors.errors import near, one_line_errors
from lab.doors.pages import PAGE_WIDTH, card_settings, offer
from lab.doors.request import Request
from lab.doors.slips import simulated_answer
from lab.doors.words import Words
from lab.run.cards import choices, config_dir
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
    words = sys.argv[1:]
    with one_line_errors("simulate", lambda setting: _unknown(setting, chosen(words))):
        if not words:
            print(welcome())
        elif chosen(words) and {"--help", "-h"} & set(words):
            print(page(chosen(words)[0]))
        else:
            grouped = (re.sub("^experiment=", f"{GROUP}=", word) for word in words)
            grid = Door("simulate", look, simulate).open(Words.of(grouped, "simulate"))
            if grid is not None:
                close(grid)


def chosen(words: list[str]) -> list[str]:
    """The experiments that the command line names. Raises SettingError for one that does not exist."""
    named = [word.removeprefix("experiment=") for word in words if word.startswith("experiment=")]
    names = [name.strip() for value in named for name in value.split(",")]
    for name in names:
        if name not in choices(GROUP):
            hint = near(name, choices(GROUP), prefix="experiment=")
            raise SettingError(f"experiment={name} does not exist; expected one of {', '.join(choices(GROUP))}{hint}")
    return names


def look(request: Request) -> tuple[str, ...]:
    """Whether the settings of a run can be right, and are those of the run in its folder."""
    folder = RunFolder(request.folder)
    if "_target_" not in request.values:
        raise SettingError(f"no experiment is chosen; expected experiment={'|'.join(choices(GROUP))}")
    require_unchanged(folder, _what(request))
    if not folder.finished:
        from lab.simulate.settings import read_settings  # torch: not for runs that are finished

        experiment, shared = read_settings(request.values)
        shared.device(experiment)
    return ()


def simulate(request: Request) -> None:
    """One run, unless the folder holds it."""
    folder = RunFolder(request.folder)
    if folder.finished:
        report(folder, again=True)
        return
    from lab.simulate.run import carry_out
    from lab.simulate.settings import read_settings

    experiment, shared = read_settings(request.values)
    shared.use_threads(experiment, request.jobs, request.threads)
    typed = [re.sub(f"^{GROUP}=", "experiment=", word) for word in request.overrides]
    carry_out(
        experiment,
        shared,
        folder,
        plain=_what(request),
        command=f"python -m lab.simulate {shlex.join(typed)}",
        title=request.title(experiment.name),
        bar=not request.several or request.jobs == 1,
    )
    report(folder)


def _what(request: Request) -> dict[str, Any]:
    """The settings that say what is simulated."""
    return {name: value for name, value in request.values.items() if name not in PLACE}


def _unknown(setting: str, names: list[str]) -> str:
    """One line on a setting that the chosen experiment does not have."""
    if not names:
        return f"{setting}: no experiment is chosen; expected experiment={'|'.join(choices(GROUP))}"
    if len(names) > 1:
        return f"{setting}: several experiments at once take no settings of their own; start them one at a time"
    known = knobs(names[0])
    if answer := simulated_answer(setting, sys.argv[1:], known):
        return answer
    hint = near(setting, known) or f"; expected one of {', '.join(known)}"
    return f"{setting} is not a setting of experiment={names[0]}{hint}"


def knobs(name: str) -> list[str]:
    """The settings of an experiment, those that all share last."""
    return [*card_settings(GROUP, name), "seed", "accelerator", "threads"]


def summary_of(name: str) -> str:
    """What an experiment shows, in one line: the third of its card."""
    return _card(name).read_text().splitlines()[2].removeprefix("# ")


def listed(indent: int) -> str:
    """Every experiment with what it shows, for a help page; lines after the first are indented."""
    wide = max(map(len, choices(GROUP)))
    lines = []
    for name in choices(GROUP):
        folded = textwrap.wrap(summary_of(name), PAGE_WIDTH - indent - wide - 2)
        lines += [f"{name:<{wide}}  {folded[0]}", *(" " * (wide + 2) + line for line in folded[1:])]
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


offer("lab.experiments", listed)
offer("lab.first_experiment", lambda: choices(GROUP)[0])
