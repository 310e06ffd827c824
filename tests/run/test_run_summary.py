"""What a run amounts to in words: nothing is claimed that was not measured, and the findings of the probes are told."""

from typing import Any

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.curvature.phase import rhythm
from lab.probes.sharpness_result import stems
from lab.results import Eigenpairs
from lab.run.figures import edge_figure, training_figure
from lab.run.summary import joined, sentence

BARE: dict[str, Any] = {
    "phase": None, "phases": [], "crossing_step": None, "entry_step": None, "overshoot": None, "level_since": None,
    "level": None, "level_low": None, "level_high": None, "first_ratio": None, "last_ratio": None, "max_ratio": None,
    "loss_rises": 0.1, "first_loss": 2.0, "last_loss": 0.5, "quantity": None, "threshold_formula": "the threshold",
    "findings": [], "steps": 60, "reason": "", "test_loss": 0.6, "test_accuracy": 0.8125, "title": "x", "loss_unit": "u",
}  # fmt: skip
"""summary.json of a run without the sharpness probe."""


def test_a_run_without_the_sharpness_probe_claims_no_phase() -> None:
    assert sentence(BARE) == "Trained 60 steps; loss from 2 to 0.5, test accuracy 0.812."
    assert sentence(BARE | {"test_accuracy": None}) == "Trained 60 steps; loss from 2 to 0.5."
    assert sentence(BARE | {"steps": 1}).startswith("Trained 1 step; loss")


def test_a_run_from_another_one_with_a_phase_of_its_own_tells_its_own_updates() -> None:
    parent = {"folder": "base", "step": 200, "changes": {"optimizer.args.lr": [None, 0.5]}}
    child = BARE | {"parent": parent, "phase_since": 200, "steps": 250}
    assert sentence(child).startswith(
        "Began at step 200 of base: optimizer.args.lr its default -> 0.5. Trained 50 steps (200 to 250); loss from 2 to 0.5"
    )
    ratios = {
        "level": 1.0,
        "level_low": 1.0,
        "level_high": 1.0,
        "level_measurements": 1,
        "quantity": "sharpness/lambda_max",
    }
    every, whole = (rhythm(steps) for steps in (50, 250))
    assert every != whole
    assert f"probe.sharpness.every={every} would do" in sentence(child | ratios)
    whole_phase = {name: value for name, value in (child | ratios).items() if name != "phase_since"}
    assert "Trained 250 steps; loss from 2 to 0.5, test accuracy 0.812. lambda_max was at" in sentence(whole_phase)
    assert f"probe.sharpness.every={whole} would do" in sentence(whole_phase)


def test_a_sharpness_without_a_threshold_is_said() -> None:
    told = sentence(BARE | {"quantity": "sharpness/lambda_max"})
    assert told.endswith("test accuracy 0.812. Sharpness was not held against a threshold.")


def test_a_diverged_run_without_the_sharpness_probe() -> None:
    told = sentence(BARE | {"phase": "diverged", "reason": "the training loss became inf"})
    assert told == "The run diverged at step 60: the training loss became inf."


def test_findings_follow_each_a_sentence() -> None:
    told = sentence(BARE | {"findings": ["below the edge: it is 0.5", "lambda_max is small.", "Tr D fell"]})
    assert told.endswith("0.812. Below the edge: it is 0.5. lambda_max is small. Tr D fell.")
    assert joined(["One.", "two"]) == "One. Two."


def test_summaries_of_before_there_were_findings_are_read() -> None:
    assert sentence({name: value for name, value in BARE.items() if name != "findings"}).startswith("Trained")


def test_the_figure_without_sharpness_shows_loss_and_accuracy() -> None:
    steps = [0, 1]
    series = {
        "train/loss": (steps, [2.0, 0.5]),
        "train/accuracy": (steps, [0.1, 0.9]),
        "test/accuracy": (steps, [0.1, 0.8]),
    }
    figure = training_figure(series, BARE)
    above, below = figure.axes
    assert above.get_title() == "x"
    assert [list(line.get_ydata()) for line in below.get_lines()] == [[0.1, 0.9], [0.1, 0.8]]


MEASURED = BARE | {
    "phase": "below the edge", "quantity": "sharpness/lambda_max", "threshold_formula": "2/lr", "level_since": 30,
    "level": 0.04, "level_low": 0.03, "level_high": 0.05, "first_ratio": 0.04, "last_ratio": 0.05, "max_ratio": 0.05,
    "edge_lr": None,
}  # fmt: skip
"""summary.json of a run far below the edge."""


def test_a_run_below_the_edge_tells_the_learning_rate_whose_threshold_is_its_sharpness() -> None:
    told = sentence(MEASURED | {"edge_lr": 2.7951})
    assert told.endswith(
        "highest ratio was 0.05; the threshold meets the last lambda_max at optimizer.lr = 2/lambda_max = 2.8."
    )
    momentum = sentence(MEASURED | {"edge_lr": 5.321, "threshold_formula": "(1+b) x 2/lr"})
    assert momentum.endswith("at optimizer.lr = (1+b) x 2/lambda_max = 5.32.")
    assert sentence(MEASURED).endswith("The edge was never reached: the highest ratio was 0.05.")
    assert sentence(MEASURED | {"title": "default settings"}).endswith("was 0.05. experiment=quickstart reaches it.")


def test_a_run_above_the_edge_is_told_from_one_that_came_down() -> None:
    high = {"level": 2820.16, "level_low": 2820.16, "level_high": 2820.16, "first_ratio": 2820.16, "max_ratio": 2820.16}
    above = sentence(MEASURED | high | {"phase": "above the edge"})
    assert above.startswith("Phase at the end: above the edge. lambda_max was at 2820 x 2/lr over the last half; loss")
    assert "It began" not in above
    down = sentence(MEASURED | {"first_ratio": 2.41, "max_ratio": 2.41})
    assert down.endswith(" It began above the edge, at 2.41.")


def test_a_threshold_that_is_a_difference_is_put_in_brackets() -> None:
    assert "was at 0.04 x (2/lr - wd) (0.03 to 0.05)" in sentence(MEASURED | {"threshold_formula": "2/lr - wd"})


def test_a_diverged_run_says_what_may_help() -> None:
    diverged = MEASURED | {"phase": "diverged", "reason": "the training loss became inf"}
    told = sentence(diverged | {"first_ratio": 1.368400884974124509e30})
    assert told.endswith("lambda_max began at 1.37e+30 x 2/lr; a smaller optimizer.lr may survive.")
    at_once = sentence(diverged | {"steps": 0, "reason": "the training loss became 2.4, above the bound 0.5"})
    assert at_once.endswith("the bound 0.5. It began there, before the first update: raise trainer.max_loss.")
    assert sentence(diverged | {"steps": 0}).endswith("became inf. It began there, before the first update.")


def drawn(sharpness: list[float], threshold: float, **others: list[float]) -> tuple[Figure, Axes]:
    """The figure of a run that was measured at the steps 0, 1, 2 ..., and its lower axes."""
    steps = list(range(len(sharpness)))
    values = {"lambda_max": sharpness, "threshold": [threshold] * len(steps)}
    series = {f"sharpness/{name}": (steps, found) for name, found in values.items()}
    series |= {tag: (steps, found) for tag, found in others.items()}
    figure = edge_figure(series | {"train/loss": (steps, [1.0] * len(steps))}, MEASURED)
    figure.canvas.draw()
    return figure, figure.axes[1]


@pytest.mark.parametrize(
    ("sharpness", "scale"),
    [
        ([4.0, 6.0], "linear"),
        ([0.8, 0.6], "linear"),
        ([-1.0, 2.0], "linear"),
        ([100.0, 5e7, 0.0], "log"),
        ([0.04, 0.05], "log"),
    ],
)
def test_sharpness_and_threshold_are_both_seen_however_far_apart(sharpness: list[float], scale: str) -> None:
    _, axis = drawn(sharpness, 5.0)
    assert axis.get_yscale() == scale
    height = axis.transAxes.inverted().transform(axis.transData.transform((0, 5.0)))[1]
    assert 0.03 < height < 0.97
    highest = axis.transAxes.inverted().transform(axis.transData.transform((0, max(sharpness))))[1]
    assert 0.03 < highest < 0.97


def test_batch_sharpness_is_drawn_beside_lambda_max() -> None:
    figure, axis = drawn([4.0, 4.0], 5.0, **{"batch_sharpness/ratio_of_means": [2.0, 3.0]})
    assert "batch sharpness" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert [2.0, 3.0] in [list(line.get_ydata()) for line in axis.get_lines()]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_ticks_of_short_runs_are_whole_steps(count: int) -> None:
    _, axis = drawn([4.0] * count, 5.0)
    left, right = axis.get_xlim()
    shown = [tick for tick in axis.get_xticks() if left <= tick <= right]
    assert shown
    assert all(tick == round(tick) for tick in shown)


@pytest.mark.parametrize("draw", [edge_figure, training_figure])
@pytest.mark.parametrize(
    "title",
    [
        ", ".join(["probe.sharpness.max_matvecs=100"] * 5),
        ", ".join(["probe.sharpness.max_matvecs=100"] * 40),
        ("optimizer.lr=0.1, " * 5)[:84],
        "optimizer.momentum=0.99, " * 2 + "optimizer",
        "data.root=/" + "directory/" * 60,
        "$a, b$_{",
    ],
    ids=["five", "forty", "one full line", "one large line", "one word", "mathtext"],
)
def test_titles_of_any_length_stay_inside_the_figure(draw: Any, title: str) -> None:
    figure = draw({"train/loss": ([0, 1], [1.0, 0.5])}, MEASURED | {"title": title})
    figure.canvas.draw()
    box = figure.axes[0].title.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert box.y1 <= figure.bbox.y1


def test_the_legend_lies_beside_the_axes_and_not_over_the_data() -> None:
    figure, _ = drawn([4.0, 6.0], 5.0)
    legend = figure.legends[0].get_window_extent()
    assert not any(axis.get_legend() for axis in figure.axes)
    assert not any(legend.overlaps(axis.get_window_extent()) for axis in figure.axes)


@pytest.mark.parametrize(
    ("quantity", "name"),
    [
        ("sharpness/lambda_max", "sharpness (loss / weight$^2$)"),
        ("sharpness/preconditioned", "sharpness (preconditioned, 1 / weight)"),
    ],
)
def test_the_axis_of_the_sharpness_has_its_own_unit(quantity: str, name: str) -> None:
    series = {tag: ([0, 1], [3.0, 3.4]) for tag in (quantity, "sharpness/threshold", "train/loss")}
    figure = edge_figure(series, MEASURED | {"quantity": quantity})
    assert figure.axes[1].get_ylabel() == name


def test_the_axis_of_the_top_eigenvalues_has_their_unit() -> None:
    pairs = Eigenpairs(*(torch.ones(3) for _ in range(4)), 3, True)
    for what, unit in (("H", "eigenvalue (loss / weight$^2$)"), ("$P^{-1}(H + c)$", "eigenvalue")):
        assert stems(pairs, what, 3.33, "").axes[0].get_ylabel() == unit
