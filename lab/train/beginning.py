"""What is asked of a run before it begins that begins from another one, without torch where it can be."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lab.doors.fork import FROM, ForkPoint
from lab.run.folder import RunFolder
from lab.run.length import LENGTH, updates
from lab.settings import SettingError


def require_origin(folder: RunFolder, settings: Mapping[str, Any]) -> None:
    """Raise SettingError, one line, where the run cannot begin where it is said to: at no checkpoint, with no step left; and
    where it is said what becomes of a state that there is not, or branches are compared that are none.
    """
    if settings[FROM] is None:
        if (settings.get("compare") or {}).get("_target_") == "lab.compare.branches.Branches":
            raise SettingError("compare=branches compares runs that begin from another one; add from=RUN@100,RUN@500")
        if settings["trainer"].get("state") == "drop":
            raise SettingError(
                "trainer.state=drop is for a run that begins from another; add from=RUN, or leave it out"
            )
        return
    if folder.read("provenance"):
        return
    from lab.train.forking import require_steps

    point = ForkPoint.of(settings[FROM])
    _require_checkpoint(point.folder.path, point.step, Path.cwd())
    total = updates(settings, point.folder.read("provenance").get("data", {}).get("examples"))
    if total is not None and settings.get("epochs") is None:
        require_steps(point, total)


@cache
def _require_checkpoint(run: Path, step: int, here: Path) -> None:
    """Raise SettingError where there is no sound one of `run`, seen from `here`. The cells of a grid look once."""
    from lab.run import checkpoints

    checkpoints.at(RunFolder(run), step)


def inherited_length(folder: RunFolder, settings: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The settings with the length that a run has which has begun, where none is typed: its parent may have grown since."""
    begun = folder.read("provenance").get("settings", {})
    if not begun or any(word.partition("=")[0] in LENGTH for word in overrides):
        return settings
    return settings | {name: begun[name] for name in LENGTH if name in begun}
