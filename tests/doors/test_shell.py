"""What a shell sees of the doors: exit codes, pages of help and of settings, readers that have gone."""

import logging
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from lab.measure import main as measure
from lab.simulate import main as simulate
from lab.train import main


def test_from_the_shell_too(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lab.train", "data.batch_size=2000"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "error: data.batch_size=2000 is larger than the 1797 training examples; "
        "use data.batch_size=full for gradient descent\n"
    )
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_help_is_a_page_with_the_real_cards(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "lab.train", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)
    assert "$" not in done.stdout
    assert all(len(line) <= 120 for line in done.stdout.splitlines())
    for group in ("experiment", "data", "model", "loss", "optimizer", "schedule"):
        for file in (Path(__file__).parents[2] / "conf" / group).glob("*.yaml"):
            assert file.stem in done.stdout
    assert " torch\n" not in done.stderr, "help must not wait for torch"
    assert list(tmp_path.iterdir()) == []


def test_cfg_job_prints_all_settings_and_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lab.train", "experiment=quickstart", "--cfg", "job", "seed=3"])
    GlobalHydra.instance().clear()
    main()
    told = capsys.readouterr().out
    assert "lr: 0.6" in told
    assert "seed: 3" in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("main", "line", "begins", "holds"),
    [
        (main, "-m optimizer.lr=0.1,0.2 --cfg job", "# 2 runs, one for each of optimizer.lr=0.1,0.2; these", "lr: 0.1"),
        (
            main,
            "-m optimizer=adam,sgd seed=3 --cfg job --resolve",
            "# 2 runs, one for each of optimizer=adam,sgd",
            "betas",
        ),
        (main, "-m seed=3 --cfg job", "# 1 run; these are the settings of the first", "seed: 3"),
        (main, "experiment=noise_injection --cfg job", "# 18 runs, one for each of optimizer/noise=none,", "seed: 0"),
        (main, "--run experiment=edge_of_stochastic_stability --cfg job", "data:", "lr: "),
        (main, "-m seed=0,1 --cfg hydra", "# 2 runs", "hydra:"),
        (main, "-m optimizer.lr=0.1,0.2 --help", "python -m lab.train", "optimizer="),
        (main, "-m optimizer=sgd,adam --help", "# Gradient descent;", "nesterov:"),
        (main, "-m seed=0,1 --info", "", "Config search path"),
        (main, "-m seed=0,1 --info defaults", "", "Defaults List"),
        (simulate, "-m experiment=polya seed=0,1 --cfg job", "# 2 runs, one for each of seed=0,1; these", "walkers:"),
        (simulate, "-m --help", "python -m lab.simulate", "polya"),
        (measure, "--cfg hydra", "hydra:", "run:"),
    ],
)
def test_a_page_is_shown_for_a_grid_too_that_of_its_first_run(
    main: Callable[[], None],
    line: str,
    begins: str,
    holds: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lab.train", *shlex.split(line)])
    pages = logging.getLogger("hydra._internal.hydra")
    monkeypatch.setattr(pages, "disabled", False)  # as a job of Hydra leaves it in this process
    GlobalHydra.instance().clear()
    with suppress(SystemExit):  # of --help, without an error
        main()
    page = capsys.readouterr().out
    assert page.startswith(begins) and holds in page
    assert list(tmp_path.iterdir()) == []


def environment() -> dict[str, str]:
    """The package from this checkout, whatever the current folder is."""

    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


def test_a_reader_that_has_gone_ends_the_program_without_a_word() -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "lab.train", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert program.stdout is not None
    program.stdout.close()
    _, told = program.communicate()
    assert (program.returncode, told) == (128 + signal.SIGPIPE, b"")
