"""How far a simulation is: in lines of text, and as a bar on a terminal."""

import io

import pytest
from rich.console import Console

from lab.simulate.progress import StageProgress


def test_progress_tells_part_share_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("lab.simulate.progress.monotonic", lambda: now[0])
    text = io.StringIO()
    with StageProgress("polya", {"first": 1.0, "second": 3.0}, console=Console(file=text, width=80)) as progress:
        tick = progress.stage("first")
        assert progress.left() == ""
        now[0] = 2.0
        tick(1.0)
        assert progress.text() == "polya: 25 %, 6 s to go: first"
        tick = progress.stage("second")
        now[0] = 6.0
        tick(0.5)
    lines = text.getvalue().splitlines()
    assert lines == ["simulating polya: first, second", "polya: 62 %, 4 s to go: second"]


def test_progress_on_a_terminal_is_a_bar() -> None:
    text = io.StringIO()
    console = Console(file=text, width=100, force_terminal=True)
    with StageProgress("polya", {"first": 1.0}, console=console) as progress:
        progress.stage("first")(0.5)
    assert "50%" in text.getvalue()
    assert "first" in text.getvalue()
