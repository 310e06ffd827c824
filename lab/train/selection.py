"""What an experiment says of probes that the user has not selected: nothing is to come of it.

experiment=noise_injection probe=[]     the card sets probe.sharpness.every for whoever keeps its sharpness probe
"""

from collections.abc import Iterable

from omegaconf import DictConfig, open_dict

from lab.cli import choices
from lab.settings import SettingError


def selected(cfg: DictConfig, overrides: Iterable[str]) -> DictConfig:
    """The configuration without settings of probes that are not selected: those have no `_target_`.

    Raises SettingError in one line where such a setting is among the `overrides`: typed, or an axis of the sweep.
    """
    chosen, probes = cfg.copy(), cfg.get("probe")
    if not isinstance(probes, DictConfig):
        return chosen
    for name in [name for name in choices("probe") if _unselected(probes.get(name))]:
        for override in overrides:
            setting = override.lstrip("+~").partition("=")[0]
            if setting == f"probe.{name}" or setting.startswith(f"probe.{name}."):
                raise SettingError(f"{setting} is for a probe that is not selected; add it: probe=[{name}]")
        with open_dict(chosen):
            del chosen.probe[name]
    return chosen


def _unselected(settings: object) -> bool:
    return isinstance(settings, DictConfig) and "_target_" not in settings
