"""Whether what `compare=` asks for can be right: read before the first run of a grid is made."""

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
    """Raise SettingError for a value that the card of `compare=` refuses, for the name of a setting that no cell has, and
    for a tag that is written almost as one of the lab's. Any other tag may be somebody's own, and is looked for at the end.
    """
    if (plain := grid.head.values.get("compare")) is None:
        return
    comparison, names = card(plain, "compare"), _settings_of(grid)
    for place in PLACES:
        if (name := getattr(comparison, place, None)) is not None and "/" not in name:
            _require_setting(f"compare.{place}", name, names, short="y" in plain)
    for place in TAGS:
        if asked := getattr(comparison, place, None):
            for tag in [asked] if isinstance(asked, str) else asked:
                _require_no_slip(f"compare.{place}", tag)


def _settings_of(grid: Grid) -> list[str]:
    """The names of the settings that the cells have, and of the fields of every run."""
    from lab.compare.run import FIELDS
    from lab.compare.strangers import flattened

    values = [
        {name: value for name, value in cell.values.items() if name != "compare"} for cell in [grid.head, *grid.asked]
    ]
    found = [name.removesuffix("._target_") for one in values for name in flattened(one)]
    found += [word.lstrip("+").partition("=")[0] for cell in grid.asked for word in cell.overrides]
    return list(dict.fromkeys([*found, *FIELDS]))


def _require_setting(knob: str, name: str, names: list[str], *, short: bool) -> None:
    """short: the last word of a name will do."""
    ends = [one for one in names if one.endswith(f".{name}")]
    if name in names or (short and ends):
        return
    near = ends or get_close_matches(name, names, n=1)
    near = near or [one for one in names if get_close_matches(name, [one.rpartition(".")[2]], cutoff=NEAR)]
    cure = f"did you mean {near[0]}?" if near else "expected a setting of the runs, e.g. optimizer.lr"
    raise SettingError(f"{knob}={name}: no run of this grid has it; {cure}")


def _require_no_slip(knob: str, tag: str) -> None:
    from lab.probes.tags import written

    known = [*OF_A_RUN, *(one for probe in choices("probe") for one in written(probe))]
    if any(fnmatchcase(tag, pattern) for pattern in known):
        return
    group = f"{tag.rpartition('/')[0]}/"
    alike = [one for one in known if one.startswith(group) and not WILD & {*one}]
    if near := get_close_matches(tag, alike, n=1, cutoff=NEAR):
        raise SettingError(f"{knob}: nothing writes {tag}; did you mean {near[0]}?")
