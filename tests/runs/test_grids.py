"""Grids of runs by one command."""

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import DictConfig
from whole_runs import SMALL, command, train

from lab.doors import grid
from lab.doors.grid import Grid
from lab.doors.request import Request, cards_at_hand, composed
from lab.doors.words import Words
from lab.run.folder import RunFolder


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


GRID = ("-m", "optimizer.lr=0.1,1e9", "data.batch_size=8,full", "steps=3", "trainer.threads=1", "data.examples=60")


def test_a_grid_makes_a_folder_per_cell_and_skips_what_is_finished(capsys: pytest.CaptureFixture[str]) -> None:
    command(*GRID, "loss=mse", "probe=[]")
    cells = sorted(p.parent for p in Path("outputs/train").glob("*/status.json"))
    assert [cell.name for cell in cells] == [
        f"data.batch_size={size},data.examples=60,loss=mse,optimizer.lr={lr},probe=[]"
        for size in ("8", "full")
        for lr in ("0.1", "1000000000.0")
    ]
    states = [RunFolder(cell).read("status")["status"] for cell in cells]
    assert sorted(states) == ["diverged", "diverged", "finished", "finished"]
    capsys.readouterr()
    command(*GRID, "loss=mse", "probe=[]")
    assert capsys.readouterr().out.count("already finished") == 4


def test_what_no_cell_can_be_is_refused_before_the_first_begins(capsys: pytest.CaptureFixture[str]) -> None:
    small = ("steps=2", "trainer.threads=1", "probe=[]")
    for launcher in ((), ("launcher=joblib",), ("hydra.sweeper.max_batch_size=1",)):
        with pytest.raises(SystemExit) as stopped:
            command("-m", "optimizer.lr=-2,-1", *small, *launcher)
        assert stopped.value.code == 2
        assert capsys.readouterr().err == (
            "error: optimizer.lr=-2,probe=[]: optimizer.lr=-2: expected a number greater than 0\n"
        )
        assert not Path("outputs").exists()


def test_a_bad_cell_is_told_and_ends_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    """One that its settings forbid, one whose folder holds another run, one larger than the data."""
    small = (*SMALL[:3], "steps=2", "probe=[]", "compare=null")
    command("-m", "optimizer.lr=0.1", *small)
    (made,) = [file.parent for file in Path("outputs/train").glob("*/status.json")]
    made.rename(str(made).replace("lr=0.1", "lr=0.2"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        command("-m", "optimizer.lr=-1,0.2,0.3", "data.batch_size=full,9999", *small)
    assert stopped.value.code == 2
    output = capsys.readouterr()
    assert output.out.splitlines()[-1] == "6 cells: 2 finished, 4 refused"
    refused = [line for line in output.err.splitlines() if line.startswith("refused: optimizer.lr")]
    assert [re.findall(r"larger than|greater than 0", line) for line in refused] == [
        ["greater than 0"],
        ["greater than 0"],
        ["larger than"],
        ["larger than"],
    ]
    assert len([path for path in Path("outputs/train").iterdir() if (path / "status.json").exists()]) == 3


def test_a_broken_grid_is_whole_after_a_rerun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """2 x 2: a cell fails in the midst of its run, two diverge; the table and the figure are there all the same."""
    log = RunFolder.log

    def failing(folder: RunFolder, step: int, values: dict[str, float]) -> None:
        log(folder, step, values)
        if step == 4 and "batch_size=8" in folder.path.name:
            raise RuntimeError("out\nof order")

    grid = (*GRID[:3], "steps=6", *GRID[4:], "loss=mse", "probe.sharpness.every=1", "trainer.checkpoint_every=2")
    monkeypatch.setattr(RunFolder, "log", failing)
    with pytest.raises(SystemExit) as stopped:
        command(*grid)
    assert stopped.value.code == 1
    output = capsys.readouterr()
    assert output.out.splitlines()[-1].startswith("4 cells: 1 finished, 2 diverged, 1 failed; the same command goes on")
    (line,) = [line for line in output.err.splitlines() if line.startswith("failed: ")]
    assert "RuntimeError: out of order (outputs/train/" in line
    assert "in failing" in next(Path("outputs/train").glob("*batch_size=8*lr=0.1*/traceback.txt")).read_text()
    assert "Not in it" not in output.out and "1 failed" in output.out, "a map draws it"
    (table,) = Path("outputs/train/figures").glob("*.csv")
    (figure,) = Path("outputs/train/figures").glob("*compare=heatmap.png")
    assert [row["status"] for row in csv.DictReader(table.open())] == ["failed", "finished", "diverged", "diverged"]
    monkeypatch.setattr(RunFolder, "log", log)
    before = figure.stat().st_mtime_ns
    command(*grid)
    output = capsys.readouterr()
    assert output.out.count("already finished") == 3 and "goes on from step 4" in output.err
    assert output.out.splitlines()[-1] == "4 cells: 2 finished, 2 diverged"
    assert [row["status"] for row in csv.DictReader(table.open())] == ["finished", "finished", "diverged", "diverged"]
    assert figure.stat().st_mtime_ns > before
    assert not list(Path("outputs/train").glob("*/traceback.txt"))
    for file in Path("outputs/train").glob("*/metrics.jsonl"):
        points = [(line["step"], line["tag"]) for line in map(json.loads, file.read_text().splitlines())]
        assert len(points) == len(set(points)), file


def test_cells_are_composed_as_hydra_composes_them_but_once_per_choice_of_cards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    typed = ("optimizer=sgd,adam", "optimizer.lr=0.1,1e-3,2", "probe=[spectrum]", "model.widths=[3,4],[5]")
    calls = list[Any]()
    monkeypatch.setattr(grid, "composed", lambda *given: calls.append(given) or composed(*given))
    with cards_at_hand():
        words = Words.of(typed).parsed
        found = Grid.of("train", composed("train", grid.first_of(words)), words, ["hydra.sweep.dir=there"]).cells
        assert len(calls) == 2
        for cell in found:
            assert cell == Request.of(composed("train", ["hydra.sweep.dir=there", *cell.overrides]), several=True)
    assert [cell.overrides for cell in found][:3] == [
        ("optimizer=sgd", f"optimizer.lr={lr}", "probe=[spectrum]", f"model.widths={widths}")
        for lr, widths in (("0.1", "[3,4]"), ("0.1", "[5]"), ("0.001", "[3,4]"))
    ]
    assert str(found[2].folder) == "there/model.widths=[3,4],optimizer.lr=0.001,optimizer=sgd,probe=[spectrum]"


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


def test_another_sweeper_chooses_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin that is told what the runs return, as Optuna's: here one that tries two rates."""
    returned = list[float]()

    class Search:
        def __init__(self, *, config: DictConfig, hydra_context: HydraContext, task_function: Callable[..., Any]):
            self.launcher = Plugins.instance().instantiate_launcher(
                config=config, hydra_context=hydra_context, task_function=task_function
            )

        def sweep(self, arguments: list[str]) -> None:
            assert arguments[0] == "optimizer.lr=interval(0.1,1)"
            jobs = [[f"optimizer.lr={lr}", *arguments[1:]] for lr in (0.1, 0.7)]
            returned.extend(job.return_value for job in self.launcher.launch(jobs, initial_job_idx=0))

    monkeypatch.setattr(Plugins, "instantiate_sweeper", lambda self, **given: Search(**given))
    ConfigStore.instance().store(group="hydra/sweeper", name="search", node={"params": None}, provider="test")
    command("-m", "hydra/sweeper=search", "optimizer.lr=interval(0.1,1)", *SMALL[:3], "steps=2", "probe=[]")
    names = sorted(file.parent.name for file in Path("outputs/train").glob("*/status.json"))
    assert [re.findall(r"lr=([\d.]+)", name) for name in names] == [["0.1"], ["0.7"]]
    assert [
        summary["last_loss"] for summary in (RunFolder(f"outputs/train/{n}").read("summary") for n in names)
    ] == returned


@pytest.mark.parametrize("slip", ["optimizer.lr=interval(0.1,1)", "hydra.verbose=true,false", "hydra.run.dir=x"])
def test_what_is_no_axis_of_a_grid_is_refused(slip: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command("-m", slip)
    assert stopped.value.code == 2
    assert slip.partition("=")[0] in capsys.readouterr().err
    assert not Path("outputs").exists()


def test_cards_of_a_folder_besides(scratch: Path) -> None:
    (scratch / "more/optimizer").mkdir(parents=True)
    (scratch / "more/optimizer/mine.yaml").write_text("_target_: lab.optim.optimizers.Sgd\nlr: 0.25\n")
    command("--config-dir", "more", "optimizer=mine", *SMALL[:3], "steps=1", "probe=[]", "hydra.run.dir=run")
    assert RunFolder("run").read("provenance")["settings"]["optimizer"]["lr"] == 0.25
    with pytest.raises(SystemExit):
        command("--config-dir", "nowhere")


@pytest.mark.slow
def test_cells_in_parallel_processes() -> None:
    parallel = ("launcher=joblib", "launcher.n_jobs=2")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    shell = [sys.executable, "-m", "lab.train", *GRID, "loss=mse", *parallel]
    done = subprocess.run(shell, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    states = sorted(json.loads(f.read_text())["status"] for f in Path("outputs/train").glob("*/status.json"))
    assert states == ["diverged", "diverged", "finished", "finished"]
    assert "Traceback" not in done.stderr


def test_optuna_chooses_the_runs() -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="the extra edge-lab[optuna]")
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1")
    command("-m", *search, "optimizer.lr=tag(log,interval(0.1,1e10))", *SMALL[:3], "steps=2", "probe=[]")
    assert len(list(Path("outputs/train").glob("*/status.json"))) == 3
    best = Path("outputs/train/optimization_results.yaml").read_text()
    losses = [RunFolder(file.parent) for file in Path("outputs/train").glob("*/status.json")]
    whole = [folder.read("summary")["last_loss"] for folder in losses if folder.read("status")["status"] == "finished"]
    assert f"best_value: {min(whole, default=float('inf'))}" in best
