"""Run folders written by hand, for tests of what compares runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.compare import Run
from lab.run.folder import RunFolder

Values = Mapping[str, Sequence[float] | float]
"""By tag, one value a step, or one for every step."""


def cell(root: Path, overrides: str, values: Values, *, steps: int = 8, diverged: bool = False) -> Run:
    """A run of `steps` updates in a folder below `root`."""
    folder = RunFolder(root / overrides.replace("/", "-").replace(" ", ","))
    with folder.owned():
        folder.forget_from(0)
        for tag, points in values.items():
            for step, value in enumerate(points if isinstance(points, Sequence) else [points] * steps):
                folder.log(step, {tag: value})
        folder.write("provenance", {"data": {"examples": 300, "classes": ", ".join("0123456789")}})
        folder.status("diverged" if diverged else "finished", step=steps)
    return Run.read(folder.path, overrides.split())
