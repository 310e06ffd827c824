"""A run of lab.train that another command goes on from: its settings as overrides, put before those that are typed.

lab.measure measures a checkpoint that a run left, and `from=` begins a run from one.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lab.doors.arguments import opened
from lab.doors.words import Override, literal
from lab.run.cards import card_names, choices
from lab.run.code import GROUPS as CODE
from lab.run.code import named_code, require_typed
from lab.run.folder import RunFolder
from lab.settings import SettingError

GROUPS = ("data", "model", "loss", "optimizer", "schedule", "trainer")
NUMBERS = ("steps", "epochs", "seed", "audit")
OF_THE_MACHINE = ("trainer.threads", "trainer.accelerator")
"""Settings that are no matter of the run: it may have been made elsewhere."""
PLACE = (*OF_THE_MACHINE, "data.cache")
"""Settings that say how and not what: they are no part of a folder's name."""
LAST, LAST_FINITE = "checkpoints/last.ckpt", "checkpoints/last_finite.ckpt"


class Chosen(Protocol):
    """What was typed: the names of the settings and groups, the overrides as Hydra reads them, the selected probes; whether
    a page is asked for, and nothing run.
    """

    @property
    def names(self) -> Collection[str]: ...

    @property
    def parsed(self) -> Sequence[Override]: ...

    @property
    def probes(self) -> Sequence[str]: ...

    @property
    def shows(self) -> bool: ...


@dataclass(frozen=True)
class OriginRun:
    """A run, with its settings as plain values.

    They name cards that are in conf/, or in the folder `more` of --config-dir, and no other class or code: what a file says
    is never imported.
    """

    folder: RunFolder
    settings: Mapping[str, Any]
    more: str | None = None

    @staticmethod
    def find(file: Path, more: str | None = None) -> "OriginRun | None":
        """The run whose folder holds checkpoints/`file`; None for other weights."""
        folder = RunFolder(file.parent.parent)
        provenance = folder.path / "provenance.json"
        if file.parent.name != "checkpoints" or not provenance.exists():
            return None
        try:
            settings = json.loads(provenance.read_text())["settings"]
            complete = all(isinstance(settings[group]["_target_"], str) for group in GROUPS) and _plain(settings)
        except (ValueError, KeyError, TypeError, OSError):
            complete = False
        if not complete:
            raise SettingError(
                f"{provenance} does not hold the settings of the run that left {file.name}; to measure the weights with "
                "settings of your own, copy the file elsewhere and set model= and data="
            )
        return OriginRun(folder, settings, more)

    def card(self, group: str) -> str:
        """The name of the card of the run in a group."""
        kind = self.settings[group]["_target_"]
        if (name := card_names(group, self.more).get(kind)) in choices(group, self.more):
            return str(name)
        hers = f" or {self.more}/{group}/" if self.more else ""
        cure = "" if self.more else ", or type the --config-dir that has it"
        raise SettingError(
            f"the run was made with {kind}, which no card in conf/{group}/{hers} names; choose {group}={cure}"
        )

    def keeps(self, group: str, target: Chosen) -> bool:
        """Whether the card of the run is the one meant: no other one was typed."""
        if group not in self.settings:
            return False
        cards = [override.value() for override in target.parsed if override.key_or_group == group]
        return not cards or cards[-1] == self.card(group)

    def means_its_data(self, target: Chosen) -> bool:
        """Whether nothing of the data was chosen anew: typing the same code again is no such choice."""
        path = named_code(self.settings).get("data")
        same = path is not None and [path] == [o.value() for o in target.parsed if o.key_or_group == "data.path"]
        again = {"data", "data.path"} if same and self.keeps("data", target) else set()
        return not any(name.partition(".")[0] == "data" for name in {*target.names} - again)

    def data_cure(self, aim: str) -> str:
        """What makes the data of today those that are meant; `aim`: what for."""
        examples = f"data.examples={literal(self.settings['data'].get('examples', 'all'))}"
        word = examples if "data" in named_code(self.settings) else f"data={self.card('data')}"
        return f"to {aim} on what is there now add {word}"

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
        """What the run says of all that was not chosen anew: its cards, their settings, its seed and length. Raises
        SettingError where it names code that was not typed again.
        """
        words: list[str] = []
        kept = [group for group in GROUPS if self.keeps(group, target)]
        if not target.shows:  # a page of settings runs nothing
            require_typed(self.settings, target.names, kept)
        for group in kept:
            words.append(f"{group}={self.card(group)}")
            of_code = ("path",) if group in CODE else ()  # comes from what is typed, whatever a file says
            words += settings_at(group, self.settings[group], but=("_target_", *of_code, *OF_THE_MACHINE))
        for probe in target.probes:
            values = self.settings.get("probe", {}).get(probe, {})
            words += settings_at(f"probe.{probe}", values, but=("_target_", "every"))
        return words + [f"{name}={literal(self.settings[name])}" for name in NUMBERS if name in self.settings]


def settings_at(place: str, values: Mapping[str, Any], *, but: tuple[str, ...]) -> list[str]:
    """The values of a card as overrides, without some: by their names, or by those with their place."""
    names = [name for name in values if name not in but and f"{place}.{name}" not in but]
    return [opened(f"{place}.{name}={literal(values[name])}") for name in names]


def _plain(settings: Mapping[str, Any]) -> bool:
    """Whether cards have settings with plain names only: another one could be read as a setting of its own."""
    cards = [*(settings[group] for group in GROUPS), *(settings.get("probe") or {}).values()]
    return all(str(name).isidentifier() for values in cards if isinstance(values, dict) for name in values)
