"""The gap of large batches on folders written by hand: its parts, the paragraph, what is drawn."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from runs_by_hand import cell

from lab.compare import Run
from lab.compare.gap import Gap, GeneralizationGap, generalization_gap

ACCURACIES = {
    ("epochs", "none"): (0.9, 0.8, 0.5),
    ("epochs", "linear"): (0.9, 0.88, 0.7),
    ("steps", "none"): (0.9, 0.91, 0.86),
    ("steps", "linear"): (0.9, 0.9, 0.9),
}
SIZES = (16, 64, 256)


def cells(root: Path, *, lost: tuple[str, str, int] | None = None, training: float = 0.3) -> list[Run]:
    """A run for each budget, rule and size; `lost` diverged."""
    return [
        cell(
            root,
            f"scaling.budget={budget} scaling.lr={rule} data.batch_size={size}",
            {"test/accuracy": accuracy, "train/accuracy": 1 - training * (size > 16), "sharpness/lambda_max": size},
            diverged=(budget, rule, size) == lost,
        )
        for (budget, rule), accuracies in ACCURACIES.items()
        for size, accuracy in zip(SIZES, accuracies, strict=True)
    ]


def test_what_is_missing_updates_and_what_is_left_add_up_to_the_gap(tmp_path: Path) -> None:
    parts = Gap(cells(tmp_path)).parts()
    assert {size: pytest.approx(at) for size, at in {64: (0.11, -0.01), 256: (0.36, 0.04)}.items()} == parts


def test_the_paragraph_says_how_much_of_the_gap_is_missing_updates_and_what_a_scaled_rate_leaves(
    tmp_path: Path,
) -> None:
    told = generalization_gap(cells(tmp_path))
    assert "behind the smallest by 0.400 after as many epochs and by 0.040 after as many updates" in told
    assert "mostly one of the number of updates (90% of it)." in told
    assert "After as many epochs it is behind by 0.200 where the rate is scaled with the batch size." in told
    assert "It is behind on its training set, too, by 0.300" in told
    assert "lambda_max: 16 at 16, 64 at 64, 256 at 256 after as many epochs; " in told


def test_a_training_set_that_is_learnt_is_not_said_to_be_behind_and_what_diverged_is_told(tmp_path: Path) -> None:
    told = generalization_gap(cells(tmp_path, lost=("epochs", "linear", 256), training=0.1))
    assert "training set" not in told
    assert "it diverges where the rate is scaled with the batch size" in told
    assert told.endswith("1 of 12 runs diverged.")


def test_without_the_other_budget_nothing_is_said_of_updates(tmp_path: Path) -> None:
    some = [run for run in cells(tmp_path) if run.overrides["scaling.budget"] == "epochs"]
    assert "updates" not in generalization_gap(some)
    assert GeneralizationGap().compare(some, "title").figure.axes[0].get_visible()


def test_the_figure_has_both_budgets_the_parts_and_what_was_measured(tmp_path: Path) -> None:
    told = GeneralizationGap().compare(cells(tmp_path), "title")
    shown = [axis for axis in told.figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in shown[:3]] == [
        "after as many epochs", "after as many updates", "the gap after as many epochs, lr: none",
    ]  # fmt: skip
    assert [axis.get_ylabel() for axis in shown[3:]] == ["train/accuracy", "sharpness/lambda_max"], (
        "no noise was measured"
    )
    assert texts(told.figure, 2) == ["100%", "90%"]
    low, high = shown[0].get_ylim()
    assert shown[1].get_ylim() == (low, high) and low < 0.5 < 0.91 < high, "one axis that has the points of both"
    heights = [bar.get_height() for bar in shown[2].patches]
    assert heights == pytest.approx([0.11, 0.36, -0.01, 0.04])
    assert told.values[cells(tmp_path)[2].path]["test/accuracy"] == 0.5


def texts(figure: Figure, axis: int) -> list[str]:
    return [text.get_text() for text in figure.axes[axis].texts]
