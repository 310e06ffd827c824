"""README is the front door: every command and every snippet in it is run here."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from lab.cli import choices
from lab.train.settings import CARDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SHORT = "steps=4"
"""Appended to what would take minutes; the last value given wins."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def commands(start: str) -> list[str]:
    lines = [line.split("  #")[0].strip() for block in blocks("sh") for line in block.replace("\\\n", "").splitlines()]
    return [line for line in lines if line.startswith(start)]


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
def test_every_train_command_of_readme_runs(command: str, tmp_path: Path, images: Path) -> None:
    words = shlex.split(command)[1:]
    if "data=cifar10" in words:
        words[words.index("data=cifar10")] = "data=image_folder"
        words += [f"data.root={images}", "data.batch_size=8", "trainer.evaluate_every=null"]
    if "--help" not in words and "experiment=quickstart" not in words:
        words = [word for word in words if not word.startswith("steps=")] + [SHORT]
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "Traceback" not in done.stderr
    if any(word.startswith("compare=") for word in words):
        [figure] = re.findall(r"figure +(outputs/train/figures/.+\.png)", done.stdout)
        assert (tmp_path / figure).stat().st_size > 10_000
    if "experiment=quickstart" in words:
        assert "Reached the edge of stability" in done.stdout
        assert (tmp_path / "outputs/quickstart/default/figures/edge.png").stat().st_size > 10_000


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the quickstart was run, for a few steps."""
    folder = tmp_path_factory.mktemp("trained")
    done = run(folder, "-m", "lab.train", "experiment=quickstart", "steps=20")
    assert done.returncode == 0, done.stderr
    made = next((folder / "outputs/quickstart").iterdir())
    made.rename(made.with_name("default"))
    return folder


@pytest.mark.parametrize("command", commands("python -m lab.measure"))
def test_every_measure_command_of_readme_runs(command: str, trained: Path) -> None:
    done = run(trained, *shlex.split(command)[1:])
    assert done.returncode == 0, done.stderr
    assert re.findall(r"probe=\[(\w+)\]", command)[0] in done.stdout
    [figure] = re.findall(r"figure +(.+\.png)", done.stdout)
    assert (trained / figure).stat().st_size > 10_000


@pytest.mark.parametrize("command", commands("python -m lab.selfcheck"))
def test_every_selfcheck_command_of_readme_exists(command: str) -> None:
    done = subprocess.run(
        [sys.executable, *shlex.split(command)[1:], "--help"], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("snippet", blocks("python"), ids=lambda snippet: snippet.splitlines()[0])
def test_every_snippet_of_readme_runs(snippet: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


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
