"""What a run says at its end: its finding in one paragraph, theory beside measurement, and where to look.

Read from the run folder alone, so that a finished run says the same again without computing anything.
"""

import shutil
import textwrap
from typing import Any

from lab.run.folder import RunFolder

WIDEST = 112


def report(folder: RunFolder, *, again: bool = False) -> None:
    """Print what summary.json holds."""
    summary = folder.read("summary")
    width = min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns)
    print("\nThis run was already finished.\n" if again else "")
    for text in filter(None, (summary["finding"], summary["disagreement"])):
        print(textwrap.fill(text, width))
    print()
    print(table(summary["table"]))
    print()
    for figure in sorted(folder.figures.glob("*.png")):
        print(f"  figure       {figure}")
    print(f"  run folder   {folder.path}")
    print(f"  took         {summary['seconds']:.1f} s\n", flush=True)


def table(rows: list[list[Any]]) -> str:
    """Aligned columns under their names: quantity, theory, measured, agreement."""
    every = [["", "theory", "measured", ""], *rows]
    widths = [max(len(row[i]) for row in every) for i in range(4)]
    return "\n".join(
        f"  {name:<{widths[0]}}  {theory:>{widths[1]}}  {measured:<{widths[2]}}  {agree}".rstrip()
        for name, theory, measured, agree in every
    )
