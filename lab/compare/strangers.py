"""Files of a folder that anybody may have made, read as data: looked at before they are opened, bounded, no links outside.

A link is followed as long as it stays in the folder. Devices, pipes and sockets are not opened. JSON becomes plain values
whose texts a terminal and a page can show: what does not print is written out, as `\\x1b`.
"""

import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lab.settings import SettingError

MAX_JSON = 8 << 20
"""Bytes of a JSON file."""
MAX_METRICS = 1 << 30
"""Bytes of metrics.jsonl."""
MAX_TEXT = 4000
"""Characters of a text that are kept."""
MAX_ENTRIES = 5000
"""Settings, results or tags of one run."""
MAX_LIST = 100
"""Entries of a list."""
MAX_DEPTH = 12
"""Settings within settings."""
Plain = bool | int | float | str | None
"""A value of a run: a number, a text, or nothing."""


class Unreadable(SettingError):
    """What a folder holds is no run that can be read; the message is the reason, in one line."""


def shown(text: str) -> str:
    """A text on one line, as it may be printed anywhere: what does not print is written out.

    >>> shown("lr=0.1\\x1b[2J\\n")
    'lr=0.1\\\\x1b[2J\\\\n'
    """
    if len(text) > MAX_TEXT:
        text = f"{text[:MAX_TEXT]}..."
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def plain(value: Any) -> Plain:
    """A value of JSON as a number, a text or nothing; a list as one types it.

    >>> plain([1, "x", None]), plain(10**400)
    ('[1,x,null]', inf)
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value if -(2**63) <= value < 2**63 else math.inf if value > 0 else -math.inf
    if value is None or isinstance(value, bool | float):
        return value
    return shown(value if isinstance(value, str) else _listed(value))


def number(value: Any) -> float:
    """A finite number as a float, anything else as NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:
        return math.nan


def flattened(values: Mapping[str, Any]) -> dict[str, Plain]:
    """Nested values by dotted names; what is nested too deep is one text. Raises Unreadable for too many."""
    found: dict[str, Plain] = {}

    def enter(level: Mapping[str, Any], prefix: str, depth: int) -> None:
        for name, value in level.items():
            if isinstance(value, dict) and depth < MAX_DEPTH:
                enter(value, f"{prefix}{name}.", depth + 1)
            else:
                found[shown(f"{prefix}{name}")] = plain(value)
            if len(found) > MAX_ENTRIES:
                raise Unreadable(f"has more than {MAX_ENTRIES} settings or results")

    enter(values, "", 0)
    return found


def there(path: Path) -> bool:
    """Whether there is anything of this name, be it a link that leads nowhere or what may not be looked at.

    Raises Unreadable for a name that no file can have.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        return True
    except (OSError, ValueError) as error:
        raise Unreadable(f"is no name of a file ({getattr(error, 'strerror', None) or error})") from None
    return True


def require_folder(path: Path) -> None:
    """Raise Unreadable for what is no folder that may be read."""
    try:
        if not stat.S_ISDIR(path.stat().st_mode):
            raise Unreadable("is a file, not a run folder")
        os.scandir(path).close()
    except OSError as error:
        raise Unreadable(f"cannot be read ({error.strerror})") from None


@contextmanager
def opened(folder: Path, name: str, most: int) -> Iterator[IO[bytes] | None]:
    """The regular file `name` of a folder, of at most so many bytes; None where there is none.

    Raises Unreadable for a link that leads out of the folder, for what is no file, is too large, or may not be read.
    """
    file = folder / name
    try:
        if not os.path.lexists(file):
            yield None
            return
        place = file.resolve(strict=True)
        if not place.is_relative_to(folder.resolve()):
            raise Unreadable(f"{name} is a link that leads out of the folder")
        if not stat.S_ISREG(place.lstat().st_mode):
            raise Unreadable(f"{name} is no regular file")
        descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise Unreadable(f"{name} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    with os.fdopen(descriptor, "rb") as handle:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise Unreadable(f"{name} is no regular file")
        if about.st_size > most:
            raise Unreadable(f"{name} is too large: {about.st_size:.3g} bytes, at most {most:.3g} are read")
        yield handle


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of a folder; {} where there is no file. Raises Unreadable for anything else."""
    with opened(folder, name, MAX_JSON) as handle:
        text = handle.read(MAX_JSON) if handle else b"{}"
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        why = "is nested too deep" if isinstance(error, RecursionError) else "is no JSON"
        raise Unreadable(f"{name} {why}") from None
    if not isinstance(content, dict):
        raise Unreadable(f"{name} holds a {type(content).__name__}, not an object")
    return content


def _listed(value: Any) -> str:
    """A list as one types it; what is nested in it, or far down, is left out."""
    if not isinstance(value, list):
        return "{...}" if isinstance(value, dict) else str(value)
    entries = [
        "..." if isinstance(one, list | dict) else "null" if one is None else str(plain(one))
        for one in value[: MAX_LIST + 1]
    ]
    return f"[{','.join(entries[:MAX_LIST])}{',...' if len(entries) > MAX_LIST else ''}]"
