"""What `compare=` asks for is read before the first run is made; where it cannot be drawn at the end, the runs are told."""

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lab.doors.ending import close
from lab.doors.grid import Grid
from lab.doors.request import Request
from lab.run.cards import card
from lab.run.folder import RunFolder
from lab.settings import SettingError
from lab.train.compared import require_comparison

GRID = (
    "-m",
    "data.examples=60",
    "model.widths=[4]",
    "steps=1",
    "probe=[]",
    "trainer.threads=1",
    "optimizer.lr=0.1,0.2",
)


def grid_of(kind: str, **asked: object) -> Grid:
    values = {"optimizer": {"_target_": "lab.optim.optimizers.Sgd", "lr": 0.1}, "compare": {"_target_": kind, **asked}}
    cells = [Request(values, {}, (f"optimizer.lr={lr}",), f"{lr}", Path("grid", f"{lr}")) for lr in (0.1, 0.2)]
    config = OmegaConf.create({"hydra": {"sweep": {"dir": "grid"}}})
    return Grid(config, Request(values, {}, (), "", Path("grid")), cells)


HEATMAP, ENDS, CURVES, BARS = (
    f"lab.compare.{name}" for name in ("heatmap.Heatmap", "ends.FinalValues", "curves.Curves", "bars.Bars")
)
MORE = ("branches.Branches", "gap.GeneralizationGap")
ALONG = {"x": "optimizer.lr", "y": "optimizer"}


@pytest.mark.parametrize(
    ("kind", "asked", "line"),
    [
        (HEATMAP, {**ALONG, "share": 2}, "compare.share=2: expected a number less than or equal to 1"),
        (BARS, {"share": 2}, "compare.share=2: expected a number less than or equal to 1"),
        (BARS, {"tags": []}, "compare.tags=[]: expected a list of at least 1"),
        (HEATMAP, {**ALONG, "x": "momentums"}, "compare.x=momentums: no run of this grid has it"),
        (ENDS, {"x": "lr"}, "compare.x=lr: no run of this grid has it; did you mean optimizer.lr?"),
        (
            CURVES,
            {"panels": "optimiser"},
            "compare.panels=optimiser: no run of this grid has it; did you mean optimizer?",
        ),
        (
            ENDS,
            {"x": "optimizer.lr", "tag": "train/los"},
            "compare.tag: nothing writes train/los; did you mean train/loss?",
        ),
        (
            CURVES,
            {"tags": ["sharpness/lambda_maxx"]},
            "compare.tags: nothing writes sharpness/lambda_maxx; did you mean",
        ),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_line(kind: str, asked: dict[str, object], line: str) -> None:
    with pytest.raises(SettingError) as refused:
        require_comparison(grid_of(kind, **asked))
    assert str(refused.value).startswith(line)


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        (HEATMAP, {"x": "lr", "y": "seed", "tag": "phase"}),
        (ENDS, {"x": "optimizer.lr", "tag": "mine/own"}),
        (CURVES, {"tags": ["noise/lambda_3", "sharpness/ratio"], "over": "sharpness/threshold"}),
    ],
)
def test_what_may_be_there_at_the_end_is_not_refused(kind: str, asked: dict[str, object]) -> None:
    require_comparison(grid_of(kind, **asked))


@pytest.mark.parametrize("kind", [HEATMAP, ENDS, CURVES, BARS, *(f"lab.compare.{name}" for name in MORE)])
def test_the_tags_that_a_comparison_has_by_itself_are_no_slips(kind: str) -> None:
    made = card({"_target_": kind}, "compare")
    places = {name: "optimizer.lr" for name in ("x", "y") if hasattr(made, name)}
    require_comparison(grid_of(kind, **places))


def test_no_run_is_made_for_a_comparison_that_is_refused(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        command(*GRID, "compare=ends", "compare.x=optimizer.lr", "compare.tag=train/los")
    assert capsys.readouterr().err.splitlines() == [
        "error: compare.tag: nothing writes train/los; did you mean train/loss?"
    ]
    assert not Path("outputs").exists()


def test_a_figure_that_is_refused_at_the_end_does_not_hide_what_became_of_the_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    grid = grid_of(ENDS)
    for cell in grid.asked:
        folder = RunFolder(cell.folder)
        with folder.owned():
            folder.status("finished", step=1)
    with pytest.raises(SystemExit, match="2"):
        close(grid, SettingError("compare.tag: no run has mine/own"))
    shown = capsys.readouterr()
    assert shown.err == "error: compare.tag: no run has mine/own\n"
    assert shown.out.splitlines()[-1] == "2 cells: 2 finished"
