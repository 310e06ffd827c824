"""What lab.measure prints of several checkpoints."""

from io import StringIO
from pathlib import Path

from rich.console import Console

from lab.measure import report
from lab.measure.carry import CheckpointResult


def test_the_table_shows_a_path_with_brackets_as_it_is() -> None:
    made = report.table(
        [(Path("probe=[sharpness],seed=0/last.ckpt"), CheckpointResult(3, "", 5, {"noise/trace": 1.0}))]
    )
    output = StringIO()
    Console(file=output, width=200).print(made)
    assert "probe=[sharpness],seed=0/last.ckpt" in output.getvalue()
