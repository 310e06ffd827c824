"""What measuring costs with a budget and without: the share of the training time, and lambda_max of both.

    python scripts/benchmarks/governor.py --images DIR

Every run is made with probe.budget=0.2 (or what `--budget` says), twice with `--products`, and once without a budget as far
as `--free` measurements go, with a rhythm that has the first steps of the governed run among its own. A line for each run:

    share      of the training time that measurements took, or of 10 s where these are more
    foretold   the first measurement, over what it took
    deviation  of lambda_max at the steps both have measured, in stated errors: median and largest
    same       whether the two runs in products are equal, number for number
"""

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lab.run.folder import RunFolder

RUNS = {
    "digits, batch 32": ("data=digits", "data.batch_size=32", "steps=6000"),
    "digits, full batch at the edge": ("experiment=quickstart", "steps=6000"),
    "CIFAR-10, MLP, batch 128": ("data=image_folder", "data.batch_size=128", "optimizer.lr=0.05", "steps=6000"),
    "CIFAR-10, ResNet-20, batch 128": (
        "data=image_folder", "model=resnet", "data.batch_size=128", "optimizer.lr=0.1", "steps=600",
    ),
}  # fmt: skip
QUIET = ("trainer.evaluate_every=null", "trainer.log_every=10", "hydra.run.dir={}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--images", help="folder of CIFAR-10 with train/<class>/*; without it only the digits")
    options.add_argument("--only", default="", help="runs whose name holds this")
    options.add_argument("--budget", default="0.2")
    options.add_argument(
        "--free", type=int, default=40, help="measurements of the run without a budget; 0: no such run"
    )
    options.add_argument("--steps", type=int, help="of every run")
    options.add_argument("--products", type=int, default=200, help="of the two runs that count these; 0: none")
    options.add_argument("settings", nargs="*", help="more settings of every run, e.g. data.examples=1000")
    chosen = options.parse_args()
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, settings in RUNS.items():
        if chosen.only not in name or ("data=image_folder" in settings and not chosen.images):
            continue
        if "data=image_folder" in settings:
            settings += (f"data.root={chosen.images}",)
        settings += tuple(chosen.settings)
        if chosen.steps:
            settings = (*(word for word in settings if not word.startswith("steps=")), f"steps={chosen.steps}")
        with tempfile.TemporaryDirectory() as scratch:
            print(f"{name}: {line(Path(scratch), settings, chosen)}", flush=True)


def line(scratch: Path, settings: tuple[str, ...], chosen: argparse.Namespace) -> str:
    """All runs of one kind, in a line."""
    governed = run(scratch / "governed", *settings, f"probe.budget={chosen.budget}")
    account = governed.read("summary")["budget"]
    text = f"{account['spent']:.1f} s of {account['allowed']:.1f} s on {account['training_seconds']:.1f} s of training"
    text += f" ({account['spent'] / account['allowed']:.2f} of the budget); {'; '.join(account['decisions'])}"
    text += f"; the first measurement was foretold at {foretold(account):.2f} of what it took"
    if chosen.products:
        words = (*settings, f"probe.budget=products:{chosen.products}")
        first, second = (measured(run(scratch / name, *words)) for name in ("first", "second"))
        text += f"; products: {'same' if first == second else 'DIFFERENT'}"
    if chosen.free:
        words = ungoverned(governed.series("sharpness/lambda_max")[0], chosen.free)
        typed = [word for word in settings if not word.startswith("steps=")]
        free = run(scratch / "free", *typed, *words, "probe.budget=null")
        text += f"; without a budget ({' '.join(words)}): {deviation(governed, free)}"
    return text


def foretold(account: dict[str, Any]) -> float:
    """The first sharpness as foretold, over what it took."""
    first = account["first"]["sharpness"]
    return first["foretold"] / first["spent"]


def ungoverned(steps: Sequence[int], most: int) -> tuple[str, ...]:
    """A rhythm and a length of at most so many measurements, that have as many of the first `steps` as they can."""
    best = (steps[-1], 1)
    for count in range(2, len(steps)):
        every = math.gcd(*steps[:count])
        if steps[count - 1] // every < most:
            best = (every, steps[count - 1] + 1)
    return f"probe.sharpness.every={best[0]}", f"steps={best[1]}"


def run(folder: Path, *settings: str) -> RunFolder:
    """One run, whose lines are shown."""
    words = [word.format(folder) for word in QUIET]
    command = [sys.executable, "-m", "lab.train", *settings, *words]
    result = subprocess.run(command, capture_output=True, text=True)
    for text in result.stderr.splitlines():
        if "probe.budget" in text or "products" in text or result.returncode:
            print(f"    {text}", flush=True)
    return RunFolder(folder)


def measured(folder: RunFolder) -> str:
    """All series but those of the clock, as text."""
    series = {tag: points for tag, points in folder.all_series().items() if not tag.endswith("/seconds")}
    return json.dumps(series, sort_keys=True)


def deviation(governed: RunFolder, free: RunFolder) -> str:
    """How far lambda_max is from that without a budget, at the steps both have, in stated errors."""
    values, errors = (
        dict(zip(*governed.series(f"{head}sharpness/lambda_max"), strict=True)) for head in ("", "error/")
    )
    true = dict(zip(*free.series("sharpness/lambda_max"), strict=True))
    doubt = dict(zip(*free.series("error/sharpness/lambda_max"), strict=True))
    steps = sorted(values.keys() & true.keys())
    if not steps:
        return "no step in common"
    off = [abs(values[t] - true[t]) / (errors[t] + doubt[t]) for t in steps]
    relative = statistics.median(errors[t] / values[t] for t in steps)
    return (
        f"{len(steps)} steps in common: off by {statistics.median(off):.2f} errors (largest {max(off):.2f}), an error being "
        f"{100 * relative:.2g} % of lambda_max"
    )


if __name__ == "__main__":
    main()
