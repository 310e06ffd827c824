"""from=RUN[@STEP]: a run that begins from a checkpoint of another one, whose settings it has but for what is typed.

RUN is the folder of a run of lab.train, STEP one of its checkpoints: a number, `best`, or nothing for the newest. The names
of run folders are full of signs that Hydra's grammar stumbles over, so the words are rewritten before it reads them, with
the step in them: from='outputs/quickstart/default@600'. Torch is loaded only where the status does not tell the newest step.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from lab.doors.origin import OriginRun
from lab.doors.words import at_home, literal
from lab.run.folder import RunFolder
from lab.settings import SettingError

FROM = "from"
EXPECTED = "expected a run folder, and if need be a step, e.g. from=outputs/quickstart/default@100"
SEVERAL = ("-m", "--multirun")


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

    def __str__(self) -> str:
        return f"{self.folder.path}@{self.step}"


def readable(arguments: Iterable[str]) -> list[str]:
    """The command line with its `from=` as Hydra's grammar has it, with the step; under -m it may name several runs."""
    words = list(arguments)
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
    typed = [override for override in parsed if not override.is_hydra_override()]
    places = [str(path) for o in parsed if o.key_or_group == "hydra.searchpath" for path in o.value()]  # type: ignore[union-attr]
    more = next((path.removeprefix("file://") for path in reversed(places)), None)
    return OriginRun.of(ForkPoint.of(str(text)).folder, more=more).inherited(typed)


def bare(word: str) -> str:
    """A `from=` as one types it, without the quotes that Hydra reads; any other word as it is.

    >>> bare("from='outputs/x@100'"), bare("loss=mse")
    ('from=outputs/x@100', 'loss=mse')
    """
    return word.replace("\\'", "'").replace("='", "=").removesuffix("'") if word.startswith(f"{FROM}='") else word


def _readable(word: str, *, several: bool) -> str:
    name, _, value = word.partition("=")
    if name != FROM or value == "null":
        return word
    texts = _pieces(value) if several else [value]
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
