"""Which checkpoints are meant by what stands behind checkpoint=: files, run folders, folders of runs, globs, a list.

A run is meant by its newest state, of one that diverged the last finite one. Where a glob finds a run folder, what else it
finds inside of that folder is not meant; what lies in no run is a checkpoint where it ends like one, or is asked for.
"""

import glob
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lab.doors.origin import LAST, LAST_FINITE
from lab.settings import SettingError

WEIGHTS = (".ckpt", ".pt", ".pth", ".safetensors")
"""How files of weights end; another file that a glob finds is taken for one only where the glob ends like it."""
SPARE = ("previous.ckpt", "previous_best.ckpt")
"""Checkpoints that a run keeps beside another one, in case: a glob leaves them out unless it names them."""
EMPTY = "checkpoint= is missing: name a file, a run folder or a glob, e.g. checkpoint=outputs/quickstart/default"


def listed(text: str) -> list[str]:
    """The places in a word: one, or those of a list in brackets. Names of runs have commas and brackets of their own, so an
    entry is as much of the list as there is on disk.

    >>> listed("outputs/a"), listed("[x,'y']"), listed("[]")
    (['outputs/a'], ['x', 'y'], [])
    """
    text = text.strip().strip("'\"")
    if not (text.startswith("[") and text.endswith("]")) or Path(text).exists():
        return [text] if text else []
    pieces, places = text[1:-1].split(","), list[str]()
    while pieces:
        joined = (",".join(pieces[:count]).strip(" '\"") for count in range(len(pieces), 0, -1))
        place = next((one for one in joined if _is_there(one)), pieces[0].strip(" '\""))
        pieces = pieces[place.count(",") + 1 :]
        places += [place] if place else []
    return places


def files(places: Sequence[str]) -> list[Path]:
    """The checkpoints meant, each once, in order of the places. Raises SettingError where one of the places has none."""
    if not places:
        raise SettingError(EMPTY)
    return list(dict.fromkeys(file for place in places for file in _meant(place)))


def without(places: Sequence[str]) -> list[Path]:
    """The run folders among what is meant that have no checkpoint yet."""
    found = [Path(name) for place in places for name in ([place] if Path(place).exists() else _glob(place))]
    runs = list(dict.fromkeys(run for path in found for run in _runs(path) if path.is_dir()))
    return [run for run in runs if not _checkpoint(run).is_file() and (run / "status.json").is_file()]


def _meant(place: str) -> list[Path]:
    """The checkpoints of one place."""
    path = Path(place).expanduser()
    if path.exists():
        if (file := _checkpoint(path)).is_file():
            return [file]
        if below := [file for run in _runs(path) if (file := _checkpoint(run)).is_file()]:
            return below
        raise SettingError(f"checkpoint={place} is a folder without {LAST}; name a file or a run folder")
    found = [Path(name) for name in _glob(place)]
    if not found:
        raise SettingError(f"checkpoint={place}: there is no such file")
    tops = {path for path in found if _checkpoint(path) != path}
    outside = [path for path in found if not tops.intersection(path.parents)]
    direct = [_checkpoint(path) for path in outside if not path.is_dir() or path in tops]
    kept = [file for file in direct if file.is_file() and file.suffix in (*WEIGHTS, path.suffix)]
    inner = (run for folder in outside if folder.is_dir() and folder not in tops for run in _runs(folder))
    kept += [file for run in inner if (file := _checkpoint(run)).is_file()]
    if not kept:
        raise SettingError(
            f"checkpoint={place} finds no folder with {LAST} and no file in {', '.join(WEIGHTS)}; "
            "name a run folder or a file"
        )
    return sorted(_less_spare(kept))


def _less_spare(found: Iterable[Path]) -> list[Path]:
    each = list(dict.fromkeys(found))
    return [file for file in each if file.name not in SPARE] or each


def _runs(path: Path) -> Iterator[Path]:
    """The run folders in a folder, itself among them."""
    from lab.compare.search import folders

    return (folder for folder, reason in folders([path]) if not reason)


def _checkpoint(place: Path) -> Path:
    """The newest state of a run folder, of one that diverged the last finite one; anything else is what it is."""
    return next((place / name for name in (LAST_FINITE, LAST) if (place / name).exists()), place)


def _glob(place: str) -> list[str]:
    return sorted(glob.glob(str(Path(place).expanduser()), recursive=True))


def _is_there(place: str) -> bool:
    return bool(place) and (Path(place).expanduser().exists() or bool(_glob(place)))
