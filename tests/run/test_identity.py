"""Which run a folder holds: settings with the names of their cards, and the data behind them."""

from pathlib import Path

import pytest
import yaml

from lab.run.cards import config_dir
from lab.run.folder import RunFolder
from lab.run.identity import PLACE, as_begun, flat, require_same_data, require_unchanged
from lab.run.length import growth
from lab.settings import SettingError

GROUPS = ("data", "model", "loss", "optimizer", "schedule", "trainer")


def of(**cards: str) -> dict:
    """The settings of these cards, as they stand in provenance.json."""
    files = {group: Path(config_dir()) / group / f"{name}.yaml" for group, name in cards.items()}
    return {group: yaml.safe_load(file.read_text()) for group, file in files.items()}


@pytest.mark.parametrize("group", GROUPS)
def test_every_card_is_told_from_the_others_by_its_name(group: str) -> None:
    for file in (Path(config_dir()) / group).glob("*.yaml"):
        assert flat(of(**{group: file.stem}))[group] == file.stem


def test_settings_lie_flat_with_the_names_of_their_cards() -> None:
    noise = {"_target_": "lab.optim.noise.Sgld", "temperature": None}
    probes = {"sharpness": {"_target_": "lab.probes.sharpness.Sharpness", "every": 13}}
    plain = of(loss="mse") | {
        "noise": noise,
        "probe": probes,
        "model": {"_target_": "mine.Net", "widths": [2]},
        "seed": 0,
    }
    assert flat(plain) == {
        "loss": "mse",
        "noise": "sgld",
        "noise.temperature": "None",
        "probe.sharpness.every": 13,
        "model": "mine.Net",
        "model.widths": "[2]",
        "seed": 0,
    }


def test_a_folder_with_another_card_is_refused_by_the_names_of_both(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write("provenance", {"settings": of(loss="mse")})
    require_unchanged(folder, of(loss="mse"))
    with pytest.raises(SettingError, match="holds a run with loss=mse, not cross_entropy; choose another "):
        require_unchanged(folder, of(loss="cross_entropy"))


def test_where_images_are_cached_and_how_many_threads_there_are_is_no_part_of_a_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    plain = of(data="image_folder", trainer="default")
    folder.write("provenance", {"settings": plain})
    with_others = plain | {"data": plain["data"] | {"cache": "beside"}, "trainer": plain["trainer"] | {"threads": 3}}
    require_unchanged(folder, with_others)
    del with_others["data"]["cache"]  # of a run of an earlier version
    require_unchanged(folder, with_others)
    named = yaml.safe_load((Path(config_dir()) / "train.yaml").read_text())["hydra"]["job"]["config"][
        "override_dirname"
    ]
    assert {*PLACE} <= {*named["exclude_keys"]}, "nor of the name of its folder"


def test_a_setting_that_there_was_not_then_has_to_have_its_default(tmp_path: Path) -> None:
    folder, now = RunFolder(tmp_path), of(trainer="default", optimizer="adam")
    before = of(trainer="default", optimizer="adam")
    for group, name in (("trainer", "keep"), ("trainer", "state"), ("optimizer", "betas")):
        del before[group][name]
    folder.write("provenance", {"settings": before})
    require_unchanged(folder, now)
    now["trainer"]["keep"] = "best"  # changes no number
    require_unchanged(folder, now)
    now["trainer"]["state"] = "drop"
    with pytest.raises(SettingError, match=r"holds a run with trainer\.state=None, not drop"):
        require_unchanged(folder, now)


@pytest.mark.parametrize(
    ("length", "now"),
    [
        ({"steps": 40}, None),
        ({"epochs": 10}, None),  # of 4 batches each
        ({"steps": None}, 1000),
        ({"epochs": 11}, 44),
        ({"steps": 39}, "steps=39 is fewer: a run is made longer, never shorter"),
        ({"epochs": 9}, "epochs=9, 36 updates, is fewer"),
        ({"steps": "ten"}, "steps=ten: expected a whole number of at least 1"),
        ({"steps": 50, "epochs": 50}, "contradict each other"),
    ],
)
def test_a_length_may_grow_in_steps_and_in_epochs(tmp_path: Path, length: dict, now: int | str | None) -> None:
    folder, data = RunFolder(tmp_path), {"batch_size": 16, "_target_": "lab.data.digits.Digits"}
    folder.write("provenance", {"settings": {"data": data, "steps": 40, "epochs": None}, "data": {"examples": 60}})
    plain = {"data": data, "steps": None, "epochs": None} | length
    if isinstance(now, str):
        with pytest.raises(SettingError, match=now):
            require_unchanged(folder, plain, grows=True)
        return
    require_unchanged(folder, plain, grows=True)
    assert growth(folder, plain) == (None if now is None else (40, now))


def test_data_are_compared_in_what_the_run_has_noted_of_them(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write("provenance", {"data": {"examples": 300}})
    require_same_data(folder, {"examples": 300, "sha256": "noted since"})
    for facts in ({"examples": 299}, {"sha256": "x"}):
        with pytest.raises(SettingError, match="holds a run on other data: examples was 300, is now "):
            require_same_data(folder, facts)


def test_a_run_of_an_earlier_version_is_its_own_command_whether_a_budget_was_typed_or_not(tmp_path: Path) -> None:
    folder, card = RunFolder(tmp_path), {"_target_": "lab.probes.spectrum.Spectrum", "k": "auto", "bottom": "auto"}
    now = {"probe": {"spectrum": card, "budget": "products:20"}}
    then = {"probe": {"spectrum": card | {"k": 10, "bottom": 10}, "budget": "products:20"}}
    folder.write("provenance", {"settings": then})
    for typed in (False, True):
        assert as_begun(folder, now, typed=typed) == then
    other = {"probe": {"spectrum": card | {"k": 9, "bottom": 10}, "budget": "products:20"}}
    folder.write("provenance", {"settings": other})
    assert as_begun(folder, now, typed=True)["probe"]["spectrum"] == card | {"bottom": 10}, "9 never was the default"
    del then["probe"]["budget"]
    folder.write("provenance", {"settings": then})
    assert as_begun(folder, now) == then and as_begun(folder, now, typed=True) == now, "a budget is another run"
