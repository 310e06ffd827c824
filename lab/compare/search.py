"""Which folders are runs: those that are named, and those below them. Links are not followed on the way down."""

import glob
import os
import re
import stat
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from lab.compare.run import MARKS, Run
from lab.compare.strangers import Unreadable

PARTS = ("figures", "checkpoints", "arrays", "tensorboard", "wandb", "mlruns", "__pycache__")
"""Folders of a run or a sweep that hold no runs."""
MEASURED = "measure"
"""Where lab.measure leaves what it found in the checkpoints of a run."""
DEPTH, MOST = 12, 20_000
"""Folders within folders, and folders that are looked into."""
NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)")
NO_RUN = "holds no run"


def is_run(folder: Path) -> bool:
    """Whether a folder has a file by which it is a run, or the settings of one that has not begun."""
    return any(os.path.lexists(folder / mark) for mark in MARKS) or os.path.lexists(
        folder / ".hydra" / "overrides.yaml"
    )


def folders(patterns: Sequence[str | Path]) -> Iterator[tuple[Path, str]]:
    """The run folders that are named, found by a glob, or below what is; each once, in order of their names. With a reason
    for what is none: a file, a folder in which there is no run, a pattern that nothing matches.
    """
    seen = set[Path]()
    for pattern in patterns:
        any_run = False
        try:
            found = [*_matching(Path(pattern).expanduser())]
        except (
            OSError,
            ValueError,
            RuntimeError,
        ) as error:  # a name that is too long, or none; a home that is nobody's
            found = [(Path(pattern), f"cannot be looked for ({getattr(error, 'strerror', None) or error})")]
        for place, reason in found:
            any_run = True
            if (whole := place.resolve() if not reason else place.absolute()) not in seen:
                seen.add(whole)
                yield place, reason
        if not any_run:
            yield Path(pattern), "there is no such folder"


def measurements(folder: Path) -> list[Run]:
    """The measurements of its checkpoints within a run folder, by step; damaged ones are left out."""
    place = folder / MEASURED
    found = []
    if place.is_dir() and not place.is_symlink():
        for path in sorted(path for path in place.iterdir() if path.is_dir() and not path.is_symlink()):
            try:
                found.append(Run.read(path))
            except Unreadable:
                continue
    return sorted(found, key=lambda run: run.step)


def natural(name: str) -> list[str | float]:
    """A key by which names are in the order of the numbers in them.

    >>> sorted(["lr=0.2,b=16", "lr=0.2,b=8", "lr=0.05,b=8"], key=natural)
    ['lr=0.05,b=8', 'lr=0.2,b=8', 'lr=0.2,b=16']
    """
    return [float(part) if i % 2 else part for i, part in enumerate(NUMBER.split(name))]


def _matching(pattern: Path) -> Iterator[tuple[Path, str]]:
    """What one pattern finds."""
    text = str(pattern)
    if os.path.lexists(pattern) or not glob.has_magic(text):
        yield from _below(pattern) if os.path.lexists(pattern) else ()
        return
    parts = pattern.parts
    if "**" not in parts:
        for path in sorted(glob.glob(text), key=natural):
            yield from _below(Path(path))
        return
    first = parts.index("**")
    rest = parts[first + 1 :]
    base = str(Path(*parts[:first])) if first else "."
    for path in sorted(glob.glob(base)) if glob.has_magic(base) else [base]:
        for place, reason in _below(Path(path)) if os.path.lexists(path) else ():
            if not rest or _fits(place.relative_to(path).parts, ("**", *rest)):
                yield place, reason


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path, or the first of them, are as a pattern has them.

    >>> _fits(("a", "b", "lr=1"), ("**", "lr=*")), _fits(("a",), ("**", "b"))
    (True, False)
    """
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(_fits(parts[i:], pattern[1:]) for i in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _below(top: Path) -> Iterator[tuple[Path, str]]:
    """The runs in a folder and below it, a run as it stands; within a run there are none."""
    waiting, looked = [(top, 0)], 0
    while waiting:
        folder, depth = waiting.pop()
        looked += 1
        if looked > MOST or depth > DEPTH:
            yield folder, f"is beyond {MOST} folders, or {DEPTH} within each other"
            return
        try:
            if not stat.S_ISDIR(folder.stat().st_mode):
                yield folder, "is a file, not a run folder"
                continue
            if is_run(folder):
                yield folder, ""
                continue
            with os.scandir(folder) as entries:
                names = [e.name for e in entries if e.is_dir(follow_symlinks=False) and e.name not in PARTS]
        except OSError as error:
            lost = folder.is_symlink() and isinstance(error, FileNotFoundError)
            yield folder, "is a link that leads nowhere" if lost else f"cannot be read ({error.strerror})"
            continue
        inner = sorted((name for name in names if not name.startswith(".")), key=natural)
        if not inner:
            yield folder, NO_RUN
        waiting += [(folder / name, depth + 1) for name in reversed(inner)]
