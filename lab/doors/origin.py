"""The run of lab.train that left a checkpoint: its settings as overrides, put before those that are typed.

lab.measure measures a checkpoint, and `from=` begins another run from one.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lab.doors.words import Override, literal
from lab.run.cards import card_names, choices
from lab.run.folder import RunFolder
from lab.settings import SettingError

GROUPS = ("data", "model", "loss", "optimizer", "schedule", "trainer")
NUMBERS = ("steps", "epochs", "seed", "audit")
PLACE = ("trainer.threads", "trainer.accelerator")
"""Settings that say how and not what: they are no part of a folder's name."""
LAST, LAST_FINITE = "checkpoints/last.ckpt", "checkpoints/last_finite.ckpt"


class Chosen(Protocol):
    """What was typed: the names of the settings and groups, the overrides as Hydra reads them, the selected probes."""

    @property
    def names(self) -> Collection[str]: ...

    @property
    def parsed(self) -> Sequence[Override]: ...

    @property
    def probes(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class OriginRun:
    """A run, with its settings as plain values."""

    folder: RunFolder
    settings: Mapping[str, Any]

    @staticmethod
    def find(file: Path) -> "OriginRun | None":
        """The run whose folder holds checkpoints/`file`; None for other weights."""
        folder = RunFolder(file.parent.parent)
        provenance = folder.path / "provenance.json"
        if file.parent.name != "checkpoints" or not provenance.exists():
            return None
        try:
            settings = json.loads(provenance.read_text())["settings"]
            complete = all(isinstance(settings[group]["_target_"], str) for group in GROUPS)
        except (ValueError, KeyError, TypeError, OSError):
            complete = False
        if not complete:
            raise SettingError(
                f"{provenance} does not hold the settings of the run that left {file.name}; to measure the weights with "
                "settings of your own, copy the file elsewhere and set model= and data="
            )
        return OriginRun(folder, settings)

    def card(self, group: str) -> str:
        """The name of the card of the run in a group."""
        kind = self.settings[group]["_target_"]
        if (name := card_names().get(kind)) in choices(group):
            return str(name)
        raise SettingError(f"the run was made with {kind}, which no card in conf/{group}/ names; choose {group}=")

    def keeps(self, group: str, target: Chosen) -> bool:
        """Whether the card of the run is the one meant: no other one was typed."""
        if group not in self.settings:
            return False
        cards = [override.value() for override in target.parsed if override.key_or_group == group]
        return not cards or cards[-1] == self.card(group)

    def divergence(self, file: Path, step: int) -> str:
        """That the run diverged, where `file` is what it left then: the state of `step`; "" for any other checkpoint."""
        if file.name != Path(LAST_FINITE).name:
            return ""
        status, last = self.folder.read("status"), self.folder.path / LAST
        older = f"; {last} is older and holds the state of the optimizer too" if last.exists() else ""
        return (
            f"The run diverged at step {status.get('step')}: {status.get('reason')}. "
            f"Measured is its last finite state, at step {step}{older}"
        )

    def overrides(self, target: Chosen) -> list[str]:
        """What the run says of all that was not chosen anew: its cards, their settings, its seed and length."""
        words: list[str] = []
        for group in [group for group in GROUPS if self.keeps(group, target)]:
            words.append(f"{group}={self.card(group)}")
            words += settings_at(group, self.settings[group], but=("_target_", *PLACE))
        for probe in target.probes:
            values = self.settings.get("probe", {}).get(probe, {})
            words += settings_at(f"probe.{probe}", values, but=("_target_", "every"))
        return words + [f"{name}={literal(self.settings[name])}" for name in NUMBERS if name in self.settings]


def settings_at(place: str, values: Mapping[str, Any], *, but: tuple[str, ...]) -> list[str]:
    """The values of a card as overrides, without some: by their names, or by those with their place."""
    names = [name for name in values if name not in but and f"{place}.{name}" not in but]
    return [f"{place}.{name}={literal(values[name])}" for name in names]
