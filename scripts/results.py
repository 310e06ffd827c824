"""The tables of docs/results/ out of the folders of the runs: nobody types a measured number into a page.

    python scripts/results.py OUTPUTS [FINDING=CPU_SECONDS ...]   reads the findings that are named, then writes tables
    python scripts/results.py                                     writes the tables of all pages anew from the numbers

OUTPUTS is the folder where the commands of the pages leave their runs. What is read goes to docs/results/numbers.json, and
from there into the pages, between <!-- NAME --> and <!-- end -->.
"""

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import lab
from lab.run.folder import RunFolder

PAGES = Path(__file__).parents[1] / "docs/results"
NUMBERS = PAGES / "numbers.json"
QUARTER = 0.25
"""Share of a run, at its end, that is averaged over."""
Row = list[str]
Finding = tuple[Row, list[Row], list[RunFolder]]
"""Head and rows of a table, and the runs that they are of."""


def tagged(run: RunFolder, tag: str) -> dict[int, float]:
    """The values of a tag by step."""
    return dict(zip(*run.series(tag), strict=True))


def late(run: RunFolder, tag: str, since: float | None = None) -> float:
    """The mean over the last quarter of the run, or from step `since` on; NaN for a run that diverged."""
    status = run.read("status")
    begin = (1 - QUARTER) * status["step"] if since is None else since
    values = [value for step, value in tagged(run, tag).items() if step >= begin]
    return math.nan if status["status"] == "diverged" or not values else sum(values) / len(values)


def under(folder: Path) -> list[RunFolder]:
    """The finished or diverged runs under a folder, in the order of their names."""
    runs = [RunFolder(file.parent) for file in sorted(folder.rglob("summary.json"))]
    return [run for run in runs if run.read("status").get("status") in ("finished", "diverged")]


def setting(run: RunFolder, name: str) -> Any:
    value = run.read("provenance")["settings"]
    for part in name.split("."):
        value = value[part]
    return value


def mean_and_error(values: Sequence[float]) -> str:
    """Mean and standard error, in three digits."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return "diverged"
    mean = sum(known) / len(known)
    if len(known) < 2:
        return f"{mean:.3g}"
    error = math.sqrt(sum((value - mean) ** 2 for value in known) / (len(known) - 1) / len(known))
    return f"{mean:.3g} ± {error:.1g}" + (f", {len(values) - len(known)} diverged" if len(known) < len(values) else "")


OPTIMISERS = {
    "gd": "gradient descent",
    "heavy_ball": "heavy ball, b = .9",
    "nesterov": "Nesterov, b = .9",
    "adam": "Adam",
    "adamw": "AdamW, d = .1",
    "rmsprop": "RMSprop",
}


def edge(outputs: Path) -> Finding:
    head = ["optimiser", "lr", "threshold", "in numbers", "at the edge from", "lambda_max over it", "loss at the end"]
    rows, runs = [], []
    for name, words in OPTIMISERS.items():
        [run] = [run for run in under(outputs / "edge") if run.path.name.startswith(f"{name},")]
        summary = run.read("summary")
        level, low, high = (summary[key] for key in ("level", "level_low", "level_high"))
        threshold = [*tagged(run, "sharpness/threshold").values()][-1]
        cells = [f"{setting(run, 'optimizer.lr'):g}", summary["threshold_formula"], f"{threshold:.4g}"]
        rows.append(
            [
                words,
                *cells,
                f"step {summary['entry_step']}",
                f"{level:.2f} ({low:.2f} to {high:.2f})",
                f"{summary['last_loss']:.2g}",
            ]
        )
        runs.append(run)
    return head, rows, runs


def phase(outputs: Path) -> Finding:
    runs = under(outputs / "phase_diagram")
    size = {run.path: setting(run, "data.batch_size") for run in runs}
    lrs = sorted({setting(run, "optimizer.lr") for run in runs})
    rows = []
    for batch in sorted(set(size.values()), key=lambda batch: math.inf if batch == "full" else batch):
        row = [f"{batch}"]
        for lr in lrs:
            [run] = [run for run in runs if size[run.path] == batch and setting(run, "optimizer.lr") == lr]
            tags = ("sharpness/lambda_max", "sharpness/ratio", "batch_sharpness/ratio")
            top, ratio, sharp = (late(run, tag) for tag in tags)
            row.append(f"{top:.3g}; {ratio:.2f}; {sharp:.2f}" if top == top else "diverged")
        rows.append(row)
    return ["batch size", *(f"lr {lr:g}" for lr in lrs)], rows, runs


def forks(outputs: Path) -> Finding:
    base = RunFolder(outputs / "base")
    runs = [run for run in under(outputs / "train") if run.read("provenance").get("parent")]
    rows, tag = [], "sharpness/lambda_max"
    groups: dict[tuple[int, float, int], list[RunFolder]] = {}
    for run in runs:
        key = run.read("provenance")["parent"]["step"], setting(run, "optimizer.lr"), setting(run, "data.batch_size")
        groups.setdefault(key, []).append(run)
    end = base.read("status")["step"]
    for (step, lr, batch), group in sorted(groups.items(), key=lambda item: (item[0][0], item[0][1], -item[0][2])):
        since = end - QUARTER * (end - step)
        went_on = late(base, tag, since)
        tops, losses = ([late(run, one, since) for run in group] for one in (tag, "train/loss"))
        row = [f"{step}", f"{lr:g}", f"{batch}", mean_and_error(tops), mean_and_error([top / went_on for top in tops])]
        row.append(mean_and_error([top * lr / 2 for top in tops]))
        rows.append([*row, mean_and_error(losses)])
    return (
        ["from step", "lr", "batch", "lambda_max", "over that of the run that went on", "x lr/2", "loss"],
        rows,
        [base, *runs],
    )


def spectra(outputs: Path) -> Finding:
    [run] = under(outputs / "noise_spectra")
    tags = {
        "lambda_1(H)": "spectrum/lambda_1",
        "lambda_10(H)": "spectrum/lambda_10",
        "lambda_1(D)": "noise/lambda_max",
        "lambda_10(D)": "noise/lambda_10",
        "Tr D": "noise/trace",
        "effective rank of D": "noise/effective_rank",
        "cos(D, H)": "noise/cosine",
        "u'Du / u'Hu": "noise/slope",
        "2L/K": "noise/slope_theory",
    }
    columns = {name: tagged(run, tag) for name, tag in tags.items()}
    steps = sorted(columns["lambda_1(D)"])
    rows = [[f"{step}", *(f"{column[step]:.3g}" for column in columns.values())] for step in steps]
    return ["step", *tags], rows, [run]


def crossing(series: Mapping[int, float], level: float) -> float:
    """The step at which a series is first at `level`, between two measurements on a line."""
    steps = sorted(series)
    for before, after in pairwise(steps):
        if series[before] < level <= series[after]:
            return before + (after - before) * (level - series[before]) / (series[after] - series[before])
    return math.nan


def beside(name: str, published: float, here: float, form: str = ".0f") -> Row:
    return [name, f"{published:g}", f"{here:{form}}", f"{100 * (here / published - 1):+.0f} %"]


def central_flows(outputs: Path) -> Finding:
    """arXiv 2410.24206, the figure of its repository."""
    [run] = under(outputs / "peer_central_flows")
    top, fourth = tagged(run, "sharpness/lambda_max"), tagged(run, "sharpness/lambda_4")
    peak = max(top, key=lambda step: top[step])
    settled = [value for step, value in top.items() if step >= 700]
    rows = [
        beside("sharpness reaches 100 at step", 515, crossing(top, 100)),
        beside("it is highest at step", 585, peak),
        beside("highest value", 123, top[peak], ".1f"),
        beside("lowest value from step 700 on", 97, min(settled), ".1f"),
        beside("highest value from step 700 on", 110, max(settled), ".1f"),
        beside("fourth eigenvalue at step 1000", 80, fourth[max(fourth)], ".1f"),
    ]
    return ["", "published", "here", "difference"], rows, [run]


def escape(outputs: Path) -> Finding:
    run = RunFolder(outputs / "escape_kramers_sgd/default")
    return ["", "theory", "measured", "agrees"], run.read("summary")["table"], [run]


FINDINGS: Mapping[str, Callable[[Path], Finding]] = {
    "edge": edge,
    "phase": phase,
    "forks": forks,
    "spectra": spectra,
    "escape": escape,
    "central_flows": central_flows,
}


def made(runs: Sequence[RunFolder], cpu: str) -> str:
    """Where the numbers come from, in one line."""
    facts = [run.read("provenance") for run in runs]
    wall = sum(run.read("summary")["seconds"] for run in runs)
    parts = [f"{len(runs)} runs" if len(runs) > 1 else "One run"]
    if images := distinct(fact.get("data", {}).get("examples") for fact in facts):
        weights = distinct(fact["model"]["parameters"] for fact in facts)
        parts += [f"{images} images", f"{weights} weights"]
    parts.append(f"seed {distinct(fact['settings']['seed'] for fact in facts)}")
    parts.append(f"lab {lab.__version__}, torch {distinct(fact['versions']['torch'] for fact in facts)}")
    parts.append(f"one thread of {processor()}")
    price = f"{cpu} s of CPU, " if cpu else ""
    return f"{', '.join(parts)}; {price}{wall:.0f} s by the clock on a machine of 2 cores that other work kept busy."


def processor() -> str:
    names = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), flags=re.M)
    return names[0] if names else "an unknown processor"


def distinct(values: Iterable[Any]) -> str:
    """The different values, in order, less those that are not known."""
    return ", ".join(map(str, sorted({value for value in values if value is not None})))


def block(finding: Mapping[str, Any]) -> str:
    """What stands on a page between its marks."""
    head, rows = finding["head"], finding["rows"]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", finding["made"]])


def filled(page: str, numbers: Mapping[str, Any]) -> str:
    """The text of a page with its tables as the numbers have them."""

    def table(match: re.Match[str]) -> str:
        made = f"\n{block(numbers[match[1]])}\n\n" if match[1] in numbers else ""
        return f"<!-- {match[1]} -->\n{made}<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", table, page, flags=re.S)


def main(words: Sequence[str]) -> None:
    numbers = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {}
    for word in words[1:]:
        name, _, cpu = word.partition("=")
        if name not in FINDINGS:
            sys.exit(f"{name} is no finding; expected some of {', '.join(FINDINGS)}")
        try:
            head, rows, runs = FINDINGS[name](Path(words[0]))
            if not rows:
                raise ValueError
        except (KeyError, ValueError):  # a run is not there, or never measured what the table has
            sys.exit(f"{words[0]} has not the runs of {name}; run the command of its page there")
        numbers[name] = {"head": head, "rows": rows, "made": made(runs, cpu)}
    NUMBERS.write_text(json.dumps(dict(sorted(numbers.items())), indent=1, ensure_ascii=False) + "\n")
    for page in PAGES.glob("*.md"):
        page.write_text(filled(page.read_text(), numbers))


if __name__ == "__main__":
    main(sys.argv[1:])
