"""Whether what `compare=` asks for can be right: read before the first run of a grid is made."""

from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase

from lab.doors.grid import Grid
from lab.run.cards import card, choices
from lab.run.stopping import EVERY_UPDATE, NEAR, WHERE_LOGGED, WILD
from lab.settings import SettingError

PLACES = ("x", "y", "panels")
"""Settings of comparisons that name a setting of the runs."""
TAGS = ("tag", "tags", "over")
"""Those that name what is drawn."""
OF_A_RUN = (*EVERY_UPDATE, *WHERE_LOGGED, "test/loss", "test/accuracy")


def require_comparison(grid: Grid) -> None:
    """Raise SettingError for a value that the card of `compare=` refuses, for the name of a setting that no cell has, and for
    a tag that is written almost as one that the lab knows. Any other tag may be somebody's own, and is looked for at the end.
    """
    if (plain := grid.head.values.get("compare")) is None:
        return
    from lab.compare.plane import setting_of

    comparison, runs = card(plain, "compare"), planned(grid)
    for place in PLACES:
        name = getattr(comparison, place, None)
        if name is not None and "/" not in name:
            try:
                setting_of(runs, name)
            except SettingError as error:
                raise SettingError(f"compare.{place}: {error}") from None
    for place in TAGS:
        named = getattr(comparison, place, None) or ()
        for tag in (named,) if isinstance(named, str) else named:
            require_no_slip(f"compare.{place}", tag)
