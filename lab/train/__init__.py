"""python -m lab.train: train a network and measure its loss landscape while it trains.

Settings come from `conf/`; each group is one validated dataclass. Nothing is written before all of them are known to be
sound. The same command again returns at once when the run is finished and resumes a killed one.

This is the door only: torch is imported when the settings are checked and Lightning when a run begins, so that help,
slips of the user and finished runs answer at once.
"""

import math
import shlex
import sys
from collections.abc import Iterable
from typing import Any

from lab.doors.arguments import as_typed
from lab.doors.door import Door
from lab.doors.ending import close
from lab.doors.errors import one_line_errors
from lab.doors.fork import bare, readable
from lab.doors.grid import Grid
from lab.doors.labels import Labels
from lab.doors.memory import memory_told
from lab.doors.request import Request, keep_settings
from lab.doors.words import Words
from lab.run.closing import closing_words, dashboard
from lab.run.folder import RunFolder
from lab.run.identity import as_begun, require_same_data, require_unchanged, same_data_files
from lab.run.progress import waiting
from lab.run.signals import ended
from lab.run.summary import DEFAULT, sentence
from lab.settings import SettingError
from lab.train.beginning import inherited_length, require_origin
from lab.train.compared import require_comparison
from lab.train.comparison import compare
from lab.train.extension import lengthened, require_extendable, tell_budget, tell_diverged
from lab.train.naming import begins_anew, ended_early, relabelled, require_named, require_sound_changes
from lab.train.scaling import scaled
from lab.train.selection import left_out, selected


def main() -> None:
    """The command line."""
    with one_line_errors("train"):
        door = Door("train", look, train, over, require_comparison)
        grid = door.open(Words.of(readable(sys.argv[1:])))
        if grid is not None:
            refused = compared(grid)
            print(f"\n  dashboard    {dashboard(grid.folder)}\n", flush=True)
            close(grid, refused)


def compared(grid: Grid) -> SettingError | None:
    """Show the table and the figure; why there is no figure, where it cannot be drawn: the runs are there nevertheless."""
    try:
        compare(grid)
    except SettingError as error:
        return error
    return None


def look(request: Request) -> Iterable[str]:
    """Whether the settings of a run can be right, and are those of the run in its folder; what is left out of them."""
    folder, settings = RunFolder(request.folder), _settings(request)
    anew = begins_anew(folder, settings)
    if not anew:
        require_unchanged(folder, _recorded(settings), grows=True)
    if not _over(folder, settings):
        require_origin(folder, settings)
        from lab.doors.parts import read_settings  # torch: not for runs that are finished

        sound = read_settings(settings)
        require_named(sound)
        if not anew:
            require_extendable(folder, sound, settings)
    else:
        require_sound_changes(folder, settings)
    return left_out(request)


def over(request: Request) -> bool:
    """Whether the folder holds the run that is asked for, whole."""
    return _over(RunFolder(request.folder), _settings(request))


def train(request: Request) -> float | None:
    """One run, unless the folder holds it. Returns the last training loss, for sweepers; infinity where it diverged."""
    folder, settings = RunFolder(request.folder), _settings(request)
    with ended(), memory_told():
        if not begins_anew(folder, settings):
            require_unchanged(folder, _recorded(settings), grows=True)
        summary = folder.read("summary")
        again = bool(summary) and _over(folder, settings)
        if again:
            tell_diverged(folder, settings)
            _require_same_files(folder, settings)
            summary = relabelled(folder, settings, summary)
        else:
            summary = _train(folder, settings, request)
    report(folder, summary, again=again, brief=request.several)
    return math.inf if summary["phase"] == "diverged" else summary["last_loss"]


def _over(folder: RunFolder, settings: dict[str, Any]) -> bool:
    """Whether the folder holds the run that is asked for, finished, and as long."""
    if not folder.finished or begins_anew(folder, settings) or ended_early(folder, settings):
        return False
    return lengthened(folder, settings) is None


def _train(folder: RunFolder, settings: dict[str, Any], request: Request) -> dict[str, Any]:
    """Check the settings, and only then load Lightning and train. Returns the summary."""
    from lab.doors.parts import read_settings
    from lab.doors.trial import told_of
    from lab.run.keeping import Kept
    from lab.train.forking import fork

    sound = read_settings(settings)
    with waiting("data and model", "loading"):
        parts = sound.build()
    require_same_data(folder, parts.dataset.facts)
    parts.use_threads(jobs=request.jobs, asked=request.threads)
    from lab.train.run import TrainingRun, quiet

    quiet()
    child = fork(folder, settings, parts, {word.lstrip("+").partition("=")[0] for word in request.overrides})
    begin_at = child.state["step"] if child else 0
    Kept.of(parts.settings.trainer.keep).require_within(parts.total, begin=begin_at)
    tell_budget(folder, sound, settings)

    def begin() -> None:
        keep_settings(folder.path, settings, request.overrides)
        if child is not None:
            child.plant(folder)

    run = TrainingRun(
        parts,
        _recorded(settings),
        title=request.title(Labels.of(settings).name or request.cards.get("experiment")) or DEFAULT,
        command=f"python -m lab.train {shlex.join(bare(as_typed(word)) for word in request.overrides)}".strip(),
        bar=not request.several or request.jobs == 1,
    )
    with told_of(settings):
        return run.carry_out(folder, begin=begin) | {"remark": run.remark}


def _require_same_files(folder: RunFolder, settings: dict[str, Any]) -> None:
    """Raise SettingError for a finished run whose data have changed: they are read only where the files look changed."""
    if not same_data_files(folder, settings):
        from lab.doors.parts import read_settings

        require_same_data(folder, read_settings(settings).data.load().facts)


def _settings(request: Request) -> dict[str, Any]:
    """The settings that the run really has. Raises SettingError for what is typed and none of them."""
    settings = scaled(selected(request))
    Labels.of(settings)
    folder, typed = RunFolder(request.folder), any(w.lstrip("+").startswith("probe.budget=") for w in request.overrides)
    settings = as_begun(folder, settings, typed=typed)
    return inherited_length(folder, settings, request.overrides) if settings["from"] else settings


def _recorded(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings for provenance.json: what the run is, not what it is compared with."""
    return {name: value for name, value in settings.items() if name != "compare" and (name, value) != ("from", None)}


def report(folder: RunFolder, summary: dict[str, Any], *, again: bool = False, brief: bool = False) -> None:
    """The result in one plain paragraph, and where to look. brief: for one of many runs, the paragraph and the folder."""
    remark = f"{text}\n" if (text := summary.get("remark")) else ""
    if brief:
        again_word = "already finished: " if again else ""
        print(f"{again_word}{sentence(summary)}\n  run folder   {folder.path}\n{remark}", end="", flush=True)
        return
    print("\nThis run was already finished." if again else "")
    print(f"{closing_words(folder, summary)}\n{remark}", flush=True)
