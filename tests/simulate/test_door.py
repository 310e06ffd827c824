"""`python -m lab.simulate`: every experiment has its card and runs; a slip is one line; a killed run is not finished."""

import ast
import importlib
import inspect
import pkgutil
import shlex
import subprocess
import sys
from pathlib import Path
from time import sleep

import numpy as np
import pytest
import torch
import yaml
from hydra.core.global_hydra import GlobalHydra

import lab.gallery.experiments
import lab.simulate
from lab.gallery.base import Experiment, Surroundings
from lab.run.cards import choices, config_dir
from lab.run.folder import RunFolder
from lab.settings import SettingError
from lab.simulate import knobs, main, summary_of
from lab.simulate.settings import Shared, read_settings

CARDS = {file.stem: file for file in sorted((Path(config_dir()) / "simulation").glob("*.yaml"))}
SMALL = {
    "anisotropic_escape": "walkers=60 stiffness=[0.5,1] lr=0.2",
    "central_flow_toy": "steps=100 walkers=60 ratios=[0.2,0.6] noise=[0.5]",
    "kramers": "walkers=60 batch_over_lr=[12,14] lr=[0.2,0.4]",
    "kramers_curvature": "walkers=60 batch_over_lr=[6,7] wells=[1,2] lr=0.2",
    "label_noise": "walkers=200 steps=60 scales=[0.5]",
    "negative_curvature": "walkers=200 lr=0.2 rounding=1.0e-6",
    "escape_ballistic": "examples=10 hidden=10 training_steps=300 lrs=[0.9,1.2] batch_sizes=[2] replicas=8 steps=40"
    " stay_steps=30 landing_replicas=2 landing_steps=40",
    "escape_kramers": "barriers=[1.5] replicas=32 exits=5 steps=300",
    "escape_kramers_sgd": "batch_sizes=[8,12] other_lrs=[] noises=false replicas=32 exits=5 steps=300",
    "escape_saddle": "replicas=20 batch_sizes=[8,64] isotropic=0.02 lr=0.4",
    "escape_split": "replicas=12 stay_steps=40 lr=0.4 isotropic=0.04 unequal_batch_size=8 hidden=2 sizes=[0.001,0.01]",
    "polya": "walkers=400 steps=40 dimensions=[1,3]",
    "ornstein_uhlenbeck": "walkers=400 looks=5 valley=[10,1] momentum=0.5 decay=0.5",
    "stability_radius": "walkers=200 lr=0.1 curvatures=[1,4] noise=0.15 longest=20 horizon=5",
    "saddle_escape": "walkers=200 lr=0.2 noise=[0.01,0.001] directions=[1,5]",
    "singular_langevin": "walkers=200 steps=60 lr=[0.001,0.005]",
    "walk_dimensions": "walkers=400 steps=40 pca_dimensions=[3,10] pca_walks=10",
    "walk_polygons": "walkers=60 steps=60 returns=400 refine=[5,20] chord_steps=[0.2] chord_walkers=50 chord_time=20",
}
"""Settings with which an experiment takes a fraction of a second."""


def experiments() -> dict[str, type[Experiment]]:
    """Every subclass of Experiment in lab.gallery.experiments, by name: the walk over the package."""
    found = {}
    for module in pkgutil.iter_modules(lab.gallery.experiments.__path__):
        for item in vars(importlib.import_module(f"lab.gallery.experiments.{module.name}")).values():
            if isinstance(item, type) and issubclass(item, Experiment) and not inspect.isabstract(item):
                found[item.name] = item
    return found


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def simulate(words: str) -> None:
    """`python -m lab.simulate`, in this process."""
    GlobalHydra.instance().clear()
    sys.argv = ["lab.simulate", *shlex.split(words)]
    main()


def test_every_experiment_has_a_card_and_every_card_an_experiment() -> None:
    assert experiments().keys() == CARDS.keys() == SMALL.keys()
    assert not CARDS.keys() & set(choices("experiment")), "their runs would share a folder with those of lab.train"


@pytest.mark.parametrize("name", CARDS)
def test_a_card_opens_with_command_and_purpose_and_is_that_of_its_experiment(name: str) -> None:
    text, kind = CARDS[name].read_text(), experiments()[name]
    values = yaml.safe_load(text)
    assert values.pop("_target_") == f"{kind.__module__}.{kind.__qualname__}"
    assert text.splitlines()[:2] == ["# @package _global_", f"# python -m lab.simulate experiment={name}"]
    assert len(summary_of(name)) > 30
    assert not set(values) & {"seed", "accelerator", "threads"}, "shared by all experiments"


RAN: dict[str, list[float]] = {}
"""What experiments have measured with seed 0 behind the door, on the CPU."""


@pytest.mark.parametrize("name", CARDS)
def test_an_experiment_tells_theory_beside_measurement_and_returns_at_once(
    name: str, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate(f"experiment={name} {SMALL[name]} hydra.run.dir=out")
    told = capsys.readouterr()
    folder = RunFolder("out")
    summary = folder.read("summary")
    if not torch.cuda.is_available():
        RAN[name] = [c["measured"] for c in summary["comparisons"]]
    assert folder.read("status")["status"] == "finished"
    assert summary["finding"].split()[:5] == told.out.split()[:5]
    assert "theory" in summary["finding"] or "exact" in summary["finding"]
    assert any(c["z"] is not None for c in summary["comparisons"])
    assert not summary["disagreement"], summary["disagreement"]
    assert all(row[0] in told.out and row[2] in told.out for row in summary["table"])
    assert f"simulating {name}" in told.err
    provenance = folder.read("provenance")
    assert provenance["command"] == f"python -m lab.simulate experiment={name} " + shlex.join(shlex.split(SMALL[name]))
    assert provenance["settings"]["seed"] == 0
    assert (scratch / f"out/figures/{name}.png").stat().st_size > 10_000
    figure = experiments()[name].figure(folder.all_arrays(name)[0], "title")  # from the saved arrays alone
    assert all(axis.get_xlabel() and axis.get_ylabel() for axis in figure.axes)
    assert sorted(path.name for path in scratch.iterdir()) == ["out"]

    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    simulate(f"experiment={name} {SMALL[name]} hydra.run.dir=out")
    again = capsys.readouterr()
    assert "This run was already finished." in again.out
    assert told.out.strip() in again.out
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")} == before


@pytest.mark.parametrize("name", CARDS)
def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(name: str) -> None:
    small = {word.split("=")[0]: yaml.safe_load(word.split("=")[1]) for word in SMALL[name].split()}
    experiment, _ = read_settings(yaml.safe_load(CARDS[name].read_text()) | small)

    def measured(seed: int) -> list[float]:
        around = Surroundings(
            seed, torch.device("cpu"), lambda part: experiment.stages()[part] and (lambda share: None)
        )
        return [c.measured for c in experiment.simulate(around).comparisons]

    first = RAN.get(name) or measured(0)
    assert measured(0) == first
    assert measured(1) != first


SLIPS = [
    ("experiment=polia", "did you mean experiment=polya?"),
    ("experiment=", f"expected one of {min(CARDS)}"),
    ("walkers=5", f"walkers: no experiment is chosen; expected experiment={min(CARDS)}|"),
    ("seed=1", f"no experiment is chosen; expected experiment={min(CARDS)}|"),
    ("experiment=polya walker=5", "walker is not a setting of experiment=polya; did you mean walkers?"),
    ("experiment=polya +zebra=5", "expected one of dimensions, steps, walkers, seed, accelerator, threads"),
    ("experiment=polya num_walkers=5", "num_walkers=5: the setting is walkers; write walkers=5"),
    ("experiment=polya --walkers 5", "settings are typed without dashes; write walkers=5"),
    ("polya", "polya cannot be read; did you mean experiment=polya?"),
    ("experiment=polya zebra=5", "expected one of dimensions, steps, walkers, seed, accelerator, threads"),
    ("experiment=polya walkers=many", "walkers=many: expected a whole number"),
    ("experiment=polya walkers=1e3", "walkers=1000.0: expected a whole number"),
    ("experiment=polya dimensions=[0,2]", "dimensions (entry 0): expected a number greater than or equal to 1"),
    ("experiment=polya dimensions=3", "dimensions=3: expected a list"),
    ("experiment=polya dimensions=[]", "dimensions: expected one or more different values"),
    ("experiment=polya dimensions=[2,2]", "dimensions: expected one or more different values"),
    ("experiment=polya seed=-1", "seed=-1: expected a number greater than or equal to 0"),
    ("experiment=polya threads=0", "threads=0: expected a number greater than 0"),
    ("experiment=polya accelerator=mps", "accelerator=mps: expected 'cpu', 'gpu' or 'auto'"),
    ("experiment=polya steps", "steps cannot be read"),
    ("experiment=walk_polygons k=1", "k=1: expected a number greater than or equal to 2"),
    ("experiment=walk_polygons k=4.0", "k=4.0: expected a whole number"),
    (
        "experiment=walk_polygons chord_steps=[0.5]",
        "chord_steps (entry 0.5): expected a number less than or equal to 0.25",
    ),
    ("experiment=walk_polygons refine=[]", "refine: expected one or more different values"),
    ("experiment=walk_dimensions kind=both", "kind=both: expected 'one_coordinate'"),
    ("experiment=walk_dimensions d=1", "d=1: expected a number greater than or equal to 2"),
    ("experiment=polya hydra.run.dir=/proc/nowhere", "hydra.run.dir"),
    ("-m experiment=polya seed=0,1 hydra.run.dir=x", "set hydra.sweep.dir"),
    ("-m experiment=polya,walk_polygons dimensions=[1]", "dimensions: several experiments at once take no settings"),
    ("-m experiment=polya walkers=1,2", "walkers=1: expected a number greater than or equal to 100"),
    *([] if torch.cuda.is_available() else [("experiment=polya accelerator=gpu", "use accelerator=cpu or auto")]),
]


@pytest.mark.parametrize(("words", "said"), SLIPS)
def test_a_slip_is_one_line_exit_code_2_and_nothing_written(
    words: str, said: str, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        simulate(words)
    told = capsys.readouterr()
    assert left.value.code == 2
    [line] = told.err.strip().splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert not told.out.strip()
    assert not list(scratch.iterdir())


def test_a_setting_found_wrong_while_it_runs_is_one_line_and_leaves_nothing(
    scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        simulate(f"experiment=central_flow_toy {SMALL['central_flow_toy']} start_x=1000 hydra.run.dir=out")
    assert left.value.code == 2
    assert "error: start_x=1000: gradient descent runs away" in capsys.readouterr().err
    assert not list(scratch.iterdir())


def test_a_refused_sweep_beside_runs_leaves_nothing(scratch: Path) -> None:
    simulate(f"experiment=polya {SMALL['polya']}")
    before = sorted(Path("outputs").rglob("*"))
    for words in ("walkers=5", "steps=20 walkers=50 seed=0,1", "walker=200,300"):
        with pytest.raises(SystemExit) as left:
            simulate(f"-m experiment=polya {words}")
        assert left.value.code == 2
        assert sorted(Path("outputs").rglob("*")) == before


def test_other_settings_in_the_same_folder_are_refused(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulate(f"experiment=polya {SMALL['polya']} hydra.run.dir=out")
    simulate(f"experiment=polya {SMALL['polya']} hydra.run.dir=out threads=1")  # says how, not what
    capsys.readouterr()
    for words, said in (
        (f"experiment=polya {SMALL['polya']} seed=1", "seed=0, not 1"),
        (f"experiment=walk_polygons {SMALL['walk_polygons']}", "holds a run with"),
    ):
        with pytest.raises(SystemExit):
            simulate(f"{words} hydra.run.dir=out")
        assert said in capsys.readouterr().err


def test_nothing_typed_lists_the_experiments_and_how_to_start(
    scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate("")
    told = capsys.readouterr().out
    for name in CARDS:
        assert name in told
        assert summary_of(name)[:40] in told
    assert f"python -m lab.simulate experiment={min(CARDS)} " in told
    assert not list(scratch.iterdir())


def test_an_experiment_of_the_cpu_is_never_put_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    kinds = {name: kind() for name, kind in experiments().items()}
    for name, kind in kinds.items():
        where = "cpu" if kind.on_cpu else "cuda"
        assert Shared(accelerator="auto").device(kind).type == where, name
        assert Shared(accelerator="cpu").device(kind).type == "cpu"
    with pytest.raises(SettingError, match="accelerator=gpu: experiment=escape_kramers computes on the CPU"):
        Shared(accelerator="gpu").device(kinds["escape_kramers"])


def test_help_pages(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulate("experiment=polya --help")
    own = capsys.readouterr().out
    assert all(f"{knob}:" in own for knob in knobs("polya")[:-3])
    assert "_target_" not in own
    with pytest.raises(SystemExit) as left:
        simulate("--help")
    told = capsys.readouterr().out
    assert not left.value.code
    assert all(name in told for name in (*CARDS, "seed=", "accelerator=", "threads="))
    assert max(map(len, told.splitlines())) <= 120
    assert not list(scratch.iterdir())


def test_a_sweep_is_a_folder_for_each(scratch: Path) -> None:
    simulate(f"-m experiment=polya {SMALL['polya']} seed=0,1")
    cells = sorted(path.name for path in (scratch / "outputs/polya").iterdir() if path.is_dir())
    assert len(cells) == 2
    assert all(f"seed={seed}" in cell for seed, cell in enumerate(cells))


@pytest.mark.parametrize("where", ["simulate", "figure"])
def test_an_interrupted_run_is_not_taken_as_finished_and_the_same_command_makes_it_anew(
    where: str, scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    command, folder = f"experiment=polya {SMALL['polya']} hydra.run.dir=out", RunFolder("out")
    with monkeypatch.context() as patch:
        patch.setattr(experiments()["polya"], where, interrupt)
        with pytest.raises(SystemExit) as left:
            simulate(command)
    assert left.value.code == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == "interrupted"
    assert folder.read("status")["status"] == "failed"
    assert not folder.read("summary")
    simulate(command)
    assert "already finished" not in capsys.readouterr().out
    assert folder.read("status")["status"] == "finished"


@pytest.mark.slow
def test_a_killed_run_is_not_taken_as_finished(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experiment=polya", "dimensions=[1]", "steps=40", "walkers=50000000", "hydra.run.dir=out"]
    running = subprocess.Popen([sys.executable, "-m", "lab.simulate", *words], stderr=subprocess.DEVNULL)
    folder = RunFolder("out")
    while not (scratch / "out/status.json").exists():
        assert running.poll() is None
        sleep(0.05)
    running.kill()
    running.wait()
    assert folder.read("status")["status"] == "running"
    assert not folder.read("summary")
    provenance = folder.read("provenance")
    provenance["settings"]["walkers"] = 400  # as if it had been a small run that was killed
    folder.write("provenance", provenance)
    simulate(" ".join(words).replace("50000000", "400"))
    assert "already finished" not in capsys.readouterr().out
    assert folder.read("status")["status"] == "finished"


def test_help_slips_and_finished_runs_do_not_load_torch(scratch: Path) -> None:
    simulate(f"experiment=polya {SMALL['polya']} hydra.run.dir=out")
    words = ["experiment=polya", *SMALL["polya"].split(), "hydra.run.dir=out"]
    code = "import sys; from lab.simulate import main; main(); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_door_knows_no_experiment_by_name() -> None:
    """What is found by walking is listed nowhere."""
    for file in Path(lab.simulate.__path__[0]).glob("*.py"):
        tree = ast.parse(file.read_text())
        named = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not named & CARDS.keys()


def readme_commands() -> list[str]:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    return [line.partition("  #")[0].strip() for line in text.splitlines() if line.startswith("python -m lab.simulate")]


@pytest.mark.parametrize("command", readme_commands())
def test_every_simulate_command_of_readme_runs(command: str, scratch: Path) -> None:
    words = command.removeprefix("python -m lab.simulate")
    [small] = [small for name, small in SMALL.items() if f"experiment={name}" in words] or [""]
    typed = {word.split("=")[0] for word in words.split()}
    simulate(" ".join([words, *(word for word in small.split() if word.split("=")[0] not in typed)]))


def test_arrays_of_a_run_are_plain_numbers(scratch: Path) -> None:
    simulate(f"experiment=polya {SMALL['polya']} hydra.run.dir=out")
    arrays = np.load("out/arrays/polya_0000000.npz", allow_pickle=False)
    assert arrays["exact"].shape == (2, 20)
