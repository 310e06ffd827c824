"""Many runs as data, side by side: a table, figures and a paragraph out of the folders that they left. Free of Lightning."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.compare.base import Compared, RunComparison
from lab.compare.run import Run
from lab.compare.runs import Runs, runs
from lab.run.figures import save
from lab.run.folder import RunFolder

__all__ = ["Compared", "Run", "RunComparison", "Runs", "carry_out", "runs"]


def carry_out(comparison: RunComparison, folders: Mapping[Path, Sequence[str]], file: Path, title: str) -> Compared:
    """Compare the runs in `folders` (with the overrides of each); leaves `file`.png and `file`.json. Raises SettingError."""
    cells = [Run.read(folder, overrides) for folder, overrides in folders.items()]
    compared = comparison.compare(cells, title)
    save(compared.figure, Path(f"{file}.png"))
    told = [
        {"folder": str(cell.path), "overrides": dict(cell.overrides), "diverged": cell.diverged}
        | {"values": compared.values.get(cell.name, {})}
        for cell in cells
    ]
    RunFolder(file.parent).write(file.name, {"title": title, "sentence": compared.sentence, "runs": told})
    return compared
