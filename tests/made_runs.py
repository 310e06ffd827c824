"""Run folders written by hand, as `lab.train` leaves them: of any status, with any curves, by the hundred.

`python tests/made_runs.py FOLDER 500 2000` writes 500 runs with 2000 lines of metrics each.
"""

import json
import math
import os
import random
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TAGS = (
    *("train/loss", "train/accuracy", "train/grad_norm", "train/update_norm", "train/lr"),
    *("sharpness/lambda_max", "sharpness/threshold", "sharpness/ratio", "sharpness/directional", "sharpness/loss"),
    *("sharpness/phase", "error/sharpness/lambda_max", "cost/sharpness/seconds", "cost/sharpness/matvecs"),
    *("batch_sharpness/ratio", "batch_sharpness/ratio_of_means", "noise/trace", "noise/scale"),
    *("test/loss", "test/accuracy"),
)
CARDS = {"optimizer": "lab.optim.optimizers.Sgd", "data": "lab.data.digits.Digits", "model": "lab.models.mlp.Mlp"}

DEFAULTS = {"optimizer.lr": 0.1, "data.batch_size": 32, "model.widths": [8, 8], "seed": 0, "steps": 100}


def settings_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings out of dotted ones, with their cards, batches of 32 and a rate of 0.1 unless told otherwise."""
    nested: dict[str, Any] = {group: {"_target_": card} for group, card in CARDS.items()}
    for name, value in (DEFAULTS | dict(values)).items():
        *groups, last = name.split(".")
        level = nested
        for group in groups:
            level = level.setdefault(group, {})
        level[last] = value
    return nested


def made_run(
    folder: Path,
    values: Mapping[str, Any] = {},
    series: Mapping[str, Sequence[float] | float] = {},
    *,
    status: str = "finished",
    step: int = 100,
    summary: Mapping[str, Any] = {},
    **status_fields: Any,
) -> Path:
    """One run with settings by their dotted names; a series is its values at equal distances, or one value at every tenth of
    the run. status "running": of a process that is gone, unless pid and host say otherwise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for tag, points in series.items():
        points = points if isinstance(points, Sequence) else [points] * 10
        lines += [(round(i * step / len(points)), tag, float(value)) for i, value in enumerate(points)]
    text = "".join(
        json.dumps({"step": t, "tag": tag, "value": v}) + "\n" for t, tag, v in sorted(lines, key=lambda x: x[0])
    )
    (folder / "metrics.jsonl").write_text(text)
    words = [f"{name}={value}" for name, value in values.items()]
    provenance = {
        "command": " ".join(["python -m lab.train", *words]),
        "settings": settings_of(values),
        "data": {"examples": 300, "classes": "0, 1", "sha256": "65e5b4619795efb4"},
        "hardware": {"machine": "Linux-x86_64", "cores": 2, "accelerator": None},
        "git": {"commit": "fb2dfe81fad2ac75211f8983cc8c956924a45dea", "diff": ""},
    }
    write(folder, "provenance", provenance)
    gone = {"pid": 2**22 + 1, "host": socket.gethostname()}
    write(folder, "status", {"status": status, "step": step, "reason": "", "seconds": 1.5} | gone | status_fields)
    if status in ("finished", "diverged"):
        phase = "diverged" if status == "diverged" else "below the edge"
        write(folder, "summary", {"phase": phase, "entry_step": None, "steps": step, "seconds": 1.5} | dict(summary))
    return folder


def write(folder: Path, name: str, content: Any) -> None:
    (folder / f"{name}.json").write_text(json.dumps(content))


def many_runs(root: Path, runs: int, lines: int, seed: int = 0) -> None:
    """A grid of rates and batch sizes over seeds, `lines` of metrics each, the same for the same seed."""
    draw = random.Random(seed)
    sizes = [2**k for k in range(3, 11)]
    for number in range(runs):
        batch, lr = sizes[number % 8], 0.01 * 2 ** (number // 8 % 8)
        phase = draw.choice(["below the edge", "progressive sharpening", "edge of stability"])
        lost = draw.random() < 0.05
        points = lines // len(TAGS)
        series = {tag: [math.exp(-i / points) + 0.1 * draw.random() for i in range(points)] for tag in TAGS}
        made_run(
            root / f"{number:04d}",
            {"data.batch_size": batch, "optimizer.lr": lr, "seed": number // 64},
            series,
            status="diverged" if lost else "finished",
            step=1000,
            summary={"entry_step": draw.choice([None, 120, 400])} | ({} if lost else {"phase": phase}),
        )


if __name__ == "__main__":
    many_runs(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    print(os.path.abspath(sys.argv[1]))
