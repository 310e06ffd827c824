"""Comparisons of runs, on folders written by hand: numbers, claims that turn with the numbers, marks of divergence."""

import math
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from runs_by_hand import cell

from lab.compare import Run, RunComparison, carry_out
from lab.compare.bars import Bars
from lab.compare.curves import Curves
from lab.compare.ends import FinalValues
from lab.compare.findings import edge_of_stochastic_stability, generalization_gap, noise_injection, random_labels
from lab.compare.groups import differing, grouped, mean_and_error
from lab.compare.heatmap import Heatmap
from lab.run.folder import RunFolder
from lab.settings import SettingError


def texts(figure: Figure) -> list[str]:
    """Everything written into the axes and their legends."""
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return [text.get_text() for axis in figure.axes for text in (axis.title, axis.xaxis.label, *axis.texts)] + legends


def test_late_is_the_mean_over_the_last_share_of_the_run_and_of_the_last_value_at_least(tmp_path: Path) -> None:
    run = cell(tmp_path, "a=1", {"x": [0, 1, 2, 3, 4, 5, 6, 7]})
    assert run.late("x", 0.25) == 6.5
    assert run.late("x", 0) == 7
    assert math.isnan(run.late("y", 0.25))
    assert math.isnan(cell(tmp_path, "a=2", {"x": 1.0}, diverged=True).late("x", 0.25))


def test_a_full_batch_is_the_number_of_examples(tmp_path: Path) -> None:
    assert cell(tmp_path, "data.batch_size=full", {}).number("data.batch_size") == 300
    assert cell(tmp_path, "data.batch_size=16", {}).number("data.batch_size") == 16
    assert math.isnan(cell(tmp_path, "optimizer=sgd", {}).number("optimizer"))


def test_cells_are_told_apart_by_the_settings_that_differ_less_the_seed(tmp_path: Path) -> None:
    cells = [cell(tmp_path, f"steps=8 optimizer.lr={lr} seed={seed}", {}) for lr in (1, 2) for seed in (0, 1)]
    assert differing(cells) == ["optimizer.lr"]
    assert {label: len(group) for label, group in grouped(cells, differing(cells)).items()} == {"lr=1": 2, "lr=2": 2}


def test_mean_and_standard_error_of_seeds() -> None:
    assert mean_and_error([1.0, 3.0]) == (2.0, 1.0)  # std sqrt(2), over sqrt(2)
    assert mean_and_error([1.0, math.nan]) == (1.0, 0.0)
    assert math.isnan(mean_and_error([math.nan])[0])


def cells_of(root: Path) -> list[Run]:
    return [cell(root, "kind=a", {"test/accuracy": 0.5}), cell(root, "kind=b", {"test/loss": 0.5})]


def test_bars_average_over_seeds_and_say_what_diverged(tmp_path: Path) -> None:
    cells = [cell(tmp_path, f"optimizer/noise=none seed={seed}", {"x": 1.0 + 2 * seed}) for seed in (0, 1)]
    cells.append(cell(tmp_path, "optimizer/noise=isotropic seed=0", {"x": 9.0}, diverged=True))
    told = Bars(tags=("x",)).compare(cells, "title")
    assert told.sentence == "Means over the last 25 % of each run. x: 2 +- 1 (none), diverged (isotropic)."
    assert "diverged" in texts(told.figure)
    assert [bar.get_width() for bar in told.figure.axes[0].patches[:1]] == [2.0]
    assert told.values[cells[1].path] == {"x": 3.0}
    assert "not measured (b)" in Bars().compare([*cells_of(tmp_path)], "title").sentence


@pytest.mark.parametrize("card", [Bars(tags=("x",)), Curves(tags=("x",)), FinalValues(tag="x", x="lr")], ids=repr)
def test_runs_of_one_name_in_different_folders_keep_their_numbers(tmp_path: Path, card: RunComparison) -> None:
    cells = [cell(tmp_path / place, "lr=1", {"x": value}) for place, value in (("mine", 1.0), ("yours", 2.0))]
    carry_out(card, cells, tmp_path / "both", "title")
    written = [run["values"] for run in RunFolder(tmp_path).read("both")["runs"]]
    assert written == [{"x": 1.0}, {"x": 2.0}]


def test_a_run_that_is_not_over_has_no_end(tmp_path: Path) -> None:
    cells = [cell(tmp_path, f"lr={i}", {"x": 1.0 + i}) for i in (1, 2)]
    RunFolder(cells[1].path).status("failed", step=3, reason="ValueError: no")
    cells = [Run.read(one.path, [f"lr={i}"]) for i, one in enumerate(cells, 1)]
    assert Bars(tags=("x",)).compare(cells, "title").sentence.endswith("x: 2 (1), failed (2).")
    assert FinalValues(tag="x", x="lr").compare(cells, "title").sentence.endswith("2 (1), failed (2).")
    assert Curves(tags=("x",)).compare(cells, "title").sentence.endswith("lr=1: 2; lr=2: failed.")


def test_ends_draw_a_line_for_every_combination_and_mark_what_diverged(tmp_path: Path) -> None:
    cells = [
        cell(
            tmp_path, f"data.batch_size={size} scaling.lr={rule}", {"test/accuracy": 0.5}, diverged=size + rule == "32b"
        )
        for size in ("full", "32")
        for rule in ("a", "b")
    ]
    told = FinalValues().compare(cells, "title")
    assert (
        told.sentence
        == "test/accuracy at the end (batch_size). lr=a: 0.5 (32), 0.5 (300); lr=b: diverged (32), 0.5 (300)."
    )
    assert "diverged" in texts(told.figure)
    assert {"lr=a", "lr=b"} <= set(texts(told.figure))
    assert list(told.figure.axes[0].get_xticks()) == [32, 300]


def test_ends_of_one_line_have_no_name_before_them(tmp_path: Path) -> None:
    cells = [cell(tmp_path, f"optimizer.lr={lr}", {"x": lr}) for lr in (0.1, 0.2)]
    told = FinalValues(tag="x", x="optimizer.lr").compare(cells, "title")
    assert told.sentence == "x at the end (lr). 0.1 (0.1), 0.2 (0.2)."


def test_curves_are_divided_at_their_own_steps_in_panels(tmp_path: Path) -> None:
    cells = [
        cell(tmp_path, f"data.batch_size={size}", {"x": [2.0, 3.0], "lr": [4.0, 6.0]}, steps=2) for size in (8, 16)
    ]
    told = Curves(tags=("x",), over="lr", panels="data.batch_size", level=1.0).compare(cells, "title")
    assert [axis.get_title() for axis in told.figure.axes] == ["batch_size=8", "batch_size=16"]
    lines = told.figure.axes[0].get_lines()
    assert list(lines[0].get_ydata()) == [0.5, 0.5]
    assert list(lines[1].get_ydata()) == [1.0, 1.0]
    low, high = told.figure.axes[0].get_ylim()
    assert low == 0 and high > 1


def test_a_curve_above_the_first_panel_is_not_cut_off(tmp_path: Path) -> None:
    cells = [cell(tmp_path, f"data.batch_size={size}", {"x": [0.0, size]}, steps=2) for size in (1, 50)]
    told = Curves(tags=("x",), panels="data.batch_size").compare(cells, "title")
    assert all(axis.get_ylim()[1] >= 50 for axis in told.figure.axes)


def test_few_runs_have_a_color_each_in_a_legend_that_fits(tmp_path: Path) -> None:
    cells = [
        cell(tmp_path, f"optimizer.lr={lr} data.batch_size={b}", {"x": 1.0}) for lr in (1, 2, 3) for b in (8, 16, 32)
    ]
    figure = Curves(tags=("x",)).compare(cells, "title").figure
    lines = [line for line in figure.axes[0].get_lines() if len(line.get_xdata()) > 1]  # type: ignore[arg-type]
    assert len({line.get_color() for line in lines}) == 9
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0
    assert len(figure.legends[0].get_texts()) == 9


def test_many_runs_have_a_color_scale_in_the_place_of_a_legend(tmp_path: Path) -> None:
    cells = [cell(tmp_path, f"optimizer.lr={i + 1}", {"x": float(i)}) for i in range(30)]
    figure = Curves(tags=("x",)).compare(cells, "title").figure
    assert figure.axes[1].get_ylabel() == "optimizer.lr", "the color bar"
    assert len({line.get_color() for line in figure.axes[0].get_lines()}) == 30
    assert texts(figure)[-1] == "x"
    mixed = [cell(tmp_path / "mixed", f"lr={i} kind={k}", {"x": 1.0}) for i in range(1, 7) for k in "ab"]
    figure = Curves(tags=("x",)).compare(mixed, "title").figure
    assert {"kind=a", "kind=b"} <= set(texts(figure)), "line styles"
    assert {line.get_linestyle() for line in figure.axes[0].get_lines()} == {"-", "--"}


def test_what_color_does_not_tell_is_said(tmp_path: Path) -> None:
    cells = [cell(tmp_path, f"lr={i} size={k}", {"x": 1.0}) for i in range(1, 7) for k in range(5)]
    assert "lines of one color differ in size" in texts(Curves(tags=("x",)).compare(cells, "title").figure)
    words = [cell(tmp_path / "w", f"kind=k{i}", {"x": 1.0}) for i in range(40)]
    figure = Curves(tags=("x",)).compare(words, "title").figure
    assert texts(figure)[-1] == "... 40 in all"


def test_a_run_that_diverged_is_marked_and_does_not_squeeze_the_others(tmp_path: Path) -> None:
    cells = [cell(tmp_path, "lr=1", {"x": 2.0}), cell(tmp_path, "lr=2", {"x": [1.0, 1e9]}, diverged=True)]
    figure = Curves(tags=("x",)).compare(cells, "title").figure
    assert figure.axes[0].get_ylim() == pytest.approx((0, 2.2))
    assert "diverged" in texts(figure) and figure.axes[0].get_lines()[-1].get_marker() == "x"


def test_a_curve_below_zero_is_not_cut_off(tmp_path: Path) -> None:
    figure = Curves(tags=("x",)).compare([cell(tmp_path, "lr=1", {"x": [-3.0, 1.0]})], "title").figure
    assert figure.axes[0].get_ylim()[0] < -3


def test_a_tag_that_no_run_has_is_refused(tmp_path: Path) -> None:
    cells = [cell(tmp_path, "a=1", {"x": 1.0, "error/x": 0.1})]
    for comparison, setting in (
        (Bars(tags=("y",)), "tags"),
        (FinalValues(tag="y"), "tag"),
        (Curves(tags=("y",)), "tags"),
        (Curves(tags=("x",), over="y"), "over"),
    ):
        with pytest.raises(SettingError, match=rf"^compare\.{setting}: no run has y; choose of x$"):
            comparison.compare(cells, "title")


def test_no_runs_and_what_is_no_number_are_refused_in_words(tmp_path: Path) -> None:
    for comparison in (Bars(), FinalValues(), Curves(), Heatmap()):
        with pytest.raises(SettingError, match=r"^there are no runs to compare$"):
            comparison.compare([], "title")
    made = [cell(tmp_path, "kind=a", {"x": 1.0})]
    with pytest.raises(
        SettingError, match=r"^compare\.x=kind is no positive number in every run; compare=bars takes any"
    ):
        FinalValues(tag="x", x="kind").compare(made, "title")
    with pytest.raises(SettingError, match=r"^compare\.tags: no run has x; none has measured anything yet$"):
        Bars(tags=("x",)).compare([cell(tmp_path, "kind=b", {})], "title")


def test_figure_and_numbers_are_left_beside_each_other(tmp_path: Path) -> None:
    run = cell(tmp_path / "grid", "a=1", {"test/accuracy": 0.5})
    told = carry_out(Bars(), [Run.read(run.path, ["a=1"])], tmp_path / "figures" / "a=0.1,0.2", "title")
    assert (tmp_path / "figures" / "a=0.1,0.2.png").stat().st_size > 5_000
    found = RunFolder(tmp_path / "figures").read("a=0.1,0.2")
    assert found["sentence"] == told.sentence
    assert found["runs"] == [
        {"folder": str(run.path), "overrides": {"a": "1"}, "diverged": False, "values": {"test/accuracy": 0.5}}
    ]


@pytest.mark.parametrize(
    ("train", "test", "says"),
    [
        (1.0, 0.11, "Every run fitted its training set; with all labels permuted test accuracy is at chance (0.1)."),
        (
            0.9,
            0.11,
            "Not every run fitted its training set; with all labels permuted test accuracy is at chance (0.1).",
        ),
        (1.0, 0.4, "Every run fitted its training set; with all labels permuted test accuracy is not at chance (0.1)."),
    ],
)
def test_random_labels_claims_what_the_numbers_say(tmp_path: Path, train: float, test: float, says: str) -> None:
    accuracies = {"0": (1.0, 0.9), "1": (train, test)}
    cells = [
        cell(tmp_path, f"data.batch_size=full data.random_labels={share}", {"train/accuracy": a, "test/accuracy": b})
        for share, (a, b) in accuracies.items()
    ]
    told = random_labels(cells)
    assert told.endswith(says)
    assert "random_labels=0, batch_size=full: 1.000 and 0.900" in told


@pytest.mark.parametrize(
    ("epochs", "steps", "says"),
    [
        (0.6, 0.89, "by 0.300 after as many epochs and by 0.010 after as many updates: the gap is mostly one of"),
        (0.6, 0.65, "by 0.300 after as many epochs and by 0.250 after as many updates."),
        (0.95, 0.96, "by -0.050 after as many epochs and by -0.060 after as many updates."),
    ],
)
def test_generalization_gap_claims_what_the_numbers_say(tmp_path: Path, epochs: float, steps: float, says: str) -> None:
    cells = [
        cell(tmp_path, f"scaling.budget={budget} scaling.lr=none data.batch_size={size}", {"test/accuracy": accuracy})
        for budget, large in (("epochs", epochs), ("steps", steps))
        for size, accuracy in ((16, 0.9), (1024, large))
    ]
    told = generalization_gap(cells)
    assert says in told
    assert f"budget=epochs, lr=none: 0.900 at 16, {epochs:.3f} at 1024" in told


@pytest.mark.parametrize(
    ("tops", "batches", "says"),
    [
        ((0.2, 0.9), (1.0, 0.95), "lambda_max is lower the smaller the batch. The batch sharpness came to 0.8 x 2/lr or "
         "beyond with batches of 8 and 128."),
        ((0.2, 0.9), (0.5, 0.95), "The batch sharpness came to 0.8 x 2/lr or beyond with batches of 128."),
        ((0.9, 0.2), (0.5, 0.5), "is not ordered by the batch size. The batch sharpness stayed below 0.8 x 2/lr."),
    ],
)  # fmt: skip
def test_edge_of_stochastic_stability_claims_what_the_numbers_say(
    tmp_path: Path, tops: tuple[float, float], batches: tuple[float, float], says: str
) -> None:
    threshold = 40.0
    cells = [
        cell(
            tmp_path,
            f"data.batch_size={size}",
            {
                "sharpness/lambda_max": threshold * top,
                "batch_sharpness/ratio_of_means": threshold * batch,
                "sharpness/threshold": threshold,
            },
        )
        for size, top, batch in zip((8, 128), tops, batches, strict=True)
    ]
    assert says in edge_of_stochastic_stability(cells[::-1]), "whatever the order of the cells"


def test_the_noise_of_a_small_batch_is_held_against_the_small_batch(tmp_path: Path) -> None:
    ends = {"none": (0.9, 0.9), "small_batch": (0.80, 0.84), "minibatch": (0.84, 0.88)}
    cells = [
        cell(tmp_path, f"optimizer/noise={kind} seed={seed}", {"test/accuracy": value})
        for kind, values in ends.items()
        for seed, value in enumerate(values)
    ]
    told = noise_injection(cells)
    # Standard errors of 0.02 each: 0.04 / (0.02 sqrt 2) = 1.4.
    assert "test accuracy: 0.900 (none), 0.820 +- 0.02 (small_batch), 0.860 +- 0.02 (minibatch)." in told
    assert "differs from it by +1.4 (test accuracy) standard errors" in told
    assert "Tr D" not in told, "it was not measured"
    assert "law" not in noise_injection([c for c in cells if c.overrides["seed"] == "0"]), "one seed has no error"
