"""How a run stands and where it came from, out of status.json and provenance.json of a folder that anybody may have made."""

import os
import socket
import stat
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from lab.compare.strangers import Plain, number, plain, shown

OVER = ("finished", "diverged", "failed")
"""What a status file says of a run that is over; anything else: it is going on, or was."""
LOCKS = Path("/proc/locks")
"""What Linux says of locks on files."""
DIGITS = 12
"""Of a hash."""


def status_of(folder: Path, status: Mapping[str, Any], *, begun: bool) -> tuple[str, str, int]:
    """finished, diverged, running, interrupted, failed or missing; why; and the step.

    A run whose status says that it is running is interrupted where its process is gone: no process of this machine holds the
    lock of the folder, and the file names no other machine. begun: there are other files of a run.
    """
    if not status:
        return ("interrupted", "it has no status.json", 0) if begun else ("missing", "nothing of it is there yet", 0)
    said, reason = str(plain(status.get("status"))), _text(status.get("reason")) or ""
    step = number(status.get("step"))
    at = int(step) if step >= 0 else 0
    if said in OVER:
        return ("interrupted" if said == "failed" and reason == "interrupted" else said), reason, at
    host = status.get("host")
    if host is not None and host != socket.gethostname():
        return "running", f"on {_text(host)}", at
    if locked(folder / ".lock", status.get("pid")):
        return "running", "", at
    return "interrupted", "its process is gone", at


def locked(file: Path, pid: Any) -> bool:
    """Whether a process of this machine holds the lock of a run folder. It is not tried, which could keep a run out."""
    try:
        at = file.lstat()
        held = LOCKS.read_text().splitlines() if stat.S_ISREG(at.st_mode) else []
    except FileNotFoundError:
        if LOCKS.exists() or type(pid) is not int or not 0 < pid < 2**31:
            return False
        try:  # no Linux: whether there is such a process
            os.kill(pid, 0)
        except OSError as error:
            return isinstance(error, PermissionError)
        return True
    except OSError:
        return False
    place = f"{os.major(at.st_dev):02x}:{os.minor(at.st_dev):02x}:{at.st_ino}"
    return any(place in line.split() for line in held)


def origin_of(provenance: Mapping[str, Any], status: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Plain]:
    """Who made the run, when it took how long, and from which code and data: each a text or a number, None where unknown."""
    command = _text(provenance.get("command"))
    settings, data, git, machine = (_object(provenance, name) for name in ("settings", "data", "git", "hardware"))
    seconds = next((s for s in map(number, (status.get("seconds"), summary.get("seconds"))) if s == s), None)
    commit, diff = _text(git.get("commit")), git.get("diff")
    changed = f" + {sha256(str(diff).encode(errors='replace')).hexdigest()[:DIGITS]}" if diff else ""
    cores = plain(machine.get("cores"))
    parts = [machine.get("machine"), f"{cores} cores" if cores is not None else None, machine.get("accelerator")]
    parent = parent_of(provenance)
    return {
        "kind": _kind(provenance, command),
        "command": command,
        "seed": plain(settings.get("seed")),
        "seconds": seconds,
        "git": f"{commit[:DIGITS]}{changed}" if commit else None,
        "data": _text(data.get("sha256")) or _text(provenance.get("data_files")),
        "machine": ", ".join(text for part in parts if (text := _text(part))) or None,
        "parent": f"{parent['folder']}@{parent['step']}" if parent else None,
    }


def parent_of(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Where the run began: folder, step and changes {setting: [before, now]}; {} for one that began at step 0, or where
    this is not so recorded.
    """
    parent = _object(provenance, "parent")
    folder, step, changes = parent.get("folder"), parent.get("step"), parent.get("changes")
    if not isinstance(folder, str) or type(step) is not int or not 0 <= step < 2**62 or not isinstance(changes, dict):
        return {}
    pairs = {shown(name): pair for name, pair in changes.items() if isinstance(pair, list) and len(pair) == 2}
    return {"folder": folder, "step": step, "changes": {name: [*map(plain, pair)] for name, pair in pairs.items()}}


def _kind(provenance: Mapping[str, Any], command: str | None) -> str | None:
    """The door that made it."""
    if "checkpoint" in provenance:
        return "measure"
    if provenance.get("made_by") == "lab.watch":
        return "watch"
    return next((door for door in ("train", "simulate") if f" -m lab.{door}" in (command or "")), None)


def _object(of: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object within another, {} for anything else."""
    value = of.get(name)
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return None if value is None else str(plain(value))
