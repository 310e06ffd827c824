"""Every card in conf/ is made of its class by scripts/cards.py; every experiment composes."""

import re
from pathlib import Path

import pytest
import yaml
from cards import card_text
from hydra.utils import get_class
from omegaconf import OmegaConf

from lab.doors.parts import CARDS, read_settings
from lab.doors.request import Request, cards_at_hand, composed
from lab.run.cards import choices, config_dir
from lab.settings import knobs
from lab.train.scaling import scaled

CONF = Path(config_dir())
GROUPS = (*CARDS, "probe", "scaling", "compare")
FILES = [file for file in sorted(CONF.rglob("*.yaml")) if "\n_target_: " in file.read_text()]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONF).with_suffix("")))
def test_a_card_is_fresh_and_its_values_read_back_as_the_defaults(file: Path) -> None:
    values = OmegaConf.to_container(OmegaConf.load(file))
    kind = get_class(values.pop("_target_"))
    assert card_text(file) == file.read_text(), "run `make cards`"
    assert set(values) == set(knobs(kind))
    assert kind(**values) == kind()
    assert yaml.safe_load(file.read_text()).items() >= values.items()
    if file.parent.name in ("probe", "simulation", "noise"):
        assert kind.name == file.stem


def settings_on_the_page() -> set[str]:
    """What `python -m lab.train --help` names: "data.examples= .classes=" is data.examples and data.classes."""
    names, prefix = set(), ""
    for word in OmegaConf.load(CONF / "train.yaml").hydra.help.template.split():
        if found := re.match(r"([\w./]*\.)?(\w+)=", word):
            prefix = found[1] if found[1] and found[1] != "." else prefix if found[1] else ""
            names.add(prefix + found[2])
    return names


@pytest.mark.parametrize("group", [*GROUPS, "optimizer/noise", "optimizer/escape"])
def test_the_help_page_names_every_setting_of_every_card(group: str) -> None:
    page = settings_on_the_page()
    for file in (CONF / group).glob("*.yaml"):
        card = yaml.safe_load(file.read_text()) or {}
        place = f"probe.{file.stem}" if group == "probe" else group.removeprefix("optimizer/")
        missing = {f"{place}.{name}" for name in card if "_target_" in card} - {f"{place}._target_"} - page
        assert not missing, f"{file}: not on the page"


def test_the_help_page_fits_a_terminal() -> None:
    page = OmegaConf.load(CONF / "train.yaml").hydra.help.template
    assert max(map(len, page.splitlines())) <= 120


@pytest.mark.parametrize("name", choices("experiment"))
def test_an_experiment_composes_validates_and_opens_with_its_command(name: str) -> None:
    with cards_at_hand():
        settings = read_settings(scaled(Request.of(composed("train", [f"experiment={name}"])).values))
    assert settings.steps or settings.epochs
    lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith("# python -m lab.train ")
    assert f"experiment={name}" in lines[1]


def test_every_card_belongs_to_a_group_with_a_default() -> None:
    defaults = yaml.safe_load((CONF / "train.yaml").read_text())["defaults"]
    named = {group for entry in defaults if isinstance(entry, dict) for group in entry}
    assert named >= {*GROUPS, "experiment"}
