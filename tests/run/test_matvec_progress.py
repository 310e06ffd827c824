"""What is told while a measurement is under way: products made, and the time still to go."""

import io

import pytest
from rich.console import Console

from lab.run.progress import MatvecProgress


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock of the progress shows (s)."""
    time = [0.0]
    monkeypatch.setattr("lab.run.progress.monotonic", lambda: time[0])
    return time


def test_progress_tells_what_how_far_and_how_long_still(now: list[float]) -> None:
    done = 0
    console = Console(file=io.StringIO(), width=200)
    with MatvecProgress("sharpness of w.pt", 20, 90.0, lambda: done, console=console) as progress:
        assert progress.text() == "sharpness of w.pt: about 90 s"
        done, now[0] = 5, 4.0
        assert progress.text() == "sharpness of w.pt: 5 of about 20 products, 12 s to go"
        done = 30
        assert "30 of about 31 products" in progress.text(), "more than expected"
    assert console.file.getvalue() == "measuring sharpness of w.pt: about 90 s\n"  # type: ignore[attr-defined]


def test_progress_of_what_nobody_can_foretell_tells_the_time_spent(now: list[float]) -> None:
    done = 0
    console = Console(file=io.StringIO(), width=200)
    with MatvecProgress("noise of w.pt", 0, 0.0, lambda: done, console=console) as progress:
        assert progress.text() == "noise of w.pt: 1 s so far"
        done, now[0] = 7, 3.0
        assert progress.text() == "noise of w.pt: 7 products, 3 s so far"
    assert console.file.getvalue() == "measuring noise of w.pt\n"  # type: ignore[attr-defined]
