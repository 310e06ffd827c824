"""from=RUN[@STEP]: a run that begins from a checkpoint of another one, whose settings it has but for what is typed.

RUN is the folder of a run of lab.train, STEP one of its checkpoints: a number, `best`, or nothing for the newest. The names
of run folders are full of signs that Hydra's grammar stumbles over, so the words are rewritten before it reads them, with
the step in them: from='outputs/quickstart/default@600'. Torch is loaded only where the status does not tell the newest step.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from lab.doors.origin import GROUPS, LAST, OriginRun, settings_at
from lab.doors.pages import AROUND
from lab.doors.words import Override, at_home, literal
from lab.run.cards import card_names, choices
from lab.run.folder import RunFolder
from lab.run.length import LENGTH, updates
from lab.settings import SettingError

FROM = "from"
EXPECTED = "expected a run folder, and if need be a step, e.g. from=outputs/quickstart/default@100"
SEVERAL = ("-m", "--multirun")
NOT_INHERITED = ("trainer.threads", "trainer.state", "trainer.keep", "trainer.stop", "trainer.callbacks")
"""What a run that begins from another does not have from it: a condition may be met already, callbacks are code."""


@dataclass(frozen=True)
class ForkPoint:
    """Step `step` of the run in `folder`."""

    folder: RunFolder
    step: int

    @staticmethod
    def of(text: str) -> "ForkPoint":
        """From RUN[@STEP]. Raises SettingError, one line, where there is no such run, or its newest or best is asked for and
        there is none.
        """
        path, at, word = (text, "", "") if Path(text).is_dir() else text.rpartition("@")
        if not at:
            path, word = text, ""
        folder = RunFolder(_relative(path))
        _require_run(folder, text)
        if word.isdecimal():
            return ForkPoint(folder, int(word))
        if word == "best":
            if not (best := folder.read("checkpoints/best")):
                raise SettingError(f"from={text}: the run has kept no best; trainer.keep=best does, or name a step")
            return ForkPoint(folder, int(best["step"]))
        if word:
            raise SettingError(f"from={text}: {word} is no step; expected a number, best, or nothing for the newest")
        from lab.run.checkpoints import newest_step  # torch

        return ForkPoint(folder, newest_step(folder))

    def run(self, more: str | None = None) -> OriginRun:
        """The run itself, of cards of conf/ and of the folder `more`. Raises SettingError, one line, where its settings are
        not there.
        """
        try:
            run = OriginRun.find(self.folder.path / LAST, more)
        except SettingError:
            run = None
        if run is None:
            raise SettingError(
                f"from={self}: {self.folder.path / 'provenance.json'} does not hold the settings of a run"
            )
        return run

    def inherited(self, typed: Sequence[Override], more: str | None = None) -> list[str]:
        """What the run says of all that was not chosen anew, as a measurement of it would have it, with what only training
        has: noise and escape, the probes and their rhythms, and its number of updates. Raises SettingError where it names
        code that was not typed again.
        """
        run, names = self.run(more), frozenset(override.key_or_group for override in typed)
        words = run.overrides(_Typed(names, tuple(typed)))
        _require_callbacks(run, names)
        words = [word for word in words if word.partition("=")[0] not in (*LENGTH, *NOT_INHERITED)]
        if run.keeps("trainer", _Typed(names, tuple(typed))) and "accelerator" in run.settings["trainer"]:
            words.append(f"trainer.accelerator={literal(run.settings['trainer']['accelerator'])}")
        for group in AROUND:
            words += _around(run, group, typed)
        probes = dict(run.settings.get("probe") or {})
        words.append(f"probe.budget={literal(probes.pop('budget', None))}")
        chosen = [override.value() for override in typed if override.key_or_group == "probe"]
        if not chosen:
            words.append(f"probe=[{','.join(probes)}]")
        for probe in chosen[-1] if chosen and isinstance(chosen[-1], list) else chosen or probes:
            words += settings_at(f"probe.{probe}", probes.get(probe, {}), but=("_target_",))
        return words + self._length(run, names)

    def differing(self, typed: Sequence[Override], more: str | None = None) -> list[Override]:
        """Those of the typed settings that the run has not: typing again what it has makes no other run of it. Of one that
        is typed twice the last counts.
        """
        run, last = self.run(more), {override.key_or_group: override for override in typed}
        values = {name: override.value() for name, override in last.items()}
        return [override for name, override in last.items() if not _has(run, name, values)]

    def _length(self, run: OriginRun, names: Collection[str]) -> list[str]:
        if typed := [name for name in LENGTH if name in names]:
            return [f"{name}=null" for name in LENGTH if name not in typed]
        examples = self.folder.read("provenance").get("data", {}).get("examples")
        if (total := updates(run.settings, examples)) is None:
            return [f"{name}={literal(run.settings.get(name))}" for name in LENGTH]
        return [f"steps={total}", "epochs=null"]

    def __str__(self) -> str:
        return f"{self.folder.path}@{self.step}"


@dataclass(frozen=True)
class _Typed:
    """What was typed, for `OriginRun`, which has the settings of the probes without their rhythms: none are asked for."""

    names: frozenset[str]
    parsed: tuple[Override, ...]
    probes: tuple[str, ...] = ()
    shows: bool = False


def _has(run: OriginRun, name: str, values: Mapping[str, Any]) -> bool:
    """Whether the run has the setting `name` as it is typed among `values`, and one that begins from it has it so, too."""
    group, *path = name.split(".")
    if name == FROM or name in LENGTH or (name in NOT_INHERITED and name != "trainer.callbacks"):
        return False
    if name in GROUPS:
        return values[name] == run.card(name)
    if group in GROUPS and group in values and values[group] != run.card(group):
        return False  # the setting of another card
    if name.partition("/")[2] in AROUND:
        return values[name] == (_card_around(run, name.partition("/")[2]) or "none")
    if group in AROUND and (chosen := values.get(f"optimizer/{group}")) not in (None, _card_around(run, group)):
        return False
    if name == "probe":
        chosen = values[name] if isinstance(values[name], list) else [values[name]]
        return {*(run.settings.get("probe") or {})} - {"budget"} == {*chosen}
    here: Any = run.settings
    for part in [group, *path]:
        if not isinstance(here, Mapping) or part not in here:
            return False
        here = here[part]
    return bool(here == values[name])


def _card_around(run: OriginRun, group: str) -> str | None:
    """The name of the card of the run around its optimiser, in this group; None where it has none."""
    return card_names().get(str((run.settings.get(group) or {}).get("_target_")))


def _require_callbacks(run: OriginRun, names: Collection[str]) -> None:
    """Raise SettingError where the run had callbacks, and it was not typed whether they are to run."""
    callbacks = run.settings["trainer"].get("callbacks")
    if callbacks and "trainer.callbacks" not in names:
        paths = callbacks if isinstance(callbacks, list) else [callbacks]
        word = f"trainer.callbacks=[{','.join(map(str, paths))}]"
        raise SettingError(
            f"the run was made with {word}, which is code; type {word} again to run it, or trainer.callbacks=[] for none"
        )


def _around(run: OriginRun, group: str, typed: Sequence[Override]) -> list[str]:
    """The card of the run around its optimiser, where it has one and no other was typed. Nothing is imported by its name."""
    values, place = run.settings.get(group) or {}, f"optimizer/{group}"
    if "_target_" not in values:
        return []
    name = card_names().get(values["_target_"])
    if name not in choices(place):
        raise SettingError(f"the run was made with {values['_target_']}, which no card in conf/{place}/ names")
    chosen = [override.value() for override in typed if override.key_or_group == place]
    if chosen and chosen[-1] != name:
        return []
    return [f"{place}={name}", *settings_at(group, values, but=("_target_",))]


def readable(arguments: Iterable[str]) -> list[str]:
    """The command line with its `from=` as Hydra's grammar has it, with the step; under -m it may name several runs."""
    words = list(arguments)
    named = [word for word in words if word.partition("=")[0].lstrip("+") == FROM]
    if signed := [word for word in named if word.startswith("+")]:
        raise SettingError(f"{signed[0]}: from= is written without the +")
    if len(named) > 1:
        raise SettingError(f"{' '.join(named)}: from= stands there twice; with -m several runs stand between commas")
    return [_readable(at_home(word), several=any(flag in words for flag in SEVERAL)) for word in words]


def inherited(overrides: Sequence[str]) -> list[str]:
    """The settings of the run that `from=` names, as overrides to be put before these; [] where it is not among them."""
    named = [word for word in overrides if word.startswith(f"{FROM}=")]
    if not named:
        return []
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    text = next(override for override in reversed(parsed) if override.key_or_group == FROM).value()
    if text is None:
        return []
    if any(override.key_or_group == "experiment" and override.value() is not None for override in parsed):
        raise SettingError("from= begins with the settings of a run, and experiment= has others; leave one of them out")
    places = [str(path) for o in parsed if o.key_or_group == "hydra.searchpath" for path in o.value()]  # type: ignore[union-attr]
    return ForkPoint.of(str(text)).inherited([o for o in parsed if not o.is_hydra_override()], more_cards(places))


def more_cards(places: Sequence[str]) -> str | None:
    """The folder of --config-dir among the places that are searched for cards."""
    return next((path.removeprefix("file://") for path in reversed(places)), None)


def differing(words: Sequence[str], more: str | None = None) -> list[str]:
    """What makes the name of a run, of the words that are typed: where it begins from another, those that differ from it."""
    if not any(word.startswith(f"{FROM}=") for word in words):
        return list(words)
    parsed = OverridesParser.create().parse_overrides(list(words))
    origin = [override.value() for override in parsed if override.key_or_group == FROM]
    if origin[-1] is None or any(override.is_sweep_override() for override in parsed):
        return list(words)
    kept = ForkPoint.of(str(origin[-1])).differing(parsed, more)
    return [str(override.input_line) for override in kept]


def bare(word: str) -> str:
    """A `from=` as one types it, without the quotes that Hydra reads; any other word as it is.

    >>> bare("from='outputs/x@100','y@2'"), bare("loss=mse")
    ('from=outputs/x@100,y@2', 'loss=mse')
    """
    return re.sub(r"(?<!\\)'", "", word).replace("\\'", "'") if word.startswith(f"{FROM}=") else word


def _readable(word: str, *, several: bool) -> str:
    name, _, value = word.partition("=")
    if name != FROM or value == "null":
        return word
    texts = _pieces(value) or [value]
    if len(texts) > 1 and not several and _is_folder(texts[0]):
        raise SettingError(f"{word} names several runs, and here is one to be made; add -m")
    texts = texts if several else [value]
    return f"{FROM}={','.join(literal(str(ForkPoint.of(text.strip(chr(39) + chr(34))))) for text in texts)}"


def _pieces(value: str) -> list[str]:
    """The runs that are named, with commas between them and, it may be, in them: the longest names that are folders.

    >>> _pieces("/tmp@1,/nowhere,x")
    ['/tmp@1', '/nowhere', 'x']
    """
    parts, pieces = value.split(","), list[str]()
    while parts:
        ends = [n for n in range(len(parts), 0, -1) if _is_folder(",".join(parts[:n]))] or [1]
        pieces.append(",".join(parts[: ends[0]]))
        del parts[: ends[0]]
    return pieces


def _is_folder(text: str) -> bool:
    path, at, step = (plain := text.strip("'\"")).rpartition("@")
    return Path(plain).is_dir() or bool(at and re.fullmatch(r"\w*", step) and path and Path(path).is_dir())


def _relative(path: str) -> Path:
    """As it is recorded: below this folder without the way to it, without slashes at the end."""
    place = Path(path)
    return place.relative_to(Path.cwd()) if place.is_absolute() and place.is_relative_to(Path.cwd()) else place


def _require_run(folder: RunFolder, text: str) -> None:
    path = folder.path
    if path.is_file() and path.parent.name == "checkpoints":
        raise SettingError(
            f"from={text} is a file; name the folder of its run, and the step: from={path.parent.parent}@STEP"
        )
    provenance = folder.read("provenance") if path.is_dir() else {}
    if not text or "settings" not in provenance:
        what = "holds no run of lab.train" if path.is_dir() and text else "is no folder" if text else "names no run"
        raise SettingError(f"from={text} {what}; {EXPECTED}")
    if "checkpoint" in provenance:
        raise SettingError(f"from={text} is a measurement of lab.measure; {EXPECTED}")
