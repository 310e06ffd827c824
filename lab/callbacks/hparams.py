"""What stands in the table of hyper-parameters: the settings that say what a run is, and what it came to.

TensorBoard makes one table of all runs that it shows. It ticks five columns: first those that differ between the runs, then
the others by name, in the order of letters, capitals before all. So what everybody asks for has a capital.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event

from lab.curvature.phase import Phase
from lab.run.folder import replace

CAPITAL = {
    "data.batch_size": "Batch size",
    "loss": "Loss",
    "model": "Model",
    "optimizer": "Optimizer",
    "optimizer.lr": "Learning rate",
}
"""Columns that have a name of their own."""
SILENT = ("probe", "trainer", "audit", "epochs", "logger", "name", "tags", "debug")
"""Settings that do not say what is trained: columns of runs whose user has typed them."""
NO_PART = ("hydra", "compare")
"""What is typed and is no setting of the run."""
ROW = b"_hparams_/"
"""How the tags of a row begin."""
FINALS = {
    "accuracy_test": "test_accuracy",
    "level": "level",
    "loss": "last_loss",
    "loss_test": "test_loss",
    "phase": "phase",
    "ratio_last": "last_ratio",
    "ratio_max": "max_ratio",
    "seconds": "seconds",
    "step_of_entry": "entry_step",
    "steps": "steps",
}
"""What a run came to, as final/<name>, and what it is called in `summary.json`. By name, for five are ticked."""


def columns(settings: Mapping[str, Any], summary: Mapping[str, Any], typed: Iterable[str] = ()) -> dict[str, Any]:
    """The settings of a run by the name of their column, and its phase in words: a metric can only be a number.

    settings: flat, as of `lab.run.identity.flat`. typed: the words of the command. What is typed has a column in any case,
    also what another cell of a grid has no setting for.

    >>> columns({"optimizer.lr": 0.1, "trainer.threads": 2, "seed": 0}, {"phase": None}, ["optimizer/noise=none"])
    {'Learning rate': 0.1, 'seed': 0, 'optimizer/noise': 'none'}
    """
    words = dict(word.lstrip("+~").partition("=")[::2] for word in typed if "=" in word)
    words = {name: value for name, value in words.items() if name.partition(".")[0].partition("/")[0] not in NO_PART}
    kept = {name: value for name, value in settings.items() if name in words or name.partition(".")[0] not in SILENT}
    row = {CAPITAL.get(name, name): _cell(value) for name, value in kept.items()}
    row |= {name: value for name, value in words.items() if name not in settings}
    phase = summary.get("phase")
    return row | ({"phase at the end": str(phase)} if phase else {})


def finals(summary: Mapping[str, Any]) -> dict[str, float]:
    """The numbers that a run came to, the phase as that of `sharpness/phase`; of what was not measured none.

    >>> finals({"phase": "edge of stability", "last_loss": 0.5, "level": None})
    {'final/loss': 0.5, 'final/phase': 2.0}
    """
    known = {name: summary.get(key) for name, key in FINALS.items()}
    if known["phase"] is not None:
        known["phase"] = Phase(known["phase"]).code
    return {f"final/{name}": float(value) for name, value in known.items() if value is not None}


def forget_rows(folder: Path) -> None:
    """Take the row of the run that is to go on out of its event files: of several TensorBoard shows the oldest for good.

    All other records stay, byte for byte, also one that a kill has cut off.
    """
    for file in folder.glob("events.out.tfevents.*"):
        content = file.read_bytes()
        if ROW in content:
            replace(file, b"".join(record for record in _records(content) if not _is_row(record)))


def _records(content: bytes) -> Iterator[bytes]:
    """Those of an event file, each with the length before it and its sums of check: 8 bytes, 4, the event, 4."""
    begin = 0
    while begin < len(content):
        end = begin + 16 + (struct.unpack_from("<Q", content, begin)[0] if begin + 8 <= len(content) else 0)
        yield content[begin:end]
        begin = end


def _is_row(record: bytes) -> bool:
    if ROW not in record:
        return False
    try:
        event = Event.FromString(record[12:-4])
    except Exception:  # cut off
        return False
    return any(value.tag.encode().startswith(ROW) for value in event.summary.value)


def _cell(value: Any) -> Any:
    """A value as it is typed, where it is no number; numbers stay numbers."""
    return str(value).lower() if isinstance(value, bool) or value in ("None", "True", "False") else value
