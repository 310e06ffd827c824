"""Comparisons of one grid: several stand beside each other, and none is part of a run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

GRID = ("-m", "data.examples=60", "model.widths=[4]", "steps=4", "probe=[]", "trainer.threads=1", "seed=1,2")


def test_two_comparisons_of_one_grid_are_two_figures_of_the_same_runs(
    capsys: pytest.CaptureFixture[str], command: Callable[..., None]
) -> None:
    command(*GRID, "compare=curves", "compare.tags=[train/loss]")
    runs = {
        file: file.stat().st_mtime_ns for file in Path("outputs/train").glob("*/*.json") if "figures" not in str(file)
    }
    command(*GRID, "compare.tag=train/loss", "compare=ends", "compare.x=seed")
    assert capsys.readouterr().out.count("already finished") == 2
    files = sorted(file.name for file in Path("outputs/train/figures").glob("*.json"))
    assert [
        name.split("seed=1,2,")[1].rpartition("-")[0] for name in files
    ] == [  # the slash is changed, so a hash follows
        "compare=curves,compare.tags=[train-loss]",
        "compare=ends,compare.tag=train-loss,compare.x=seed",
    ]
    sentences = [json.loads((Path("outputs/train/figures") / name).read_text())["sentence"] for name in files]
    assert sentences[0].startswith("Means over the last quarter") and sentences[1].startswith("train/loss at the end")
    assert all(Path("outputs/train/figures", name).with_suffix(".png").exists() for name in files)
    assert runs and {file: file.stat().st_mtime_ns for file in runs} == runs
