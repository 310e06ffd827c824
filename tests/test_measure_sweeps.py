"""`python -m lab.measure` over a sweep: every run in turn, what was measured before left alone, a bad one told."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from lab.compare import Run, runs
from lab.measure import main as measure_main
from lab.measure.places import files, listed
from lab.run.folder import RunFolder
from lab.train import main as train_main

QUICK = ("trainer.threads=1", "audit=false")
NAMES = ("optimizer.lr=0.1,widths=[4,4]", "optimizer.lr=0.2,widths=[4,4]", "seed=1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small run."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    small = ("data.examples=60", "model.widths=[4]", "loss=mse", "steps=3", "probe=[]", "trainer.evaluate_every=null")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lab.train.run.show_outcome", lambda *arguments: None)
        patch.setattr(sys, "argv", ["lab.train", f"hydra.run.dir={folder}", *QUICK, *small])
        train_main()
    return folder


@pytest.fixture
def sweep(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three runs, named as cells of a grid are, and of one that has left no checkpoint."""
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        shutil.copytree(finished, Path("outputs/train") / name)
    begun = RunFolder("outputs/train/begun")
    with begun.owned():
        begun.status("failed", step=0)
    return Path("outputs/train")


def measure(*words: str) -> None:
    sys.argv = ["lab.measure", *words, *QUICK]
    measure_main()


def test_a_sweep_is_measured_once_into_its_run_folders_and_reports_have_it(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("checkpoint=outputs/train/**", "probe=[sharpness]", "probe.sharpness.tol=0.1")
    measure(*words)
    told = capsys.readouterr()
    assert told.out.endswith("3 of 3 checkpoints measured.\n")
    assert re.search(
        rf"^checkpoint 3 of 3, about \d+ (s|min) to go: {sweep}/{NAMES[2]}/checkpoints/last.ckpt$", told.err, re.M
    )
    assert "without a checkpoint, left out: outputs/train/begun" in told.err
    found = [Path(file) for file in sorted(map(str, sweep.glob("*/measure/*/summary.json")))]
    assert [file.parts[2] for file in found] == sorted(NAMES)
    for run in runs("outputs/**").where("status=finished"):
        [file] = run.path.glob("measure/*/summary.json")
        assert run.results["sharpness/lambda_max"] == json.loads(file.read_text())["values"]["sharpness/lambda_max"]
    before = {file: file.stat().st_mtime_ns for file in sweep.rglob("*") if file.is_file()}
    measure(*words)
    told = capsys.readouterr()
    assert told.out.count("measured before, see") == 3
    assert told.out.endswith("3 of 3 checkpoints measured, 3 of them before.\n")
    assert {file: file.stat().st_mtime_ns for file in sweep.rglob("*") if file.is_file()} == before


def test_another_setting_or_another_state_of_the_run_is_measured_anew(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (f"checkpoint={sweep}", "probe=[sharpness]")
    measure(*words, "probe.sharpness.tol=0.1", "hydra.run.dir=there")
    file = sweep / NAMES[0] / "checkpoints/last.ckpt"
    state = torch.load(file, weights_only=True)
    torch.save(state | {"step": 2}, file)
    measure(*words, "probe.sharpness.tol=0.1", "hydra.run.dir=there")
    assert capsys.readouterr().out.endswith("3 of 3 checkpoints measured, 2 of them before.\n")
    measure(*words, "probe.sharpness.tol=0.2", "hydra.run.dir=there")
    assert capsys.readouterr().out.endswith("3 of 3 checkpoints measured.\n")


def test_bad_runs_are_told_in_a_line_each_and_stop_no_other(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sweep / NAMES[0] / "checkpoints/last.ckpt").write_bytes(b"nothing")
    (sweep / NAMES[1] / "provenance.json").unlink()
    (sweep / NAMES[1] / "provenance.json").symlink_to("/dev/zero")
    with pytest.raises(SystemExit) as stopped:
        measure(f"checkpoint={sweep}", "probe=[sharpness]")
    told = capsys.readouterr()
    assert stopped.value.code == 2
    assert told.out.endswith("1 of 3 checkpoints measured.\n")
    errors = [line for line in told.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert f"{NAMES[0]}/checkpoints/last.ckpt cannot be loaded as tensors and plain values" in errors[0]
    assert f"{NAMES[1]}: provenance.json is a link that leads out of the folder" in errors[1]


def test_a_slip_that_is_the_same_in_all_runs_is_one_line(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(sweep / "begun")
    with pytest.raises(SystemExit):
        measure(f"checkpoint={sweep}", "probe=[sharpness]", "probe.sharpness.tol=5")
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert told.err.startswith("error: probe.sharpness.tol=5: expected ")


def test_a_card_that_is_not_there_is_told_once_for_all_runs(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(sweep / "begun")
    with pytest.raises(SystemExit):
        measure(f"checkpoint={sweep}", "probe=[trace]")
    assert capsys.readouterr().err == "error: probe=[trace] does not exist; write probe=[spectrum]\n"


def test_nothing_is_written_through_a_link(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("elsewhere").mkdir()
    (sweep / NAMES[0] / "measure").symlink_to(Path("elsewhere").absolute())
    with pytest.raises(SystemExit):
        measure(f"checkpoint={sweep / NAMES[0]}", "probe=[sharpness]")
    assert f"error: {sweep / NAMES[0]}/measure is a link, into which nothing is written" in capsys.readouterr().err
    assert list(Path("elsewhere").iterdir()) == []


def test_places_are_lists_of_names_that_have_commas_and_brackets_themselves(sweep: Path) -> None:
    paths = [f"{sweep}/{name}" for name in NAMES]
    assert listed(f"[{','.join(paths)}]") == paths
    assert listed(f"[{paths[0]},{sweep}/seed*]") == [paths[0], f"{sweep}/seed*"]
    assert listed(paths[0]) == [paths[0]]
    assert [file.parts[2] for file in files([paths[2], paths[0], paths[2]])] == [NAMES[2], NAMES[0]], "each once"


def test_a_glob_means_runs_or_what_lies_outside_of_them(sweep: Path) -> None:
    shutil.copy(sweep / NAMES[0] / "checkpoints/last.ckpt", "weights.pt")
    shutil.copy(sweep / NAMES[0] / "checkpoints/last.ckpt", sweep / NAMES[0] / "checkpoints/step_1.ckpt")
    last = [sweep / name / "checkpoints/last.ckpt" for name in sorted(NAMES)]
    assert files(["outputs/**"]) == files(["outputs"]) == files(["outputs/*"]) == last
    assert files(["**"]) == [*last, Path("weights.pt")]
    assert len(files([f"{sweep}/*/checkpoints/*"])) == 4, "asked for"
    os.symlink(sweep.absolute(), "outputs/again")
    assert files(["outputs"]) == last


@pytest.mark.parametrize("places", [["outputs/train/begun"], ["nowhere/**"], ["outputs/train/*/figures"]])
def test_a_place_without_a_checkpoint_is_refused(sweep: Path, places: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^checkpoint="):
        files([*places, str(sweep)])


def test_the_run_itself_is_not_changed_by_a_measurement(sweep: Path) -> None:
    before = Run.read(sweep / NAMES[2])
    measure(f"checkpoint={sweep / NAMES[2]}", "probe=[sharpness]")
    after = Run.read(sweep / NAMES[2])
    assert (after.status, after.step, after.settings) == (before.status, before.step, before.settings)
    assert "sharpness/lambda_max" in after.results and "sharpness/lambda_max" not in before._metrics[0]
