"""A run that is interrupted, or finds the disk full, says so and can be gone on with."""

import errno
import os
import signal
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from whole_runs import KINDS, SMALL, assert_same, assert_same_run, command, finished, last, signalled, timeless, train

from lab.curvature.operators import LinearOperator
from lab.doors.parts import Settings
from lab.module import SupervisedModule
from lab.probes.base import Snapshot
from lab.probes.sharpness import Sharpness
from lab.run import signals
from lab.run.folder import RunFolder


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGUSR2, 143), (signal.SIGINT, 130)]
)
def test_a_signal_ends_a_run_that_can_be_resumed(number: int, code: int) -> None:
    settings = (*SMALL, "trainer.checkpoint_every=20")
    assert signalled(number, 120, 100, "run", *settings) == code
    status = RunFolder("run").read("status")
    assert (status["status"], status["reason"]) == ("failed", "interrupted")
    assert_same_run(finished("whole", *settings), train("run", *settings))


def sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("kind", "of"), [("momentum, mini-batches", 40), ("resnet with BatchNorm, augmented", 22)])
def test_sigterm_cuts_a_measurement_off_which_is_made_again(
    kind: str, of: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (*KINDS[kind], "trainer.checkpoint_every=100", "trainer.evaluate_every=5")
    whole, product, step, products = finished("whole", *settings), LinearOperator.__matmul__, 0, 0

    def cut(self: LinearOperator, v: torch.Tensor) -> torch.Tensor:
        nonlocal products
        products += 1
        if products == of:
            sigterm()
        return product(self, v)

    monkeypatch.setattr(LinearOperator, "__matmul__", cut)
    with pytest.raises(SystemExit) as stopped:
        train("cut", *settings)
    assert (stopped.value.code, products) == (143, of), "no product is made after the signal"
    status = RunFolder("cut").read("status")
    step = status["step"]
    assert status["reason"] == "interrupted"
    assert last(RunFolder("cut"))["step"] == step > 0
    assert capsys.readouterr().err.endswith(f"interrupted; the same command goes on from step {step}\n")
    assert_same_run(whole, train("cut", *settings))
    assert capsys.readouterr().err.count(f"cut goes on from step {step} of ") == 1


def test_sigterm_in_the_last_measurement_leaves_the_state_from_which_it_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, measure = finished("whole", *SMALL), Sharpness.measure

    def cut(self: Sharpness, snapshot: Snapshot) -> dict[str, Any]:
        if snapshot.ended:
            sigterm()
        return measure(self, snapshot)

    with monkeypatch.context() as patched:
        patched.setattr(Sharpness, "measure", cut)
        with pytest.raises(SystemExit):
            train("cut", *SMALL)
    assert_same(timeless(last(RunFolder("cut"))), timeless(last(whole)))
    assert_same_run(whole, train("cut", *SMALL))


def test_sigterm_stops_after_the_update_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = (*SMALL, "trainer.checkpoint_every=null", "probe.sharpness.every=50", "data.batch_size=7")
    whole, keep = finished("whole", *settings), SupervisedModule._keep
    for stop in (25, 59):  # in the midst of a chunk, and in the last update of all

        def cut(self: SupervisedModule, step: int, stop: int = stop) -> None:
            keep(self, step)
            if step == stop:
                sigterm()

        monkeypatch.setattr(SupervisedModule, "_keep", cut)
        with pytest.raises(SystemExit) as stopped:
            train("cut", *settings)
        assert stopped.value.code == 143
        assert last(RunFolder("cut"))["step"] == stop + 1
    monkeypatch.setattr(SupervisedModule, "_keep", keep)
    assert_same_run(whole, train("cut", *settings))


@pytest.mark.parametrize("arguments", [("hydra.run.dir=run",), ("-m", "seed=0,1")])
def test_sigterm_before_a_run_begins_leaves_nothing(
    arguments: tuple[str, ...], scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(scratch.rglob("*"))
    monkeypatch.setattr(Settings, "build", lambda self: sigterm())
    with pytest.raises(SystemExit) as stopped:
        command(*arguments)
    assert stopped.value.code == 143
    assert sorted(scratch.rglob("*")) == before
    for number in signals.STOPPING:
        assert signal.getsignal(number) == signal.SIG_DFL, "the next one is the system's again"


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (5, "interrupted; no step is saved yet: the same command starts again"),
        (25, "interrupted; the same command goes on from step 20"),
    ],
)
def test_an_interrupted_run_says_what_the_same_command_does(
    step: int, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keep = SupervisedModule._keep

    def interrupt(self: SupervisedModule, now: int) -> None:
        keep(self, now)
        if now == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(SupervisedModule, "_keep", interrupt)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stopped:
        train("run", *SMALL, "trainer.checkpoint_every=20")
    signal.signal(signal.SIGINT, handler)  # Lightning ignores it from then on
    assert stopped.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == told


def test_seconds_are_those_of_all_processes_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = count()  # a clock that goes on by a second whenever it is looked at
    monkeypatch.setattr("lab.run.folder.monotonic", lambda: float(next(now)))
    folder = train("run", *SMALL, "trainer.checkpoint_every=20")
    assert 0 < folder.read("summary")["seconds"] < next(now)
    (folder.path / "summary.json").unlink()
    folder.write("status", {"status": "failed", "step": 60, "reason": "interrupted", "pid": 1, "seconds": 1000.0})
    summary = train("run", *SMALL, "trainer.checkpoint_every=20").read("summary")
    assert 1000 < summary["seconds"] < 1000 + next(now)


def test_a_full_disk_is_told_in_one_line_and_the_run_goes_on_from_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log, write = RunFolder.log, RunFolder.write
    full = OSError(errno.ENOSPC, "No space left on device")

    def log_until(self: RunFolder, step: int, values: dict[str, float]) -> None:
        if step >= 30:
            monkeypatch.setattr(RunFolder, "write", write_nothing)
            raise full
        log(self, step, values)

    def write_nothing(self: RunFolder, name: str, content: dict[str, Any]) -> None:
        raise full

    monkeypatch.setattr(RunFolder, "log", log_until)
    settings = (*SMALL, "trainer.checkpoint_every=20")
    with pytest.raises(SystemExit) as stopped:
        train("run", *settings)
    assert stopped.value.code == 2
    assert [line for line in capsys.readouterr().err.splitlines() if not line.startswith("step ")] == [
        "error: run cannot be written any more (No space left on device); make room and repeat the command, which goes on "
        "from what is there"
    ]
    monkeypatch.setattr(RunFolder, "log", log)
    monkeypatch.setattr(RunFolder, "write", write)
    assert_same_run(finished("whole", *settings), train("run", *settings))
