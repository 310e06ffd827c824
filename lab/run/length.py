"""How long a run is, and whether a command asks for the run of its folder made longer. Plain values only, without torch.

updates = epochs x ceil(N / b)   where epochs are given, for N training examples in batches of b
          steps                  else; 1000 where neither is
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from lab.run.cards import require_whole
from lab.run.folder import RunFolder
from lab.settings import SettingError

DEFAULT_STEPS = 1000
LENGTH = ("steps", "epochs")
"""Settings that say how far a run goes: the updates up to there are those of a longer one."""


class Lengthening(NamedTuple):
    """The updates that the run of a folder has, and those that are asked for."""

    before: int
    now: int


def require_length(plain: Mapping[str, Any]) -> None:
    """Raise SettingError, one line, for a length that is none."""
    for name in LENGTH:
        if plain.get(name) is not None:
            require_whole(name, plain[name], 1)
    steps, epochs = (plain.get(name) for name in LENGTH)
    if steps is not None and epochs is not None:
        raise SettingError(f"steps={steps} and epochs={epochs} contradict each other; set one of them to null")


def updates(plain: Mapping[str, Any], examples: int | None) -> int | None:
    """The number of updates that settings ask for, on so many training examples (None: unknown). None where nobody can say:
    epochs of an unknown number of examples.

    >>> updates({"epochs": 3, "data": {"batch_size": 32}}, 100), updates({"steps": None, "epochs": None}, None)
    (12, 1000)
    """
    if (epochs := plain.get("epochs")) is None:
        return plain.get("steps") or DEFAULT_STEPS
    batch_size = plain.get("data", {}).get("batch_size", "full")
    if batch_size == "full":
        return int(epochs)
    return None if examples is None else int(epochs) * -(-examples // int(batch_size))


def growth(folder: RunFolder, plain: Mapping[str, Any]) -> Lengthening | None:
    """How much longer the settings are than the run of the folder; None where they are as long, or there is no run.

    Raises SettingError for fewer updates than the run has: it is never cut off.
    """
    provenance = folder.read("provenance")
    if (recorded := provenance.get("settings")) is None:
        return None
    if all(recorded.get(name) == plain.get(name) for name in LENGTH):
        return None
    require_length(plain)
    examples = provenance.get("data", {}).get("examples")
    before, now = updates(recorded, examples), updates(plain, examples)
    if before is None or now is None:
        name = next(name for name in LENGTH if recorded.get(name) != plain.get(name))
        raise SettingError(
            f"{folder.path} holds a run with {name}={recorded.get(name)}, not {plain.get(name)}; choose "
            "another hydra.run.dir"
        )
    if now < before:
        raise SettingError(
            f"{folder.path} holds a run of {before} updates, and {_asked(plain, now)} is fewer: a run is made longer, never "
            "shorter; choose another hydra.run.dir"
        )
    return Lengthening(before, now) if now > before else None


def past(folder: RunFolder, plain: Mapping[str, Any], step: int) -> dict[str, Any]:
    """What provenance.json keeps of the past of the run in the folder, which goes on from `step`: the run it began from, and
    every time it was made longer, oldest first, with the one that begins now.
    """
    provenance = folder.read("provenance")
    kept: dict[str, Any] = {name: provenance[name] for name in ("parent", "extended") if name in provenance}
    if (grown := growth(folder, plain)) is not None:
        when = datetime.now(UTC).isoformat(timespec="seconds")
        now = {"step": step, "updates": list(grown), "when": when, "command_before": provenance.get("command")}
        kept["extended"] = [*kept.get("extended", []), now]
    return kept


def _asked(plain: Mapping[str, Any], updates: int) -> str:
    if plain.get("epochs") is None:
        return f"steps={updates}"
    return f"epochs={plain['epochs']}, {updates} updates," if updates != plain["epochs"] else f"epochs={updates}"
