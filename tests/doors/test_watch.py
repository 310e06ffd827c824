"""What is said of a grid while it is made: from the folders of its runs, whoever makes them."""

import io
import json
import time
from pathlib import Path

import pytest
from cells_of_grids import grid_of
from rich.console import Console

from lab.doors.watch import GridWatch
from lab.run.folder import RunFolder
from lab.run.standing import Follower
from lab.settings import SettingError


def begun(folder: Path, steps: int) -> RunFolder:
    """A run of 40 updates that has made so many."""
    run = RunFolder(folder)
    folder.mkdir(parents=True)
    run.status("running", step=0)
    run.write("provenance", {"settings": {"steps": 40, "epochs": None}, "data": {"examples": 60}})
    run.forget_from(0)
    for step in range(steps):
        run.log(step, {"train/loss": 1.0 / (1 + step)} | ({"sharpness/ratio": 0.5} if step % 10 == 0 else {}))
    return run


def test_a_run_is_followed_by_what_its_folder_says(tmp_path: Path) -> None:
    follower = Follower(tmp_path / "run")
    assert follower.look().state == "waiting"
    run = begun(tmp_path / "run", 11)
    now = follower.look()
    assert (now.state, now.step, now.total, now.loss, now.ratio) == ("running", 10, 40, 1 / 11, 0.5)
    assert now.left != now.left, "no pace is known yet"
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "tag": "train/loss", "value": 7.0}\nno measurement\n{"step": 12, "tag": "tr')
    assert (follower.look().step, follower.look().loss) == (11, 7.0)
    assert follower.look().left > 0
    run.forget_from(5)  # it was killed, and goes on from step 5: a new file
    assert follower.look().step == 4
    run.status("diverged", step=6, reason="the loss is infinite")
    assert (follower.look().state, follower.look().step, follower.look().reason) == (
        "diverged",
        6,
        "the loss is infinite",
    )


def test_what_a_run_left_that_was_killed_before_does_not_count_as_running(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", 3)
    follower = Follower(tmp_path / "run")
    assert (follower.look().state, follower.look().total) == ("waiting", 40)
    time.sleep(0.01)
    run.status("running", step=2)
    assert follower.look().state == "running"


def test_only_the_end_of_long_metrics_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.run.standing.MOST_READ", 200)
    follower = Follower(tmp_path / "run")
    run = begun(tmp_path / "run", 500)
    assert follower.look().step == 499
    assert follower.latest.keys() == {"train/loss"}
    run.status("finished", step=500)
    (tmp_path / "run/status.json").write_text("{")
    assert follower.look().state == "waiting", "somebody has damaged it"


def test_without_a_terminal_there_is_a_line_when_a_cell_begins_or_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    grid, output = grid_of("do=1", "do=2", "do=3"), io.StringIO()
    one, two, three = grid.cells
    grid.refuse(three, SettingError("do=3: expected less"))
    with GridWatch(grid, Console(file=output, width=200)) as watch:
        grid.begin(one)
        run = begun(one.folder, 11)
        watch.glance()
        run.status("finished", step=40)
        grid.end(one)
        grid.begin(two)
        grid.end(two, ValueError("no\nway"))
    lines = output.getvalue().splitlines()
    assert lines[0] == "cell 1 of 3: do=1"
    assert lines[1] == "cell 1 of 3 finished: do=1: step 40/40, loss 0.09091, lambda/threshold 0.500"
    assert lines[2].startswith("cell 2 of 3, about ") and lines[2].endswith(" s to go: do=2")
    assert lines[3:] == ["cell 2 of 3 failed: do=2: ValueError: no way"]


def test_on_a_terminal_there_is_a_table_that_fits_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    grid = grid_of(*(f"do={i}" for i in range(50)))
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=20, color_system=None)
    watch = GridWatch(grid, console)
    grid.running[grid.cells[40].folder] = 0.0
    begun(grid.cells[40].folder, 11)
    grid.refuse(grid.cells[45], SettingError("do=45: expected less"))
    console.print(watch.table())
    shown = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(shown) <= 20
    assert any(line.split() == ["do=40", "running", "10/40", "0.09091", "0.500"] for line in shown), shown
    assert any(line.split() == ["do=45", "refused"] for line in shown)
    assert shown[-1].strip() == "48 waiting, 1 refused, 1 running (at step 10/40)"


def test_a_line_of_json_that_is_no_measurement_is_passed_over(tmp_path: Path) -> None:
    follower = Follower(tmp_path / "run")
    begun(tmp_path / "run", 3)
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write(json.dumps([1]) + "\n" + json.dumps({"step": "x", "tag": "train/loss", "value": 1}) + "\n")
    assert follower.look().step == 2
