"""What the settings of a run make of it: threads, device, precision, chunks, schedule, provenance."""

import math
import os
from pathlib import Path

import pytest
import torch
from whole_runs import RESNET, SMALL, command, metrics, train

from lab.run import checkpoints
from lab.run.folder import RunFolder
from lab.run.settings import TrainerSettings
from lab.settings import asked_threads


def test_the_home_folder_is_written_out(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(scratch / "home"))
    command("hydra.run.dir=~/run", *SMALL[:3], "steps=1", "probe=[]")
    assert RunFolder(scratch / "home/run").read("status")["status"] == "finished"
    assert not Path("~").exists()


def test_threads_are_those_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3, 5, 7}, raising=False)
    assert TrainerSettings().num_threads() == 4
    assert TrainerSettings().num_threads(2) == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    assert TrainerSettings().num_threads() == 64


@pytest.mark.parametrize(
    ("variables", "asked"),
    [
        ({}, None),
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": " 3,1"}, 3),  # one entry for each level of nesting
        ({"MKL_NUM_THREADS": "2"}, 2),
        ({"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "2"}, 3),
        ({"OMP_NUM_THREADS": ""}, None),
        ({"OMP_NUM_THREADS": "0"}, None),
        ({"OMP_NUM_THREADS": "many"}, None),
    ],
)
def test_threads_that_the_environment_asks_for(
    variables: dict[str, str], asked: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert asked_threads() == asked


def test_threads_are_those_asked_for_of_each_of_parallel_runs_unless_they_are_set() -> None:
    assert TrainerSettings().num_threads(2, asked=3) == 3
    assert TrainerSettings().num_threads(small=True, asked=3) == 3
    assert TrainerSettings(threads=2).num_threads(asked=3) == 2


def test_a_run_uses_the_threads_that_the_environment_asks_for(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    short = [*SMALL[1:3], "steps=1", "probe=[]"]
    command(*short, "hydra.run.dir=asked")
    command(*short, "hydra.run.dir=set", "trainer.threads=2")
    monkeypatch.delenv("OMP_NUM_THREADS")
    command(*short, "hydra.run.dir=neither")
    assert used == [3, 2, 1]


def test_auto_is_cuda_or_cpu_and_never_what_lacks_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, name in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        assert TrainerSettings(accelerator="auto").lightning_accelerator() == name
        assert TrainerSettings().lightning_accelerator() == "cpu"


def test_numbers_are_read_as_numbers() -> None:
    settings = train("run", *SMALL, "steps=1", "optimizer.lr=1e-3", "optimizer.momentum=0").read("provenance")[
        "settings"
    ]
    assert settings["optimizer"]["lr"] == 0.001
    assert train("one", *SMALL, "steps=1", "optimizer.lr=1").series("train/lr")[1] == [1.0]


def test_provenance_says_how_the_run_came_about() -> None:
    found = train("run", *RESNET, "steps=1", "data.examples=12", "trainer.threads=1").read("provenance")
    assert found["command"].startswith("python -m lab.train data.root=images data=image_folder")
    assert found["settings"]["optimizer"]["lr"] == 0.1
    assert found["data"]["examples"] == 12
    assert len(found["data"]["subset_sha256"]) == 16
    assert found["model"]["measured_chunk"] == 8
    assert {"torch", "python", "numpy"} <= found["versions"].keys()
    assert found["hardware"]["threads"] == 1
    assert {"commit", "diff"} <= found["git"].keys()


def test_chunks_of_a_batch_add_up_to_the_batch() -> None:
    whole = metrics(train("whole", *SMALL, "steps=5", "trainer.precision=64-true"))
    chunked = metrics(train("chunked", *SMALL, "steps=5", "trainer.precision=64-true", "trainer.chunk_examples=7"))
    assert len(whole) == len(chunked)
    for one, other in zip(whole, chunked, strict=True):
        assert one["tag"] == other["tag"]
        assert one["value"] == pytest.approx(other["value"], rel=1e-9, abs=1e-12), one["tag"]


def test_mixed_precision_is_measured_unmixed() -> None:
    first = {
        line["tag"]: line["value"] for line in metrics(train("mixed", *SMALL, "trainer.precision=bf16-mixed"))[:12]
    }
    plain = {line["tag"]: line["value"] for line in metrics(train("plain", *SMALL))[:12]}
    assert first["sharpness/lambda_max"] == plain["sharpness/lambda_max"]
    assert first["train/loss"] != plain["train/loss"]
    assert first["train/loss"] == pytest.approx(plain["train/loss"], rel=0.02)


def test_channels_last_changes_steps_by_rounding_and_no_measurement_of_the_same_weights(drawn: None) -> None:
    """Steps: sums of some hundred float32 in another order, 1e-6 of them, through five steps."""
    settings = (*RESNET, "steps=5", "trainer.threads=1", "probe.sharpness.every=5")
    plain, other = train("plain", *settings), train("other", *settings, "trainer.channels_last=true")
    pairs = list(zip(metrics(plain), metrics(other), strict=True))
    measured = [(a["value"], b["value"]) for a, b in pairs if a["step"] == 0 and a["tag"].startswith("sharpness/")]
    assert measured and all(one == two for one, two in measured)
    losses = [(a["value"], b["value"]) for a, b in pairs if a["tag"] == "train/loss"]
    assert losses[0][0] == pytest.approx(losses[0][1], rel=1e-5)
    assert all(one == pytest.approx(two, rel=1e-3) for one, two in losses)
    state = checkpoints.newest(other.checkpoints)
    assert state is not None
    convolutions = [weight for weight in state["model"].values() if weight.dim() == 4 and weight.shape[1] > 1]
    assert convolutions and all(w.is_contiguous(memory_format=torch.channels_last) for w in convolutions)


def test_full_batch_resnet_without_rhythms_and_in_epochs(drawn: None) -> None:
    nulls = [f"trainer.{name}_every=null" for name in ("log", "evaluate", "checkpoint")]
    folder = train("run", *RESNET, "data.batch_size=full", "epochs=3", *nulls, "probe=[]")
    assert folder.read("status")["step"] == 3
    assert {line["tag"] for line in metrics(folder)} == {"test/loss", "test/accuracy"}
    assert {line["step"] for line in metrics(folder)} == {3}
    assert [file.name for file in folder.figures.iterdir()] == ["training.png"], "no edge was looked for"
    assert folder.read("summary")["phase"] is None
    assert not (folder.checkpoints / "previous.ckpt").exists()


def test_learning_rate_and_threshold_follow_the_schedule() -> None:
    folder = train("run", *SMALL, "schedule=cosine")
    rates, thresholds = (dict(zip(*folder.series(tag), strict=True)) for tag in ("train/lr", "sharpness/threshold"))
    for step in range(60):
        assert rates[step] == pytest.approx(0.05 * (1 + math.cos(math.pi * step / 60)))
    assert all(thresholds[step] == pytest.approx(2 / rates[step]) for step in range(0, 60, 7))
