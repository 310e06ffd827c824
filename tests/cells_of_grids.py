"""Cells of grids that need no torch, for processes that are begun anew: made, refused, raising, killed."""

import os
import signal
import sys
from pathlib import Path

from omegaconf import OmegaConf

from lab.doors.grid import Grid
from lab.doors.request import Request
from lab.run.folder import RunFolder
from lab.settings import SettingError


def grid_of(*words: str) -> Grid:
    """A grid with a cell for each word `do=...`."""
    cells = [Request({}, {}, (word,), word, Path("grid", word), several=True) for word in words]
    config = OmegaConf.create({"hydra": {"sweep": {"dir": "grid"}, "launcher": {}}})
    return Grid(config, Request({}, {}, (), "", Path("grid")), cells)


def act(cell: Request) -> None:
    """What the word says; `make` leaves a finished run, with what its process is in seconds."""
    word = cell.overrides[0].partition("=")[2]
    folder = RunFolder(cell.folder)
    if folder.finished:
        print(f"again {word}")
        return
    if word == "refuse":
        raise SettingError("data.batch_size=9999 is larger than the 60 training examples")
    with folder.owned():
        folder.status("running", step=3)
        if word == "raise":
            raise ValueError("no\nway")
        if word == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "wait":
            signal.pause()
        print(f"made {word}")
        print(f"a warning of {word}", file=sys.stderr)
        place = {"gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "jobs": cell.jobs, "pid": os.getpid()}
        folder.write("summary", place)
        folder.status("finished", step=5)
