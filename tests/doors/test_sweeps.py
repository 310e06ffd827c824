"""sweep=batch_lr: axes that fit the settings, and give way to those that are typed."""

import pytest

from lab.doors.grid import Grid, axes, first_of
from lab.doors.request import cards_at_hand, composed
from lab.doors.words import Words
from lab.settings import SettingError
from lab.train.comparison import swept


def axes_of(*words: str) -> dict[str, list[str]]:
    """What the cells of a grid differ in, in order of appearance."""
    with cards_at_hand():
        typed = Words.of(words).parsed
        first = composed("train", first_of(typed))
        assert "-m" in words or first.hydra.mode.name == "MULTIRUN"
        cells = Grid.of("train", first, typed, []).cells
    assert len({cell.folder for cell in cells}) == len(cells)
    assert not any("sweep" in cell.folder.name for cell in cells)
    pairs = [dict(word.partition("=")[::2] for word in cell.overrides) for cell in cells]
    return {name: list(dict.fromkeys(pair[name] for pair in pairs)) for name in swept(cells)}


BATCHES = ["8", "32", "128", "full"]


@pytest.mark.parametrize(
    ("line", "batches", "rates"),
    [
        ("", BATCHES, ["0.025", "0.1", "0.4", "1.6"]),
        ("optimizer=adam", BATCHES, ["0.00025", "0.001", "0.004", "0.016"]),
        ("experiment=quickstart", BATCHES, ["0.15", "0.6", "2.4", "9.6"]),
        ("data=cifar10", ["32", "128", "512", "2048"], ["0.025", "0.1", "0.4", "1.6"]),
        ("data.batch_size=4,16", ["4", "16"], ["0.025", "0.1", "0.4", "1.6"]),
        ("experiment=edge_of_stochastic_stability optimizer.lr=0.5,1", BATCHES, ["0.5", "1"]),
    ],
)
def test_the_axes_fit_the_settings(line: str, batches: list[str], rates: list[str]) -> None:
    assert axes_of("sweep=batch_lr", *line.split()) == {"data.batch_size": batches, "optimizer.lr": rates}


def test_an_axis_that_an_experiment_has_besides_stays() -> None:
    typed = ("data.batch_size=8", "optimizer.lr=0.1,0.2")
    found = axes_of("sweep=batch_lr", "experiment=random_labels", *typed)
    assert [*found] == ["data.random_labels", "optimizer.lr"]


def test_a_pattern_names_cards_also_of_a_folder() -> None:
    assert [*axes_of("-m", "loss=glob([c*,m*])", "seed=range(0,2)")["loss"]] == ["cross_entropy", "mse"]
    words = Words.of(("-m", "experiment=glob(edge/*)")).parsed
    with cards_at_hand():
        assert first_of(words) == ["experiment=edge/adam"]
        assert len(axes(composed("train", first_of(words)), words)[0]) == 6


@pytest.mark.parametrize("word", ["loss=glob(zzz*)", "seed=glob(*)", "probe=glob(*)"])
def test_a_pattern_that_names_nothing_is_refused(word: str) -> None:
    with pytest.raises(SettingError, match="glob"), cards_at_hand():
        first_of(Words.of(("-m", word)).parsed)


@pytest.mark.parametrize("several", ["quickstart,edge_of_stochastic_stability", "random_labels,quickstart"])
def test_experiments_that_are_grids_over_other_axes_are_not_made_along_one_axis(several: str) -> None:
    words = Words.of(("-m", f"experiment={several}", "steps=3")).parsed
    with (
        cards_at_hand(),
        pytest.raises(SettingError, match=f"^experiment={several}: they are grids over axes of their"),
    ):
        Grid.of("train", composed("train", first_of(words)), words, [])
