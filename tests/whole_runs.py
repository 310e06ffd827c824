"""Whole runs of `python -m lab.train`, in this process or in a child that may be killed, for the tests of `runs/`."""

import atexit
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hydra.core.global_hydra import GlobalHydra

from lab.run import checkpoints
from lab.run.folder import RunFolder
from lab.train import main

SMALL = (
    *("trainer.threads=1", "data.examples=60", "model.widths=[8]", "steps=60"),
    *("probe.sharpness.every=7", "probe.sharpness.tol=0.01"),
)
"""The first three say nothing of length and probes. Bits are compared, which a rougher eigenvalue shows as well."""


RESNET = (
    "data=image_folder",
    "data.batch_size=8",
    "data.augment=true",
    "model=resnet",
    "model.depth=8",
    "model.width=2",
)
ROUGH = ("probe.sharpness.every=5", "probe.sharpness.tol=0.1")
"""Two digits of the curvature of a ResNet, whose products are dear."""
FEW = ("probe.batch_sharpness.every=9", "probe.batch_sharpness.batches=2", "probe.batch_sharpness.gni_batches=2")
"""Batch sharpness of few batches."""
KINDS = {
    "plain": SMALL,
    "momentum, mini-batches": (*SMALL, "optimizer.momentum=0.9", "data.batch_size=7", "probe.sharpness.midpoints=true"),
    "adam, cosine": (
        *SMALL,
        "optimizer=adam",
        "schedule=cosine",
        "data.batch_size=16",
        "data.sampling=with_replacement",
    ),
    "resnet with BatchNorm, augmented": (*RESNET, "steps=12", *ROUGH, "trainer.threads=1"),
}


def train(folder: str, *overrides: str) -> RunFolder:
    """One run in this process."""
    root = ("data.root=images",) if "data=image_folder" in overrides else ()
    command("hydra.run.dir=" + folder, *root, *overrides)
    return RunFolder(folder)


@cache
def _finished(*overrides: str) -> Path:
    """Where a finished run with these settings lies."""
    place = Path(tempfile.mkdtemp(prefix="run-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return train(str(place / "run"), *overrides).path


def finished(folder: str, *overrides: str) -> RunFolder:
    """As `train` leaves it: a copy of the one run with these settings that all tests share."""
    shutil.copytree(_finished(*overrides), folder)
    return RunFolder(folder)


def command(*arguments: str) -> None:
    GlobalHydra.instance().clear()
    sys.argv = ["lab.train", *arguments]
    main()


def in_child(folder: str, *overrides: str) -> int:
    """The same in a child process; its exit code. Forked: torch is loaded already."""
    return _exit_code(train, folder, *overrides)


def signalled(number: int, lines: int, calls: int, folder: str, *overrides: str) -> int:
    """The same where the child sends itself the signal `number`; its exit code.

    The signal comes `calls` calls of Python functions after metrics.jsonl has `lines` lines, before the end at the latest:
    anywhere, even in the midst of writing, and yet where the test says, however busy the machine is.
    """
    return _exit_code(_signalled, number, lines, calls, folder, *overrides)


def _signalled(number: int, lines: int, calls: int, folder: str, *overrides: str) -> None:
    log, status, left = RunFolder.log, RunFolder.status, calls

    def send() -> None:
        sys.setprofile(None)
        os.kill(os.getpid(), number)

    def count(*arguments: object) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            send()

    def logged(self: RunFolder, step: int, values: Mapping[str, float]) -> None:
        log(self, step, values)
        if left == calls and (self.path / "metrics.jsonl").read_bytes().count(b"\n") >= lines:
            sys.setprofile(count)

    def told(self: RunFolder, state: str, *, step: int, **more: Any) -> None:
        if state == "finished":
            send()
        status(self, state, step=step, **more)

    RunFolder.log, RunFolder.status = logged, told  # type: ignore[method-assign]
    train(folder, *overrides)


def _exit_code(target: Any, *arguments: Any) -> int:
    child = multiprocessing.get_context("fork").Process(target=target, args=arguments)  # type: ignore[attr-defined]
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def metrics(folder: RunFolder) -> list[dict[str, Any]]:
    """metrics.jsonl, less what the clock says."""
    lines = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if not line["tag"].endswith("/seconds")]


def last(folder: RunFolder) -> checkpoints.State:
    return checkpoints.load(folder.checkpoints / "last.ckpt")


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Nested dictionaries, lists and tensors equal bit for bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            assert_same(one[name], other[name], f"{where}/{name}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, where
        assert torch.equal(one, other), where
    else:
        assert one == other, where


CLOCKED = ("seconds", "costs", "budget")


def timeless(state: Any) -> Any:
    """Nested dictionaries less what the clock says, and what a budget in seconds has noted (tests/train/test_budget.py)."""
    if not isinstance(state, dict):
        return state
    return {name: timeless(inner) for name, inner in state.items() if str(name).rpartition("/")[2] not in CLOCKED}


def assert_same_run(one: RunFolder, other: RunFolder) -> None:
    assert_same(*(timeless(last(folder)) for folder in (one, other)))
    assert metrics(one) == metrics(other)
    summaries = [{k: v for k, v in f.read("summary").items() if k not in (*CLOCKED, "title")} for f in (one, other)]
    assert summaries[0] == summaries[1]
