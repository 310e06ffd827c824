"""python -m lab.report OUTPUTS...: many runs as one page, the same as Markdown, and a table.

The runs may be of one sweep or several, finished or under way, made here or by a stranger: their folders are data. This is
the door only: torch is not loaded, and matplotlib once the words are known to be sound.
"""

import sys

from lab.doors.errors import one_line_errors
from lab.report.help import HELP, help_page
from lab.report.settings import ReportWords


def main() -> None:
    """The command line."""
    words = sys.argv[1:]
    with one_line_errors("report"):
        if {*HELP} & {*words} or not words:
            print(help_page())
        else:
            report(ReportWords.of(words))


def report(asked: ReportWords) -> None:
    """Read the runs, write what is known of them, and say how they stand. Raises SettingError where there are none."""
    from lab.report import terminal, writing
    from lab.report.build import gather

    folder = writing.place(asked.named(), asked.settings.out)
    runs, made = gather(asked, folder)
    writing.write(made, runs, folder)
    terminal.tell(runs, made, folder)
    terminal.tell_files(folder)
