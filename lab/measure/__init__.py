"""python -m lab.measure checkpoint=PATH: any probe on any saved weights, one checkpoint or a glob of them.

A checkpoint of `lab.train` lies in its run folder, whose provenance.json holds all settings as plain values. They are
put before what the user types, as if typed first, so that the user wins. Other weights need `model=`. This is the door
only: torch is imported when there is something to measure.
"""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.doors.errors import one_line_errors
from lab.doors.memory import memory_told
from lab.doors.origin import OriginRun
from lab.doors.pages import show
from lab.doors.request import Request, cards_at_hand, composed
from lab.doors.words import literal, search_path
from lab.measure.target import Target
from lab.measure.training import refusal
from lab.run.code import changed_code
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
    """Every checkpoint; of several, a broken one is told and passed over, and the exit code is 2 in the end. What is wrong
    with all of them alike, as a setting that was typed, is told once.
    """
    done: list[tuple[Path, CheckpointResult]] = []
    files, slips = target.files(), set[str]()
    for file in files:
        try:
            done.append((file, measure(target, file, several=len(files) > 1)))
        except SettingError as error:
            if len(files) == 1:
                raise
            if str(error) not in slips:
                print(f"error: {error}", file=sys.stderr)
            slips.add(str(error))
    if len(files) > 1 and done:
        from lab.measure import report

        print()
        report.show(report.table(done))
        print(f"\n{len(done)} of {len(files)} checkpoints measured.")
        for figure in report.across(done, target.together):
            print(f"\n  figure    {figure}")
    if slips or any(result.failures for _, result in done):
        sys.exit(2)


def measure(target: Target, file: Path, *, several: bool = False) -> "CheckpointResult":
    """Measure one checkpoint and leave the results in a folder of their own. Raises SettingError in one line."""
    run = OriginRun.find(file, target.words.config_dir)
    if run is None and "model" not in target.names:
        raise SettingError(
            f"{file} lies in no run folder of lab.train; say which model it is, e.g. model=mlp data=digits"
        )
    once = [f"probe.{name}.every=1" for name in target.probes]
    before = [*search_path(target.words), *(run.overrides(target) if run else [])]
    with cards_at_hand(target.words.config_dir):
        request = Request.of(composed("measure", [*before, *target.words.overrides, *once]))
    settings = {name: value for name, value in request.values.items() if name != "checkpoint"}
    for text in changed_code(run.folder, settings) if run else ():
        print(f"warning: the code is not that of the run: {text}", file=sys.stderr)
    if not settings.get("probe"):
        raise SettingError("probe=[]: there is nothing to measure; choose one or more, e.g. probe=[sharpness,spectrum]")
    with memory_told():
        loaded = _loaded(settings, target, file, run)
    folder = RunFolder(target.results(file, run.folder.path if run else None, request.folder, several=several))
    require_no_run(folder)
    from lab.measure import report

    with folder.owned():
        result = _carry_out(loaded, folder, file, run)
        facts = loaded.parts.dataset.facts
        report.keep(folder, result, file=file, command=_command(target), plain=settings, facts=facts)
    report.tell(result, file, folder, brief=several)
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
    if not target.checkpoint:
        return []
    run = OriginRun.find(target.files()[0], target.words.config_dir)
    return [*(run.overrides(target) if run else []), f"checkpoint={literal(target.checkpoint)}"]


def _command(target: Target) -> str:
    return f"python -m lab.measure {shlex.join([f'checkpoint={target.checkpoint}', *target.words.overrides])}"
