"""Every test runs in a folder of its own, which holds a handful of generated images."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Every test runs in a folder of its own, which holds a few images of two classes."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for place, count in (("train/a", 10), ("train/b", 10), ("test/a", 2), ("test/b", 2)):
        (tmp_path / "images" / place).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) // (1 + place.endswith("b"))
            Image.fromarray(pixels).save(tmp_path / "images" / place / f"{i}.png")
    return tmp_path


@pytest.fixture
def drawn() -> None:
    """Asked for by the tests that look at the figure, which costs more than the rest of a small run."""


@pytest.fixture(autouse=True)
def figures_on_demand(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("lab.train.run.show_outcome", lambda *arguments: None)
