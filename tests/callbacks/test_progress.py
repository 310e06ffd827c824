"""One live bar, from before the first measurement; what takes over two seconds says in it what, how far, how long still."""

import io
from typing import Any

import pytest
import torch
from rich.console import Console

from lab.callbacks.probe import ProbeCallback
from lab.callbacks.progress import ProgressCallback
from lab.probes.sharpness import Sharpness
from lab.run.progress import MatvecProgress, waiting


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock of the progress shows (s). Nothing glances but the test."""
    time = [0.0]
    monkeypatch.setattr("lab.run.progress.monotonic", lambda: time[0])
    monkeypatch.setattr("lab.run.progress.GLANCE_SECONDS", 1e6)
    return time


def a_run(**settings: Any) -> tuple[ProbeCallback, ProgressCallback, io.StringIO]:
    data = torch.ones(4, 2), torch.ones(4, 1)
    probes = ProbeCallback([Sharpness()], torch.nn.MSELoss(), data, model=torch.nn.Linear(2, 1))
    screen = io.StringIO()
    return probes, ProgressCallback(probes, 60, console=Console(file=screen, width=120, **settings)), screen


def test_a_measurement_is_told_of_in_the_text_of_the_live_bar(now: list[float]) -> None:
    probes, progress, _ = a_run(force_terminal=True)
    progress._bar.start()
    try:
        text = lambda: progress._bar.tasks[0].fields["text"]  # noqa: E731
        done = 0
        with probes.costs.working("sharpness at step 0", 20, 90.0, lambda: done) as work:
            now[0] = 1.0
            work.glance()
            assert text() == "", "nothing is said of what is over soon"
            now[0] = 2.5
            work.glance()
            assert text() == "sharpness at step 0: about 90 s"
            done, now[0] = 5, 10.0
            work.glance()
            assert text() == "sharpness at step 0: 5 of about 20 products, 30 s to go"
            assert work._task is None, "one live bar at a time"
        probes.tracker.add_loss(0, 0.5)
        progress._tell("")
        assert text() == "loss 0.5"
    finally:
        progress._bar.stop()


def test_without_a_terminal_a_measurement_is_told_of_in_lines(now: list[float]) -> None:
    probes, _, screen = a_run()
    done = 0
    with probes.costs.working("noise at step 0", 0, 40.0, lambda: done) as work:
        for seconds in (1.0, 3.0, 5.0, 14.0):
            now[0] = seconds
            work.glance()
    with probes.costs.working("noise at step 13", 0, 40.0, lambda: done):
        pass
    assert screen.getvalue() == "measuring noise at step 0\nnoise at step 0: 14 s of about 40 s\n"


def test_loading_is_told_of_after_two_seconds(now: list[float]) -> None:
    screen = Console(file=io.StringIO(), width=120)
    with waiting("data and model", "loading", console=screen) as work:
        now[0] = 3.0
        work.glance()
    assert screen.file.getvalue() == "loading data and model\n"  # type: ignore[attr-defined]


def test_what_is_shown_elsewhere_is_taken_back_at_the_end(now: list[float]) -> None:
    texts: list[str] = []
    with MatvecProgress("sharpness", into=texts.append):
        pass
    assert texts == ["sharpness: 1 s so far", ""]
