"""Cells in processes of this machine: what ends one of them ends no other."""

import os
import signal
from pathlib import Path
from time import sleep

import pytest
from cells_of_grids import act, grid_of

from lab.doors import pool
from lab.doors.ending import close, state
from lab.doors.launchers import Joblib
from lab.run.folder import RunFolder


def test_a_cell_that_raises_is_refused_or_is_killed_ends_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    words = ("kill", "raise", "make", "refuse", "make2", "make3")
    grid = grid_of(*(f"do={word}" for word in words))
    failures = pool.in_processes(grid, act, jobs=2, gpus=["4", "7"])
    states = {word: state(grid, cell) for word, cell in zip(words, grid.cells, strict=True)}
    assert states == dict.fromkeys(words, "finished") | {
        "kill": "failed",
        "raise": "failed",
        "refuse": "refused",
    }
    reasons = {cell.overrides[0]: str(error) for cell, error in failures}
    assert reasons["do=kill"].startswith("its process was killed (SIGKILL)")
    assert reasons["do=raise"] == "ValueError: no way"
    assert RunFolder("grid/do=kill").read("status")["reason"] == reasons["do=kill"], "it could not say so itself"
    assert "in act" in Path("grid/do=raise/traceback.txt").read_text()
    places = [RunFolder(f"grid/do={word}").read("summary") for word in ("make", "make2", "make3")]
    assert {one["gpu"] for one in places} <= {"4", "7"} and {one["jobs"] for one in places} == {2}
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    output = capsys.readouterr()
    assert sorted(output.out.splitlines()) == ["made make", "made make2", "made make3"]
    assert output.err.count("a warning of") == 3
    with pytest.raises(SystemExit) as stopped:
        close(grid)
    assert stopped.value.code == 1
    last = capsys.readouterr()
    assert last.out.splitlines()[-1].startswith("6 cells: 3 finished, 2 failed, 1 refused; the same command goes on")
    assert len(last.err.splitlines()) == 3


def test_processes_end_with_the_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped by Ctrl-C, the grid waits for what its runs save, and leaves no process behind."""
    monkeypatch.chdir(tmp_path)
    grid = grid_of("do=wait")
    begun = list[pool.Worker]()
    begin = pool.Worker.begin
    monkeypatch.setattr(pool.Worker, "begin", staticmethod(lambda *given: begun.append(begin(*given)) or begun[-1]))

    def interrupted(*_: object) -> None:
        while not Path("grid/do=wait/status.json").exists():
            sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(pool, "_collect", interrupted)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        pool.in_processes(grid, act, jobs=1, gpus=[])
    assert [worker.process.exitcode for worker in begun] == [-signal.SIGTERM]


def test_as_many_jobs_as_gpus_or_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.doors.launchers.usable_cpus", lambda: 6)
    assert [Joblib().jobs(9, gpus) for gpus in (0, 1, 4)] == [6, 1, 4]
    assert Joblib(n_jobs=3).jobs(9, 1) == 3, "several cells on one GPU, where that is asked for"


def test_gpus_are_those_that_the_environment_grants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert pool.gpus_here() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-8f2a")
    assert pool.gpus_here() == ["3", "GPU-8f2a"]
