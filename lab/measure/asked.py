"""What one checkpoint is measured by, and where the results go: settings composed before anything is loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.compare.strangers import MAX_JSON, Unreadable, opened
from lab.doors.origin import OriginRun
from lab.doors.request import Request, cards_at_hand, composed
from lab.doors.words import search_path
from lab.measure.target import Target
from lab.run.code import changed_code
from lab.run.folder import RunFolder
from lab.settings import SettingError

READ = ("provenance.json", "status.json", "summary.json")
"""What is read of a run folder, which anybody may have made."""


@dataclass(frozen=True)
class Asked:
    """file      the checkpoint; several: it is one of them.
    run       the run that left it; None for other weights.
    settings  all of them, as plain values.
    folder    where the results go.
    changed   how code of the user's own is another than the run had.
    """

    file: Path
    several: bool
    run: OriginRun | None
    settings: dict[str, Any]
    folder: RunFolder
    changed: tuple[str, ...]

    @staticmethod
    def of(target: Target, file: Path, *, several: bool) -> "Asked":
        """By the run, and by what was typed, which wins. Raises SettingError in one line."""
        if file.parent.name == "checkpoints":
            _require_inside(file.parent.parent)
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
        place = target.results(file, run.folder.path if run else None, request.folder, several=several)
        changed = tuple(changed_code(run.folder, settings)) if run else ()
        return Asked(file, several, run, settings, RunFolder(place), changed)


def _require_inside(folder: Path) -> None:
    """Raise SettingError for a run folder whose files are none, or that leads elsewhere."""
    try:
        for name in READ:
            with opened(folder, name, MAX_JSON):
                pass
    except Unreadable as error:
        raise SettingError(f"{folder}: {error}; to measure the weights, copy the file elsewhere") from None
    if (measure := folder / "measure").is_symlink():
        raise SettingError(f"{measure} is a link, into which nothing is written; set hydra.run.dir")
