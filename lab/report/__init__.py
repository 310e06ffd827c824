"""python -m lab.report OUTPUTS...: many runs as one page, the same as Markdown, and a table.

The runs may be of one sweep or several, finished or under way, made here or by a stranger: their folders are data. This is the
door only: nothing of torch is loaded, and figures are drawn once the words are known to be sound.
"""

import os
import sys

from lab.doors.errors import one_line_errors
from lab.report.help import HELP, help_page
from lab.report.settings import Asked
from lab.compare.strangers import shown
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
    from lab.compare.groups import SEED
    from lab.compare.runs import runs
    from lab.report import terminal, writing
    from lab.report.build import build

    folder = writing.place(asked.named(), asked.settings.out)
    found = runs(*asked.paths)
    left_out = [(path, reason) for path, reason in found.left_out if not writing.is_report(path)]
    if not found:
        first = [f"{shown(str(path))} {reason}" for path, reason in left_out[:1]]
        more = f" (and {len(left_out) - 1} more)" if len(left_out) > 1 else ""
        raise SettingError(f"no run is found: {first[0]}{more}" if first else "no run is found: a report is none")
    chosen = found.where(*asked.settings.where)
    if not chosen:
        raise SettingError(f"where={','.join(asked.settings.where)}: none of the {len(found)} runs meets it")
    usual = [*(name for name in chosen.varying if name != SEED), *(name for name in chosen.varying if name == SEED), "name"]
    chosen = chosen.sort(*([asked.settings.sort] if asked.settings.sort else usual))
    left_out = [(os.path.relpath(path), reason) for path, reason in left_out]
    made = build(chosen, left_out, asked.settings, folder)
    terminal.tell(chosen, made)
    writing.write(made, chosen, folder)
    terminal.tell_files(folder)
