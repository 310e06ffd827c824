"""python -m lab.measure checkpoint=PATH: any probe on any saved weights, one checkpoint or a glob of them.

A checkpoint of `lab.train` lies in its run folder, whose provenance.json holds all settings as plain values. They are
put before what the user types, as if typed first, so that the user wins. Other weights need `model=`. This is the door
only: torch is imported when there is something to measure.
"""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict

from lab.cli import config_dir, one_line_errors, remove_if_empty
from lab.measure.words import RunOf, Words, literal
from lab.run.folder import RunFolder
from lab.run.identity import require_no_run, require_same_data
from lab.settings import SettingError
from lab.train.memory import memory_told

if TYPE_CHECKING:
    from lab.measure.carry import OptimizerUse, Result


def main() -> None:
    """The command line."""
    with one_line_errors("measure"):
        words = Words.of(sys.argv[1:])
        if words.flags:
            _show_only(words)
        else:
            _measure_all(words)


def _measure_all(words: Words) -> None:
    """Every checkpoint; of several, a broken one is told and passed over, and the exit code is 2 in the end. What is wrong
    with all of them alike, as a setting that was typed, is told once.
    """
    done: list[tuple[Path, Result]] = []
    files, slips = words.files(), set[str]()
    for file in files:
        try:
            done.append((file, measure(words, file, several=len(files) > 1)))
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
        for figure in report.across(done, words.together):
            print(f"\n  figure    {figure}")
    if slips or any(result.failures for _, result in done):
        sys.exit(2)


def measure(words: Words, file: Path, *, several: bool = False) -> "Result":
    """Measure one checkpoint and leave the results in a folder of their own. Raises SettingError in one line."""
    run = RunOf.find(file)
    if run is None and "model" not in words.names:
        raise SettingError(
            f"{file} lies in no run folder of lab.train; say which model it is, e.g. model=mlp data=digits"
        )
    cfg = _compose(words, run)
    if not cfg.get("probe"):
        raise SettingError("probe=[]: there is nothing to measure; choose one or more, e.g. probe=[sharpness,spectrum]")
    place = str(cfg.hydra.run.dir)
    with open_dict(cfg):
        del cfg["hydra"], cfg["checkpoint"]
    from lab.measure import report
    from lab.measure.carry import Measurement
    from lab.measure.weights import read
    from lab.train.settings import read_settings

    with memory_told():
        saved, parts = read(file), read_settings(cfg).build()
        parts.use_threads(jobs=1)
        if run is not None and not any(name.partition(".")[0] == "data" for name in words.names):
            card = f"data={run.card('data')}"
            require_same_data(run.folder, parts.dataset.facts, cure=f"to measure on what is there now add {card}")
        measurement = Measurement(parts, saved, _optimizer(words, run))
    folder = RunFolder(words.results(file, run, place, several=several))
    require_no_run(folder)
    with folder.owned():
        try:
            with memory_told():
                result = measurement.carry_out(str(file))
                result.divergence = run.divergence(file, result.step) if run else ""
        except BaseException:
            _leave_nothing(folder)
            raise
        report.keep(folder, result, file=file, command=_command(words), plain=_plain(cfg), facts=parts.dataset.facts)
    print(f"{file}: {report.sentence(result)}" if several else report.sentence(result))
    for failure in result.failures:
        print(f"error: {f'{file}: ' if several else ''}{failure}", file=sys.stderr)
    if not several:
        print()
        for figure in sorted(folder.figures.glob("*.png")):
            print(f"  figure    {figure}")
        print(f"  results   {folder.path}", flush=True)
    return result


def _leave_nothing(folder: RunFolder) -> None:
    """Take a folder away that was made for a measurement that came to nothing; an older measurement in it stays."""
    if [file.name for file in folder.path.iterdir()] == [".lock"]:
        (folder.path / ".lock").unlink()
        remove_if_empty(folder.path)


def _optimizer(words: Words, run: RunOf | None) -> "OptimizerUse":
    """How the update rule comes about: from the saved state where the run's own optimiser is meant; typed values win."""
    from lab.measure.carry import OptimizerUse

    typed = {name.removeprefix("optimizer.") for name in words.names if name.startswith("optimizer.")}
    known = run is not None or bool(typed) or "optimizer" in words.names
    return OptimizerUse(known, run is not None and run.keeps("optimizer", words), frozenset(typed))


def _compose(words: Words, run: RunOf | None) -> DictConfig:
    """The settings: those of the run, then those typed, then one look per probe."""
    once = [f"probe.{name}.every=1" for name in words.probes]
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir(), version_base=None):
        before = run.overrides(words) if run else []
        words.parsed  # noqa: B018 (what cannot be read is said in terms of what was typed)
        return compose("measure", overrides=[*before, *words.overrides, *once], return_hydra_config=True)


def _show_only(words: Words) -> None:
    """--help and --cfg, by Hydra itself."""
    run = RunOf.find(words.files()[0]) if words.checkpoint else None
    before = (
        [*(run.overrides(words) if run else []), f"checkpoint={literal(words.checkpoint)}"] if words.checkpoint else []
    )
    sys.argv = [sys.argv[0], *words.flags, *before, *words.overrides]
    hydra.main(version_base=None, config_path=config_dir(), config_name="measure")(lambda cfg: None)()


def _plain(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain values, for provenance.json."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items()}


def _command(words: Words) -> str:
    return f"python -m lab.measure {shlex.join([f'checkpoint={words.checkpoint}', *words.overrides])}"
