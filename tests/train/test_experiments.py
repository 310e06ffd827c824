"""Experiments that are several runs: one command makes the cells, one figure and one paragraph compare them.

Tiny versions of the cards in `conf/experiment/`: a few steps on a few digits. What the real ones show is in their cards.
"""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lab.run import checkpoints
from lab.run.folder import RunFolder

Command = Callable[..., None]
TINY = ("data.examples=60", "model.widths=[4]", "steps=6", "trainer.threads=1")
LABELS = ("experiment=random_labels", *TINY, "data.batch_size=full")
GAP = ("experiment=generalization_gap", *TINY, "data.batch_size=32", "optimizer.lr=0.5e6", "trainer.max_loss=1e5")


def compared(name: str, typed: str) -> dict[str, Any]:
    """What the comparison left beside its figure."""
    file = Path("outputs") / name / "figures" / typed
    assert Path(f"{file}.png").stat().st_size > 10_000
    return json.loads(Path(f"{file}.json").read_text(), parse_constant=pytest.fail)


def states(name: str) -> list[str]:
    return [json.loads(file.read_text())["status"] for file in Path("outputs", name).glob("*/status.json")]


def test_one_command_makes_the_cells_a_figure_and_a_paragraph_and_a_second_one_nothing_new(
    capsys: pytest.CaptureFixture[str], command: Command
) -> None:
    command(*LABELS, "seed=1")
    told = capsys.readouterr()
    typed = "data.batch_size=full,data.examples=60,model.widths=[4],seed=1"
    found = compared("random_labels", typed)
    assert [run["overrides"]["data.random_labels"] for run in found["runs"]] == ["0", "1"]
    assert [run["overrides"]["data.batch_size"] for run in found["runs"]] == ["full", "full"], "the axis was replaced"
    assert all(run["values"].keys() == {"train/accuracy", "test/accuracy"} for run in found["runs"])
    assert found["sentence"].startswith(
        "Train and test accuracy over the last quarter: random_labels=0, batch_size=full:"
    )
    assert found["sentence"] in told.out
    assert f"outputs/random_labels/figures/{typed}.png" in told.out
    assert "cell 1 of 2: data.random_labels=0" in told.err
    assert re.search(r"cell 2 of 2, about \d+ s to go: data.random_labels=1", told.err)
    runs = {file: file.stat().st_mtime_ns for file in Path("outputs").glob("*/data*/**/*")}
    command(*LABELS, "seed=1")
    again = capsys.readouterr()
    assert again.out.count("already finished: ") == 2
    assert found["sentence"] in again.out
    assert "to go" not in again.err
    assert {file: file.stat().st_mtime_ns for file in runs} == runs


def test_what_an_experiment_says_of_a_probe_that_is_not_selected_is_dropped(
    capsys: pytest.CaptureFixture[str], command: Command
) -> None:
    noise = (
        "experiment=noise_injection",
        *TINY,
        "seed=0",
        "optimizer/noise=isotropic",
        "noise.equivalent_batch_size=4",
    )
    command(*noise, "probe=[]", "compare.tags=[test/accuracy]")
    [run] = Path("outputs/noise_injection").glob("*/provenance.json")
    assert json.loads(run.read_text())["settings"]["probe"] == {"budget": None}
    for typed in ("probe.sharpness.every=3", "++probe.sharpness.every=3"):
        with pytest.raises(SystemExit):
            command(*noise, "probe=[noise]", typed)
        told = capsys.readouterr().err
        assert "probe.sharpness.every is for a probe that is not selected; add it: probe=[sharpness]" in told
    assert states("noise_injection") == ["finished"]


def test_a_refused_grid_beside_runs_leaves_their_folder_as_it_was(command: Command) -> None:
    file = Path("outputs/train/multirun.yaml")
    command("-m", *TINY, "probe=[]", "seed=0,1")
    assert file.exists()
    before = sorted(Path("outputs").rglob("*"))
    for place in ((), ("hydra.sweep.dir=outputs/train",)):
        with pytest.raises(SystemExit):
            command("-m", *TINY, "probe=[]", "optimizer.lr=-1,-2", *place)
        assert sorted(Path("outputs").rglob("*")) == before
    with pytest.raises(SystemExit):
        command("-m", *TINY, "probe=[]", "seed=2,-1")
    assert file.exists()


def test_a_grid_that_was_killed_goes_on_where_it_was(command: Command) -> None:
    settings = (*LABELS, "data.random_labels=1,0.5", "steps=40", "trainer.checkpoint_every=20")
    place, save = Path("outputs/random_labels"), checkpoints.save

    def killed() -> None:
        def saved(file: Path, state: checkpoints.State) -> None:
            save(file, state)
            if len(list(place.glob("*/checkpoints/last.ckpt"))) == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        checkpoints.save = saved
        command(*settings)

    child = multiprocessing.get_context("fork").Process(target=killed)  # type: ignore[attr-defined]
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert sorted(states("random_labels")) == ["finished", "running"] and not (place / "figures").exists()
    command(*settings)
    assert states("random_labels") == ["finished", "finished"]
    assert len(list((place / "figures").glob("*.png"))) == 1


def test_learning_rate_and_length_follow_the_batch_size_and_a_diverged_cell_is_a_result(command: Command) -> None:
    command(*GAP, "scaling.lr=sqrt,linear")
    typed = "data.batch_size=32,data.examples=60,model.widths=[4],optimizer.lr=0.5e6,scaling.lr=sqrt,linear"
    found = compared("generalization_gap", f"{typed},trainer.max_loss=1e5")
    assert all(run["diverged"] and run["values"] == {} for run in found["runs"])
    assert "4 of 4 runs diverged" in found["sentence"]
    for run in found["runs"]:
        settings = RunFolder(run["folder"]).read("provenance")["settings"]
        factor = {"sqrt": 2**0.5, "linear": 2}[
            run["overrides"]["scaling.lr"]
        ]  # 32 is twice the 16 the rate is meant for
        assert settings["optimizer"]["lr"] == pytest.approx(0.5e6 * factor)
        assert settings["steps"] == {"steps": 6, "epochs": 3}[run["overrides"]["scaling.budget"]]
        assert "scaling" not in settings and "compare" not in settings


def test_edge_of_stochastic_stability_holds_both_sharpnesses_against_the_threshold(command: Command) -> None:
    command(
        "experiment=edge_of_stochastic_stability", *TINY, "data.batch_size=8", "probe.sharpness.every=3",
        "probe.batch_sharpness.every=3", "probe.batch_sharpness.batches=4",
    )  # fmt: skip
    [file] = Path("outputs/edge_of_stochastic_stability/figures").glob("*.json")
    [run] = json.loads(file.read_text())["runs"]
    assert "batches of 8: lambda_max " in json.loads(file.read_text())["sentence"]
    series = RunFolder(run["folder"]).all_series()
    assert series["sharpness/lambda_max"][0] == [0, 3, 6]  # so that the last quarter is step 6
    for tag in ("sharpness/lambda_max", "batch_sharpness/ratio_of_means"):
        assert run["values"][tag] == pytest.approx(series[tag][1][-1] / series["sharpness/threshold"][1][-1])


def test_any_grid_can_be_compared(capsys: pytest.CaptureFixture[str], command: Command) -> None:
    grid = ("-m", "optimizer.lr=0.1,1e9", "loss=mse", "probe=[]", *TINY)
    command(*grid, "compare=bars", "compare.tags=[test/accuracy,train/loss]")
    told = capsys.readouterr().out
    assert "Means over the last 25 % of each run. test/accuracy: " in told
    assert "diverged (1000000000.0)" in told
    [file] = Path("outputs/train/figures").glob("*.png")
    assert "compare=bars" in file.name and "compare.tags" in file.name
    with pytest.raises(SystemExit) as stopped:
        command(*grid, "compare=ends", "compare.tag=test/beauty")
    assert stopped.value.code == 2
    again = capsys.readouterr()
    assert again.out.count("already finished: ") == 2, "what is drawn of the runs is no part of a run"
    assert again.err.splitlines()[-1] == (
        "error: compare.tag: no run has test/beauty; choose of test/accuracy, test/loss, train/accuracy, "
        "train/grad_norm, train/loss, train/lr, train/update_norm"
    )


SLIPS = [
    ("experiment=random_labels data.batch_size=full seed=-1", "seed=-1: expected a whole number of at least 0"),
    (
        "experiment=random_labels data.batch_size=full data.random_labels=2,3",
        "expected a number less than or equal to 1",
    ),
    ("experiment=random_labels optimzer.lr=1", "write optimizer.lr=1"),
    (
        "experiment=random_labels data.batch_size=full compare.finding=nope",
        "compare.finding=nope: expected 'random_labels', ",
    ),
    (
        "experiment=random_labels hydra.run.dir=x",
        "is the folder of one run, and these are several; set hydra.sweep.dir",
    ),
    (
        "experiment=generalization_gap data.batch_size=full scaling.lr=none scaling.budget=epochs",
        "data.batch_size=full, but scaling.lr=",
    ),
    ("experiment=large_batch data.examples=60", "data.batch_size=128 is larger than the 60 training examples"),
    (
        "experiment=large_batch data.examples=all",
        "data.examples=all, but scaling.lr=none scaling.budget=epochs count in",
    ),
    ("experiment=large_batch data.examples=200 data.batch_size=512", "data.batch_size=512 is larger than the 200"),
    ("experiment=large_batch steps=9", "steps=9 and scaling.epochs=2 contradict each other; write scaling.epochs=null"),
    ("experiment=large_batch model.depth=9", "model.depth=9: expected 8, 20, 32, 44, 56, 18 or 34"),
    ("compare=bars", "compare= compares the runs of a grid, and this is one run; add -m"),
    ("scaling.lr=cubic", "scaling.lr=cubic: expected 'none', 'sqrt' or 'linear'"),
    ("data.batch_size=16 scaling.lr=linear scaling.budget=epochs", "give steps as a positive number"),
    ("scaling.lr=linear", "data.batch_size=full, but scaling.lr=linear scaling.budget=steps multiply it"),
]


@pytest.mark.parametrize(("line", "says"), SLIPS, ids=[line for line, _ in SLIPS])
def test_a_slip_is_told_in_one_line_before_anything_is_written(
    line: str, says: str, capsys: pytest.CaptureFixture[str], command: Command
) -> None:
    with pytest.raises(SystemExit) as stopped:
        command(*line.split())
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1, told
    assert says in told
    assert list(Path().iterdir()) == []


@pytest.mark.slow
def test_cells_in_parallel_processes_are_compared_too() -> None:
    parallel = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    shell = [sys.executable, "-m", "lab.train", *LABELS, *parallel]
    done = subprocess.run(shell, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (
        compared("random_labels", "data.batch_size=full,data.examples=60,model.widths=[4]")["sentence"] in done.stdout
    )


@pytest.mark.slow
def test_of_a_network_on_images_the_gap_of_a_large_batch_is_missing_updates_too(command: Command) -> None:
    """Four patterns under noise, 256 images: 128 updates in batches of 8, of 128 8 after as many passes. One seed; the bands
    are for the ordering.
    """
    generator = np.random.default_rng(0)
    patterns = generator.normal(size=(4, 16, 16, 3))
    for split in ("train", "test"):
        for label, pattern in enumerate(patterns):
            folder = Path("images", split, str(label))
            folder.mkdir(parents=True)
            for i in range(64):
                pixels = 128 + 20 * pattern + 60 * generator.normal(size=pattern.shape)
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    command(
        *("experiment=large_batch", "data=image_folder", "data.root=images", "data.examples=256", "data.cache=null"),
        *("model.depth=8", "model.width=4", "data.batch_size=8,128", "scaling.lr=none", "scaling.batch_size=8"),
        *("scaling.epochs=4", "trainer.chunk_examples=8", "trainer.threads=1", "probe.sharpness.examples=64"),
        "probe.noise.examples=64",
    )
    [file] = Path("outputs/large_batch/figures").glob("*.json")
    told = json.loads(file.read_text())
    ends = {
        (run["overrides"]["scaling.budget"], run["overrides"]["data.batch_size"]): run["values"] for run in told["runs"]
    }
    small, few, many = (
        ends[budget, size]["test/accuracy"] for budget, size in (("steps", "8"), ("epochs", "128"), ("steps", "128"))
    )
    assert few < small - 0.2
    assert many > small - 0.1
    assert "the gap is mostly one of the number of updates" in told["sentence"]
    assert all({"sharpness/lambda_max", "noise/trace", "train/accuracy"} <= values.keys() for values in ends.values())


@pytest.mark.slow
def test_the_generalization_gap_of_cifar10_is_one_of_the_number_of_updates(command: Command, cifar_images: str) -> None:
    """One seed; bands for the ordering only: .404 (B=32, 15 epochs), .244 (B=4096, 15 epochs = 15 steps) and .427 (4096, 900
    steps) in another implementation, on 200 principal components, whose learning rate .05 is .005 on 3072 pixels here.
    """
    images = ("data=image_folder", f"data.root={cifar_images}", "data.examples=4096", "probe=[]")
    common = (*images, "model.widths=[128]", "optimizer.lr=0.005", "trainer.threads=1", "trainer.evaluate_every=null")

    def accuracy(batch_size: int, steps: int) -> float:
        folder = f"{batch_size}-{steps}"
        command(*common, f"data.batch_size={batch_size}", f"steps={steps}", f"hydra.run.dir={folder}")
        return RunFolder(folder).read("summary")["test_accuracy"]

    small, few, many = accuracy(32, 1920), accuracy(4096, 15), accuracy(4096, 900)
    assert few < 0.30 < small
    assert abs(many - small) < 0.04


@pytest.mark.slow
def test_smaller_batches_of_cifar10_hold_lambda_max_down_while_batch_sharpness_comes_to_the_edge(
    command: Command, cifar_images: str
) -> None:
    """One seed, 4000 steps. Elsewhere lambda_max was .37, .94, 1.23 x 2/lr, the batch sharpness of 128 .95 to .99."""
    images = ("data=image_folder", f"data.root={cifar_images}", "data.examples=1000")
    network = ("data.standardise=pixel", "model.init_scale=0.5", "optimizer.lr=0.05", "steps=4000", "trainer.threads=1")
    rhythm = ("probe.sharpness.every=201", "probe.batch_sharpness.every=201", "trainer.evaluate_every=null")
    command("experiment=edge_of_stochastic_stability", *images, *network, *rhythm)
    [file] = Path("outputs/edge_of_stochastic_stability/figures").glob("*.json")
    small, middle, large = (run["values"] for run in json.loads(file.read_text())["runs"])
    assert small["sharpness/lambda_max"] < 0.5 < 0.8 < middle["sharpness/lambda_max"] < large["sharpness/lambda_max"]
    assert small["batch_sharpness/ratio_of_means"] > 1.3 * small["sharpness/lambda_max"]
    assert abs(large["batch_sharpness/ratio_of_means"] - 1) < 0.15
