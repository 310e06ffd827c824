"""Spectra of many runs side by side, and arrays of a folder that anybody may have made."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_runs import made_run

from lab.compare import Run, runs, spectra
from lab.compare.arrays import MAX_ARRAYS, array_files, read_arrays
from lab.compare.spectra import side_by_side, spectra_of
from lab.compare.strangers import Unreadable
from lab.run.folder import RunFolder
from lab.settings import SettingError


def arrays(top: float) -> dict[str, np.ndarray]:
    """A spectrum whose largest eigenvalue is `top`, 2 of 3 beyond the bulk."""
    grid = np.linspace(-1, top, 50)
    numbers = {"sigma": 0.1, "size": 100.0, "edge": 1.0, "threshold": 10.0}
    return {"grid": grid, "values": np.exp(-(grid**2)), "top": np.array([top, 2.0, 0.5])} | {
        name: np.array(value) for name, value in numbers.items()
    }


def with_spectra(folder: Path, values: dict[str, float], tops: dict[int, float]) -> Path:
    run = made_run(folder, values)
    for step, top in tops.items():
        RunFolder(run).log_arrays(step, {f"spectrum/{name}": array for name, array in arrays(top).items()})
    return run


def test_spectra_share_axes_and_are_told_in_words(tmp_path: Path) -> None:
    for lr, top in ((0.1, 4.0), (0.2, 6.0)):
        with_spectra(tmp_path / f"{lr}", {"optimizer.lr": lr}, {0: 3.0, 90: top})
    made_run(tmp_path / "none")
    told = side_by_side(runs(tmp_path))
    assert told.sentence == (
        "lr=0.1: largest eigenvalue 3 at step 0, 4 (0.40 x threshold) at step 90, 2 of the 3 computed are outliers; "
        "lr=0.2: largest eigenvalue 3 at step 0, 6 (0.60 x threshold) at step 90, 2 of the 3 computed are outliers."
    )
    one, other = told.figure.axes[:2]
    assert [axis.get_title() for axis in (one, other)] == ["lr=0.1", "lr=0.2"]
    assert one.get_xlim() == other.get_xlim() and one.get_xlim()[1] == pytest.approx(10.5), "to the threshold"
    assert told.values[tmp_path / "0.2"] == {"spectrum/lambda_1": 6.0}


def test_of_many_runs_the_first_are_drawn_and_one_measurement_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectra, "MOST", 2)
    for i in range(3):
        with_spectra(tmp_path / f"{i}", {"seed": i}, {5: 3.0})
    told = side_by_side(runs(tmp_path))
    assert told.sentence.endswith("The first 2 runs are shown.")
    assert len(told.figure.axes) == 3


def test_runs_without_a_spectrum_are_refused(tmp_path: Path) -> None:
    made_run(tmp_path / "a")
    with pytest.raises(SettingError, match="no run has measured its spectrum"):
        side_by_side(runs(tmp_path))


def packed(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


LYING = saved(np.zeros(4)).replace(b"(4,), ", b"(4000000000000,), ".ljust(6))
HOSTILE: dict[str, Callable[[], bytes]] = {
    "no archive": lambda: b"PK\3\4 and no more",
    "objects, which would be unpickled": lambda: packed(grid=saved(np.array([{}], dtype=object))),
    "a header that promises more": lambda: packed(grid=LYING),
    "a bomb": lambda: packed(grid=b"\0" * (MAX_ARRAYS + 1)),
    "no array": lambda: packed(grid=b"text"),
    "another kind of arrays": lambda: packed(grid=saved(np.zeros(3))),
    "numbers that are none": lambda: packed(**{n: saved(a * np.nan) for n, a in arrays(3.0).items()}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_damaged_or_hostile_arrays_are_passed_over(tmp_path: Path, name: str) -> None:
    run = with_spectra(tmp_path / "a", {}, {0: 3.0})
    (run / "arrays" / "spectrum_0000050.npz").write_bytes(HOSTILE[name]())
    (run / "arrays" / "spectrum_0000060.npz").symlink_to("/dev/zero")
    (run / "arrays" / "spectrum_1e9.npz").touch()
    assert list(array_files(run, "spectrum")) == [0, 50, 60]
    assert list(spectra_of(Run.read(run))) == [0]
    with pytest.raises(Unreadable, match="leads out of the folder"):
        read_arrays(run, "arrays/spectrum_0000060.npz")


def test_a_folder_of_arrays_that_leads_outside_is_not_followed(tmp_path: Path) -> None:
    other = with_spectra(tmp_path / "a", {}, {0: 3.0})
    run = made_run(tmp_path / "b")
    (run / "arrays").symlink_to(other / "arrays")
    assert not spectra_of(Run.read(run))
