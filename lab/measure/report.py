"""A measurement in words and in a table, and on disk."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from torch import Tensor

from lab.measure.carry import CheckpointResult
from lab.probes.critical_point_figure import KINDS, Point, index_against_loss
from lab.probes.critical_point_result import ENDS
from lab.run import figures
from lab.run.folder import RunFolder
from lab.run.provenance import provenance
from lab.run.summary import joined

WIDE = 500
"""Characters of a line that goes to no terminal."""
COLUMNS = 6
"""Quantities in a table at most."""
LEADING = (
    "sharpness/preconditioned",
    "sharpness/lambda_max",
    "sharpness/threshold",
    "sharpness/ratio",
    "spectrum/lambda_1",
    "spectrum/lambda_min_1",
    "spectrum/trace",
    "spectrum/outliers",
    "spectrum/negative_mass",
    "spectrum/effective_rank",
)
"""The quantities that come first where they were measured."""
NAMES = {"critical_point/kind": KINDS, "critical_point/search": ENDS}
"""The quantities that are the place of a word in a list."""


def sentence(result: CheckpointResult) -> str:
    """The result in one plain sentence, and what the probes found."""
    values, formula = result.values, result.formula
    parts = []
    scaled = "sharpness/preconditioned" in values
    sharpness = "sharpness/preconditioned" if scaled else "sharpness/lambda_max"
    if sharpness in values:
        name = "preconditioned lambda_max" if scaled else "lambda_max"
        text = f"{name} = {values[sharpness]:.5g} +- {values[f'error/{sharpness}']:.1g}"
        if "sharpness/ratio" in values:
            ratio, threshold = values["sharpness/ratio"], values["sharpness/threshold"]
            text += f", {ratio:.3f} x the threshold {threshold:.5g} = {formula} ({_where(ratio)})"
        elif "sharpness/threshold" in values:
            text += " (no ratio to the threshold: the file holds no state of this optimizer, hence no preconditioner)"
        parts.append(text)
    parts += [f"{tag} = {values[tag]:.5g}" for tag in leading(result) if not _elsewhere(tag)][:COLUMNS]
    sure = all(value for tag, value in values.items() if tag.endswith("/converged"))
    unsure = "" if sure else "; NOT all within tol: raise max_matvecs"
    if not parts and not result.findings:
        parts = ["nothing was measured"]
    measured = f"At step {result.step}{': ' if parts else ''}{'; '.join(parts)}{unsure}."
    return joined([*filter(None, [result.divergence]), measured, *result.findings])


def tell(result: CheckpointResult, file: Path, folder: RunFolder, *, brief: bool) -> None:
    """The result and where to look. brief: for one of many checkpoints, its name before the sentence."""
    print(f"{file}: {sentence(result)}" if brief else sentence(result))
    for failure in result.failures:
        print(f"error: {f'{file}: ' if brief else ''}{failure}", file=sys.stderr)
    if not brief:
        print()
        for figure in sorted(folder.figures.glob("*.png")):
            print(f"  figure    {figure}")
        print(f"  results   {folder.path}", flush=True)


def _elsewhere(tag: str) -> bool:
    """Whether a quantity belongs to the sentence about sharpness or to a finding about a point, or ends an interval."""
    return tag.startswith(("sharpness/", "escape/", "critical_point/")) or tag.endswith(("_low", "_high"))


def _where(ratio: float) -> str:
    return "above the edge" if ratio > 1.15 else "at the edge of stability" if ratio > 0.95 else "below the edge"


def leading(result: CheckpointResult) -> list[str]:
    """The tags of the quantities, the well-known ones first; no errors, no costs."""
    tags = [
        t for t in result.values if not t.startswith(("error/", "cost/")) and not t.endswith(("/converged", "/loss"))
    ]
    return sorted(tags, key=lambda tag: LEADING.index(tag) if tag in LEADING else len(LEADING))


def table(rows: Sequence[tuple[Path, CheckpointResult]]) -> Table:
    """One line a checkpoint, one column a quantity."""
    tags = list(dict.fromkeys(tag for _, result in rows for tag in leading(result)))[:COLUMNS]
    made = Table(
        Column("checkpoint", overflow="fold"), "step", *[tag.removeprefix("sharpness/") for tag in tags], box=None
    )
    for file, result in rows:
        made.add_row(Text(str(file)), str(result.step), *(_cell(tag, result.values) for tag in tags))
    return made


def _cell(tag: str, values: Mapping[str, float]) -> str:
    if tag not in values:
        return ""
    return NAMES[tag][int(values[tag])] if tag in NAMES else f"{values[tag]:.5g}"


def across(rows: Sequence[tuple[Path, CheckpointResult]], folder: Path) -> list[Path]:
    """Figures of several checkpoints together, in `folder`: index against loss where the index was measured."""
    of = [result.values for _, result in rows if "critical_point/index_fraction" in result.values]
    if len(of) < 2:
        return []
    tags = "loss", "index_fraction", "kind", "index_exact"
    points = [Point(*(values[f"critical_point/{tag}"] for tag in tags)) for values in of]
    figures.save(index_against_loss(points, f"{len(points)} checkpoints"), folder / "index_against_loss.png")
    return [folder / "index_against_loss.png"]


def show(made: Table) -> None:
    """The table on stdout, not folded where no terminal limits it."""
    console = Console()
    (console if console.is_terminal else Console(width=WIDE)).print(made)


def keep(
    folder: RunFolder,
    result: CheckpointResult,
    *,
    file: Path,
    command: str,
    plain: dict[str, Any],
    facts: dict[str, Any],
) -> None:
    """metrics.jsonl, summary.json, provenance.json, arrays and figures; what lay there is replaced. facts: of the file and
    the data.
    """
    folder.forget_from(0)
    folder.log(result.step, result.values)
    arrays = {tag: value for tag, value in result.others.items() if isinstance(value, Tensor)}
    folder.log_arrays(result.step, {tag: array.detach().cpu().numpy() for tag, array in arrays.items()})
    for tag, value in result.others.items():
        if isinstance(value, Figure):
            figures.save(value, folder.figures / f"{tag.replace('/', '_')}.png")
    folder.write("provenance", provenance(command, plain, **facts))
    folder.write(
        "summary",
        {
            "checkpoint": str(file),
            "step": result.step,
            "sentence": sentence(result),
            "values": result.values,
            "threshold_formula": result.formula,
            "weights": result.num_weights,
            "failures": result.failures,
            "seconds": result.seconds,
        },
    )
    folder.status("finished", step=result.step)
