"""python -m lab.train: train a network and measure its loss landscape while it trains.

Settings come from `conf/`; each group is one validated dataclass. Nothing is written before all of them are known to be
sound. The same command again returns at once when the run is finished and resumes a killed one.

This is the door only: torch is imported when the settings are checked and Lightning when a run begins, so that help,
slips of the user and finished runs answer at once.
"""

import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lab.doors.door import Door
from lab.doors.errors import one_line_errors
from lab.doors.memory import memory_told
from lab.doors.request import Request, keep_settings
from lab.doors.words import Words
from lab.run.folder import RunFolder
from lab.run.identity import require_same_data, require_unchanged, same_data_files
from lab.run.signals import ended
from lab.run.summary import DEFAULT, sentence
from lab.train.comparison import compare
from lab.train.scaling import scaled
from lab.train.selection import left_out, selected


def main() -> None:
    """The command line."""
    with one_line_errors("train"):
        grid = Door("train", look, train).open(Words.of(sys.argv[1:]))
        if grid is not None:
            compare(grid)
            print(f"\n  dashboard    {dashboard(grid.folder)}\n", flush=True)


def look(request: Request) -> Iterable[str]:
    """Whether the settings of a run can be right, and are those of the run in its folder; what is left out of them."""
    folder, settings = RunFolder(request.folder), _settings(request)
    require_unchanged(folder, _recorded(settings))
    if not folder.finished:
        from lab.doors.parts import read_settings  # torch: not for runs that are finished

        read_settings(settings)
    return left_out(request)


def train(request: Request) -> float | None:
    """One run, unless the folder holds it. Returns the last training loss, for sweepers."""
    folder, settings = RunFolder(request.folder), _settings(request)
    with ended(), memory_told():
        require_unchanged(folder, _recorded(settings))
        summary = folder.read("summary")
        again = bool(summary) and folder.finished
        if again:
            _require_same_files(folder, settings)
        else:
            summary = _train(folder, settings, request)
    report(folder, summary, again=again, brief=request.several)
    return summary["last_loss"]


def _train(folder: RunFolder, settings: dict[str, Any], request: Request) -> dict[str, Any]:
    """Check the settings, and only then load Lightning and train. Returns the summary."""
    from lab.doors.parts import read_settings

    parts = read_settings(settings).build()
    require_same_data(folder, parts.dataset.facts)
    parts.use_threads(jobs=request.jobs)
    from lab.train.run import TrainingRun, quiet

    quiet()
    run = TrainingRun(
        parts,
        _recorded(settings),
        title=request.title(request.cards.get("experiment")) or DEFAULT,
        command=f"python -m lab.train {shlex.join(request.overrides)}".strip(),
        bar=not request.several or request.jobs == 1,
    )
    return run.carry_out(folder, begin=lambda: keep_settings(folder.path, settings, request.overrides))


def _require_same_files(folder: RunFolder, settings: dict[str, Any]) -> None:
    """Raise SettingError for a finished run whose data have changed: they are read only where the files look changed."""
    if not same_data_files(folder, settings):
        from lab.doors.parts import read_settings

        require_same_data(folder, read_settings(settings).data.load().facts)


def _settings(request: Request) -> dict[str, Any]:
    """The settings that the run really has. Raises SettingError for what is typed and none of them."""
    return scaled(selected(request))


def _recorded(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings for provenance.json: what the run is, not what it is compared with."""
    return {name: value for name, value in settings.items() if name != "compare"}


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
    place = folder.path.parent  # names the runs, but is not searched for them where it holds much else
    if place.resolve() in (Path.cwd(), Path(os.path.expanduser("~")), Path(place.resolve().anchor)):
        place = folder.path
    print(f"  dashboard    {dashboard(place)}\n", flush=True)


def dashboard(place: Path) -> str:
    """How to see the runs in a folder: each has the name of its own folder there, which is why it is their common one."""
    return f"tensorboard --logdir {shlex.quote(str(place))}    (http://localhost:6006/?smoothing=0)"
