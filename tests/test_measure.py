"""`python -m lab.measure`: a saved state has the numbers that the run logged; other weights, globs, overrides."""

import importlib
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from rich.console import Console
from torch import nn

from lab.curvature.eigen import lanczos
from lab.curvature.operators import hessian
from lab.data.digits import Digits
from lab.data.image_folder import ImageFolder
from lab.measure import main as measure_main
from lab.measure.target import Target
from lab.models.losses import CrossEntropy
from lab.models.mlp import Mlp
from lab.models.torchvision import TorchVision
from lab.objective import NetworkObjective
from lab.probes import Sharpness
from lab.run.folder import RunFolder
from lab.run.progress import MatvecProgress
from lab.train import main as train_main

STEP = 20
"""The step of the checkpoint `previous.ckpt`, and of a measurement of the run."""
RHYTHM = ("trainer.threads=1", "steps=40", f"trainer.checkpoint_every={STEP}", f"probe.sharpness.every={STEP}")
MLP = ("data.examples=200", "model.widths=[8]", "loss=mse", "optimizer.lr=0.3")
RUNS = {
    "gradient descent": MLP,
    "momentum, mini-batches, schedule, probe set": (
        *MLP,
        "data.batch_size=16",
        "optimizer.momentum=0.9",
        "schedule=cosine",
        "probe.sharpness.examples=77",
        "seed=3",
    ),
    "adam, double precision": (*MLP, "optimizer=adam", "optimizer.lr=0.003", "trainer.precision=64-true"),
    "resnet with BatchNorm": (
        "data=image_folder",
        "data.batch_size=8",
        "model=resnet",
        "model.depth=8",
        "model.width=2",
    ),
}


def run(folder: Path, *overrides: str) -> RunFolder:
    """`python -m lab.train`, in this process."""
    sys.argv = ["lab.train", f"hydra.run.dir={folder}", *RHYTHM, *overrides]
    train_main()
    return RunFolder(folder)


def measure(*words: str) -> None:
    """`python -m lab.measure`, in this process."""
    sys.argv = ["lab.measure", *words, "trainer.threads=1"]
    measure_main()


def values(folder: Path | str) -> dict[str, float]:
    return json.loads((Path(folder) / "summary.json").read_text())["values"]


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lab.train.run.show_outcome", lambda *arguments: None)
    return tmp_path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few images of two classes."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for place, count in (("train/a", 10), ("train/b", 10)):
        (root / place).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) // (1 + place.endswith("b"))
            Image.fromarray(pixels).save(root / place / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """One small run, for the tests that do not care which."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lab.train.run.show_outcome", lambda *arguments: None)
        return run(tmp_path_factory.mktemp("finished") / "run", *MLP)


@pytest.fixture
def here(finished: RunFolder, scratch: Path) -> Path:
    """A copy of it, to write into."""
    shutil.copytree(finished.path, scratch / "run")
    return Path("run")


@pytest.mark.parametrize("kind", RUNS)
def test_a_checkpoint_has_the_sharpness_that_the_run_logged_at_its_step(kind: str, scratch: Path, images: Path) -> None:
    root = [f"data.root={images}"] if "resnet" in kind else []
    folder = run(scratch / "run", *RUNS[kind], *root)
    logged = {
        tag: dict(zip(*points, strict=True))[STEP] for tag, points in folder.all_series().items() if tag[0] == "s"
    }
    measure(f"checkpoint={folder.checkpoints / 'previous.ckpt'}")
    found = values(folder.path / "measure/previous")
    assert ("sharpness/preconditioned" in found) == kind.startswith("adam")
    for tag in ("lambda_max", "preconditioned", "ratio", "threshold", "directional", "loss"):
        if f"sharpness/{tag}" in logged:
            # Two solves, each within tol = 1e-3 of the truth; what needs no solve is the same arithmetic again.
            solved = tag in ("lambda_max", "preconditioned", "ratio")
            assert found[f"sharpness/{tag}"] == pytest.approx(logged[f"sharpness/{tag}"], rel=2e-3 if solved else 1e-6)
    assert {"lambda_max", "ratio", "threshold"} <= {tag.removeprefix("sharpness/") for tag in found}
    assert folder.all_series() == RunFolder(scratch / "run").all_series()


def test_results_lie_in_the_run_folder_beside_the_untouched_checkpoint(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.read_bytes() for file in here.rglob("*") if file.is_file()}
    measure(f"checkpoint={here}", "probe.sharpness.k=2")
    told = capsys.readouterr()
    folder = here / "measure/last,probe.sharpness.k=2"
    assert re.search(r"At step 40: lambda_max = \S+ \+- \S+, 0\.\d+ x the threshold 6\.6667 = 2/lr", told.out)
    assert f"results   {folder}" in told.out
    assert re.search(
        r"measuring sharpness of run/checkpoints/last.ckpt \(step 40, 610 weights, 200 examples\)", told.err
    )
    assert {file: file.read_bytes() for file in before} == before
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} == {40}
    assert {"sharpness/lambda_max", "sharpness/lambda_2", "error/sharpness/lambda_max"} <= {li["tag"] for li in lines}
    assert (folder / "figures/sharpness_spectrum.png").stat().st_size > 5000
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["settings"]["data"]["examples"] == 200
    assert provenance["command"].startswith(f"python -m lab.measure checkpoint={here} probe.sharpness.k=2")
    measure(f"checkpoint={here}", "probe.sharpness.k=2")
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == len(lines), "measured again, not twice"


def test_what_is_typed_wins_over_the_run(here: Path) -> None:
    typed = ("data.examples=50", "optimizer.lr=0.5", "loss=cross_entropy", "probe.sharpness.tol=1e-5")
    measure(f"checkpoint={here}", *typed, "hydra.run.dir=there")
    found = values("there")
    state = torch.load(here / "checkpoints/last.ckpt", weights_only=True)["model"]
    model = Mlp(widths=(8,)).build((64,), 10, 0)
    model.load_state_dict(state)
    assert found["sharpness/lambda_max"] == pytest.approx(digits_sharpness(model, 50), rel=2e-5)
    assert found["sharpness/threshold"] == pytest.approx(4.0)
    provenance = json.loads(Path("there/provenance.json").read_text())
    assert provenance["settings"]["model"]["widths"] == [8], "the rest is that of the run"


def test_another_optimiser_begins_anew_and_the_same_one_keeps_its_state(here: Path) -> None:
    measure(f"checkpoint={here}", "optimizer=sgd", "data=digits", "hydra.run.dir=same")
    measure(f"checkpoint={here}", "hydra.run.dir=plain")
    measure(f"checkpoint={here}", "optimizer=sgd", "optimizer.momentum=0.5", "hydra.run.dir=momentum")
    measure(f"checkpoint={here}", "optimizer=adam", "hydra.run.dir=adam")
    assert values("same")["sharpness/lambda_max"] == values("plain")["sharpness/lambda_max"]
    assert values("same")["sharpness/threshold"] == pytest.approx(2 / 0.3)
    assert values("momentum")["sharpness/threshold"] == pytest.approx(3 / 0.3)
    assert values("adam")["sharpness/threshold"] == pytest.approx(38 / 1e-3)
    assert "sharpness/ratio" not in values("adam"), "no preconditioner before the first update"


@pytest.mark.parametrize("form", ["plain", "nested", "parallel", "lightning", "old file format"])
def test_other_weights_are_measured_in_the_model_that_is_named(form: str) -> None:
    model = Mlp(widths=(9,)).build((64,), 10, 5)
    state, prefix = model.state_dict(), {"parallel": "module.", "lightning": "_orig_mod.model."}.get(form, "")
    state = {prefix + name: tensor for name, tensor in state.items()}
    saved: dict[str, Any] = {"state_dict": state, "epoch": 3} if form == "nested" else state
    if form == "lightning":
        saved = {"state_dict": state | {"loss.weight": torch.ones(10)}, "global_step": 7}
    torch.save(saved, "w.pt", _use_new_zipfile_serialization=form != "old file format")
    measure("checkpoint=w.pt", "model=mlp", "model.widths=[9]", "data.examples=100", "probe.sharpness.tol=1e-5")
    (folder,) = Path("outputs/measure").iterdir()
    found = values(folder)
    assert found["sharpness/lambda_max"] == pytest.approx(digits_sharpness(model, 100), rel=2e-5)
    assert "sharpness/threshold" not in found, "nobody named an optimiser"
    assert json.loads((folder / "summary.json").read_text())["step"] == (7 if form == "lightning" else 0)


def test_a_state_dict_of_torchvision_is_measured_on_images(images: Path) -> None:
    model = TorchVision(name="squeezenet1_1").build((3, 32, 32), 2, 4)
    torch.save(model.state_dict(), "w.pth")
    settings = ("model=torchvision", "model.name=squeezenet1_1", "data=image_folder", "data.image_size=32")
    measure("checkpoint=w.pth", *settings, f"data.root={images}", "data.batch_size=full", "hydra.run.dir=there")
    train = ImageFolder(root=str(images), image_size=32, batch_size="full").load().train
    loss = NetworkObjective(model, CrossEntropy().build(2), (train.x, train.y))
    top = lanczos(hessian(loss, loss.weights), tol=1e-5).top
    assert values("there")["sharpness/lambda_max"] == pytest.approx(float(top.values[0]), rel=2e-3)


def test_several_checkpoints_get_a_line_each_and_a_table(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "checkpoints/broken.ckpt").write_bytes(b"no checkpoint at all")
    shutil.copy(here / "checkpoints/previous.ckpt", here / "checkpoints/earlier.ckpt")  # itself a spare one, left out
    with pytest.raises(SystemExit) as stopped:
        measure("checkpoint=run/checkpoints/*.ckpt", "probe=[sharpness]")
    told = capsys.readouterr()
    assert stopped.value.code == 2
    assert re.search(r"^error: run/checkpoints/broken.ckpt", told.err, re.M)
    for name, step in (("last", 40), ("earlier", STEP)):
        assert f"run/checkpoints/{name}.ckpt: At step {step}: lambda_max" in told.out
        measured = values(f"run/measure/{name},probe=[sharpness]")["sharpness/lambda_max"]
        assert re.search(rf"checkpoints/{name}.ckpt +{step} +{measured:.5g} ", told.out)
    assert told.out.endswith("2 of 3 checkpoints measured.\n")
    (here / "checkpoints/broken.ckpt").unlink()
    shutil.copytree(here, "other")
    measure("checkpoint=*", "hydra.run.dir=all")
    assert capsys.readouterr().out.endswith("2 of 2 checkpoints measured.\n")
    assert len(list(Path("all").iterdir())) == 2, "run folders, each with a folder in the chosen one"


def test_a_slip_that_spoils_every_checkpoint_is_told_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(here.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        measure("checkpoint=run/checkpoints/*.ckpt", "optimizer.lr=-1")
    told = capsys.readouterr()
    assert stopped.value.code == 2
    assert (told.out, told.err) == ("", "error: optimizer.lr=-1: expected a number greater than 0\n")
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("saved", [False, True])
def test_of_a_run_that_diverged_the_last_finite_state_is_measured(
    saved: bool, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every = ("trainer.checkpoint_every=2",) if saved else ()
    folder = run(scratch / "run", *MLP, "optimizer.lr=30", "trainer.max_loss=1000", *every)
    status = folder.read("status")
    step = torch.load(folder.checkpoints / "last_finite.ckpt", weights_only=True)["step"]
    assert status["status"] == "diverged"
    capsys.readouterr()
    measure("checkpoint=run")
    told = capsys.readouterr().out
    whole = "; run/checkpoints/last.ckpt is older and holds the state of the optimizer too" if saved else ""
    assert told.startswith(
        f"The run diverged at step {status['step']}: {status['reason']}. Measured is its last finite state, at step "
        f"{step}{whole}. At step {step}: lambda_max = "
    )
    summary = json.loads(Path("run/measure/last_finite/summary.json").read_text())
    assert summary["step"] == step
    assert summary["values"]["sharpness/threshold"] == pytest.approx(2 / 30)
    if saved:
        measure("checkpoint=run/checkpoints/last.ckpt")
        assert "diverged" not in capsys.readouterr().out


def test_of_a_clipped_run_it_is_told_whose_threshold_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run(Path("run"), *MLP, "trainer.clip_norm=0.5")
    measure("checkpoint=run")
    told = "The threshold is that of steps that are not clipped; the run clipped by trainer.clip_norm=0.5."
    assert told in capsys.readouterr().out


def test_a_glob_of_a_folder_of_runs_passes_over_what_is_no_checkpoint(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in ("0", "1"):
        shutil.copytree(here, Path("runs") / seed)
    Path("runs/multirun.yaml").write_text("hydra: {}\n")
    Path("runs/figures").mkdir()
    assert [str(file) for file in Target.of(["checkpoint=runs/*"]).files()] == [
        "runs/0/checkpoints/last.ckpt",
        "runs/1/checkpoints/last.ckpt",
    ]
    assert [file.name for file in Target.of(["checkpoint=runs/0/**"]).files()] == ["last.ckpt"]
    assert [file.name for file in Target.of(["checkpoint=runs/0/*/prev*"]).files()] == ["previous.ckpt"], "asked for"
    assert [file.name for file in Target.of(["checkpoint=runs/*.yaml"]).files()] == ["multirun.yaml"], "asked for"
    measure("checkpoint=runs/*", "probe=[critical_point]", "probe.critical_point.max_matvecs=4")
    told = capsys.readouterr()
    assert "error" not in told.err
    assert "2 of 2 checkpoints measured." in told.out
    assert re.search(r"^ *checkpoint +step +critical_point/kind ", told.out, re.M)
    assert len(re.findall(r"^ *runs/./checkpoints/last.ckpt +40 +not critical ", told.out, re.M)) == 2


def test_any_probe_any_checkpoint_with_arrays_and_figures(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lab.probes.spectrum")
    measure(f"checkpoint={here}", "probe=[sharpness,spectrum]", "probe.spectrum.k=3", "hydra.run.dir=both")
    found = values("both")
    assert found["spectrum/lambda_1"] == pytest.approx(found["sharpness/lambda_max"], rel=1.1e-2)
    assert f"spectrum/trace = {found['spectrum/trace']:.5g}" in capsys.readouterr().out
    arrays = RunFolder("both").all_arrays("spectrum")[40]
    assert arrays["top"] == pytest.approx([found[f"spectrum/lambda_{i}"] for i in (1, 2, 3)])
    assert list(Path("both/figures").glob("spectrum_*.png"))
    measure(f"checkpoint={here}", "probe=[spectrum]", "probe.spectrum.engine=pyhessian", "hydra.run.dir=peer")
    # Power iteration stops where two quotients differ by 1 %: 15 % below the truth at worst for the ratios seen here.
    assert values("peer")["spectrum/lambda_1"] == pytest.approx(found["spectrum/lambda_1"], rel=0.15)


def test_a_measurement_that_is_refused_leaves_no_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        measure(f"checkpoint={here}", "probe=[escape]", "probe.escape.batch_sizes=[999]", "hydra.run.dir=refused")
    assert left.value.code == 2
    assert "error: probe.escape.batch_sizes: 999 is more than the" in capsys.readouterr().err
    assert not Path("refused").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_measurement_that_is_interrupted_leaves_no_folder(
    number: signal.Signals, code: int, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sharpness, "measure", lambda *arguments: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as left:
        measure(f"checkpoint={here}", "hydra.run.dir=stopped")
    assert left.value.code == code
    assert not Path("stopped").exists()


def test_a_run_is_not_overwritten_by_a_measurement_nor_the_other_way_round(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.read_bytes() for file in here.rglob("*") if file.is_file()}
    with pytest.raises(SystemExit) as stopped:
        measure(f"checkpoint={here}", f"hydra.run.dir={here}")
    assert stopped.value.code == 2
    assert "error: run holds a run, which a measurement would overwrite; choose" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in here.rglob("*") if file.is_file()} == before
    measure(f"checkpoint={here}", "hydra.run.dir=there")
    with pytest.raises(SystemExit):
        run(Path("there"), *MLP)
    assert "error: there holds a measurement of lab.measure; choose another" in capsys.readouterr().err


def test_data_that_changed_since_the_run_are_measured_only_when_they_are_named(
    scratch: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(images, "images")
    small = ("data=image_folder", "data.root=images", "data.batch_size=full", "model.widths=[4]", "steps=1")
    folder = run(scratch / "run", *small)
    Image.new("RGB", (8, 8)).save("images/train/a/0.png")
    with pytest.raises(SystemExit) as stopped:
        measure("checkpoint=run")
    assert stopped.value.code == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: run holds a run on other data: ")
    assert told.endswith("; to measure on what is there now add data=image_folder")
    assert not (folder.path / "measure").exists()
    measure("checkpoint=run", "data=image_folder", "hydra.run.dir=now")
    assert "sharpness/lambda_max" in values("now")


def test_paths_with_any_sign_that_run_folders_have(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here.rename("data.classes=[0,1],optimizer.lr=0.1")
    measure("checkpoint=data.classes=[0,1],optimizer.lr=0.1/checkpoints/last.ckpt")
    assert "At step 40" in capsys.readouterr().out


def test_settings_of_the_run_with_quotes_and_null_come_back(scratch: Path, images: Path) -> None:
    root = scratch / "it's a (folder), really=1"
    shutil.copytree(images, root)
    quoted = str(root).replace("'", "\\'")
    folder = run(scratch / "run", *RUNS["resnet with BatchNorm"], f"data.root='{quoted}'")
    measure(f"checkpoint={folder.path}")
    assert "sharpness/lambda_max" in values(folder.path / "measure/last")


def test_cfg_job_prints_the_settings_of_the_run_and_stops(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sys.argv = ["lab.measure", f"checkpoint={here}", "optimizer.momentum=0.7", "--cfg", "job"]
    measure_main()
    shown = capsys.readouterr().out
    assert "examples: 200" in shown
    assert "lr: 0.3" in shown
    assert "momentum: 0.7" in shown
    assert not (here / "measure").exists()


def test_help_is_a_page_that_waits_for_nothing() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-X", "importtime", "-m", "lab.measure", "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "$" not in done.stdout
    assert all(len(line) <= 120 for line in done.stdout.splitlines())
    for name in ("sharpness", "resnet", "cifar10", "adamw", "mse"):
        assert name in done.stdout
    assert " torch\n" not in done.stderr, "help must not wait for torch"


def without_lightning(checkpoint: Path) -> None:
    """A measurement where Lightning cannot be imported, by modules that are loaded anew."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("lab", "pytorch_lightning")]:
        del sys.modules[name]
    sys.modules["pytorch_lightning"] = None  # type: ignore[assignment]
    sys.argv = ["lab.measure", f"checkpoint={checkpoint}"]
    GlobalHydra.instance().clear()
    importlib.import_module("lab.measure").main()


def test_a_measurement_needs_no_lightning(here: Path) -> None:
    child = multiprocessing.get_context("fork").Process(target=without_lightning, args=(here,))  # type: ignore[attr-defined]
    child.start()
    child.join()
    assert child.exitcode == 0
    assert "sharpness/lambda_max" in values(here / "measure/last")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock of the progress shows (s)."""
    time = [0.0]
    monkeypatch.setattr("lab.run.progress.monotonic", lambda: time[0])
    return time


def test_progress_tells_what_how_far_and_how_long_still(now: list[float]) -> None:
    done = 0
    console = Console(file=io.StringIO(), width=200)
    with MatvecProgress("sharpness of w.pt", 20, 90.0, lambda: done, console=console) as progress:
        assert progress.text() == "sharpness of w.pt: about 90 s"
        done, now[0] = 5, 4.0
        assert progress.text() == "sharpness of w.pt: 5 of about 20 products, 12 s to go"
        done = 30
        assert "30 of about 31 products" in progress.text(), "more than expected"
    assert console.file.getvalue() == "measuring sharpness of w.pt: about 90 s\n"  # type: ignore[attr-defined]


def test_progress_of_what_nobody_can_foretell_tells_the_time_spent(now: list[float]) -> None:
    done = 0
    console = Console(file=io.StringIO(), width=200)
    with MatvecProgress("noise of w.pt", 0, 0.0, lambda: done, console=console) as progress:
        assert progress.text() == "noise of w.pt: 1 s so far"
        done, now[0] = 7, 3.0
        assert progress.text() == "noise of w.pt: 7 products, 3 s so far"
    assert console.file.getvalue() == "measuring noise of w.pt\n"  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:.*no sign of the edge")
def test_batch_sharpness_of_a_checkpoint_is_that_of_the_run_at_its_step(
    scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probes = ("probe=[sharpness,batch_sharpness]", f"probe.batch_sharpness.every={STEP}", "data.batch_size=16")
    folder = run(scratch / "run", *MLP, *probes, "optimizer.momentum=0.9")
    logged = {
        tag: dict(zip(*points, strict=True))[STEP]
        for tag, points in folder.all_series().items()
        if "batch_sharpness" in tag
    }
    measure(f"checkpoint={folder.checkpoints / 'previous.ckpt'}", probes[0], "hydra.run.dir=there")
    found = values("there")
    assert {"batch_sharpness/ratio_of_means", "batch_sharpness/generalised"} <= logged.keys()
    assert f"batch_sharpness/ratio_of_means = {found['batch_sharpness/ratio_of_means']:.5g}" in capsys.readouterr().out
    for tag in logged.keys() - {t for t in logged if t.startswith("cost/")}:
        # The same batches, and the momentum of the file: single precision, and its cancellations.
        assert found[tag] == pytest.approx(logged[tag], rel=1e-4), tag


def digits_sharpness(model: nn.Module, examples: int) -> float:
    """lambda_max of the cross-entropy on the first digits, without anything of lab.measure."""
    train = Digits(examples=examples).load().train
    loss = NetworkObjective(model, CrossEntropy().build(10), (train.x, train.y))
    return float(lanczos(hessian(loss, loss.weights), tol=1e-6).top.values[0])
