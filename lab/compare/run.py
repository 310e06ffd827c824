"""A run folder read as data: how it stands, what was set, what came out. Nothing is imported, resolved or followed outside.

Understood are the folders of `lab.train`, `lab.watch`, `lab.measure` and `lab.simulate`, wherever they were made, also while
the run is going on. Metrics are parsed when they are first asked for.
"""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lab.compare.metrics import FILE, Series, read_series, require_measurements
from lab.compare.origin import origin_of, parent_of, status_of
from lab.compare.strangers import (
    MAX_ENTRIES,
    MAX_JSON,
    Plain,
    Unreadable,
    flattened,
    number,
    opened,
    plain,
    read_json,
    require_folder,
    shown,
    there,
)
from lab.run.cards import card_names

MARKS = ("status.json", "provenance.json", "summary.json", "metrics.jsonl")
"""Files by which a folder is a run."""
QUARTER = 0.25
"""Share of a run, at its end, that a late mean is over."""
LATE = "late/"
"""late/<tag>: the mean of a tag over the last quarter of the run."""
NO_RESULTS = ("cost/", "error/")
"""Tags of which there is no late mean."""


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """What one folder holds. `Run.read(path)` makes it.

    path       the folder; name: its last part, as it may be shown.
    overrides  what was typed for it: setting -> text.
    status     finished | diverged | running | interrupted | failed | missing (nothing of it is there yet); reason, in words.
    step       updates made, as far as status.json says.
    settings   dotted name -> plain value, as they were recorded: optimizer is "sgd", optimizer.lr 0.1.
    summary    what summary.json says, as it is; facts: what provenance.json says of the data.
    origin     kind (train, watch, measure, simulate), seed, command, seconds, git, machine, data: the hash of the data.
    parent     {folder, step, changes} of a run that began from another one, else {}.
    """

    path: Path
    overrides: Mapping[str, str] = field(default_factory=dict)
    status: str = "missing"
    reason: str = ""
    step: int = 0
    settings: Mapping[str, Plain] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Plain] = field(default_factory=dict)
    origin: Mapping[str, Plain] = field(default_factory=dict)
    parent: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def read(path: Path | str, overrides: Sequence[str] | None = None) -> "Run":
        """The run in a folder, with the overrides such as "data.batch_size=32" of a cell of a grid; None: those of its
        command. Raises Unreadable, one line, for what is no run that can be read. A folder that is not there is a run that
        is missing.
        """
        path = Path(path).expanduser()
        if not there(path):
            return Run(path, typed(overrides or ()))
        require_folder(path)
        require_measurements(path)
        status, provenance, summary = (read_json(path, f"{name}.json") for name in ("status", "provenance", "summary"))
        origin = origin_of(provenance, status, summary)
        words = (
            overrides if overrides is not None else _command_words(str(origin["command"] or "")) or _hydra_words(path)
        )
        made = typed(words)
        stands, reason, step = status_of(path, status, begun=bool(provenance or summary) or there(path / FILE))
        return Run(
            path,
            made,
            stands,
            reason,
            step,
            _settings(provenance, made),
            summary,
            flattened(data) if isinstance(data := provenance.get("data"), dict) else {},
            origin,
            parent_of(provenance),
        )

    def __repr__(self) -> str:
        return f"Run({shown(str(self.path))}: {self.status}, step {self.step})"

    @property
    def name(self) -> str:
        return shown(self.path.absolute().name)

    @property
    def diverged(self) -> bool:
        return self.status == "diverged"

    @property
    def begin(self) -> int:
        """The first step of the run: what its curves have before is of its parent."""
        return int(self.parent.get("step", 0))

    @cached_property
    def measured(self) -> list["Run"]:
        """What lab.measure left in the folder, by step."""
        from lab.compare.search import measurements

        return measurements(self.path)

    @cached_property
    def _metrics(self) -> tuple[Series, int]:
        try:
            return read_series(self.path)
        except Unreadable:  # it has changed since it was looked at, or has tags without end
            return {}, 1

    @property
    def passed_over(self) -> int:
        """Lines of metrics.jsonl that are no measurement."""
        return self._metrics[1]

    @cached_property
    def series(self) -> Series:
        """Steps and values by tag; of what the run itself has not, what lab.measure found in its checkpoints."""
        own = self._metrics[0]
        if not self.measured:
            return own
        points: dict[str, dict[int, float]] = {}
        for run in self.measured:
            for tag, (steps, values) in run.series.items():
                if tag not in own:
                    points.setdefault(tag, {}).update(zip(steps, values, strict=True))
        return own | {tag: (sorted(of), [of[step] for step in sorted(of)]) for tag, of in points.items()}

    @cached_property
    def results(self) -> dict[str, Plain]:
        """What came out: the fields of the summary, the last value of every tag, and as late/<tag> its mean over the last
        quarter.
        """
        values = self.summary.get("values")
        fields = {**(values if isinstance(values, dict) else {}), **self.summary}
        found = {shown(k): plain(v) for k, v in fields.items() if not isinstance(v, list | dict)}
        last = {tag: values[-1] for tag, (_, values) in self.series.items()}
        late = {f"{LATE}{tag}": self.late(tag, QUARTER) for tag in last if not tag.startswith(NO_RESULTS)}
        return found | last | {name: value for name, value in late.items() if value == value}

    def late(self, tag: str, share: float) -> float:
        """The mean of `tag` over the last `share` of the run, of the last measurement at least; NaN where the run
        diverged or never measured it.
        """
        steps, values = self.series.get(tag, ([], []))
        if self.diverged or not values:
            return math.nan
        end = self.step or steps[-1]
        since = self.begin + (1 - share) * (end - self.begin)
        kept = [value for step, value in zip(steps, values, strict=True) if step >= since] or values[-1:]
        return sum(kept) / len(kept)

    def get(self, name: str) -> Plain:
        """A field, a setting or a result by its name; None where there is none."""
        if name in FIELDS:
            of_mine = {"name": self.name, "path": shown(str(self.path)), "status": self.status, "reason": self.reason}
            return {**self.origin, **of_mine, "step": self.step}.get(name)
        return self.settings[name] if name in self.settings else self.results.get(name)

    def number(self, name: str) -> float:
        """The same as a number, a batch of "full" in examples; NaN for what is none."""
        if (value := self.get(name)) == "full":
            value = self.facts.get("examples", self.facts.get("train"))
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                return math.nan
        return number(value)

    def label(self, settings: Sequence[str]) -> str:
        """The values of some settings, e.g. "batch_size=32, lr=0.1"."""
        parts = [(s, self.overrides.get(s, as_typed(self.settings.get(s)))) for s in settings]
        known = {*self.overrides, *self.settings}
        return ", ".join(f"{short(s)}={value}" for s, value in parts if s in known)


FIELDS = (
    *("name", "path", "kind", "status", "reason", "step", "seconds", "seed"),
    *("command", "git", "data", "machine", "parent"),
)
"""What every run has beside settings and results."""


def short(setting: str) -> str:
    """The last word of a setting: batch_size of data.batch_size."""
    return setting.replace("/", ".").rpartition(".")[2]


def as_typed(value: Plain) -> str:
    """A value as one types it, a number in as few digits as tell it.

    >>> as_typed(None), as_typed(True), as_typed(0.1), as_typed("full")
    ('null', 'true', '0.1', 'full')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def typed(words: Sequence[str]) -> dict[str, str]:
    """Overrides by the name of the setting."""
    pairs = (shown(word).lstrip("+").partition("=") for word in words)
    return {name: value for name, equals, value in pairs if equals}


def _command_words(command: str) -> list[str]:
    """The overrides in the command of a run of lab.train; none of any other program's."""
    try:
        words = shlex.split(command)
    except ValueError:
        return []
    return words[3:] if words[1:3] == ["-m", "lab.train"] else []


def _hydra_words(folder: Path) -> list[str]:
    """The overrides in .hydra/, all there is of a run that has not begun."""
    with opened(folder, ".hydra/overrides.yaml", MAX_JSON) as handle:
        lines = handle.read(MAX_JSON).decode(errors="replace").splitlines() if handle else []
    return [line[2:].strip().strip("'\"") for line in lines[:MAX_ENTRIES] if line.startswith("- ")]


def _settings(provenance: Mapping[str, Any], words: Mapping[str, str]) -> dict[str, Plain]:
    """The recorded settings by dotted names, a card by its name, and those typed that are not among them."""
    recorded = provenance.get("settings")
    if not isinstance(recorded, dict):
        return dict(words)
    found: dict[str, Plain] = {}
    for name, value in flattened(recorded).items():
        if name == "_target_" or not name.endswith("._target_"):
            found[name] = value
        else:
            group = name.removesuffix("._target_")
            if not group.startswith("probe."):
                found[group] = card_names().get(str(value), value)
    heads = {part for name in found for part in (name, name.partition(".")[0])}
    return found | {name: value for name, value in words.items() if name not in heads and not _of_hydra(name)}


def _of_hydra(name: str) -> bool:
    """Whether a word says where or by whom the run is made, or how runs are compared, and nothing of the run."""
    return name.replace("/", ".").partition(".")[0] in ("hydra", "compare", "launcher", "sweep")
