"""Many runs side by side: one figure and one paragraph out of the folders that they left. Free of Lightning."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.report.base import Comparison, Told
from lab.report.cells import Cell
from lab.run.figures import save
from lab.run.folder import RunFolder

__all__ = ["Cell", "Comparison", "Told", "carry_out"]


def carry_out(comparison: Comparison, folders: Mapping[Path, Sequence[str]], file: Path, title: str) -> Told:
    """Compare the runs in `folders` (with the overrides of each); leaves `file`.png and `file`.json. Raises SettingError."""
    cells = [Cell.read(folder, overrides) for folder, overrides in folders.items()]
    outcome = comparison.compare(cells, title)
    save(outcome.figure, Path(f"{file}.png"))
    runs = [
        {"folder": str(cell.folder.path), "overrides": dict(cell.overrides), "diverged": cell.diverged}
        | {"values": outcome.values.get(cell.name, {})}
        for cell in cells
    ]
    RunFolder(file.parent).write(file.name, {"title": title, "sentence": outcome.sentence, "runs": runs})
    return outcome
