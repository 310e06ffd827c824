"""Whole runs of `python -m lab.train`: probes change nothing, a killed run resumes bit for bit, divergence is an answer.

Runs are made in a forked child where they must die, else in this process, on a handful of generated images or digits.
"""

import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lab.data.base import Dataset, Split
from lab.data.batches import Batches
from lab.module import SupervisedModule, _norm
from lab.run import checkpoints
from lab.run.agenda import Agenda
from lab.run.folder import RunFolder
from lab.run.settings import TrainerSettings
from lab.train import main
from lab.train.run import Run

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


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Every test runs in a folder of its own, which holds a few images of two classes."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for place, count in (("train/a", 10), ("train/b", 10), ("test/a", 2), ("test/b", 2)):
        (tmp_path / "images" / place).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) // (1 + place.endswith("b"))
            Image.fromarray(pixels).save(tmp_path / "images" / place / f"{i}.png")
    return tmp_path


@pytest.fixture
def drawn() -> None:
    """Asked for by the tests that look at the figure, which costs more than the rest of a small run."""


@pytest.fixture(autouse=True)
def figures_on_demand(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(Run, "_show", lambda *arguments: None)


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


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_with_probes_is_bit_identical_to_the_run_without(kind: str) -> None:
    plain = [setting for setting in KINDS[kind] if not setting.startswith("probe")]
    probed, bare = last(train("probed", *KINDS[kind])), last(train("bare", *plain, "probe=[]"))
    assert_same(probed["model"], bare["model"])
    assert_same(probed["optimizer"], bare["optimizer"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_resumes_bit_for_bit(kind: str) -> None:
    settings = (*KINDS[kind], "trainer.checkpoint_every=5", "trainer.evaluate_every=4")
    whole = train("whole", *settings)
    lines = len((whole.path / "metrics.jsonl").read_text().splitlines())
    for share in np.random.default_rng().uniform(0.1, 0.9, size=2):  # killed twice, at random
        child = in_child("killed", *settings)
        wait_for_lines("killed", int(share * lines), child)
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
        assert RunFolder("killed").read("status")["status"] == "running"
    assert_same_run(whole, train("killed", *settings))


def test_a_kill_after_the_last_step_leaves_a_run_that_can_be_finished() -> None:
    whole = train("whole", *SMALL)
    finished = train("killed", *SMALL)
    finished.write("status", {"status": "running", "step": 60, "reason": "", "pid": 1})
    (finished.path / "summary.json").unlink()
    assert_same_run(whole, train("killed", *SMALL))


def test_a_damaged_checkpoint_falls_back_to_the_one_before() -> None:
    settings = (*SMALL, "trainer.checkpoint_every=20")
    whole = train("whole", *settings)
    broken = train("broken", *settings)
    file = broken.checkpoints / "last.ckpt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    broken.write("status", {"status": "failed", "step": 60, "reason": "", "pid": 1})
    assert_same_run(whole, train("broken", *settings))
    assert checkpoints.load(file)["step"] == 60


def test_a_finished_run_returns_at_once_and_other_settings_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    folder = train("run", *SMALL)
    before = {file: file.stat().st_mtime_ns for file in folder.path.rglob("*")}
    train("run", *SMALL)
    assert "already finished" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        train("run", *SMALL, "optimizer.lr=0.2")
    assert stopped.value.code == 2
    assert "run holds a run with optimizer.lr=0.1, not 0.2; choose another" in capsys.readouterr().err
    assert {file: file.stat().st_mtime_ns for file in folder.path.rglob("*")} == before


def test_a_second_process_in_the_same_folder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with RunFolder("run").owned():
        child = in_child("run", *SMALL)
        child.join()
        assert child.exitcode == 2
        with pytest.raises(SystemExit) as stopped:
            train("run", *SMALL)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("run is in use by another run") == 1
    assert [file.name for file in Path("run").iterdir()] == [".lock"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_that_can_be_resumed(number: int, code: int) -> None:
    settings = (*SMALL, "steps=400", "trainer.checkpoint_every=50")
    child = in_child("run", *settings)
    wait_for_lines("run", 800, child)
    os.kill(child.pid or 0, number)
    child.join()
    assert child.exitcode == code
    status = RunFolder("run").read("status")
    assert (status["status"], status["reason"]) == ("failed", "interrupted")
    assert_same_run(train("whole", *settings), train("run", *settings))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (("optimizer.lr=1e4", "trainer.max_loss=1e30"), "the training loss became"),
        (("optimizer.lr=5", "trainer.max_loss=20"), "above the bound 20"),
        (("optimizer.lr=1e30", "trainer.max_loss=1e39"), "the training loss became"),
    ],
)
def test_divergence_is_an_answer_not_a_failure(
    settings: tuple[str, ...], reason: str, drawn: None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train("run", *SMALL, "loss=mse", "steps=500", *settings)
    status, summary = folder.read("status"), folder.read("summary")
    assert status["status"] == "diverged"
    assert reason in status["reason"]
    assert summary["phase"] == "diverged"
    assert summary["steps"] == status["step"] < 500
    assert "The run diverged at step" in capsys.readouterr().out
    state = checkpoints.load(folder.checkpoints / "last_finite.ckpt")
    assert all(bool(tensor.isfinite().all()) for tensor in state["model"].values())
    assert (folder.figures / "edge.png").stat().st_size > 10_000
    for file in folder.path.glob("*.json"):
        json.loads(file.read_text(), parse_constant=pytest.fail)  # no NaN, no Infinity
    train("run", *SMALL, "loss=mse", "steps=500", *settings)
    assert "already finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (("optimizer.lr=1e30",), "the training loss became inf"),
        (("optimizer.lr=100", "trainer.max_loss=20"), "above the bound 20"),
    ],
)
def test_a_divergence_of_the_last_update_is_seen(settings: tuple[str, ...], reason: str) -> None:
    folder = train("run", *SMALL, "loss=mse", "steps=1", *settings)
    status = folder.read("status")
    assert (status["status"], status["step"]) == ("diverged", 1)
    assert reason in status["reason"]
    state = checkpoints.load(folder.checkpoints / "last_finite.ckpt")
    assert state["step"] == 0
    assert all(bool(tensor.isfinite().all()) for tensor in state["model"].values())


def test_an_infinite_weight_that_the_loss_does_not_show_is_a_divergence() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Tanh())  # tanh(-inf) is -1
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    data = Split(torch.ones(2, 1), torch.zeros(2, dtype=torch.long))
    sgd = torch.optim.SGD(model.parameters(), lr=1e38)
    trained = SupervisedModule(
        model,
        lambda outputs, y: 1000 * outputs.sum(),
        sgd,
        Dataset(data, None, ("a",), {}),
        Batches(2, "full", "epoch", 0),
        Agenda(0, 1),
    )
    pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True).fit(
        trained, train_dataloaders=trained.agenda
    )
    assert trained.divergence == "a weight is no longer finite"
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_a_test_loss_that_is_not_finite_was_not_measured() -> None:
    # The training loss stays finite: every step is looked at, only the test set has examples that overflow.
    def overflow(self: SupervisedModule, data: Split, **settings: int) -> dict[str, float]:
        return {"loss": math.inf, "accuracy": 0.5}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SupervisedModule, "evaluate", overflow)
        folder = train("run", *SMALL, "steps=3")
    assert folder.read("status")["status"] == "finished"
    assert folder.read("summary")["test_loss"] is None
    assert folder.read("summary")["test_accuracy"] == 0.5


def test_norms_are_read_from_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = list[torch.Tensor]()
    read = torch.Tensor.__float__

    def counted(tensor: torch.Tensor) -> float:
        reads.append(tensor)
        return read(tensor)

    monkeypatch.setattr(torch.Tensor, "__float__", counted)
    assert _norm([torch.tensor([3.0]), torch.tensor([0.0, 4.0])]) == 5.0
    assert len(reads) == 1
    assert _norm([]) == 0.0


def test_another_dataset_is_another_run(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("images", "others")
    Image.new("RGB", (8, 8)).save("others/train/a/0.png")
    image_run = ("data=image_folder", "data.batch_size=full", "model.widths=[4]", "steps=2", "trainer.threads=1")
    command("-m", "data.root=images,others", *image_run, "probe=[]")
    assert len(list(Path("outputs/train").glob("*/summary.json"))) == 2
    train("run", *image_run)
    with pytest.raises(SystemExit) as stopped:
        command("hydra.run.dir=run", "data.root=others", *image_run)
    assert stopped.value.code == 2
    assert "run holds a run with data.root=images, not others" in capsys.readouterr().err


def test_a_killed_run_is_not_resumed_on_data_that_changed(capsys: pytest.CaptureFixture[str]) -> None:
    image_run = ("data=image_folder", "data.batch_size=full", "model.widths=[4]", "steps=2", "trainer.threads=1")
    folder = train("run", *image_run)
    folder.write("status", {"status": "running", "step": 1, "reason": "", "pid": 1})
    before = {file: file.read_bytes() for file in folder.path.rglob("*") if file.is_file()}
    Image.new("RGB", (8, 8)).save("images/train/a/0.png")
    with pytest.raises(SystemExit) as stopped:
        train("run", *image_run)
    assert stopped.value.code == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: run holds a run on other data: ")
    assert {file: file.read_bytes() for file in folder.path.rglob("*") if file.is_file()} == before


def test_tensorboard_shows_every_step_once_after_a_kill_before_the_first_checkpoint() -> None:
    settings = (*SMALL[:3], "steps=400", "trainer.checkpoint_every=null", "probe=[]")
    child = in_child("run", *settings)
    wait_for_lines("run", 400, child)
    os.kill(child.pid or 0, signal.SIGINT)
    child.join()
    assert not (Path("run") / "checkpoints").exists()
    time.sleep(1.1)  # event files are read in the order of the second in their names
    folder = train("run", *settings)
    assert len(list((folder.path / "tensorboard").glob("events.*"))) == 2
    events = EventAccumulator(str(folder.path / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(400))


def test_threads_are_those_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3, 5, 7}, raising=False)
    assert TrainerSettings().num_threads() == 4
    assert TrainerSettings().num_threads(2) == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    assert TrainerSettings().num_threads() == 64


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


def test_double_precision_is_kept_over_a_resume() -> None:
    settings = (*SMALL, "trainer.precision=64-true", "trainer.checkpoint_every=20", "optimizer=adam")
    whole = train("whole", *settings)
    weight = next(iter(last(whole)["model"].values()))
    assert weight.dtype == torch.float64
    assert not torch.equal(weight, weight.float().double())
    resumed = train("resumed", *settings)
    (resumed.checkpoints / "last.ckpt").unlink()  # previous.ckpt is that of step 40
    resumed.write("status", {"status": "running", "step": 40, "reason": "", "pid": 1})
    assert_same_run(whole, train("resumed", *settings))


def test_mixed_precision_is_measured_unmixed() -> None:
    first = {
        line["tag"]: line["value"] for line in metrics(train("mixed", *SMALL, "trainer.precision=bf16-mixed"))[:12]
    }
    plain = {line["tag"]: line["value"] for line in metrics(train("plain", *SMALL))[:12]}
    assert first["sharpness/lambda_max"] == plain["sharpness/lambda_max"]
    assert first["train/loss"] != plain["train/loss"]
    assert first["train/loss"] == pytest.approx(plain["train/loss"], rel=0.02)


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


GRID = ("-m", "optimizer.lr=0.1,1e9", "data.batch_size=8,full", "steps=3", "trainer.threads=1", "data.examples=60")


def test_a_grid_makes_a_folder_per_cell_and_skips_what_is_finished(capsys: pytest.CaptureFixture[str]) -> None:
    command(*GRID, "loss=mse", "probe=[]")
    cells = sorted(p.parent for p in Path("outputs/train").glob("*/status.json"))
    assert [cell.name for cell in cells] == [
        f"data.batch_size={size},data.examples=60,loss=mse,optimizer.lr={lr},probe=[],steps=3"
        for size in ("8", "full")
        for lr in ("0.1", "1000000000.0")
    ]
    states = [RunFolder(cell).read("status")["status"] for cell in cells]
    assert sorted(states) == ["diverged", "diverged", "finished", "finished"]
    capsys.readouterr()
    command(*GRID, "loss=mse", "probe=[]")
    assert capsys.readouterr().out.count("already finished") == 4


def test_a_bad_cell_does_not_take_the_others_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command("-m", "optimizer.lr=0.1,-1,0.2", "steps=2", "trainer.threads=1", "probe=[]")
    assert stopped.value.code == 2
    assert "error: optimizer.lr=-1,probe=[],steps=2: optimizer.lr=-1: expected" in capsys.readouterr().err
    folders = sorted(path.name for path in Path("outputs/train").iterdir() if path.is_dir())
    assert folders == ["optimizer.lr=0.1,probe=[],steps=2", "optimizer.lr=0.2,probe=[],steps=2"]


@pytest.mark.slow
def test_cells_in_parallel_processes() -> None:
    parallel = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    shell = [sys.executable, "-m", "lab.train", *GRID, "loss=mse", *parallel]
    done = subprocess.run(shell, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    states = sorted(json.loads(f.read_text())["status"] for f in Path("outputs/train").glob("*/status.json"))
    assert states == ["diverged", "diverged", "finished", "finished"]
    assert "Traceback" not in done.stderr
