"""What a grid ends in without being asked: a table, a figure that fits what its cells differ in, and who is not in it."""

import csv
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path

import pytest
from made_runs import made_run
from omegaconf import OmegaConf

from lab.compare.curves import Curves
from lab.compare.ends import FinalValues
from lab.compare.heatmap import Heatmap
from lab.doors.ending import CellError
from lab.doors.grid import Grid
from lab.doors.request import Request
from lab.settings import SettingError
from lab.train.comparison import chosen, compare, runs_of, swept

MEASURED = {"train/loss": [2.0, 1.0, 0.5, 0.25], "sharpness/ratio": 0.75}


def grid_over(
    axes: Mapping[str, Sequence[object]], series: Mapping[str, object] = MEASURED, card: str = "null"
) -> Grid:
    """A grid whose cells are all finished runs, written by hand."""
    cells = []
    for values in product(*axes.values()):
        pairs = dict(zip(axes, values, strict=True))
        words = tuple(f"{name}={value}" for name, value in pairs.items())
        folder = Path("grid", ",".join(words))
        made_run(folder, pairs, series)  # type: ignore[arg-type]
        cells.append(Request({}, {}, words, ",".join(words), folder, several=True))
    head = Request({"compare": None}, {"compare": card}, (), "lr=0.1,0.2", Path("grid"))
    return Grid(OmegaConf.create({"hydra": {"sweep": {"dir": "grid"}}}), head, cells)


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ({"optimizer.lr": [0.1, 0.2]}, FinalValues(tag="sharpness/ratio", x="optimizer.lr")),
        ({"data.batch_size": [8, "full"]}, FinalValues(tag="sharpness/ratio", x="data.batch_size")),
        ({"optimizer.lr": [0.1, 0.2], "seed": [0, 1]}, FinalValues(tag="sharpness/ratio", x="optimizer.lr")),
        ({"optimizer.momentum": [0, 0.9]}, Curves(tags=("sharpness/ratio",), level=1.0)),
        ({"optimizer": ["sgd", "adam"]}, Curves(tags=("sharpness/ratio",), level=1.0)),
        ({"seed": [0, 1]}, Curves(tags=("sharpness/ratio",), level=1.0)),
        (
            {"optimizer.lr": [0.1, 0.2], "data.batch_size": [8, 32], "seed": [0, 1]},
            Heatmap(tag="sharpness/ratio", x="data.batch_size", y="optimizer.lr"),
        ),
        (
            {"optimizer.momentum": [0, 0.9], "optimizer.lr": [0.1, 0.2]},
            Heatmap(tag="sharpness/ratio", x="optimizer.momentum", y="optimizer.lr"),
        ),
        (
            {"optimizer.lr": [0.1, 0.2], "data.batch_size": [8, 32], "steps": [50, 100]},
            Curves(tags=("sharpness/ratio",), level=1.0),
        ),
    ],
    ids=lambda value: " x ".join(value) if isinstance(value, dict) else "",
)
def test_the_figure_fits_what_the_cells_differ_in(axes: Mapping[str, Sequence[object]], expected: object) -> None:
    grid = grid_over(axes)
    assert chosen(runs_of(grid), swept(grid.asked)) == expected


def test_the_loss_is_drawn_where_no_sharpness_was_measured() -> None:
    grid = grid_over({"optimizer.lr": [0.1, 0.2]}, {"train/loss": 1.0})
    assert chosen(runs_of(grid), swept(grid.asked)) == FinalValues(tag="train/loss", x="optimizer.lr")


def test_a_figure_is_drawn_with_cells_missing_and_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    grid = grid_over({"optimizer.lr": [0.1, 0.2, 0.4, 0.8]})
    made_run(grid.asked[0].folder, {"optimizer.lr": 0.1}, MEASURED, status="diverged")
    made_run(grid.asked[3].folder, {"optimizer.lr": 0.8}, {"train/loss": 1.0}, status="failed", reason="ValueError: no")
    grid.failures[grid.asked[3].folder] = CellError("ValueError: no")
    bad = Request({}, {}, ("optimizer.lr=-1",), "optimizer.lr=-1", Path("grid/optimizer.lr=-1"), several=True)
    grid.asked.append(bad)
    grid.failures[bad.folder] = SettingError("optimizer.lr=-1: expected more")
    compare(grid)
    output = capsys.readouterr().out
    assert "Not in it: 1 failed, 1 refused of 5 cells." in output
    assert "diverged (0.1), 0.75 (0.2), 0.75 (0.4)" in output
    rows = [*csv.DictReader(Path("grid/figures/lr=0.1,0.2.csv").read_text().splitlines())]
    assert [row["status"] for row in rows] == ["diverged", "finished", "finished", "failed", "refused"]
    assert [row["optimizer.lr"] for row in rows] == ["0.1", "0.2", "0.4", "0.8", "-1"]
    assert rows[4]["reason"] == "optimizer.lr=-1: expected more"
    assert Path("grid/figures/lr=0.1,0.2,compare=ends.png").stat().st_size > 10_000
    for row in rows:
        assert any(line.split()[:2] == [row["optimizer.lr"], row["status"]] for line in output.splitlines()), row


def test_a_cell_that_was_refused_has_its_seed_in_the_table() -> None:
    grid = grid_over({"optimizer.lr": [0.1], "seed": [0, 1]})
    bad = Request({}, {}, ("optimizer.lr=-1", "seed=1"), "bad", Path("grid/bad"), several=True)
    grid.asked.append(bad)
    grid.failures[bad.folder] = SettingError("optimizer.lr=-1: expected more")
    assert [run.get("seed") for run in runs_of(grid)][-1] == 1


def test_none_is_drawn_where_none_is_wanted_or_nothing_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    compare(grid_over({"optimizer.lr": [0.1, 0.2]}, card="none"))
    grid = grid_over({"optimizer.lr": [0.3, 0.6]})
    for cell in grid.asked:
        made_run(cell.folder, {}, MEASURED, status="running")
    compare(grid)
    assert "figure" not in capsys.readouterr().out.replace("grid/figures", "")
    assert not list(Path("grid/figures").glob("*.png"))


def test_a_grid_can_be_told_to_draw_nothing(command: Callable[..., None]) -> None:
    grid = ("-m", "data.examples=60", "model.widths=[4]", "steps=1", "trainer.threads=1", "probe=[]")
    command(*grid, "experiment=random_labels", "data.batch_size=full", "compare=null")
    assert [file.suffix for file in Path("outputs/random_labels/figures").iterdir()] == [".csv"]
