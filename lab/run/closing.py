"""What is said of a run when it is over: one plain paragraph, and where to look."""

from collections.abc import Mapping
from typing import Any

from lab.run.folder import RunFolder
from lab.run.summary import sentence


def closing_words(folder: RunFolder, summary: Mapping[str, Any]) -> str:
    """The paragraph of the run, and the paths of its pictures, of its folder and of its dashboard."""
    figures = [f"  figure       {figure}" for figure in sorted(folder.figures.glob("*.png"))]
    lines = [sentence(summary), "", *figures, f"  run folder   {folder.path}"]
    if (folder.path / "tensorboard").is_dir():
        lines.append(f"  dashboard    tensorboard --logdir {folder.path}    (Custom Scalars; set smoothing to 0)")
    return "\n".join(lines)
