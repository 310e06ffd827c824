"""What is to be measured: the checkpoints that were named, and the settings typed for them. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from lab.doors.origin import PLACE
from lab.doors.pages import cell_name
from lab.doors.slips import checkpoint_answer, flag_answer
from lab.doors.words import HYDRA_FLAGS, Override, Words, at_home
from lab.measure import places
from lab.measure.places import WEIGHTS
from lab.measure.training import refusal
from lab.settings import SettingError

FLAGS = ("--help", "-h", "--cfg", "-c", "--resolve", "--config-dir", "-cd")


@dataclass(frozen=True)
class Target:
    """The command line: which checkpoints, and everything else."""

    places: tuple[str, ...]
    words: Words

    @staticmethod
    def of(arguments: Sequence[str]) -> "Target":
        """Sort the words. A path goes past Hydra, whose grammar stumbles over the names of run folders."""
        paths = [at_home(word).partition("=")[2] for word in arguments if word.startswith("checkpoint=")]
        flags = [word for word in arguments if word.startswith("-")]
        if answer := flag_answer(arguments, HYDRA_FLAGS, "measure"):
            raise SettingError(answer)
        if {"-m", "--multirun"} & {*flags}:
            raise SettingError("lab.measure has no sweeps; give a glob: checkpoint='outputs/*/*'")
        if unknown := [word for word in flags if word.partition("=")[0] not in FLAGS]:
            raise SettingError(f"{unknown[0]}: of Hydra's flags lab.measure knows --help, --cfg job and --config-dir")
        for word, flag in zip(arguments, ["", *arguments], strict=False):
            if "=" not in word and flag not in FLAGS and (Path(word).exists() or Path(word).suffix in WEIGHTS):
                raise SettingError(f"{word} cannot be read; write checkpoint={word}")
        if not paths and (answer := checkpoint_answer(arguments)):
            raise SettingError(answer)
        words = Words.of((word for word in arguments if not word.startswith("checkpoint=")), "measure")
        return Target(tuple(place for path in paths for place in places.listed(path)), words)

    @property
    def shows(self) -> bool:
        """Whether a page is asked for."""
        return self.words.shows

    @cached_property
    def parsed(self) -> list[Override]:
        """The overrides as Hydra reads them."""
        for override in self.words.parsed:
            if override.is_sweep_override():
                raise SettingError(f"{override.input_line}: lab.measure takes one value of a setting at a time")
            if reason := refusal(override.key_or_group):
                raise SettingError(reason)
        return self.words.parsed

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
        """The checkpoints meant: files, those of run folders, of folders of runs, of globs. Raises SettingError for none."""
        return places.files(self.places)

    @property
    def together(self) -> Path:
        """The folder of what is made of several checkpoints."""
        chosen = [str(o.value()) for o in self.parsed if o.key_or_group == "hydra.run.dir"]
        return Path(chosen[-1] if chosen else "outputs/measure")

    def results(self, file: Path, run: Path | None, place: Path, *, several: bool) -> Path:
        """The folder of the results: `place` where one was chosen (a folder in it for each of several checkpoints), else in
        the folder of the `run` that left the file.
        """
        if "hydra.run.dir" in self.names:
            return place / _unique(file) if several else place
        what = [o for o in self.parsed if not o.is_hydra_override() and o.key_or_group not in PLACE]
        name = file.stem if run is not None else _unique(file)
        cell = cell_name(",".join([name, *(str(override.input_line) for override in what)]))
        return (run / "measure" if run is not None else Path("outputs/measure")) / cell


def _unique(file: Path) -> str:
    """A name for a file somewhere: its stem and a hash of its place."""
    return f"{file.stem}-{sha256(str(file.absolute()).encode()).hexdigest()[:6]}"
