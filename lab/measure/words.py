"""What was typed, and what the run behind a checkpoint says before it: settings as Hydra overrides, no torch here."""

import glob
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from lab.cli import cell_name, choices, typed
from lab.run.cards import card_names
from lab.run.folder import RunFolder
from lab.settings import SettingError
from lab.train.slips import at_home, require_sound

GROUPS = ("data", "model", "loss", "optimizer", "schedule", "trainer")
NUMBERS = ("steps", "epochs", "seed", "audit")
PLACE = ("trainer.threads", "trainer.accelerator")
"""Settings that say how and not what: they are no part of a folder's name."""
LAST, LAST_FINITE = "checkpoints/last.ckpt", "checkpoints/last_finite.ckpt"
WEIGHTS = (".ckpt", ".pt", ".pth", ".safetensors")
"""How files of weights end; another file that a glob finds is taken for one only where the glob ends like it."""
FLAGS = ("--help", "-h", "--cfg", "-c", "--resolve")


@dataclass(frozen=True)
class Words:
    """The command line: which checkpoints, which overrides, which flags (--help, --cfg job)."""

    checkpoint: str
    overrides: tuple[str, ...]
    flags: tuple[str, ...]

    @staticmethod
    def of(arguments: list[str]) -> "Words":
        """Sort the words. A path goes past Hydra, whose grammar stumbles over the names of run folders."""
        arguments = [at_home(word) for word in arguments]
        paths = [word.partition("=")[2] for word in arguments if word.startswith("checkpoint=")]
        flagged = any(word.startswith("-") for word in arguments)
        flags = [word for word in arguments if flagged and "=" not in word]
        rest = [word for word in arguments if not word.startswith("checkpoint=") and word not in flags]
        if {"-m", "--multirun"} & {*flags}:
            raise SettingError("lab.measure has no sweeps; give a glob: checkpoint='outputs/*/*'")
        if unknown := [word for word in flags if word.startswith("-") and word not in FLAGS]:
            raise SettingError(f"{unknown[0]}: of Hydra's flags lab.measure knows --help and --cfg job")
        return Words(paths[-1].strip("'\"") if paths else "", tuple(rest), tuple(flags))

    @cached_property
    def parsed(self) -> list[Override]:
        """The overrides as Hydra reads them."""
        require_sound(self.overrides)
        parsed = OverridesParser.create().parse_overrides(list(self.overrides))
        for override in parsed:
            if override.is_sweep_override():
                raise SettingError(f"{override.input_line}: lab.measure takes one value of a setting at a time")
            if override.key_or_group.startswith("probe.") and override.key_or_group.endswith(".every"):
                raise SettingError(
                    f"{override.key_or_group} is the rhythm of a run; lab.measure looks once: leave it out"
                )
        return parsed

    @cached_property
    def names(self) -> set[str]:
        """The settings and groups that were typed."""
        return {override.key_or_group for override in self.parsed}

    @property
    def probes(self) -> list[str]:
        """The selected probes."""
        chosen = [override.value() for override in self.parsed if override.key_or_group == "probe"]
        if not chosen:
            return ["sharpness"]
        return [str(name) for name in chosen[-1]] if isinstance(chosen[-1], list) else [str(chosen[-1])]

    def files(self) -> list[Path]:
        """The checkpoints meant: a file, a run folder, or whatever a glob finds. Raises SettingError where nothing is."""
        if not self.checkpoint:
            raise SettingError(
                "checkpoint= is missing: name a file, a run folder or a glob, e.g. checkpoint=outputs/quickstart/default"
            )
        path = Path(self.checkpoint).expanduser()
        if path.exists():
            file = _checkpoint(path)
            if not file.is_file():
                raise SettingError(
                    f"checkpoint={self.checkpoint} is a folder without {LAST}; name a file or a run folder"
                )
            return [file]
        found = [_checkpoint(Path(name)) for name in sorted(glob.glob(str(path), recursive=True))]
        if not found:
            raise SettingError(f"checkpoint={self.checkpoint}: there is no such file")
        files = [file for file in found if file.is_file() and file.suffix in (*WEIGHTS, path.suffix)]
        if not files:
            raise SettingError(
                f"checkpoint={self.checkpoint} finds no folder with {LAST} and no file in {', '.join(WEIGHTS)}; "
                "name a run folder or a file"
            )
        return list(dict.fromkeys(files))

    @property
    def together(self) -> Path:
        """The folder of what is made of several checkpoints."""
        chosen = [str(o.value()) for o in self.parsed if o.key_or_group == "hydra.run.dir"]
        return Path(chosen[-1] if chosen else "outputs/measure")

    def results(self, file: Path, run: "RunOf | None", place: str, *, several: bool) -> Path:
        """The folder of the results: `place` where one was chosen (a folder in it for each of several checkpoints)."""
        told = [
            str(o.input_line)
            for o in self.parsed
            if not o.key_or_group.startswith("hydra") and o.key_or_group not in PLACE
        ]
        if place:
            return Path(place) / _unique(file) if several else Path(place)
        if run is not None:
            return run.folder.path / "measure" / cell_name(",".join([file.stem, *told]))
        return Path("outputs/measure") / cell_name(",".join([_unique(file), *told]))


@dataclass(frozen=True)
class RunOf:
    """The run of `lab.train` that left a checkpoint, with its settings as plain values."""

    folder: RunFolder
    settings: Mapping[str, Any]

    @staticmethod
    def find(file: Path) -> "RunOf | None":
        """The run whose folder holds checkpoints/`file`; None for other weights."""
        folder = RunFolder(file.parent.parent)
        told = folder.path / "provenance.json"
        if file.parent.name != "checkpoints" or not told.exists():
            return None
        try:
            settings = json.loads(told.read_text())["settings"]
            complete = all(isinstance(settings[group]["_target_"], str) for group in GROUPS)
        except (ValueError, KeyError, TypeError, OSError):
            complete = False
        if not complete:
            raise SettingError(
                f"{told} does not hold the settings of the run that left {file.name}; to measure the weights with settings "
                "of your own, copy the file elsewhere and set model= and data="
            )
        return RunOf(folder, settings)

    def keeps(self, group: str, words: Words) -> bool:
        """Whether the card of the run is the one meant: no other one was typed."""
        if group not in self.settings:
            return False
        cards = [override.value() for override in words.parsed if override.key_or_group == group]
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

    def card(self, group: str) -> str:
        """The name of the card of the run in a group."""
        return _card_of(group, self.settings[group]["_target_"])

    def overrides(self, words: Words) -> list[str]:
        """What the run says of all that was not chosen anew: its cards, their settings, its seed and length."""
        said: list[str] = []
        for group in GROUPS:
            if self.keeps(group, words):
                values = dict(self.settings[group])
                said.append(f"{group}={_card_of(group, values.pop('_target_'))}")
                said += [f"{group}.{name}={literal(value)}" for name, value in _here(group, values).items()]
        for probe in words.probes:
            values = dict(self.settings.get("probe", {}).get(probe, {}))
            said += [f"probe.{probe}.{n}={literal(v)}" for n, v in values.items() if n not in ("_target_", "every")]
        return said + [f"{name}={literal(self.settings[name])}" for name in NUMBERS if name in self.settings]


def literal(value: Any) -> str:
    """A plain value as Hydra's grammar has it.

    >>> literal("it's"), literal([1, None, True, 1e-3])
    ("'it\\\\'s'", '[1,null,true,0.001]')
    """
    if isinstance(value, str):
        return "'" + value.replace("'", "\\'") + "'"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(literal, value)) + "]"
    return typed(value)


def _here(group: str, values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a card, less those that speak of the machine of the run."""
    if group != "trainer":
        return values
    return {name: value for name, value in values.items() if f"trainer.{name}" not in PLACE}


def _card_of(group: str, target: str) -> str:
    """The name of the card in `conf/` that stands for a class."""
    if (name := card_names().get(target)) in choices(group):
        return str(name)
    raise SettingError(f"the run was made with {target}, which no card in conf/{group}/ names; choose {group}=")


def _checkpoint(place: Path) -> Path:
    """The newest state of a run folder, of one that diverged the last finite one; anything else is what it is."""
    return next((place / name for name in (LAST_FINITE, LAST) if (place / name).exists()), place)


def _unique(file: Path) -> str:
    """A name for a file somewhere: its stem and a hash of its place."""
    return f"{file.stem}-{sha256(str(file.absolute()).encode()).hexdigest()[:6]}"
