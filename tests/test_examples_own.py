"""Every command in the docstrings of examples/own/ runs, as typed there; and what these files are is what they say."""

import ast
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from torch.nn import functional

from lab.named import load
from lab.train import main

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "examples/own" / name for name in ("make_data.py", "nets.py", "losses.py")]
DOCS = [ast.get_docstring(ast.parse(file.read_text())) or "" for file in FILES]
COMMANDS = re.findall(r"^ *python -m lab\.train (.+)$", "\n".join(DOCS).replace("\\\n", ""), flags=re.M)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a reader stands: beside examples/, with the file that make_data.py writes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    runpy.run_path("examples/own/make_data.py", run_name="__main__")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    GlobalHydra.instance().clear()
    monkeypatch.setattr(sys, "argv", ["lab.train", *shlex.split(command), "steps=3", "trainer.threads=1"])
    main()
    assert "Trained 3 steps" in capsys.readouterr().out


def test_each_file_has_a_command() -> None:
    assert len(COMMANDS) >= 4 and all("python -m lab.train" in doc for doc in DOCS)


def test_the_data_are_two_classes_and_a_wave() -> None:
    with np.load("moons.npz") as file:
        assert file["x_train"].shape == (300, 2) and set(file["y_test"]) == {0, 1}
    waves = load("examples/own/make_data.py:waves", "data.path")()
    np.testing.assert_allclose(waves["y_train"], np.sin(3 * waves["x_train"]))


def test_the_losses_are_what_they_say() -> None:
    focal, log_cosh = (load(f"examples/own/losses.py:{name}", "loss.path") for name in ("focal", "LogCosh"))
    f, y = torch.randn(6, 3), torch.randint(3, (6,))
    torch.testing.assert_close(focal(f, y, gamma=0.0), functional.cross_entropy(f, y))
    p = f.softmax(1)[torch.arange(6), y]
    torch.testing.assert_close(focal(f, y, gamma=2.0), -((1 - p) ** 2 * p.log()).mean())
    target = torch.randn(6, 3)
    expected = torch.log(torch.cosh((f - target) / 2)).sum(1).mean()
    torch.testing.assert_close(log_cosh(scale=2.0)(f, target), expected)


def test_the_models_map_their_inputs_to_two_and_ten_classes() -> None:
    net, conv = (load(f"examples/own/nets.py:{name}", "model.path")() for name in ("TinyNet", "tiny_conv"))
    assert net(torch.randn(5, 2)).shape == (5, 2)
    assert conv(torch.randn(5, 3, 9, 9)).shape == (5, 10)
