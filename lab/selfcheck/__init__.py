"""python -m lab.selfcheck: does this installation measure what it should? Known answers, under a minute on a CPU.

Every check yields rows (what, expected, measured, tolerance): closed forms first, then statistics with four standard
errors (all sampling is seeded: a row that passes once passes again on the same build of torch). The exit code is 1
where a row fails. A new check is one function of a module here, listed in `CHECKS`.
"""

import math
import sys
import warnings
from collections.abc import Sequence
from time import perf_counter

import torch
from rich.console import Console
from rich.table import Table

from lab.doors.errors import one_line_errors
from lab.doors.words import OneLineParser
from lab.selfcheck import curvature, dynamics, noise
from lab.selfcheck.rows import Check, Row

CHECKS: Sequence[Check] = (
    curvature.hessian_of_linear_regression,
    curvature.hessian_of_a_network,
    curvature.double_well_saddle,
    curvature.gauss_newton_matrix,
    curvature.clustered_spectrum,
    curvature.traces,
    curvature.peer,
    noise.lemma_one,
    noise.traces_of_the_noise,
    noise.fisher,
    noise.linear_stability,
    dynamics.thresholds,
    dynamics.edge_of_stability,
    dynamics.gibbs_distribution,
    dynamics.saddle_escape,
    dynamics.saddle_escape_by_heavy_ball,
    dynamics.escape_rate,
)


@one_line_errors("selfcheck")
def main(arguments: Sequence[str] | None = None, checks: Sequence[Check] | None = None) -> None:
    """The command line: the table, a plain sentence, exit code 1 where a check fails."""
    parser = OneLineParser("python -m lab.selfcheck", description="Known answers, under a minute on a CPU.")
    parser.parse_args(arguments)
    torch.set_num_threads(1)  # everything here is too small for a second thread
    begin, rows, console = perf_counter(), list[Row](), Console(stderr=True)
    with console.status("checking") as status:
        for check in CHECKS if checks is None else checks:
            status.update(check.__name__.replace("_", " "))
            rows += _rows(check)
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table(rows))
    failed = [row.what for row in rows if not row.passed]
    if failed:
        print(f"{len(failed)} of {len(rows)} checks FAILED: {'; '.join(failed)}.")
        sys.exit(1)
    print(f"All {len(rows)} checks passed in {perf_counter() - begin:.0f} s.")


def table(rows: Sequence[Row]) -> Table:
    """Expected, measured, tolerance and verdict, a line each."""
    made = Table("check", "expected", "measured", "tolerance", "", box=None)
    for row in rows:
        verdict = "[green]pass[/]" if row.passed else "[bold red]FAIL[/]"
        numbers = f"{row.expected:.6g}", f"{row.measured:.6g}", f"{row.tolerance:.1g}"
        made.add_row(row.what.replace("[", r"\["), *numbers, verdict)
    return made


def _rows(check: Check) -> list[Row]:
    """The rows of a check; one that raises is a row that failed, and the rest is still checked."""
    rows: list[Row] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for row in check():
                rows.append(row)  # noqa: PERF402 (what came before an exception counts)
    except Exception as error:
        text = " ".join(str(error).split())[:80]
        rows.append(Row(f"{check.__name__.replace('_', ' ')}: {type(error).__name__}: {text}", 0.0, math.nan, 0.0))
    return rows
