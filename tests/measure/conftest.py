"""A folder for every test, a few images, and one finished run that the tests copy."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from measure.runs import MLP, run
from PIL import Image

from lab.run.folder import RunFolder


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lab.train.run.show_outcome", lambda *arguments: None)
    return tmp_path


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few images of two classes."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for place, count in (("train/a", 10), ("train/b", 10)):
        (root / place).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) // (1 + place.endswith("b"))
            Image.fromarray(pixels).save(root / place / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """One small run, for the tests that do not care which."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lab.train.run.show_outcome", lambda *arguments: None)
        return run(tmp_path_factory.mktemp("finished") / "run", *MLP)


@pytest.fixture
def here(finished: RunFolder, scratch: Path) -> Path:
    """A copy of it, to write into."""
    shutil.copytree(finished.path, scratch / "run")
    return Path("run")
