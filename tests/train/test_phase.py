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


@pytest.mark.parametrize(
    ("settings", "between"),
    [
        (("data.batch_size=20", "optimizer.lr=1.1"), []),
        (("optimizer.lr=1.2",), [[2, "catapult"], [4, "above the edge"]]),
    ],
    ids=["mini-batches", "full batch"],
)
def test_a_start_above_the_edge_has_a_phase_of_its_own_everywhere(
    settings: tuple[str, ...], between: list[list[object]], train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train("run", *SMALL, *settings, "steps=9", "probe.sharpness.every=1")
    summary = folder.read("summary")
    assert summary["first_ratio"] > 1.2
    assert summary["phases"] == [[0, "above the edge"], *between]
    assert summary["entry_step"] is None
    assert folder.series("sharpness/phase") == ([8, 9], [float(Phase.ABOVE.code)] * 2), "from the ninth measurement on"
    assert told(capsys).startswith("Phase at the end: above the edge. lambda_max was at ")


def test_with_mini_batches_a_start_that_was_too_sharp_is_no_entry(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("data.batch_size=20", "optimizer.lr=1.1", "seed=1", "steps=20", "probe.sharpness.every=1")
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


FEW = [
    (("optimizer.lr=1.1", "steps=20", "probe.sharpness.every=19"), 2, 1),
    (("data.batch_size=20", "optimizer.lr=0.8", "steps=30", "probe.sharpness.every=13"), 2, 3),
    (("optimizer=adam", "steps=20", "probe.sharpness.every=7"), 2, 1),
    (("optimizer.lr=0.5", "optimizer.momentum=0.9", "steps=20", "probe.sharpness.every=3"), 4, 1),
]


@pytest.mark.parametrize(
    ("settings", "count", "every"), FEW, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_too_few_measurements_are_no_phase_and_the_rhythm_that_would_do_does(
    settings: tuple[str, ...], count: int, every: int, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train("few", *SMALL, *settings)
    summary, paragraph = folder.read("summary"), told(capsys)
    assert (summary["phase"], summary["phases"], summary["entry_step"]) == (None, [], None)
    assert folder.series("sharpness/phase") == ([], [])
    assert "hover" not in paragraph and "edge of stability" not in paragraph and "Phase" not in paragraph
    assert f", measured {count} times in the last half of the run: too few to tell a phase (5 at least); " in paragraph
    assert f"; probe.sharpness.every={every} would do" in paragraph
    enough = train("enough", *SMALL, *settings, f"probe.sharpness.every={every}").read("summary")
    assert enough["phase"] is not None and enough["level_measurements"] >= 5


RHYTHMS = [
    ("steps=12", "probe.sharpness.every=5"),
    ("steps=12", "probe.sharpness.every=4"),
    ("steps=12", "probe.sharpness.every=100"),
]


@pytest.mark.parametrize("settings", RHYTHMS, ids="".join)
def test_the_end_of_a_run_is_measured_once_whatever_the_rhythm(settings: tuple[str, ...], train: Train) -> None:
    folder = train("run", *SMALL, *settings)
    steps, values = folder.series("sharpness/lambda_max")
    every = int(settings[1].partition("=")[2])
    assert steps == [*range(0, 12, every), 12]
    assert folder.read("summary")["last_ratio"] == folder.series("sharpness/ratio")[1][-1]
    at_end = train("whole", *SMALL, "steps=12", "probe.sharpness.every=12")
    # Another history of warm starts: each to the tolerance of the probe, 1e-3.
    assert values[-1] == pytest.approx(at_end.series("sharpness/lambda_max")[1][-1], rel=2e-3)


def test_where_a_schedule_ends_at_zero_the_end_has_a_sharpness_and_no_ratio(train: Train) -> None:
    folder = train("run", *SMALL, "schedule=cosine", "steps=12", "probe.sharpness.every=5")
    assert folder.series("sharpness/lambda_max")[0] == [0, 5, 10, 12]
    assert folder.series("sharpness/ratio")[0] == folder.series("sharpness/threshold")[0] == [0, 5, 10]


def test_the_end_of_a_run_that_diverged_is_not_measured(train: Train) -> None:
    folder = train("run", *SMALL, "optimizer.lr=30", "steps=40", "probe.sharpness.every=100")
    assert folder.read("summary")["phases"] == [[folder.read("summary")["steps"], "diverged"]]
    assert folder.series("sharpness/lambda_max")[0] == [0]


@pytest.mark.parametrize(
    "more", [(), ("optimizer=adam",), ("data.batch_size=20", "probe.sharpness.midpoints=true")], ids=str
)
def test_a_run_that_was_killed_at_its_end_measures_it_again(
    more: tuple[str, ...], train: Train, metrics: Callable[[RunFolder], object]
) -> None:
    settings = (*SMALL, *more, "steps=12", "probe.sharpness.every=5")
    whole, killed = train("whole", *settings), train("killed", *settings)
    (killed.path / "summary.json").unlink()
    killed.forget_from(12)
    killed.write("status", {"status": "running", "step": 12, "reason": "", "pid": 1})
    again = train("killed", *settings)
    assert metrics(again) == metrics(whole)
    assert again.series("sharpness/lambda_max")[0] == [0, 5, 10, 12]
    clock = ("seconds", "budget", "title")
    one, other = ({k: v for k, v in f.read("summary").items() if k not in clock} for f in (whole, again))
    assert one == other
