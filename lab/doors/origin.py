"""A run of lab.train that another command goes on from: its settings as overrides, put before those that are typed.

lab.measure measures a checkpoint that a run left, and `from=` begins a run from one.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.doors.arguments import opened
from lab.doors.pages import AROUND
from lab.doors.words import Override, literal
from lab.run.cards import card_names, choices
from lab.run.code import named_code, require_typed
from lab.run.folder import RunFolder
from lab.run.length import LENGTH, updates
from lab.settings import SettingError

GROUPS = ("data", "model", "loss", "optimizer", "schedule", "trainer")
NUMBERS = ("steps", "epochs", "seed", "audit")
PLACE = ("trainer.threads", "trainer.accelerator", "data.cache")
"""Settings that say how and not what: those of the run are not taken over where its weights are measured."""
NOT_INHERITED = ("trainer.threads", "trainer.state", "trainer.keep", "data.cache")
"""What a run that begins from another does not have from it."""
LAST, LAST_FINITE = "checkpoints/last.ckpt", "checkpoints/last_finite.ckpt"


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
        if file.parent.name != "checkpoints" or not (folder.path / "provenance.json").exists():
            return None
        return OriginRun.of(
            folder,
            f"of the run that left {file.name}; to measure the weights with settings of your own, copy the file elsewhere "
            "and set model= and data=",
            more,
        )

    @staticmethod
    def of(folder: RunFolder, whose: str = "of a run", more: str | None = None) -> "OriginRun":
        """The run in a folder. Raises SettingError, whose line ends in `whose`, where there are no settings of one."""
        provenance = folder.path / "provenance.json"
        try:
            settings = json.loads(provenance.read_text())["settings"]
            complete = all(isinstance(settings[group]["_target_"], str) for group in GROUPS) and _plain(settings)
        except (ValueError, KeyError, TypeError, OSError):
            complete = False
        if not complete:
            raise SettingError(f"{provenance} does not hold the settings {whose}")
        return OriginRun(folder, settings, more)

    def card(self, group: str) -> str:
        """The name of the card of the run in a group."""
        return self._name(self.settings[group]["_target_"], group)

    def _name(self, kind: str, group: str) -> str:
        """The card of a class, whose name was read from a file: nothing is imported by it."""
        if (name := card_names(self.more).get(kind)) in choices(group, self.more):
            return str(name)
        hers = f" or {self.more}/{group}/" if self.more else ""
        cure = "" if self.more else ", or type the --config-dir that has it"
        raise SettingError(
            f"the run was made with {kind}, which no card in conf/{group}/{hers} names; choose {group}={cure}"
        )

    def keeps(self, group: str, typed: Sequence[Override]) -> bool:
        """Whether the card of the run is the one meant: no other one was typed."""
        if group not in self.settings:
            return False
        cards = [override.value() for override in typed if override.key_or_group == group]
        return not cards or cards[-1] == self.card(group)

    def means_its_data(self, typed: Sequence[Override]) -> bool:
        """Whether nothing of the data was chosen anew: typing the same code again is no such choice."""
        path = named_code(self.settings).get("data")
        same = path is not None and [path] == [o.value() for o in typed if o.key_or_group == "data.path"]
        again = {"data", "data.path"} if same and self.keeps("data", typed) else set()
        names = {override.key_or_group for override in typed}
        return not any(name.partition(".")[0] == "data" for name in names - again)

    @property
    def data_cure(self) -> str:
        """What makes the data of today those that are meant."""
        examples = f"data.examples={literal(self.settings['data'].get('examples', 'all'))}"
        word = examples if "data" in named_code(self.settings) else f"data={self.card('data')}"
        return f"to measure on what is there now add {word}"

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

    def overrides(self, typed: Sequence[Override], probes: Sequence[str]) -> list[str]:
        """What the run says of all that was not chosen anew, for a measurement: cards, their settings, seed and length."""
        words = self._cards(typed, PLACE)
        for probe in probes:
            values = self.settings.get("probe", {}).get(probe, {})
            words += _settings(f"probe.{probe}", values, but=("_target_", "every"))
        return words + [f"{name}={literal(self.settings[name])}" for name in NUMBERS if name in self.settings]

    def inherited(self, typed: Sequence[Override]) -> list[str]:
        """What it says of all that was not chosen anew, for a run that begins from it: the same, with noise and escape, the
        probes and their rhythms; the length is its number of updates.
        """
        words = self._cards(typed, NOT_INHERITED)
        for group in AROUND:
            values, place = self.settings.get(group) or {}, f"optimizer/{group}"
            chosen = [override.value() for override in typed if override.key_or_group == place]
            if "_target_" in values and (not chosen or chosen[-1] == self._name(values["_target_"], place)):
                words.append(f"{place}={self._name(values['_target_'], place)}")
                words += _settings(group, values, but=("_target_",))
        probes = self.settings.get("probe") or {}
        chosen = [override.value() for override in typed if override.key_or_group == "probe"]
        if not chosen:
            words.append(f"probe=[{','.join(probes)}]")
        for probe in chosen[-1] if chosen and isinstance(chosen[-1], list) else chosen or probes:
            words += _settings(f"probe.{probe}", probes.get(probe, {}), but=("_target_",))
        words += [f"{name}={literal(self.settings[name])}" for name in ("seed", "audit") if name in self.settings]
        return words + self._length({override.key_or_group for override in typed})

    def _cards(self, typed: Sequence[Override], but: Sequence[str]) -> list[str]:
        """Raises SettingError where the run names code that was not typed again."""
        words: list[str] = []
        kept = [group for group in GROUPS if self.keeps(group, typed)]
        require_typed(self.settings, {override.key_or_group for override in typed}, kept)
        for group in kept:
            words.append(f"{group}={self.card(group)}")
            words += _settings(group, self.settings[group], but=("_target_", *but))
        return words

    def _length(self, names: Collection[str]) -> list[str]:
        if typed := [name for name in LENGTH if name in names]:
            return [f"{name}=null" for name in LENGTH if name not in typed]
        examples = self.folder.read("provenance").get("data", {}).get("examples")
        if (total := updates(self.settings, examples)) is None:
            return [f"{name}={literal(self.settings.get(name))}" for name in LENGTH]
        return [f"steps={total}", "epochs=null"]


def _settings(place: str, values: Mapping[str, Any], *, but: tuple[str, ...]) -> list[str]:
    """The values of a card as overrides, without some: by their names, or by those with their place."""
    names = [name for name in values if name not in but and f"{place}.{name}" not in but]
    return [opened(f"{place}.{name}={literal(values[name])}") for name in names]


def _plain(settings: Mapping[str, Any]) -> bool:
    """Whether cards have settings with plain names only: another one could be read as a setting of its own."""
    cards = [*(settings[group] for group in GROUPS), *(settings.get("probe") or {}).values()]
    return all(str(name).isidentifier() for values in cards if isinstance(values, dict) for name in values)
