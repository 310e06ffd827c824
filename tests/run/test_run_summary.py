"""What a run amounts to in words: nothing is claimed that was not measured, and the findings of the probes are told."""

from typing import Any

from lab.run.figures import training_figure
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
