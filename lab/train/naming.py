"""What the labels of a run ask of its folder, and the code that its settings name: looked at before anything is written."""

from typing import TYPE_CHECKING, Any

from lab.doors.labels import Labels
from lab.run.folder import RunFolder
from lab.run.stopping import Condition
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


def ended_early(folder: RunFolder, settings: dict[str, Any]) -> bool:
    """Whether the run ended by a condition that is none of trainer.stop any more: it goes on then."""
    met, texts = folder.read("summary").get("stopped_by"), settings["trainer"].get("stop") or []
    if not met or not isinstance(texts, list):
        return False
    try:
        return met not in [str(Condition.of(str(text))) for text in texts]
    except ValueError:  # told where the settings are read
        return True


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


def require_sound_changes(folder: RunFolder, settings: dict[str, Any]) -> None:
    """Raise SettingError where what may change of a finished run was changed to what no run takes. Without torch where
    nothing was.
    """
    before, now = folder.read("provenance").get("settings", {}).get("trainer", {}), settings["trainer"]
    if any((before.get(name) or None) != (now.get(name) or None) for name in ("stop", "keep")):
        from lab.doors.parts import read_settings

        require_named(read_settings(settings))


def require_named(settings: "Settings") -> None:
    """Raise SettingError for tags in trainer.stop that nothing writes, and for callbacks that are none."""
    if settings.trainer.stop:
        from lab.train.ending import stopping

        stopping(settings)
    if settings.trainer.callbacks:
        from lab.callbacks.guests import Guests

        Guests(settings.trainer.callbacks)
