"""Whole runs of `python -m lab.train` in this process, each test in a folder of its own."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from lab.run import checkpoints
from lab.run.folder import RunFolder
from lab.train import main


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test runs in a folder of its own. What costs more than tiny runs is left out: the figures of single runs, and
    all rounds but one in which the cost of a noise is taken."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lab.train.run.show_outcome", lambda *arguments: None)
    monkeypatch.setattr("lab.module.TIMED", 1)
    return tmp_path


def _command(*arguments: str) -> None:
    GlobalHydra.instance().clear()
    sys.argv = ["lab.train", *arguments]
    main()


def _train(folder: str, *overrides: str) -> RunFolder:
    _command("hydra.run.dir=" + folder, *overrides)
    return RunFolder(folder)


@pytest.fixture
def command() -> Callable[..., None]:
    """`python -m lab.train` with these arguments."""
    return _command


@pytest.fixture
def train() -> Callable[..., RunFolder]:
    """One run into the folder that is named first."""
    return _train


@pytest.fixture
def resumed() -> Callable[..., tuple[RunFolder, RunFolder]]:
    """A run in one piece, and the same as if killed after its last checkpoint but one and begun again."""

    def runs(*settings: str) -> tuple[RunFolder, RunFolder]:
        whole, broken = _train("whole", *settings), RunFolder("broken")
        shutil.copytree(whole.path, broken.path)
        (broken.checkpoints / "last.ckpt").unlink()
        step = checkpoints.load(broken.checkpoints / "previous.ckpt")["step"]
        broken.write("status", {"status": "running", "step": step, "reason": "", "pid": 1})
        return whole, _train("broken", *settings)

    return runs


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The last line that a command says which ends with exit code 2; before it, images are read."""

    def line(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            _command(*arguments)
        assert stopped.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    return line


@pytest.fixture
def metrics() -> Callable[[RunFolder], list[dict[str, Any]]]:
    """metrics.jsonl, less what the clock says."""

    def lines(folder: RunFolder) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
        return [line for line in found if not line["tag"].endswith("/seconds")]

    return lines


@pytest.fixture
def weights() -> Callable[[RunFolder], dict[str, torch.Tensor]]:
    """The weights and buffers at the end of a run."""
    return lambda folder: checkpoints.load(folder.checkpoints / "last.ckpt")["model"]
