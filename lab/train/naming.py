"""What the labels of a run ask of its folder, and the code that its settings name: looked at before anything is written."""

from typing import TYPE_CHECKING, Any

from lab.doors.labels import Labels
from lab.run.folder import RunFolder
from lab.settings import SettingError

if TYPE_CHECKING:
    from lab.doors.parts import Settings


def begins_anew(folder: RunFolder, settings: dict[str, Any]) -> bool:
    """Whether the run is a debug run, which what is there does not concern.

    Raises SettingError where the folder holds a run that is none, or holds a debug run and this is none.
    """
    debug, before = Labels.of(settings).debug, folder.read("provenance")
    if before and bool(before.get("settings", {}).get("debug")) != debug:
        kind = "a debug run" if not debug else "a run, which debug=true would overwrite"
        raise SettingError(f"{folder.path} holds {kind}; choose another hydra.run.dir")
    return debug


def relabelled(folder: RunFolder, settings: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    """The summary of a finished run with the tags that are asked for now, on disk too: they may change."""
    tags = list(Labels.of(settings).tags)
    if summary.get("tags", []) == tags:
        return summary
    with folder.owned():
        provenance = folder.read("provenance")
        folder.write("provenance", provenance | {"settings": provenance["settings"] | {"tags": tags}})
        folder.write("summary", summary | {"tags": tags})
    return summary | {"tags": tags}


def require_named(settings: "Settings") -> None:
    """Raise SettingError for tags in trainer.stop that nothing writes, and for callbacks that are none."""
    if settings.trainer.stop:
        from lab.train.ending import stopping

        stopping(settings)
    if settings.trainer.callbacks:
        from lab.callbacks.guests import Guests

        Guests(settings.trainer.callbacks)
