"""What an experiment says of cards and probes that the user has replaced: nothing is to come of it.

experiment=noise_injection probe=[]     the card sets probe.sharpness.every for whoever keeps its sharpness probe
experiment=quickstart model=resnet      the card sets model.widths for whoever keeps its model
"""

from typing import Any

from lab.doors.pages import card_settings
from lab.doors.request import Request
from lab.run.cards import choices
from lab.settings import SettingError

REPLACED = ("data", "model", "loss", "optimizer", "schedule")
"""Groups of cards that have different settings."""


def selected(request: Request) -> dict[str, Any]:
    """The settings without those of probes that are not selected (they have no `_target_`), and without the `foreign` ones.

    Raises SettingError in one line where such a setting is among the overrides: typed, or an axis of the grid.
    """
    chosen = dict(request.values)
    for setting in foreign(request):
        group, _, name = setting.partition(".")
        chosen[group] = {key: value for key, value in chosen[group].items() if key != name}
    probes = chosen.get("probe")
    if not isinstance(probes, dict):
        return chosen
    unselected = [name for name, probe in probes.items() if isinstance(probe, dict) and "_target_" not in probe]
    for setting in map(_name, request.overrides):
        for name in unselected:
            if setting == f"probe.{name}" or setting.startswith(f"probe.{name}."):
                raise SettingError(f"{setting} is for a probe that is not selected; add it: probe=[{name}]")
    return chosen | {"probe": {name: probe for name, probe in probes.items() if name not in unselected}}


def foreign(request: Request) -> list[str]:
    """Settings that the experiment makes for a card of its own where the user has typed another one without them.

    A setting that the user has typed is none of these, and is refused later.
    """
    typed, cards = [_name(override) for override in request.overrides], request.cards
    settings: list[str] = []
    for group in [group for group in REPLACED if group in typed and cards.get("experiment")]:
        if cards[group] not in choices(group):  # a card of the user's own, which says itself what it does not know
            continue
        known = {*card_settings(group, str(cards[group])), "_target_"}
        settings += [f"{group}.{name}" for name in request.values[group] if name not in known]
    return [setting for setting in settings if setting not in typed]


def left_out(request: Request) -> list[str]:
    """A line for each setting that `foreign` names: what comes of it."""
    cards = request.cards
    return [
        f"experiment={cards['experiment']} sets {setting} for its own {group}; "
        f"{group}={cards[group]} has no such setting, so that it is left out"
        for setting in foreign(request)
        for group in [setting.partition(".")[0]]
    ]


def _name(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]
