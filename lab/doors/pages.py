"""What help pages are made of: the cards there are, their settings, and the pages that Hydra shows."""

import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import hydra
from omegaconf import OmegaConf

from lab.doors.arguments import as_typed
from lab.run.cards import choices, config_dir, listed
from lab.settings import SettingError

FORMER = hydra.__version__ < "1.4"
"""Hydra 1.3 with OmegaConf 2.3: two names were others, and its defaults those of still earlier versions."""
BASE: dict[str, Any] = {"version_base": None} if FORMER else {}
AROUND = ("noise", "escape")
"""Groups of cards around the optimiser: conf/optimizer/<group>, whose settings stand at <group>."""
NO_GROUPS = ("experiment", "simulation", "landscape", "sweep", "hydra")
"""Folders of cards that are no setting of a run."""
NO_SETTINGS = ("defaults", "hydra", "probe")
"""What stands in conf/train.yaml besides plain settings."""
LONGEST_NAME = 200
"""Characters of a folder name; a longer one is cut and ends in a hash of the whole."""
PAGE_WIDTH = 112
"""Characters of a line of the help page."""


def show(config: str, words: Sequence[str]) -> None:
    """The page that a flag among the words asks for (--help, --cfg job, ...), by Hydra itself; --help beside the name of a
    card, as in optimizer=adam or probe=[sharpness,noise], shows that card: every setting with its text, range and default.
    """
    typed = [
        (group, name)
        for word in words
        for group, _, names in [word.partition("=")]
        for name in names.strip("[]").split(",")
    ]
    cards = [file for group, name in typed if (file := Path(config_dir()) / group / f"{name}.yaml").is_file()]
    if cards and {"--help", "-h"} & set(words):
        print("\n".join(file.read_text() for file in cards))
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra raise, so that we can say it in one line
    sys.argv = [sys.argv[0], *words]
    try:
        hydra.main(config_path=config_dir(), config_name=config, **BASE)(lambda cfg: None)()
    except ValueError as error:  # flags that do not go together
        if type(error) is not ValueError:
            raise
        raise SettingError(f"{error}; see --hydra-help") from None


def cell_name(overrides: str) -> str:
    """The folder name of a run from its overrides, e.g. "data.batch_size=8,optimizer.lr=0.1"; "default" without any.

    A name that had to be changed (a slash, or too long) ends in a hash of the whole, so that no two runs share a folder.

    >>> cell_name("data.classes=[0,1],optimizer.lr=0.1"), cell_name("")
    ('data.classes=[0,1],optimizer.lr=0.1', 'default')
    >>> cell_name("data.root=/a/b") == cell_name("data.root=-a-b")
    False
    """
    overrides = as_typed(overrides)
    name = re.sub(r"[^\w.,=+@\-\[\]]", "-", (overrides or "default").replace("from=outputs/", "from="))
    if len(name) > LONGEST_NAME or name != (overrides or "default"):
        name = f"{name[: LONGEST_NAME - 9]}-{sha256(overrides.encode()).hexdigest()[:8]}"
    return name


def card_settings(group: str, card: str) -> list[str]:
    """The names of the settings of a card, which stand at the top of its file or under the name of the group. Raises
    FileNotFoundError for a card of somebody's own, from --config-dir.
    """
    return [str(key) for key in card_values(group, card) if key != "_target_"]


def card_values(group: str, card: str) -> Any:
    """The settings of a card with their values. Raises FileNotFoundError for a card of somebody's own, from --config-dir."""
    loaded = OmegaConf.load(Path(config_dir()) / group / f"{card}.yaml")
    return loaded.get(group.rpartition("/")[2], loaded)  # type: ignore[union-attr,arg-type]


def takes_list(name: str) -> bool:
    """Whether a setting is a list somewhere in conf/, as model.widths is, or may be one, as probe."""
    group, _, rest = name.partition(".")
    plain: Any = OmegaConf.load(Path(config_dir()) / "train.yaml")
    values = [plain.get(name), *(card_values(group, card).get(rest) for card in choices(group))]
    return name in ("probe", "data.classes") or any(OmegaConf.is_list(value) for value in values)


@cache
def default_cards() -> dict[str, str]:
    """The card of every group that lab.train begins with, e.g. {"data": "digits", ...}."""
    loaded: Any = OmegaConf.load(Path(config_dir()) / "train.yaml")
    items = [item for entry in loaded.defaults if not isinstance(entry, str) for item in entry.items()]
    return {str(group): card for group, card in items if isinstance(card, str)}


@cache
def known_settings() -> tuple[str, ...]:
    """Every setting that some card of lab.train offers, with its group, and the groups."""
    loaded: Any = OmegaConf.load(Path(config_dir()) / "train.yaml")
    plain = [str(name) for name in loaded if name not in NO_SETTINGS]
    names = [*plain, *(f"probe.{name}" for name in loaded["probe"]), *(f"optimizer/{group}" for group in AROUND)]
    folders = [folder for folder in Path(config_dir()).iterdir() if folder.is_dir() and folder.name not in NO_GROUPS]
    for group in sorted([folder.name for folder in folders] + [f"optimizer/{group}" for group in AROUND]):
        place = group.rpartition("/")[2]
        for card in choices(group):
            prefix = f"{place}.{card}" if group == "probe" else place
            names += [f"{prefix}.{name}" for name in card_settings(group, card)]
        names.append(place)
    return tuple(dict.fromkeys(names))


def settings_listed(group: str, indent: int) -> str:
    """The settings of all cards of a group (of `probe`: of each card in its own lines) for a help page; lines after the
    first of each are indented.

    >>> settings_listed("scaling", 6)
    'scaling.batch_size= .lr= .budget= .epochs='
    """
    parts = []
    for prefix in [f"probe.{name}." for name in choices("probe")] if group == "probe" else [f"{group}."]:
        names = [name.removeprefix(prefix) for name in known_settings() if name.startswith(prefix)]
        words = f"{prefix}{names[0]}= {' '.join(f'.{name}=' for name in names[1:])}".strip()
        parts.append(("\n" + " " * indent).join(textwrap.wrap(words, PAGE_WIDTH - indent)))
    return ("\n" + " " * (indent - 4)).join(parts)


def offer(name: str, text: Callable[..., str]) -> None:
    """Let the cards ask for a text by ${name:...}."""
    register: Callable[..., None] = getattr(OmegaConf, "register_new_resolver" if FORMER else "register_resolver")
    register(name, text, replace=True)


def folder(experiment: str | None, debug: object = False, name: object = None) -> str:
    """The folder of the runs of an experiment, or of those without one; of a grid that has a name.

    >>> folder("quickstart"), folder(None, True, "mine")
    ('outputs/quickstart', 'outputs/debug/train/mine')
    """
    parts = ("outputs", "debug" if debug is True else "", experiment or "train", "" if name is None else str(name))
    return "/".join(filter(None, parts))


def cell(overrides: str, name: object = None) -> str:
    """The name of the folder of a run: its own, else that of its overrides."""
    return cell_name(overrides) if name is None else str(name)


def up_to(bound: object, *values: int) -> str:
    """The values of an axis that are at most `bound`, where that is a number; a line on stderr names those left out. Where
    none is, the first stays, and is refused with its reason.

    >>> up_to("all", 128, 512), up_to(128, 128, 512), up_to(60, 128, 512)
    ('128,512', '128', '128')
    """
    kept = [value for value in values if not isinstance(bound, int) or value <= bound]
    if not kept:
        return str(values[0])
    if len(kept) < len(values):
        _left_out(",".join(map(str, values[len(kept) :])), str(bound))
    return ",".join(map(str, kept))


@cache
def _left_out(values: str, bound: str) -> None:
    """Said once: a configuration is composed several times."""
    print(f"left out of the axis, more than the {bound} there are: {values}", file=sys.stderr)


# At import, not in a door: a worker process of a grid imports this room and nothing else of ours before it resolves.
offer("lab.folder", folder)
offer("lab.cell", cell)
offer("lab.up_to", up_to)
offer("lab.choices", lambda group, indent: listed(group, width=PAGE_WIDTH, indent=indent))
offer("lab.settings", settings_listed)
