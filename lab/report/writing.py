"""Where a report goes, and that it goes there whole: everything is made before the first file is written."""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from lab.compare.runs import Runs
from lab.report.content import Report
from lab.report.markdown import FIGURES, markdown, picture_file
from lab.report.page import GENERATOR, page
from lab.report.svg import harmless
from lab.run.folder import replace
from lab.settings import SettingError

PAGE, TEXT, TABLE = "index.html", "report.md", "table.csv"
USUAL = "report"
"""The folder of a report for which none is named."""
HEAD = 4096
"""Bytes of a page within which it says whose it is."""
DOTS = 110
"""Of a PNG, in an inch."""


def place(paths: Sequence[Path], out: str | None) -> Path:
    """The folder of a report: `out`, or report/ in the deepest folder that holds everything that was named.

    Raises SettingError, before anything is made, for a place that is a file or a link, or holds files that are no report.
    """
    around = Path(os.path.commonpath([path.resolve() for path in paths]))
    around = around if around.is_dir() else around.parent
    folder = near(around) / USUAL if out is None else Path(out)
    if out is None and folder.is_symlink():
        raise SettingError(f"{folder} is a link; say where the report goes: out=FOLDER")
    top = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not top.is_dir():
        raise SettingError(f"{top} is a file; choose another out=")
    if not os.access(top, os.W_OK):
        raise SettingError(f"{top} cannot be written (no right to); choose another out=")
    mine = _mine(folder / PAGE)
    for name in (PAGE, TEXT, TABLE, FIGURES):
        file = folder / name
        if file.is_symlink() or ((file.exists() and not mine) and name != FIGURES):
            raise SettingError(f"{file} is there already and is no report's; choose another out=")
    return folder


def near(path: Path) -> Path:
    """A path as seen from where the command was typed, where it is below, else the whole."""
    whole, here = path.absolute(), Path.cwd()
    return whole.relative_to(here) if whole.is_relative_to(here) else whole


def _mine(file: Path) -> bool:
    """Whether a page is that of a report."""
    if not file.is_file() or file.is_symlink():
        return False
    with file.open("rb") as handle:
        return f'content="{GENERATOR}"'.encode() in handle.read(HEAD)


def is_report(folder: Path) -> bool:
    """Whether a folder holds a report."""
    return _mine(Path(folder) / PAGE)


def write(report: Report, runs: Runs, folder: Path) -> None:
    """The page first, by which the rest is known to be a report's. Raises SettingError where there is no room to write."""
    files: dict[str, bytes] = {PAGE: page(report).encode(), TEXT: markdown(report).encode()}
    for chapter in report.chapters:
        files |= {picture_file(picture.name): _png(picture.figure) for picture in chapter.pictures}
    try:
        _write(files, folder)
        runs.to_csv(folder / TABLE)
    except OSError as error:
        raise SettingError(
            f"{error.filename or folder} cannot be written ({error.strerror}); choose another out="
        ) from None


def _write(files: Mapping[str, bytes], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if any(name.startswith(FIGURES) for name in files):
        (folder / FIGURES).mkdir(exist_ok=True)
    for name, content in files.items():
        replace(folder / name, content)
    for file in folder.glob(picture_file("*")):
        if file.relative_to(folder).as_posix() not in files:  # of an earlier report
            file.unlink()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with harmless(figure):
        figure.savefig(buffer, format="png", dpi=DOTS, metadata={"Software": None})
    return buffer.getvalue()
