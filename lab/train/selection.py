"""What an experiment says of cards and probes that the user has replaced: nothing is to come of it.

experiment=noise_injection probe=[]     the card sets probe.sharpness.every for whoever keeps its sharpness probe
experiment=quickstart model=resnet      the card sets model.widths for whoever keeps its model
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from lab.cli import choices
from lab.run.cards import config_dir
from lab.settings import SettingError

REPLACED = ("data", "model", "loss", "optimizer", "schedule")
"""Groups of cards that have different settings."""


def selected(cfg: DictConfig, runtime: Any) -> DictConfig:
    """The configuration without settings of probes that are not selected (those have no `_target_`), and without those
    that `foreign` names. `runtime` is Hydra's configuration of the run.

    Raises SettingError in one line where such a setting is among the overrides: typed, or an axis of the sweep.
    """
    chosen, overrides = cfg.copy(), list(runtime.overrides.task)
    with open_dict(chosen):
        for setting in foreign(cfg, overrides, runtime.runtime.choices):
            group, _, name = setting.partition(".")
            del chosen[group][name]
    probes = cfg.get("probe")
    if not isinstance(probes, DictConfig):
        return chosen
    for name in [name for name in choices("probe") if _unselected(probes.get(name))]:
        for override in overrides:
            setting = _name(override)
            if setting == f"probe.{name}" or setting.startswith(f"probe.{name}."):
                raise SettingError(f"{setting} is for a probe that is not selected; add it: probe=[{name}]")
        with open_dict(chosen):
            del chosen.probe[name]
    return chosen


def foreign(cfg: DictConfig, overrides: Sequence[str], cards: Mapping[str, Any]) -> list[str]:
    """Settings that the experiment makes for a card of its own where the user has typed another one without them.

    cards: the name of the card of every group. A setting that the user has typed is none of these, and is refused later.
    """
    typed = [_name(override) for override in overrides]
    found = []
    for group in [group for group in REPLACED if group in typed and cards.get("experiment")]:
        known = OmegaConf.load(Path(config_dir()) / group / f"{cards[group]}.yaml")
        settings = [f"{group}.{name}" for name in cfg[group] if name not in known]
        found += [setting for setting in settings if setting not in typed]
    return found


def told(setting: str, cards: Mapping[str, Any]) -> str:
    """What comes of a setting that `foreign` names."""
    group = setting.partition(".")[0]
    return (
        f"experiment={cards['experiment']} sets {setting} for its own {group}; "
        f"{group}={cards[group]} has no such setting, so that it is left out"
    )


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain values, for provenance.json: what the run is, not what it is compared with."""
    values = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(values, dict)
    return {str(name): value for name, value in values.items() if name != "compare"}


def _name(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _unselected(settings: object) -> bool:
    return isinstance(settings, DictConfig) and "_target_" not in settings
