"""debug=true: everything that a run does, once, in three steps: does it work, and how long will it take?

Every selected probe measures, on a small probe set; the loss is audited, evaluated, logged, drawn and checkpointed. Such a
run lies in outputs/debug/, and begins anew each time.
"""

import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from time import monotonic
from typing import Any

import pytorch_lightning as pl

from lab.doors.parts import Parts
from lab.probes import Probe
from lab.run.folder import RunFolder

STEPS = 3
EXAMPLES = 64
"""Of the probe set, where it would be larger."""
LEFT = ("arrays", "figures", "checkpoints", "wandb", "mlflow", "measure", ".hydra")
"""Folders that a run leaves."""
FILES = ("provenance", "status", "summary", "loggers")


def trial(parts: Parts) -> Parts:
    """The same run for three steps, with its probes on small probe sets and the audit on."""
    num_train = len(parts.dataset.train)
    probes = [_small(probe, num_train) for probe in parts.settings.probes]
    settings = replace(parts.settings, probes=probes, audit=True)
    return replace(parts, settings=settings, total=min(STEPS, parts.total))


def clear(folder: RunFolder) -> None:
    """Take away what the debug run before has left in its folder."""
    for name in LEFT:
        shutil.rmtree(folder.path / name, ignore_errors=True)
    for name in ("metrics.jsonl", "metrics.csv", "mlflow.db", *(f"{name}.json" for name in FILES)):
        (folder.path / name).unlink(missing_ok=True)
    for events in folder.path.glob("events.out.tfevents.*"):
        events.unlink()


class Stopwatch(pl.Callback):
    """The time of every chunk of updates (s), measurements before it left out: it stands behind the other callbacks."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begin = 0.0

    def on_train_batch_start(self, *arguments: Any) -> None:
        self._begin = monotonic()

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.seconds.append(monotonic() - self._begin)


def told(real: Parts, tried: Parts, latest: Mapping[str, float], watch: Stopwatch, loggers: Iterable[str]) -> str:
    """What was tried, and about how long the run itself takes: its steps as the fastest of those made, each measurement as
    the one made, in proportion to its probe set.
    """
    step = min(watch.seconds, default=math.nan)
    parts = [f"{real.total} steps {_time(step * real.total)}"]
    measuring, whats = 0.0, []
    for mine, small in zip(real.settings.probes, tried.settings.probes, strict=True):
        seconds = latest.get(f"cost/{mine.name}/seconds", math.nan)
        count = mine.due(0) * len(range(0, real.total, mine.rhythm)) + mine.at_end
        wanted, had = (_examples(probe, len(real.dataset.train)) for probe in (mine, small))
        share = f" on {had} of {wanted} examples" if had < wanted else ""
        if not math.isfinite(seconds):
            whats.append(f"{mine.name} was not measured")
            continue
        whats.append(f"{mine.name}{share}")
        measuring += (cost := seconds * count * wanted / had)
        parts.append(f"{mine.name} {count} times {_time(cost)}")
    if (budget := real.settings.budget) is not None and budget.products is None:
        allowed = budget.allowed(step, real.total)
        if measuring > allowed:
            parts.append(f"which probe.budget={budget} keeps to {_time(allowed)}")
        measuring = min(measuring, allowed)
    total = step * real.total + measuring
    probes = f"probes: {', '.join(whats)}" if whats else "no probe"
    return (
        f"debug: {tried.total} of {real.total} steps; {probes}; audit, evaluation, checkpoint, figure; loggers: "
        f"{', '.join(loggers) or 'none'}. The run itself takes about {_time(total)}: {', '.join(parts)}."
    )


def _small(probe: Probe, num_train: int) -> Probe:
    """The probe with a probe set of EXAMPLES, where it has a larger one."""
    named = is_dataclass(probe) and any(field.name == "examples" for field in fields(probe))
    if not named or _examples(probe, num_train) <= EXAMPLES:
        return probe
    return replace(probe, examples=EXAMPLES)  # type: ignore[type-var]


def _examples(probe: Probe, num_train: int) -> int:
    """How many examples the probe set of a probe has."""
    from lab.probes.probe_set import AUTO_ALL, AUTO_EXAMPLES

    examples = getattr(probe, "examples", "auto")
    if examples == "auto":
        return num_train if num_train <= AUTO_ALL else AUTO_EXAMPLES
    return num_train if examples == "all" else min(int(examples), num_train)


def _time(seconds: float) -> str:
    """A time in two digits: 0.35 s, 12 s, 3.5 min, 2.1 h."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.2g} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
