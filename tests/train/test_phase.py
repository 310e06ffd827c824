"""Whole runs told by their phase: what the log, summary.json and the paragraph at the end say of the same run agrees."""

from collections.abc import Callable

import pytest

from lab.curvature.phase import Phase
from lab.run.folder import RunFolder

Train = Callable[..., RunFolder]
SMALL = ("trainer.threads=1", "trainer.evaluate_every=null", "data.examples=60", "model.widths=[8]", "loss=mse")


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The paragraph at the end of a run."""
    return capsys.readouterr().out.strip().splitlines()[0]


@pytest.mark.parametrize("settings", [("data.batch_size=20",), ()], ids=["mini-batches", "full batch"])
def test_a_start_above_the_edge_has_a_phase_of_its_own_everywhere(
    settings: tuple[str, ...], train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train("run", *SMALL, *settings, "optimizer.lr=1.5", "steps=3", "probe.sharpness.every=7")
    summary = folder.read("summary")
    assert summary["first_ratio"] > 1.2
    assert summary["phases"] == [[0, "above the edge"]]
    assert summary["entry_step"] is None
    assert folder.series("sharpness/phase") == ([0], [float(Phase.ABOVE.code)])
    assert told(capsys).startswith("Phase at the end: above the edge. lambda_max was at ")


def test_with_mini_batches_a_start_that_was_too_sharp_is_no_entry(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("data.batch_size=20", "optimizer.lr=1.1", "seed=1", "steps=16", "probe.sharpness.every=3")
    summary = train("run", *SMALL, *settings).read("summary")
    assert summary["first_ratio"] > 1 > summary["last_ratio"]
    assert summary["entry_step"] is None
    assert "edge of stability" not in str(summary["phases"])
    assert "It began above the edge, at " in told(capsys)


# settings, whether the learning rate of the edge is one number
EDGES: list[tuple[tuple[str, ...], bool]] = [
    ((), True),
    (("optimizer.momentum=0.9", "optimizer.nesterov=true"), True),
    (("schedule=cosine",), False),
    (("data.batch_size=20",), False),
    (("optimizer.weight_decay=0.01",), False),
    (("optimizer=adam",), False),
]


@pytest.mark.parametrize(
    ("settings", "known"), EDGES, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_the_learning_rate_of_the_edge_is_told_where_it_is_one_number(
    settings: tuple[str, ...], known: bool, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    rate = () if "optimizer=adam" in settings else ("optimizer.lr=0.01",)
    folder = train("run", *SMALL, *settings, "probe.sharpness.every=2", *rate, "steps=3")
    found = folder.read("summary")["edge_lr"]
    assert (found is not None) == known
    assert ("meets the last lambda_max at optimizer.lr = " in told(capsys)) == known
    if known:
        factor = 1.9 / 2.8 if settings else 1.0  # Nesterov
        assert found == pytest.approx(factor * 2 / folder.series("sharpness/lambda_max")[1][-1], rel=1e-6)


def test_a_loss_that_begins_above_its_bound_blames_the_bound(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train("run", *SMALL, "trainer.max_loss=0.1", "steps=3")
    assert folder.read("summary")["steps"] == 0
    paragraph = told(capsys)
    assert paragraph.endswith("It began there, before the first update: raise trainer.max_loss.")
    assert "optimizer.lr" not in paragraph
