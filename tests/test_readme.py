"""README is the front door: every command and every snippet in it is run here."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from lab.run.cards import choices
from lab.run.parts import CARDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SHORT = "steps=4"
"""Appended to what would take minutes; the last value given wins."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def commands(start: str) -> list[str]:
    lines = [line.split("  #")[0].strip() for block in blocks("sh") for line in block.replace("\\\n", "").splitlines()]
    return [line for line in lines if line.startswith(start)]


def run(command: str, folder: Path, *overrides: str) -> None:
    """`python -m door ...` in `folder`, in this process: a child of its own takes seconds to load torch and Lightning."""
    [_, _, door, *words] = shlex.split(command)
    GlobalHydra.instance().clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [door, *words, *overrides])
        code: object = None
        try:
            runpy.run_module(door, run_name="__main__")
        except SystemExit as stopped:
            code = stopped.code
        assert not code


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A small image folder in the place of CIFAR-10, which a test does not download."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(8):
                Image.fromarray(generator.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "images"


@pytest.mark.parametrize("command", commands("python -m lab.train"))
def test_every_train_command_of_readme_runs(
    command: str, tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["trainer.threads=1", SHORT]
    if "data=cifar10" in command:
        command = command.replace("data=cifar10", "data=image_folder")
        overrides += [f"data.root={images}", "data.batch_size=8", "trainer.evaluate_every=null"]
    command = re.sub(r" steps=\d+", "", command)
    run(command, tmp_path, *([] if "--help" in command else overrides))
    told = capsys.readouterr().out
    assert told.strip()
    if "compare=" in command:
        [figure] = re.findall(r"figure +(outputs/train/figures/.+\.png)", told)
        assert (tmp_path / figure).stat().st_size > 10_000
    if "experiment=quickstart" in command:  # what it shows in all its steps is held in test_edge_facts.py
        assert list((tmp_path / "outputs/quickstart").glob("*/figures/edge.png"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the quickstart was run, for a few steps."""
    folder = tmp_path_factory.mktemp("trained")
    run("python -m lab.train experiment=quickstart", folder, "steps=20", "trainer.threads=1")
    made = next((folder / "outputs/quickstart").iterdir())
    made.rename(made.with_name("default"))
    return folder


@pytest.mark.parametrize("command", commands("python -m lab.measure"))
def test_every_measure_command_of_readme_runs(command: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(command, trained)
    told = capsys.readouterr().out
    assert re.findall(r"probe=\[(\w+)\]", command)[0] in told
    [figure] = re.findall(r"figure +(.+\.png)", told)
    assert (trained / figure).stat().st_size > 10_000


@pytest.mark.parametrize("command", commands("python -m lab.selfcheck"))
def test_every_selfcheck_command_of_readme_exists(command: str, tmp_path: Path) -> None:
    run(command, tmp_path, "--help")


@pytest.mark.parametrize("snippet", blocks("python"), ids=lambda snippet: snippet.splitlines()[0])
def test_every_snippet_of_readme_runs(
    snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("command", commands("make "))
def test_every_make_target_of_readme_exists(command: str) -> None:
    done = subprocess.run(["make", "--dry-run", *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_make_help_names_every_target() -> None:
    phony = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), flags=re.M)[0].split()
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True)
    assert re.findall(r"^make (\S+)", done.stdout, flags=re.M) == [name for name in phony if name != "help"]


def test_make_demo_is_the_quickstart() -> None:
    done = subprocess.run(["make", "--dry-run", "demo"], cwd=ROOT, capture_output=True, text=True)
    assert "python -m lab.train experiment=quickstart" in done.stdout


def test_the_tensorboard_command_of_readme_is_known() -> None:
    for command in commands("tensorboard"):
        done = subprocess.run([sys.executable, "-m", "tensorboard.main", "--help"], capture_output=True, text=True)
        assert shlex.split(command)[1] in done.stdout


@pytest.mark.parametrize(("door", "cards"), [("train", "experiment"), ("simulate", "simulation")])
def test_every_experiment_of_readme_exists_and_every_one_is_named(door: str, cards: str) -> None:
    table = README.split(f"| `python -m lab.{door} experiment=` |")[1].split("\n\n")[0]
    named = re.findall(r"^\| `(\w+)` \|", table, flags=re.M)
    assert sorted(named) == sorted(file.stem for file in (ROOT / "conf" / cards).glob("*.yaml"))


@pytest.mark.parametrize("group", [*CARDS, "scaling", "compare", "optimizer/noise", "optimizer/escape"])
def test_the_table_of_readme_has_every_choice_of_a_group_and_every_setting(group: str) -> None:
    [row] = re.findall(rf"^\| `{group}` \|(.+)\|(.+)\|$", README, flags=re.M)
    chosen, told = (set(re.findall(r"(\w+)(?=[` ])", part)) for part in row)
    cards = {file.stem: yaml.safe_load(file.read_text()) for file in (ROOT / "conf" / group).glob("*.yaml")}
    assert chosen >= cards.keys()
    settings = {name for card in cards.values() if "_target_" in (card or {}) for name in card} - {"_target_"}
    assert told >= settings


def test_every_probe_is_in_the_table_of_readme() -> None:
    [row] = re.findall(r"^\| `probe` \|(.+?)\|", README, flags=re.M)
    assert set(re.findall(r"`(\w+)`", row)) == set(choices("probe"))


def test_every_file_that_readme_names_exists() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
