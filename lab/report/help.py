"""The help page of lab.report: what to type, and every setting with its text, as its card has it."""

import textwrap

from lab.report.settings import ReportSettings
from lab.run.cards import typed
from lab.settings import knobs

HELP = ("--help", "-h")
WIDTH = 118
OPENING = """\
python -m lab.report OUTPUTS... [setting=value ...]        many runs as one page, as Markdown and as a table

Try first
  python -m lab.train -m optimizer.lr=0.1,0.3,0.9 data.batch_size=16,full seed=0,1 steps=150
  python -m lab.report outputs/train                               its page: outputs/train/report/index.html
  python -m lab.report outputs/train x=seed tags=[sharpness/lambda_max,train/loss]
  python -m lab.report 'outputs/**' /data/of/a/colleague where=[optimizer=sgd,steps>=1000] out=all_of_it

OUTPUTS are run folders, folders of them at any depth, and globs in quotes: sweeps of lab.train, watched loops,
measurements and simulations, wherever they were made. They may be under way: how each stands is printed, and the
report is of now. A folder that is damaged is named and left out. Nothing that a folder says is imported or followed.

Set"""
CLOSING = """
The folder of the report holds index.html (one file, no network: figures, a table that sorts and filters, commands),
report.md with its figures (the same for a forge), and table.csv (every setting and result)."""


def help_page() -> str:
    """The whole page."""
    lines = []
    for name, knob in knobs(ReportSettings).items():
        default = "null" if knob.default is None else typed(knob.default)
        folded = textwrap.wrap(f"{knob} (default: {default})", WIDTH - 28)
        lines += [f"  {name + '=':<26}{folded[0]}", *(" " * 28 + line for line in folded[1:])]
    return "\n".join([OPENING, *lines, CLOSING])
