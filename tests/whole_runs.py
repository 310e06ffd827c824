"""Whole runs of `python -m lab.train`, in this process or in a child that may be killed, for the tests of `runs/`."""

import json
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import torch
from hydra.core.global_hydra import GlobalHydra

from lab.run import checkpoints
from lab.run.folder import RunFolder
from lab.train import main

SMALL = ("trainer.threads=1", "data.examples=60", "model.widths=[8]", "steps=60", "probe.sharpness.every=7")


RESNET = (
    "data=image_folder",
    "data.batch_size=8",
    "data.augment=true",
    "model=resnet",
    "model.depth=8",
    "model.width=2",
)


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
    "resnet with BatchNorm, augmented": (*RESNET, "steps=12", "probe.sharpness.every=5", "trainer.threads=1"),
}


def train(folder: str, *overrides: str) -> RunFolder:
    """One run in this process."""
    root = ("data.root=images",) if "data=image_folder" in overrides else ()
    command("hydra.run.dir=" + folder, *root, *overrides)
    return RunFolder(folder)


def command(*arguments: str) -> None:
    GlobalHydra.instance().clear()
    sys.argv = ["lab.train", *arguments]
    main()


def in_child(folder: str, *overrides: str) -> multiprocessing.Process:
    """The same in a child process, which may be killed. Forked: torch is loaded already."""
    child = multiprocessing.get_context("fork").Process(target=train, args=(folder, *overrides))  # type: ignore[attr-defined]
    child.start()
    return child


def wait_for_lines(folder: str, lines: int, child: multiprocessing.Process) -> None:
    file = Path(folder) / "metrics.jsonl"
    while not (file.exists() and file.read_bytes().count(b"\n") >= lines):
        assert child.is_alive(), "the run ended before it could be stopped"
        time.sleep(0.002)


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


def assert_same_run(one: RunFolder, other: RunFolder) -> None:
    clock = {"cost/sharpness/seconds"}
    states = [last(folder) for folder in (one, other)]
    for state in states:
        state["probes"]["latest"] = {k: v for k, v in state["probes"]["latest"].items() if k not in clock}
    assert_same(*states)
    assert metrics(one) == metrics(other)
    summaries = [{k: v for k, v in f.read("summary").items() if k not in ("seconds", "title")} for f in (one, other)]
    assert summaries[0] == summaries[1]
