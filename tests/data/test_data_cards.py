"""Each YAML card of data, model and loss lists every setting of its class with its default."""

import dataclasses
import importlib
from pathlib import Path

import pytest
import yaml

CONF = Path(__file__).parents[2] / "conf"
CARDS = [path for group in ("data", "model", "loss") for path in sorted((CONF / group).glob("*.yaml"))]


@pytest.mark.parametrize("path", CARDS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_card_lists_every_setting_with_its_default_and_a_comment(path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    module, _, name = values.pop("_target_").rpartition(".")
    card = getattr(importlib.import_module(module), name)
    assert set(values) == {field.name for field in dataclasses.fields(card)}
    assert card(**values) == card()
    assert all("#" in line for line in path.read_text().splitlines() if not line.startswith("_target_"))
