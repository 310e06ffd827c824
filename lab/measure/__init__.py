"""python -m lab.measure checkpoint=PATH: any probe on any saved weights, one checkpoint or those of a whole sweep.

A checkpoint of `lab.train` lies in its run folder, whose provenance.json holds all settings as plain values. They are
put before what the user types, as if typed first, so that the user wins. Other weights need `model=`. This is the door
only: torch is imported when there is something to measure.
"""

import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.doors.errors import one_line_errors
from lab.doors.memory import memory_told
from lab.doors.origin import OriginRun
from lab.doors.pages import show
from lab.doors.words import literal
from lab.measure import places
from lab.measure.asked import Asked
from lab.measure.several import Several, digest, kept, without_checkpoint
from lab.measure.target import Target
from lab.measure.training import refusal
from lab.run.folder import RunFolder
from lab.run.identity import require_no_run, require_same_data
from lab.settings import SettingError, asked_threads

if TYPE_CHECKING:
    from lab.measure.carry import CheckpointResult, LoadedRun, OptimizerUse


def main() -> None:
    """The command line."""
    with one_line_errors("measure", refusal):
        target = Target.of(sys.argv[1:])
        if target.words.shows and target.parsed is not None:
            show("measure", [*target.words.flags, *_of_the_run(target), *target.words.overrides])
        else:
            _measure_all(target)


def _measure_all(target: Target) -> None:
    """Every checkpoint; of several, those that were measured before are passed over, a broken one is told, and the exit code
    is 2 in the end.
    """
    files = target.files()
    if note := without_checkpoint(places.without(target.places)):
        print(note, file=sys.stderr)
    if len(files) == 1:
        if measure(target, Asked.of(target, files[0], several=False)).failures:
            sys.exit(2)
        return
    from lab.measure import report

    every = Several(files, partial(measured, target))
    every.carry_out()
    if every.done:
        print()
        report.show(report.table(every.done))
        print(f"\n{every.sentence}")
        for figure in report.across(every.done, target.together):
            print(f"\n  figure    {figure}")
    if every.slips or any(result.failures for _, result in every.done):
        sys.exit(2)


def measured(target: Target, file: Path, begins: Callable[[], None]) -> "tuple[CheckpointResult, bool]":
    """One of several checkpoints, and whether it was measured before by the same settings. begins: says that it is now."""
    asked = Asked.of(target, file, several=True)
    if not asked.changed and (result := kept(asked.folder, file, asked.settings)) is not None:
        print(f"{file}: measured before, see {asked.folder.path}")
        return result, True
    from lab.doors.parts import read_settings

    read_settings(asked.settings)  # a slip is the same in all of them: nothing begins
    begins()
    return measure(target, asked), False


def measure(target: Target, asked: Asked) -> "CheckpointResult":
    """Measure one checkpoint and leave the results in a folder of their own. Raises SettingError in one line."""
    file, run, folder = asked.file, asked.run, asked.folder
    for text in asked.changed:
        print(f"warning: the code is not that of the run: {text}", file=sys.stderr)
    if not asked.settings.get("probe"):
        raise SettingError("probe=[]: there is nothing to measure; choose one or more, e.g. probe=[sharpness,spectrum]")
    with memory_told():
        before, loaded = digest(file), _loaded(asked.settings, target, file, run)
    require_no_run(folder)
    from lab.measure import report

    with folder.owned():
        result = _carry_out(loaded, folder, file, run)
        facts = {"checkpoint": str(file.absolute()), "checkpoint_sha256": before, "data": loaded.parts.dataset.facts}
        report.keep(folder, result, file=file, command=_command(target), plain=asked.settings, facts=facts)
    report.tell(result, file, folder, brief=asked.several)
    return result


def _loaded(settings: dict[str, Any], target: Target, file: Path, run: OriginRun | None) -> "LoadedRun":
    """The saved weights in their model, with their data."""
    from lab.doors.parts import read_settings
    from lab.measure.carry import LoadedRun
    from lab.measure.weights import read

    saved, parts = read(file), read_settings(settings).build()
    parts.use_threads(jobs=1, asked=asked_threads())
    if run is not None and run.means_its_data(target):
        require_same_data(run.folder, parts.dataset.facts, cure=run.data_cure("measure"))
    return LoadedRun(parts, saved, _optimizer(target, run))


def _carry_out(loaded: "LoadedRun", folder: RunFolder, file: Path, run: OriginRun | None) -> "CheckpointResult":
    """The result. A folder that was made for a measurement that came to nothing is taken away; an older one in it stays."""
    try:
        with memory_told():
            result = loaded.carry_out(str(file))
            result.divergence = run.divergence(file, result.step) if run else ""
            return result
    except BaseException:
        if [file.name for file in folder.path.iterdir()] == [".lock"]:
            (folder.path / ".lock").unlink()
            folder.remove_if_empty()
        raise


def _optimizer(target: Target, run: OriginRun | None) -> "OptimizerUse":
    """How the update rule comes about: from the saved state where the run's own optimiser is meant; typed values win."""
    from lab.measure.carry import OptimizerUse

    typed = {name.removeprefix("optimizer.") for name in target.names if name.startswith("optimizer.")}
    known = run is not None or bool(typed) or "optimizer" in target.names
    return OptimizerUse(known, run is not None and run.keeps("optimizer", target), frozenset(typed))


def _of_the_run(target: Target) -> list[str]:
    """What a page of settings shows besides what was typed."""
    if not target.places:
        return []
    run = OriginRun.find(target.files()[0], target.words.config_dir)
    return [*(run.overrides(target) if run else []), f"checkpoint={literal(_named(target))}"]


def _command(target: Target) -> str:
    return f"python -m lab.measure {shlex.join([f'checkpoint={_named(target)}', *target.words.overrides])}"


def _named(target: Target) -> str:
    """The places as one word."""
    return target.places[0] if len(target.places) == 1 else f"[{','.join(target.places)}]"
