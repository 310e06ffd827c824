"""README and docs/ are the front door: every command and every snippet in them is run here, the long ones composed only."""

import ast
import doctest
import importlib
import importlib.util
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from made_runs import made_run
from PIL import Image

ROOT = Path(__file__).parents[1]
BUILT = ("_build", "generated", "examples")
"""Folders of docs/ that `make docs` writes."""
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES += [
    page for page in sorted((ROOT / "docs").rglob("*.md")) if page.relative_to(ROOT / "docs").parts[0] not in BUILT
]
README = ROOT / "README.md"
RUN = {README, *(ROOT / "docs" / name for name in ("start.md", "own_model.md", "sweeps.md"))}
"""Pages whose training and measuring commands are run, cut short; those of other pages are composed."""
SHORT = "steps=4"
"""Appended to what would take minutes; the last value given wins."""
KINDS = ("python -m lab.train", "python -m lab.measure", "python -m lab.simulate", "python -m lab.selfcheck")
KINDS += ("python -m lab.report", "make ", "pip install", "tensorboard", "python examples/own/")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.S | re.M)


def lines(page: Path) -> Iterator[str]:
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", "").splitlines():
            if command := line.split("  #")[0].strip():
                yield command


def commands(start: str) -> dict[str, Path]:
    """Each command that begins so, once, and the first page that has it; pages whose commands are run come first."""
    found = dict[str, Path]()
    for page in sorted(PAGES, key=lambda page: page not in RUN):
        for line in lines(page):
            if line.startswith(start):
                found.setdefault(line, page)
    return found


def to_run(command: str, page: Path) -> bool:
    """Experiments but the quickstart, and sweeps, are many runs or long ones, and a launcher of a cluster needs one."""
    return page in RUN and not re.search("submitit|launcher=slurm|sweep=|experiment=(?!quickstart)", command)


TRAIN, MEASURE, SIMULATE = (commands(f"python -m lab.{door}") for door in ("train", "measure", "simulate"))
RUNS = [line for line, page in TRAIN.items() if to_run(line, page)]
MEASURES = [line for line, page in MEASURE.items() if to_run(line, page) and "weights.pt" not in line]
COMPOSED = [line for line in [*TRAIN, *MEASURE, *SIMULATE] if line not in [*RUNS, *MEASURES]]


def one_cell(command: str) -> str:
    """The first cell of a grid, made here."""
    door, words = command.split()[:3], command.split()[3:]
    words = [word for word in words if word != "-m" and not re.match(r"(hydra[./])?launcher", word)]
    return " ".join([*door, *(re.sub(r"^([\w./]+=[^,\[\]]+),.*", r"\1", word) for word in words)])


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


def with_examples(folder: Path) -> None:
    """The folder as a reader has it who stands in the repository: examples/, and what its scripts have written."""
    (folder / "examples").symlink_to(ROOT / "examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for script in commands("python examples/own/"):
            runpy.run_path(shlex.split(script)[1], run_name="__main__")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the quickstart was run, for a few steps, and the code of examples/own, beside a file of weights that
    nothing is read of.
    """
    folder = tmp_path_factory.mktemp("trained")
    with_examples(folder)
    for command in TRAIN:
        if "hydra.run.dir=outputs/moons" in command:
            run(command, folder, "steps=4", "trainer.threads=1")
    run("python -m lab.train experiment=quickstart", folder, "steps=20", "trainer.threads=1", "trainer.keep=[20]")
    made = next((folder / "outputs/quickstart").iterdir())
    made.rename(made.with_name("default"))
    shutil.copytree(made.with_name("default"), folder / "outputs/base")  # the run from which others begin
    (folder / "weights.pt").touch()
    return folder


@pytest.mark.parametrize("command", RUNS)
def test_every_train_command_runs(
    command: str, tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["trainer.threads=1", SHORT]
    if "data=cifar10" in command:
        command = command.replace("data=cifar10", "data=image_folder")
        overrides += [f"data.root={images}", "data.batch_size=8", "trainer.evaluate_every=null"]
        overrides += ["model.width=2"] if "model=resnet" in command else []
    if "examples/own/" in command:
        with_examples(tmp_path)
    command = re.sub(r" steps=\d+", "", command)
    run(command, tmp_path, *([] if "--help" in command else overrides))
    output = capsys.readouterr().out
    assert output.strip()
    if "compare=" in command:
        [figure] = re.findall(r"figure +(outputs/train/figures/.+\.png)", output)
        assert (tmp_path / figure).stat().st_size > 10_000
    if "experiment=quickstart" in command:  # what it shows in all its steps is held in test_edge_facts.py
        assert list((tmp_path / "outputs/quickstart").glob("*/figures/edge.png"))


@pytest.mark.parametrize("command", MEASURES)
def test_every_measure_command_runs(command: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(command, trained)
    output = capsys.readouterr().out
    for probe in re.findall(r"probe=\[([\w,]+)\]", command)[0].split(","):
        assert probe in output or "lambda_max" in output
    for figure in re.findall(r"figure +(.+\.png)", output):
        assert (trained / figure).stat().st_size > 10_000


@pytest.mark.parametrize("command", COMPOSED)
def test_the_configuration_of_every_other_command_is_composed(
    command: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if command.split()[-1] == "lab.simulate":  # the list of experiments
        run(command, trained)
        assert "kramers" in capsys.readouterr().out
    else:
        run(one_cell(command), trained, "--cfg", "job")
        assert "seed:" in capsys.readouterr().out


@pytest.mark.parametrize("command", commands("python -m lab.selfcheck"))
def test_every_selfcheck_command_exists(command: str, tmp_path: Path) -> None:
    run(command, tmp_path, "--help")


@pytest.mark.parametrize("command", commands("python -m lab.report"))
def test_every_report_command_runs(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = [re.sub(r"/\*+$", "", word) for word in shlex.split(command)[3:] if "=" not in word]
    for lr in (0.1, 0.2):
        for place in places:
            words = {"optimizer.lr": lr, "data.batch_size": 32 + len(place), "steps": 1000}
            made_run(tmp_path / place / f"lr={lr}", words, {"train/loss": 0.5, "sharpness/lambda_max": 8.0})
    run(command, tmp_path)
    [page] = re.findall(r"page +(\S+)", capsys.readouterr().out)
    assert (tmp_path / page).stat().st_size > 10_000


SNIPPETS = {
    f"{page.relative_to(ROOT)}:{i}": snippet for page in PAGES for i, snippet in enumerate(blocks(page, "python"))
}
GOING_ON = ROOT / "docs/measured/index.md"
"""The page whose first snippet the others of its folder go on from."""


@pytest.mark.parametrize("name", SNIPPETS)
def test_every_snippet_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    page = ROOT / name.partition(":")[0]
    if page.parent == GOING_ON.parent and page != GOING_ON:
        exec(compile(blocks(GOING_ON, "python")[0], str(GOING_ON), "exec"), names)
    exec(compile(SNIPPETS[name], name, "exec"), names)
    assert capsys.readouterr().out.strip() or page == GOING_ON


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_line_of_a_block_of_commands_is_of_a_kind_that_is_checked(page: Path) -> None:
    assert [line for line in lines(page) if not line.startswith(KINDS)] == []


@pytest.mark.parametrize("command", commands("make "))
def test_every_make_target_exists(command: str) -> None:
    done = subprocess.run(["make", "--dry-run", *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_pip_command_installs_this_package_with_extras_that_it_has() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for command in commands("pip install"):
        [_, _, option, package] = shlex.split(command)
        assert option == "-e" and re.match(r"\.(\[\w+\])?$", package)
        assert set(re.findall(r"\[(\w+)\]", package)) <= extras.keys()


def test_make_help_names_every_target() -> None:
    phony = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), flags=re.M)[0].split()
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True)
    assert re.findall(r"^make (\S+)", done.stdout, flags=re.M) == [name for name in phony if name != "help"]


def test_make_demo_is_the_quickstart() -> None:
    done = subprocess.run(["make", "--dry-run", "demo"], cwd=ROOT, capture_output=True, text=True)
    assert "python -m lab.train experiment=quickstart" in done.stdout


def test_every_tensorboard_command_is_known() -> None:
    for command in commands("tensorboard"):
        done = subprocess.run([sys.executable, "-m", "tensorboard.main", "--help"], capture_output=True, text=True)
        assert shlex.split(command)[1] in done.stdout


def test_every_experiment_is_in_the_table_of_experiments() -> None:
    table = (
        (ROOT / "docs/experiments.md").read_text().split("| `python -m lab.train experiment=` |")[1].split("\n\n")[0]
    )
    named = re.findall(r"^\| `(\w+)` \|", table, flags=re.M)
    assert sorted(named) == sorted(file.stem for file in (ROOT / "conf/experiment").glob("*.yaml"))


def test_every_experiment_of_the_gallery_has_a_claim_a_verdict_a_command_and_a_picture() -> None:
    experiments = sorted(file.stem for file in (ROOT / "conf/simulation").glob("*.yaml"))
    index, *pages = [(ROOT / "docs/gallery" / f"{name}.md").read_text() for name in GALLERY]
    sections = dict(re.findall(r"^\((\w+)\)=\n(.*?)(?=^\(\w+\)=\n|\Z)", "\n".join(pages), flags=re.S | re.M))
    assert sorted(sections) == experiments
    assert sorted(re.findall(r"^\| \[`(\w+)`\]", index, flags=re.M)) == experiments
    for name, section in sections.items():
        assert all(f"**The {word}.**" in section for word in ("claim", "verdict"))
        assert f"experiment={name}\n" in section and f"../images/{name}.png" in section


GALLERY = ("index", "walks", "crossings", "minima", "saddles", "barriers")


def test_every_measurement_has_a_page_with_formula_picture_cost_caveats_source_and_settings() -> None:
    for card in (ROOT / "conf/probe").glob("*.yaml"):
        page = (ROOT / "docs/measured" / f"{card.stem}.md").read_text()
        for part in ("$$", "](../images/", "## What it costs", "## Read it with care", "## Source", "## Settings"):
            assert part in page, (card.stem, part)
        assert f"../generated/card_probe_{card.stem}.md" in page


def test_the_generated_reference_has_every_setting_of_every_card_with_its_comment() -> None:
    module = runpy.run_path(str(ROOT / "docs/_ext/settings_pages.py"))
    page, parts = module["page"](), 0
    for file in (ROOT / "conf").rglob("*.yaml"):
        group = str(file.parent.relative_to(ROOT / "conf"))
        if group not in module["GROUPS"]:
            known = group.partition("/")[0] in (".", "experiment", "sweep")
            assert known, f"{file}: a group of cards without a heading in settings_pages.py"
            continue
        section = page.split(f"\n### `{group.removeprefix('hydra/')}={file.stem}`\n")[1].split("\n##")[0]
        for line in re.findall(r"^(\w+):", file.read_text(), flags=re.M):
            if line not in ("_target_", "defaults"):
                assert f"| `{line}` |" in section
                parts += 1
    assert parts > 150


@pytest.mark.parametrize("name", ["settings_pages", "plain_docstrings"])
def test_the_doctests_of_what_builds_the_site_hold(name: str) -> None:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs/_ext" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    failed, tried = doctest.testmod(module)
    assert tried and not failed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)[^)]*\)", page.read_text()):
        named = (page.parent / target).resolve()
        relative = named.relative_to(ROOT / "docs") if named.is_relative_to(ROOT / "docs") else named
        if relative.parts[0] == "examples":
            named = ROOT / "examples" / (named.stem + ".py" if named.stem != "index" else "GALLERY_HEADER.rst")
        assert named.exists() or relative.parts[0] == "generated", target


@pytest.mark.parametrize("page", PAGES[:2] + PAGES[3:], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_name_of_the_lab_on_a_page_can_be_imported(page: Path) -> None:
    for name in set(re.findall(r"`(lab(?:\.\w+)+)`", page.read_text())):
        parts = name.split(".")
        for cut in range(len(parts), 0, -1):
            try:
                thing: object = importlib.import_module(".".join(parts[:cut]))
            except ModuleNotFoundError:
                continue
            for part in parts[cut:]:
                thing = getattr(thing, part)
            break


def test_the_page_of_the_architecture_draws_the_floors_that_the_layer_test_holds() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    floors: dict[int, tuple[str, ...]] = runpy.run_path(str(ROOT / "tests/test_layers.py"))["FLOORS"]
    for floor, rooms in floors.items():
        [row] = re.findall(rf"^\| {floor} \| (`\w.*?) \|", page.split("## The seam")[0], flags=re.M)
        drawn = {re.sub(r"(\.py|/)$", "", name) for name in re.findall(r"`([\w.]+/?)`", row)}
        here = {room for room in rooms if list((ROOT / "lab").glob(f"{room}*"))}
        assert drawn == here, floor


def test_pictures_are_small_and_each_is_on_a_page() -> None:
    pictures = sorted((ROOT / "docs/images").iterdir())
    text = "\n".join(page.read_text() for page in PAGES)
    assert sum(picture.stat().st_size for picture in pictures) < 4e6
    assert [picture.name for picture in pictures if f"images/{picture.name})" not in text] == []


def test_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 130


EXAMPLES = {
    "minimal.py": ("0.6, 600, 5", "0.6, 20, 5"),
    "notebook.py": ("range(300)", "range(20)"),
    "lightning_project.py": ("max_epochs=400", "max_epochs=20"),
    "checkpoint_from_elsewhere.py": ("range(200)", "range(20)"),
}
"""Each example, and what makes it short."""


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long, short = EXAMPLES[name]
    text = (ROOT / "examples" / name).read_text()
    assert long in text
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    exec(compile(text.replace(long, short), name, "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


def test_every_example_is_tested_and_the_minimal_one_knows_nothing_of_the_lab() -> None:
    assert {file.name for file in (ROOT / "examples").glob("*.py")} == EXAMPLES.keys()
    text = (ROOT / "examples/minimal.py").read_text()
    imported = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)}  # fmt: skip
    assert imported == {"torch", "matplotlib", "sklearn.datasets"} and len(text.splitlines()) <= 160


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_without_a_server(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    words = ["-W", "--keep-going", "-q", "-b", "html", "docs", str(tmp_path / "html")]
    done = subprocess.run([sys.executable, "-m", "sphinx", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "html").rglob("*.html"):
        assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"(?:https?:)?//", page.read_text()), page
