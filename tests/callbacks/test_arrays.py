"""What a probe measures beside numbers: arrays in npz files, forgotten on resume, and the figures drawn from them."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from lab.callbacks.metrics import MetricsLogger
from lab.run.figures import waterfall_figure
from lab.run.folder import RunFolder
from lab.train import main

RUN = (
    "trainer.threads=1",
    "data.examples=60",
    "model.widths=[8]",
    "steps=20",
    "probe=[spectrum]",
    "probe.spectrum.every=8",
    "probe.spectrum.steps=20",
    "probe.spectrum.k=3",
    "probe.spectrum.bottom=2",
)


def train(folder: Path, *overrides: str) -> RunFolder:
    GlobalHydra.instance().clear()
    sys.argv = ["lab.train", f"hydra.run.dir={folder}", *RUN, *overrides]
    main()
    return RunFolder(folder)


def nothing(*arguments: Any) -> None:
    """In the place of what draws, the dearest of a tiny run."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with the figures in its folder; the dashboard goes without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lab.callbacks.probing.show_figure", nothing)
        patch.setattr("lab.callbacks.outcome.show_figure", nothing)
        return train(tmp_path_factory.mktemp("run") / "whole")


def test_a_run_leaves_an_npz_a_measurement_and_two_figures(whole: RunFolder) -> None:
    assert sorted(file.name for file in whole.arrays.iterdir()) == [
        "spectrum_0000000.npz",
        "spectrum_0000008.npz",
        "spectrum_0000016.npz",
    ]
    assert {"spectrum_density.png", "spectrum_waterfall.png"} <= {file.name for file in whole.figures.iterdir()}
    for step, arrays in whole.all_arrays("spectrum").items():
        assert arrays["grid"].shape == arrays["values"].shape == (1024,)
        assert np.trapezoid(arrays["values"], arrays["grid"]) == pytest.approx(1, abs=1e-3)
        assert arrays["nodes"].shape == arrays["weights"].shape == (3, 3 + 2 + 20)
        steps, tops = whole.series("spectrum/lambda_1")
        assert arrays["top"][0] == tops[steps.index(step)]


def test_a_resumed_run_has_all_arrays_and_the_same(
    whole: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for draws in (
        "callbacks.probing.show_figure",
        "callbacks.metrics.save",
        "callbacks.outcome.figures.save",
        "train.run.show_outcome",
    ):
        monkeypatch.setattr(f"lab.{draws}", nothing)
    folder = train(tmp_path / "resumed", "steps=12")  # its last checkpoint is at step 12
    (folder.path / "status.json").unlink()
    (folder.path / "provenance.json").unlink()
    folder.log_arrays(16, {"spectrum/values": np.zeros(3)})  # of a future that the checkpoint does not know
    train(tmp_path / "resumed")
    one, other = whole.all_arrays("spectrum"), folder.all_arrays("spectrum")
    assert one.keys() == other.keys()
    for step in one:
        for name, array in one[step].items():
            np.testing.assert_array_equal(array, other[step][name], err_msg=f"{name} at step {step}")


def test_arrays_go_to_one_file_a_probe_and_are_forgotten_from_a_step(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (0, 13, 10_000_000):
        folder.log_arrays(
            step, {"spectrum/layer/0": np.arange(3.0), "spectrum/x": np.array(2.0), "noise/x": np.ones(1)}
        )
    assert list(folder.all_arrays("spectrum")) == [0, 13, 10_000_000]
    folder.forget_from(13)
    assert sorted(file.name for file in folder.arrays.iterdir()) == ["noise_0000000.npz", "spectrum_0000000.npz"]
    arrays = folder.all_arrays("spectrum")[0]
    assert arrays["layer/0"].tolist() == [0, 1, 2] and arrays["x"] == 2


def test_the_logger_writes_no_folder_for_nothing(tmp_path: Path) -> None:
    MetricsLogger(RunFolder(tmp_path)).log_others({}, {}, 0)
    assert not list(tmp_path.iterdir())


def measurement(top: float, threshold: float | None) -> dict[str, Any]:
    grid = np.linspace(-1, top + 1, 200)
    arrays = {"grid": grid, "values": np.exp(-(grid**2)), "top": np.array([top, top / 2]), "size": 100, "sigma": 0.1}
    return arrays | {"edge": 0.4 * top} | ({} if threshold is None else {"threshold": threshold})


def test_waterfall_tells_the_range_of_a_threshold_that_moves_out_of_sight() -> None:
    for thresholds, told in (((200, 300), " 200 to 300, off to the right"), ((2, 300), "")):
        figure = waterfall_figure({t: measurement(1.0, thresholds[t]) for t in range(2)})
        assert figure.legends[0].get_texts()[1].get_text() == f"stability threshold{told}"


@pytest.mark.parametrize("threshold", [None, 3.0, 1e4])
def test_waterfall_has_a_strip_for_every_measurement(threshold: float | None) -> None:
    figure = waterfall_figure({step: measurement(1 + step / 10, threshold) for step in (0, 7, 20, 21)})
    axis = figure.axes[0]
    strips = axis.collections[0].get_array()
    assert strips is not None and torch.as_tensor(np.asarray(strips)).shape[0] == 4
    right = axis.get_xlim()[1]
    assert (right > 3.0) and right < 100
    told = {text.get_text() for text in figure.legends[0].get_texts()}
    line = {None: set(), 3.0: {"stability threshold"}, 1e4: {"stability threshold 1e+04, off to the right"}}[threshold]
    assert told == {"outliers", *line}
    assert axis.get_ylim()[0] == 0
