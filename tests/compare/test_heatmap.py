"""Phase diagrams, on folders written by hand: what stands in a cell, and what is said of it."""

import math
from pathlib import Path

import pytest
from made_runs import made_run
from matplotlib.figure import Figure

from lab.compare import Runs, heatmap, runs
from lab.compare.bars import Bars
from lab.compare.curves import Curves
from lab.compare.ends import FinalValues
from lab.compare.heatmap import Heatmap, phase_diagrams
from lab.compare.map_drawing import borders, levels
from lab.compare.plane import Plane, PlaneAxis
from lab.settings import SettingError


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Batches of 8, 32 and full at two rates over two seeds, with a cell of every kind."""
    root = tmp_path_factory.mktemp("grid")
    status = {(8, 4.0): "diverged", (32, 4.0): "failed", (32, 0.5): "running"}
    for size in (8, 32, "full"):
        for lr in (0.5, 4.0):
            for seed in (0, 1):
                values = {"data.batch_size": size, "optimizer.lr": lr, "seed": seed}
                state = status.get((size, lr), "finished")  # type: ignore[call-overload]
                state = "diverged" if (size, lr, seed) == ("full", 4.0, 1) else state
                if (size, lr) != ("full", 0.5):
                    made_run(
                        root / f"{size},{lr},{seed}",
                        values,
                        {"sharpness/ratio": [9.0] * 6 + [lr + seed] * 2},
                        status=state,
                        summary={"phase": "edge of stability" if lr > 1 else "below the edge"},
                        host="elsewhere",
                    )
    made_run(root / "others", {"data.batch_size": "full", "optimizer.lr": 0.5}, status="finished")
    return runs(root)


def plane(runs: Runs, quantity: str = "sharpness/ratio") -> Plane:
    return heatmap.plane(runs, quantity, x="data.batch_size", y="optimizer.lr", share=0.25)


def written(figure: Figure) -> set[str]:
    return {text.get_text() for axis in figure.axes for text in axis.texts}


def test_every_cell_has_a_mean_over_seeds_or_says_why_there_is_none(grid: Runs) -> None:
    cells = {(cell.x, cell.y): cell for cell in plane(grid).cells}
    assert [cells[at].state for at in ((0, 1), (1, 1), (1, 0), (2, 0))] == ["diverged", "failed", "running", "no value"]
    low = cells[0, 0].mean
    assert (low.value, low.error, low.n) == (1.0, 0.5, 2)  # 0.5 and 1.5, over their last quarter
    assert low.high - low.value == pytest.approx(12.7062 * 0.5, rel=1e-5), "Student's t at one degree of freedom"
    one = cells[2, 1]
    assert (one.mean.value, one.mean.n, one.lost) == (4.0, 1, 1) and math.isnan(one.mean.low)


def test_a_combination_without_a_run_is_missing(grid: Runs) -> None:
    kept = grid.where(lambda run: run.path.name not in ("8,0.5,0", "8,0.5,1"))
    assert plane(kept).x.labels[0] == "8", "it diverged at the other rate"
    assert plane(kept).cells[0].state == "missing"


def test_words_are_counted_and_colored(grid: Runs) -> None:
    told = Heatmap(tag="phase").compare(grid, "title")
    assert told.sentence == (
        "phase, at the end: below the edge in 2 of 6 cells; edge of stability in 1 of 6 cells; "
        "1 running; 1 diverged; 1 failed."
    )
    legend = {text.get_text() for text in told.figure.legends[0].get_texts()}
    assert {"below the edge", "edge of stability", "running", "diverged", "failed", "equal lr / batch size"} <= legend


def test_values_intervals_and_states_are_written_into_the_cells(grid: Runs) -> None:
    told = Heatmap().compare(grid, "title")
    assert {"1\n\u00b16\nn=2", "4\n1 lost", "diverged", "failed", "running\nstep 100", "-"} <= written(told.figure)
    assert told.sentence == (
        "sharpness/ratio, mean over the last 25 % of each run: from 1 (batch_size=8, lr=0.5) to 4 (batch_size=full, lr=4); "
        "means over up to 2 seeds; 1 running; 1 no value; 1 diverged; 1 failed."
    )
    numbers = {path.name: values for path, values in told.values.items()}
    assert numbers["full,4.0,0"] == {"sharpness/ratio": 4.0} and "full,4.0,1" not in numbers
    axis = told.figure.axes[0]
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    assert list(axis.get_xticks()) == [8, 32, 300], "a full batch is its examples"


def test_lines_of_equal_lr_over_batch_size_have_their_values_also_on_swapped_axes(grid: Runs) -> None:
    for x, y in (("batch_size", "lr"), ("lr", "batch_size")):
        figure = phase_diagrams(grid, {"phase": "phase"}, x=x, y=y)
        lines = figure.axes[0].get_lines()
        assert lines
        for line in lines:
            across, up = line.get_data()
            ratio = up / across if x == "batch_size" else across / up
            assert max(ratio) == pytest.approx(min(ratio))  # type: ignore[type-var]
            assert f"{ratio[0]:g}" in written(figure)  # type: ignore[index]
    slow = grid.where(lr=0.5)
    assert not phase_diagrams(slow, {"phase": "phase"}, x="batch_size", y="seed").axes[0].get_lines()


def test_settings_of_another_kind_are_places_and_panels_that_nobody_has_are_left_out(tmp_path: Path) -> None:
    for kind in ("relu", "tanh"):
        made_run(tmp_path / kind, {"model.activation": kind, "audit": kind == "relu"}, {"sharpness/ratio": 0.5})
    figure = phase_diagrams(runs(tmp_path), x="activation", y="audit")
    assert [axis.get_title() for axis in figure.axes if axis.get_title()] == [
        "sharpness over its threshold",
        "phase at the end",
    ]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["relu", "tanh"]
    assert figure.axes[0].get_xscale() == "linear"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tag": "no/such"}, "compare.tag: no run has no/such; choose of sharpness/ratio, or a result such as phase"),
        ({"x": "data.batchsize"}, "compare.x: no run has data.batchsize; did you mean data.batch_size?"),
        ({"x": "lr"}, "x and y are both optimizer.lr; a plane has two settings"),
    ],
)
def test_what_no_run_has_is_refused(grid: Runs, settings: dict[str, str], says: str) -> None:
    with pytest.raises(SettingError) as refused:
        Heatmap(**settings).compare(grid, "title")  # type: ignore[arg-type]
    assert str(refused.value) == says


def test_runs_of_a_cell_that_differ_in_more_than_the_seed_are_not_averaged(tmp_path: Path) -> None:
    for momentum in (0.0, 0.9):
        made_run(tmp_path / f"{momentum}", {"optimizer.momentum": momentum}, {"sharpness/ratio": 0.5})
    with pytest.raises(SettingError, match=r"differ in optimizer\.momentum: draw a panel each, compare\.panels="):
        Heatmap().compare(runs(tmp_path), "title")
    panels = Heatmap(panels="optimizer.momentum").compare(runs(tmp_path), "title").figure
    assert {"momentum=0.0", "momentum=0.9"} <= {axis.get_title() for axis in panels.axes}


def test_a_quantity_that_no_run_has_a_value_of_yet_is_drawn_so(tmp_path: Path) -> None:
    made_run(tmp_path / "a", {}, {}, summary={"phase": None})
    told = Heatmap(tag="phase").compare(runs(tmp_path), "title")
    assert told.sentence == "phase, at the end: 1 no value."
    assert "-" in written(phase_diagrams(runs(tmp_path)))


def test_more_cells_than_can_be_read_are_refused() -> None:
    many = PlaneAxis("optimizer.lr", [float(i) for i in range(31)], ["1"] * 31)
    with pytest.raises(
        SettingError, match=r"^31 values of optimizer\.lr and 31 of optimizer\.lr are more than 900 cells"
    ):
        Plane.of([], "x", many, many, share=0.25)


def test_runs_with_one_seed_count_once(tmp_path: Path) -> None:
    for name, value in (("a", 0.5), ("b", 0.7)):
        made_run(tmp_path / name, {"seed": 3}, {"sharpness/ratio": value})
    assert plane(runs(tmp_path)).cells[0].mean.n == 1


def test_borders_lie_between_the_values() -> None:
    assert borders(PlaneAxis("x", [1.0, 3.0], ["1", "3"], numeric=False)) == [0.0, 2.0, 4.0]
    assert borders(PlaneAxis("x", [5.0], ["5"])) == [4.5, 5.5]
    assert levels(0.11, 0.9) == [0.2, 0.5]


def test_names_with_dollars_and_braces_are_texts_in_every_figure(tmp_path: Path) -> None:
    for i in range(2):
        values = {"model.activation": f"$\\frac{i}$ {{%", "optimizer.lr": 0.1 * (i + 1), "$x$": "$\\no$"}
        series = {"sharpness/ratio": 0.5, "$\\tag$": 1.0, "test/accuracy": 0.5}
        made_run(tmp_path / f"$a_{i}$", values, series, summary={"phase": "$\\bad{$"})
    made = runs(tmp_path)
    drawn = [
        phase_diagrams(made, {"phase": "$\\p$"}, x="activation", y="lr", title="$\\a$"),
        Heatmap(x="model.activation", panels="$x$").compare(made, "$\\b$").figure,
        Curves(tags=("$\\tag$", "sharpness/ratio"), panels="$x$").compare(made, "t").figure,
        Bars(tags=("$\\tag$",)).compare(made, "t").figure,
        FinalValues(x="optimizer.lr", panels="$x$").compare(made, "t").figure,
    ]
    for figure in drawn:
        figure.canvas.draw()
