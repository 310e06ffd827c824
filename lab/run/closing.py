"""What is said of a run when it is over: one plain paragraph, and where to look."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.run.folder import RunFolder
from lab.run.summary import sentence


def closing_words(folder: RunFolder, summary: Mapping[str, Any]) -> str:
    """The paragraph of the run, and the paths of its pictures, of its folder and of its dashboard."""
    figures = [f"  figure       {figure}" for figure in sorted(folder.figures.glob("*.png"))]
    lines = [sentence(summary), "", *figures, f"  run folder   {folder.path}"]
    if any(folder.path.glob("events.out.tfevents.*")):
        place = folder.path.parent  # names the runs, but is not searched for them where it holds much else
        if place.resolve() in (Path.cwd(), Path(os.path.expanduser("~")), Path(place.resolve().anchor)):
            place = folder.path
        lines.append(f"  dashboard    {dashboard(place)}")
    return "\n".join(lines)


def dashboard(place: Path) -> str:
    """How to see the runs in a folder: each has the name of its own folder there, which is why it is their common one."""
    return f"tensorboard --logdir {shlex.quote(str(place))}    (http://localhost:6006/?smoothing=0)"
