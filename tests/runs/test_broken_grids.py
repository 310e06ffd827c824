"""A grid that is broken in every way there is, and made whole by repeating its command."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from time import sleep

import pytest

GRID = (
    *("data.batch_size=4,8,128,full", "optimizer.lr=0.1,0.2,0.4,1", "loss=mse", "steps=400", "data.examples=400"),
    *("model.widths=[16]", "probe.sharpness.every=20", "trainer.threads=1", "trainer.checkpoint_every=50"),
)
DIVERGED = {("4", "1"), ("8", "1")}
"""Batch sizes and learning rates at which single batches are too sharp."""


def started(log: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    shell = [sys.executable, "-m", "lab.train", "-m", *GRID, "launcher=joblib", "launcher.n_jobs=2"]
    with Path(log).open("wb") as output:
        return subprocess.Popen(shell, env=environment, stdout=output, stderr=subprocess.STDOUT)


def statuses() -> dict[str, dict[str, object]]:
    return {file.parent.name: json.loads(file.read_text()) for file in Path("outputs/train").glob("*/status.json")}


def wait_for(over: int, driver: subprocess.Popen[bytes]) -> dict[str, dict[str, object]]:
    """Until so many cells are over and one is under way, which has saved a state."""
    while driver.poll() is None:
        now = statuses()
        going = [one for one in now.values() if one["status"] == "running" and one["step"]]
        if sum(one["status"] in ("finished", "diverged") for one in now.values()) >= over and going:
            return now
        sleep(0.01)
    raise AssertionError(f"the grid is over too early: {statuses()}")


def ends(pid: int) -> bool:
    """Whether a process is gone; one that nobody has waited for yet is."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.slow
def test_a_grid_whose_cell_and_then_whose_driver_is_killed_is_whole_after_a_rerun() -> None:
    driver = started("first.txt")
    now = wait_for(2, driver)
    victim, its = next((name, one) for name, one in now.items() if one["status"] == "running" and one["step"])
    os.kill(int(str(its["pid"])), signal.SIGKILL)
    wait_for(5, driver)
    assert statuses()[victim]["status"] == "failed" and "SIGKILL" in str(statuses()[victim]["reason"])
    driver.kill()
    driver.wait()
    while not all(ends(int(str(one["pid"]))) for one in statuses().values() if one["status"] == "running"):
        sleep(0.1)  # its processes save what they have in hand, and end
    before = {name for name, one in statuses().items() if one["status"] in ("finished", "diverged")}
    code = started("second.txt").wait()
    output = Path("second.txt").read_text()
    assert code == 0, output
    assert output.count("already finished") == len(before)
    assert re.search(r"^16 cells: \d+ finished, \d+ diverged$", output, flags=re.M), output
    assert victim not in before
    (table,) = Path("outputs/train/figures").glob("*.csv")
    rows = [*csv.DictReader(table.open())]
    assert len(rows) == 16
    place = {(row["data.batch_size"], row["optimizer.lr"]): row for row in rows}
    assert {cell for cell, row in place.items() if row["status"] == "diverged"} == DIVERGED
    assert {row["status"] for cell, row in place.items() if cell not in DIVERGED} == {"finished"}
    assert place["full", "1"]["phase"] == place["128", "1"]["phase"] == "edge of stability"
    assert "edge of stability" not in {row["phase"] for cell, row in place.items() if cell[1] != "1"}
    for file in Path("outputs/train").glob("*/metrics.jsonl"):
        points = Counter((line["step"], line["tag"]) for line in map(json.loads, file.read_text().splitlines()))
        assert max(points.values()) == 1, file
