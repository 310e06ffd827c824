"""One run that is asked for: its settings as plain values, out of the configuration that Hydra composes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, read_write

from lab.doors import (
    axes,  # noqa: F401  offers ${lab.rates:...} to the cards
    pages,
)
from lab.doors.arguments import as_typed
from lab.doors.fork import FROM, bare, inherited
from lab.doors.launchers import put_own_first
from lab.run.cards import config_dir
from lab.settings import SettingError, UnknownSetting, asked_threads

LISTS = ("logger", "tags")
"""Plain settings that are lists."""


@dataclass(frozen=True)
class Request:
    """values     the settings, without Hydra's.
    cards      the name of the card that is chosen in every group.
    overrides  what was typed, or stands on the axes of a grid; names: those that make the name of the folder.
    folder     where the run belongs.
    jobs       how many runs are made at once; -1: as many as there are CPUs.
    threads    how many the environment of the command asks for, of each run; None: it does not say.
    several    the run is one of a grid.
    """

    values: dict[str, Any]
    cards: Mapping[str, str | None]
    overrides: tuple[str, ...]
    names: str
    folder: Path
    jobs: int = 1
    several: bool = False
    threads: int | None = field(default_factory=asked_threads)

    @staticmethod
    def of(cfg: DictConfig, *, several: bool = False) -> "Request":
        """From a configuration with that of Hydra in it."""
        HydraConfig.instance().set_config(cfg)  # what ${hydra:...} in a setting asks
        hydra = cfg.hydra
        folder = Path(hydra.sweep.dir) / hydra.sweep.subdir if several else Path(hydra.run.dir)
        values = OmegaConf.to_container(
            OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name != "hydra"]), resolve=True
        )
        choices = dict(hydra.runtime.choices)
        plain: dict[str, Any] = {str(name): value for name, value in values.items()}  # type: ignore[union-attr]
        if choices.get("compare") == "none":
            plain["compare"] = None  # without what an experiment sets for its own figure
        return Request(
            plain,
            choices,
            tuple(hydra.overrides.task),
            as_typed(hydra.job.override_dirname),
            folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder,
            hydra.launcher.get("n_jobs", 1) or 1,
            several,
        )

    def title(self, name: str | None) -> str:
        """A name with the overrides behind it, for figures."""
        return ": ".join(filter(None, (name, self.names.replace(",", ", "))))


@contextmanager
def cards_at_hand(more: str | None = None) -> Iterator[None]:
    """Within the block `composed` finds the cards of `conf/`, and after them those in the folder `more`.

    Raises SettingError where `more` is no folder.
    """
    if more is not None and not Path(more).is_dir():
        raise SettingError(f"--config-dir={more}: there is no such folder")
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir(), **pages.BASE):
        put_own_first()
        yield


def composed(config: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration conf/`config`.yaml with overrides, and that of Hydra in it. What Hydra refuses, it raises.

    Before them come the settings of the run that `from=` names, where it stands among them: what is typed wins. They are no
    part of the overrides that name the run.
    """
    before = inherited(overrides)
    try:
        cfg = compose(config, overrides=[*before, *overrides], return_hydra_config=True)
    except TypeError:  # OmegaConf, of a list that is spoken to as if it had settings
        names = [word.partition("=")[0].lstrip("+") for word in overrides]
        if not (wrong := [name for name in names if name.partition(".")[0] in LISTS and "." in name]):
            raise
        raise UnknownSetting(wrong[0], f"{wrong[0]}: {wrong[0].partition('.')[0]} is a list") from None
    if before:
        name_run(cfg, list(cfg.hydra.overrides.task)[len(before) :])
    return cfg


def name_run(cfg: DictConfig, words: Sequence[str], number: int = 0) -> None:
    """Note the overrides where Hydra does, the name of a run that it makes of them, and the number of the run."""
    naming = cfg.hydra.job.config.override_dirname
    kept = sorted(word for word in words if word.lstrip("+").partition("=")[0] not in naming.exclude_keys)
    kept.sort(key=lambda word: not word.startswith(f"{FROM}="))
    kept = [bare(word) for word in kept]
    with read_write(cfg.hydra):
        cfg.hydra.job.override_dirname = naming.item_sep.join(kept).replace("=", naming.kv_sep)
        cfg.hydra.overrides.task = list(words)
        cfg.hydra.job.num = number


def keep_settings(folder: Path, settings: dict[str, Any], overrides: Sequence[str]) -> None:
    """.hydra/ in a run folder, as Hydra would write it."""
    (folder / ".hydra").mkdir(exist_ok=True)
    OmegaConf.save(OmegaConf.create(settings), folder / ".hydra/config.yaml")
    OmegaConf.save(OmegaConf.create(list(overrides)), folder / ".hydra/overrides.yaml")
