"""`python -m lab.measure` of many checkpoints and beside runs: globs, refusals, interruptions, pages, odd paths."""

import importlib
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from measure.runs import MLP, RUNS, STEP, measure, run, values
from PIL import Image

from lab.measure import main as measure_main
from lab.measure.target import Target
from lab.probes import Sharpness


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
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
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
