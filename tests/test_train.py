"""Whole runs of `python -m lab.train`: probes change nothing, a killed run resumes bit for bit, divergence is an answer.

Runs are made in a forked child where they must die, else in this process, on a handful of generated images or digits.
"""

import errno
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
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lab.curvature.operators import LinearOperator
from lab.data.base import Dataset, Split
from lab.data.batches import Batches
from lab.data.image_folder import ImageFolder
from lab.module import SupervisedModule, _norm
from lab.run import checkpoints
from lab.run.agenda import Agenda
from lab.run.cards import config_dir
from lab.run.folder import RunFolder
from lab.run.settings import TrainerSettings
from lab.train import main
from lab.train.run import Run
from lab.train.settings import Settings
from lab.train.sweep import composed

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


def test_a_finished_run_without_its_summary_makes_it_again() -> None:
    finished = train("run", *SMALL)
    before, summary = metrics(finished), finished.read("summary")
    (finished.path / "summary.json").unlink()
    again = train("run", *SMALL)
    assert metrics(again) == before
    assert again.read("summary") | {"seconds": 0} == summary | {"seconds": 0}


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


def sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("kind", ["momentum, mini-batches", "resnet with BatchNorm, augmented"])
def test_sigterm_cuts_a_measurement_off_which_is_made_again(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (*KINDS[kind], "trainer.checkpoint_every=100", "trainer.evaluate_every=5")
    whole, product, step, products = train("whole", *settings), LinearOperator.__matmul__, 0, 0

    def cut(self: LinearOperator, v: torch.Tensor) -> torch.Tensor:
        nonlocal products
        products += 1
        if products == 40:
            sigterm()
        return product(self, v)

    monkeypatch.setattr(LinearOperator, "__matmul__", cut)
    with pytest.raises(SystemExit) as stopped:
        train("cut", *settings)
    assert (stopped.value.code, products) == (143, 40), "no product is made after the signal"
    status = RunFolder("cut").read("status")
    step = status["step"]
    assert status["reason"] == "interrupted"
    assert last(RunFolder("cut"))["step"] == step > 0
    assert capsys.readouterr().err.endswith(f"interrupted; the same command goes on from step {step}\n")
    assert_same_run(whole, train("cut", *settings))
    assert capsys.readouterr().err.count(f"cut goes on from step {step} of ") == 1


def test_sigterm_stops_after_the_update_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = (*SMALL, "trainer.checkpoint_every=null", "probe.sharpness.every=50", "data.batch_size=7")
    whole, keep = train("whole", *settings), SupervisedModule._keep
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
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "the next one is the system's again"


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


def test_seconds_are_those_of_all_processes_of_a_run() -> None:
    folder = train("run", *SMALL, "trainer.checkpoint_every=20")
    assert 0 < folder.read("summary")["seconds"] < 100
    (folder.path / "summary.json").unlink()
    folder.write("status", {"status": "failed", "step": 60, "reason": "interrupted", "pid": 1, "seconds": 1000.0})
    summary = train("run", *SMALL, "trainer.checkpoint_every=20").read("summary")
    assert 1000 < summary["seconds"] < 1100


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


IMAGES = ("data=image_folder", "data.batch_size=full", "model.widths=[4]", "steps=2", "trainer.threads=1", "probe=[]")


def test_a_finished_run_says_when_its_data_have_changed(capsys: pytest.CaptureFixture[str]) -> None:
    folder = train("run", *IMAGES)
    before = {file: file.read_bytes() for file in folder.path.rglob("*") if file.is_file()}
    pixels = Path("images/train/a/0.png").read_bytes()
    Image.new("RGB", (8, 8)).save("images/train/a/0.png")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        train("run", *IMAGES)
    told = capsys.readouterr()
    assert stopped.value.code == 2
    assert told.err.splitlines()[-1].startswith("error: run holds a run on other data: ")
    assert told.out == ""
    assert {file: file.read_bytes() for file in folder.path.rglob("*") if file.is_file()} == before
    Path("images/train/a/0.png").write_bytes(pixels)  # the same pixels, another time of change: looked at, and the same
    train("run", *IMAGES)
    Path("images").rename("gone")  # nothing to compare with: what was found then is still what was found
    train("run", *IMAGES)
    assert capsys.readouterr().out.count("already finished") == 2


def test_a_finished_run_is_known_by_its_files_without_reading_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train("run", *IMAGES)
    monkeypatch.setattr(ImageFolder, "load", lambda *arguments: pytest.fail("the images were read"))
    train("run", *IMAGES)
    assert "already finished" in capsys.readouterr().out


def test_a_refused_sweep_leaves_the_record_of_the_one_before(capsys: pytest.CaptureFixture[str]) -> None:
    small = (*SMALL[:3], "steps=1", "probe=[]")
    command("-m", *small, "seed=0")
    record = Path("outputs/train/multirun.yaml")
    before, changed = record.read_bytes(), record.stat().st_mtime_ns
    for refused in ("optimizer.lr=-1,-2", "optimzer.lr=1,2"):
        with pytest.raises(SystemExit) as stopped:
            command("-m", *small, refused)
        assert stopped.value.code == 2
        assert (record.read_bytes(), record.stat().st_mtime_ns) == (before, changed)
    with pytest.raises(SystemExit):
        command("-m", *small, "seed=1,2", "data.classes=[0,1],[0]")
    assert record.read_bytes() != before, "some of its runs were made"


def test_the_home_folder_is_written_out(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(scratch / "home"))
    command("hydra.run.dir=~/run", *SMALL[:3], "steps=1", "probe=[]")
    assert RunFolder(scratch / "home/run").read("status")["status"] == "finished"
    assert not Path("~").exists()


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
    assert_same_run(train("whole", *settings), train("run", *settings))


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


def test_a_bad_cell_is_told_before_the_first_begins(capsys: pytest.CaptureFixture[str]) -> None:
    small = ("steps=2", "trainer.threads=1", "probe=[]")
    for launcher in ((), ("hydra/launcher=joblib",), ("hydra.sweeper.max_batch_size=1",)):
        with pytest.raises(SystemExit) as stopped:
            command("-m", "optimizer.lr=0.1,-1,0.2", *small, *launcher)
        assert stopped.value.code == 2
        assert capsys.readouterr().err == (
            "error: optimizer.lr=-1,probe=[],steps=2: optimizer.lr=-1: expected a number greater than 0\n"
        )
        assert not Path("outputs").exists()
    command("-m", "optimizer.lr=0.1", *small)
    Path("outputs/train/optimizer.lr=0.1,probe=[],steps=2").rename("outputs/train/optimizer.lr=0.2,probe=[],steps=2")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        command("-m", "optimizer.lr=0.3,0.2", *small)
    assert "holds a run with optimizer.lr=0.1, not 0.2; choose another hydra.sweep.dir" in capsys.readouterr().err
    assert len([path for path in Path("outputs/train").iterdir() if path.is_dir()]) == 1


def test_cells_are_composed_as_hydra_composes_them_but_once_per_choice_of_cards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cells = [
        [f"optimizer={optimizer}", f"optimizer.lr={lr}", "probe=[spectrum]", "probe.spectrum.k=2", "model.widths=[3,4]"]
        for optimizer in ("sgd", "adam")
        for lr in (0.1, 1e-3, 2)
    ]
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir(), version_base=None):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("train", ["hydra.sweep.dir=there"], run_mode=RunMode.MULTIRUN)
        expected = [OmegaConf.to_container(loader.load_sweep_config(master, cell)) for cell in cells]
        load, calls = loader.load_sweep_config, list[Any]()
        monkeypatch.setattr(loader, "load_sweep_config", lambda *given: calls.append(given) or load(*given))
        found = list(composed(loader, master, cells))
        assert [OmegaConf.to_container(cell) for cell in found] == expected
        assert found[1].hydra.sweep.subdir.endswith(
            "optimizer.lr=0.001,optimizer=sgd,probe.spectrum.k=2,probe=[spectrum]"
        )
        assert len(calls) == 2


def test_settings_of_an_experiment_for_another_card_are_left_out_with_a_word(
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = (
        "data=image_folder",
        "data.examples=20",
        "data.batch_size=full",
        "steps=1",
        "trainer.threads=1",
        "probe=[]",
    )
    resnet = ("model=resnet", "model.depth=8", "model.width=2")
    told = (
        "experiment=quickstart sets model.widths for its own model; model=resnet has no such setting, so that it is left "
        "out\n"
    )
    folder = train("run", "experiment=quickstart", *images, *resnet)
    assert told in capsys.readouterr().err
    assert "widths" not in folder.read("provenance")["settings"]["model"]
    command("-m", "experiment=quickstart", "data.root=images", *images, *resnet, "seed=1")
    assert capsys.readouterr().err.count(told) == 1


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
