"""Branches of one run side by side, on folders written by hand: what the paragraph says turns with the numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lab.compare import Run
from lab.compare.branches import Branches
from lab.run.folder import RunFolder
from lab.settings import SettingError

END = 40


def run(place: Path, values: Mapping[str, float], *, parent: Mapping[str, Any] | None = None, status: str = "finished",
        phase: str = "below the edge", entry: int | None = None) -> Run:  # fmt: skip
    """A run whose curves are constant: of its parent 5 before it begins, then as given."""
    folder, begin = RunFolder(place), parent["step"] if parent else 0
    with folder.owned():
        folder.forget_from(0)
        for step in range(END):
            folder.log(step, values if step >= begin else dict.fromkeys(values, 5.0))
        folder.write("provenance", {"parent": dict(parent)} if parent else {})
        folder.write("summary", {"quantity": "sharpness/lambda_max", "phase": phase, "entry_step": entry})
        folder.status(status, step=END)
    return Run.read(place, [])


def numbers(sharpness: float, loss: float, threshold: float = 10.0) -> dict[str, float]:
    return {"sharpness/lambda_max": sharpness, "sharpness/threshold": threshold, "train/loss": loss} | {
        "sharpness/ratio": sharpness / threshold
    }


@pytest.fixture
def cells(tmp_path: Path) -> list[Run]:
    """Twice the rate at two steps, two seeds each."""
    run(tmp_path / "parent", numbers(8.0, 0.5))
    made = []
    for step in (20, 10):
        for seed, sharpness in enumerate((3.0, 5.0)):
            changes = {"optimizer.lr": [0.2, 0.4], "seed": [7, seed], "steps": [30, 40]}
            record = {"folder": str(tmp_path / "parent"), "step": step, "changes": changes}
            edge = {"phase": "edge of stability", "entry": step + 4 + 4 * seed}
            made.append(run(tmp_path / f"{step},{seed}", numbers(sharpness, 0.25, 5.0), parent=record, **edge))  # type: ignore[arg-type]
    return made


def test_the_paragraph_holds_every_change_against_the_run_that_went_on(cells: list[Run]) -> None:
    told = Branches().compare(cells, "title")
    # 4 +- 1 of seeds 3 and 5: standard deviation sqrt 2, over sqrt 2.
    assert (
        "From step 10: the run that went on has lambda_max 8 (0.80 x threshold), loss 0.5. lr 0.2 -> 0.4: lambda_max 4 +- 1 "
        "(0.50 of the parent's, 0.80 x its threshold), edge of stability in 2 of 2 (reached after 6 +- 2 steps), loss 0.25 "
        "(0.50 of the parent's). From step 20: " in told.sentence
    )
    assert told.sentence.endswith("the sharpness is multiplied under lr 0.2 -> 0.4 by 0.50.")
    assert told.values[cells[1].path] == {"sharpness/lambda_max": 5.0, "train/loss": 0.25}
    assert [axis.get_title() for axis in told.figure.axes[:2]] == ["from step 10", "from step 20"]
    legend = [text.get_text() for text in told.figure.legends[0].get_texts()]
    assert legend.count("lr 0.2 -> 0.4") == 1 and "as it went on" in legend
    before = told.figure.axes[1].get_lines()[0]
    assert list(before.get_xdata()) == list(range(21)) and set(before.get_ydata()) == {8.0}


def test_a_parent_that_is_gone_or_over_is_told_by_its_children(cells: list[Run], tmp_path: Path) -> None:
    (tmp_path / "parent").rename(tmp_path / "elsewhere")
    told = Branches(tags=("sharpness/ratio",)).compare(cells, "title")
    assert "From step 10: the run itself was over by then. lr 0.2 -> 0.4: lambda_max 4 +- 1 (0.80 x its threshold)" in (
        told.sentence
    )
    assert "multiplied" not in told.sentence
    assert set(told.figure.axes[0].get_lines()[0].get_ydata()) == {5.0}, "what the children have of it"


def test_a_branch_that_diverged_is_marked_and_left_out_of_the_means(cells: list[Run], tmp_path: Path) -> None:
    lost = run(tmp_path / "lost", numbers(1e9, 1e9), parent=cells[0].parent, status="diverged", phase="diverged")
    told = Branches().compare([*cells, lost], "title")
    assert "lambda_max 4 +- 1 (0.50 of the parent's" in told.sentence
    assert "edge of stability in 2 of 3 and diverged in 1 of 3" in told.sentence
    assert "diverged" in [text.get_text() for text in told.figure.legends[0].get_texts()]
    assert max(axis.get_ylim()[1] for axis in told.figure.axes) < 20
    only = Branches().compare([lost], "title")
    assert "lr 0.2 -> 0.4: lambda_max diverged, diverged, loss diverged." in only.sentence


def test_runs_that_begin_from_no_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="compares runs that begin from another one; add from=RUN@100"):
        Branches().compare([run(tmp_path / "parent", numbers(8.0, 0.5))], "title")
