"""python -m lab.report OUTPUTS...: many runs as one page, the same as Markdown, and a table.

The runs may be of one sweep or several, finished or under way, made here or by a stranger: their folders are data. This is
the door only: torch is not loaded, and matplotlib once the words are known to be sound.
"""

import os
import sys

from lab.compare.strangers import shown
from lab.doors.errors import one_line_errors
from lab.report.help import HELP, help_page
from lab.report.settings import Asked
from lab.settings import SettingError


def main() -> None:
    """The command line."""
    words = sys.argv[1:]
    with one_line_errors("report"):
        if {*HELP} & {*words} or not words:
            print(help_page())
        else:
            report(Asked.of(words))


def report(asked: Asked) -> None:
    """Read the runs, say how they stand, and write what is known of them. Raises SettingError where there are none."""
    from lab.compare.runs import runs
    from lab.report import terminal, writing
    from lab.report.build import build, in_order

    folder = writing.place(asked.named(), asked.settings.out)
    found = runs(*asked.paths)
    lost = [(os.path.relpath(path), reason) for path, reason in found.left_out if not writing.is_report(path)]
    if not found:
        more = f", and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise SettingError(f"no run is there: {shown(lost[0][0])} {lost[0][1]}{more}" if lost else "no run is there")
    chosen = in_order(found.where(*asked.settings.where), asked.settings.sort)
    if not chosen:
        raise SettingError(f"where=[{','.join(asked.settings.where)}]: none of the {len(found)} runs meets it")
    made = build(chosen, lost, asked.settings, folder)
    writing.write(made, chosen, folder)
    terminal.tell(chosen, made)
    terminal.tell_files(folder)
