"""Many runs as data, side by side: a table, figures and a paragraph out of the folders that they left. Free of Lightning."""

from collections.abc import Sequence
from pathlib import Path

from lab.compare.base import Compared, RunComparison
from lab.compare.run import Run
from lab.compare.runs import Runs, runs
from lab.run.figures import save
from lab.run.folder import RunFolder

__all__ = ["Compared", "Run", "RunComparison", "Runs", "carry_out", "runs"]


def carry_out(comparison: RunComparison, cells: Sequence[Run], file: Path, title: str) -> Compared:
    """Compare the runs; leaves `file`.png and `file`.json. Raises SettingError."""
    compared = comparison.compare(cells, title)
    save(compared.figure, Path(f"{file}.png"))
    told = [
        {"folder": str(cell.path), "overrides": dict(cell.overrides), "diverged": cell.diverged}
        | {"values": compared.values.get(cell.path, {})}
        for cell in cells
    ]
    RunFolder(file.parent).write(file.name, {"title": title, "sentence": compared.sentence, "runs": told})
    return compared
