"""Whatever a user gets wrong is told in ONE line on stderr, with exit code 2, and nothing is written."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from lab.data import cifar10
from lab.measure import main as measure
from lab.models.mlp import Mlp
from lab.simulate import main as simulate
from lab.train import main

GRAMMAR = "cannot be read"
SLIPS = [
    # malformed overrides
    ("foo", GRAMMAR),
    ("=3", "expected e.g. optimizer=sgd"),
    ("model.widths=[32", GRAMMAR),
    ("steps", "steps cannot be read"),
    ("--foo", "unrecognized arguments: --foo"),
    (
        "'hydra.run.dir=ünï codé'",
        """hydra.run.dir=ünï codé cannot be read; a text with other signs than letters goes in quotes: \
'hydra.run.dir="ünï codé"'""",
    ),
    ("+experiment=quickstart", "a card is chosen without the +: experiment=quickstart"),
    # settings taken away: the default would be used unseen
    ("~optimizer", "~optimizer: a setting cannot be taken away; leave it out for its default, or set it"),
    ("~optimizer.lr", "~optimizer.lr: a setting cannot be taken away"),
    ("~schedule=constant", "~schedule=constant: a setting cannot be taken away"),
    ("~probe", "or set it, e.g. probe=[] for none"),
    ("-m ~steps seed=0,1", "~steps: a setting cannot be taken away"),
    # lists of probes
    ("probe=[sharpness,sharpness]", "probe=[sharpness,sharpness]: sharpness stands there twice; leave one out"),
    ("-m probe=[],[noise,sharpness,noise]", "probe=[noise,sharpness,noise]: noise stands there twice"),
    ("-m seed=0,1,0", "seed=0,1,0: 0 stands there twice; leave one out"),
    ("-m seed=0,1 hydra/launcher=joblib hydra.launcher.n_jobs=0", "n_jobs=0: expected a whole number of at least 1"),
    ("experiment=[quickstart,fisher]", "one card at a time; expected experiment= one of batch_minima"),
    ("probe=[null]", "probe=[null]: null is not the name of a probe; expected a list of different ones of batch_la"),
    ("probe=[sharpness,[noise]]", "[noise] is not the name of a probe"),
    # names
    ("foo=1", "unknown setting foo"),
    ("+foo=1", "unknown setting foo"),
    ("optimzer.lr=0.1", "the setting is optimizer.lr; write optimizer.lr=0.1"),
    ("optimizer.lrr=0.1", "did you mean optimizer.lr?"),
    ("optimiser=adam", "optimiser=adam: the setting is optimizer; write optimizer=adam"),
    ("optimizer=sgdd", "did you mean optimizer=sgd?"),
    ("data=mnist", "data=mnist does not exist; expected one of cifar10"),
    ("experiment=nope", "expected one of"),
    ("experiment=quickstart model=resnet model.widths=[8]", "model.widths is not a setting of this card"),
    ("model.depth=8", "model.depth is not a setting of the chosen model"),
    ("data=digits data.root=x", "data.root is not a setting of the chosen data"),
    ("loss=mse loss.label_smoothing=0.1", "not a setting of the chosen loss"),
    ("optimizer=null", "optimizer=null is not the name of a card; expected one of adam, "),
    ("scaling=null", "scaling=null is not the name of a card; expected one of default"),
    ("probe=3", "probe=3 is not the name of a card; expected a list, e.g. probe=[]"),
    ("scaling.foo=1", "unknown setting scaling.foo; expected one of scaling.batch_size, scaling.lr, scaling.budget"),
    ("scaling.lrr=sqrt", "did you mean scaling.lr?"),
    ("probe=[sharpnes]", "did you mean probe=sharpness?"),
    ("probe=[] probe.sharpness.every=3", "is for a probe that is not selected; add it: probe=[sharpness]"),
    ("probe.noisy.every=3", "there is no probe noisy"),
    ("probe.sharpness.evry=3", "did you mean probe.sharpness.every?"),
    ("probe.sharpness=3", "probe=[sharpness]"),
    # names that other programs have for settings and cards: tests/doors/test_slips.py
    ("optimizer.learning_rate=0.1", "optimizer.learning_rate=0.1: the setting is optimizer.lr; write optimizer.lr=0.1"),
    (
        "+optimizer.learning_rate=0.1",
        "optimizer.learning_rate=0.1: the setting is optimizer.lr; write optimizer.lr=0.1",
    ),
    (
        "-m +optimizer.learning_rate=0.1,0.2",
        "error: optimizer.learning_rate=0.1,0.2: the setting is optimizer.lr; write",
    ),
    ("+training.epochs=3", "training.epochs=3: the setting is epochs; write epochs=3"),
    ("trainer.max_epochs=10", "the setting is epochs; write epochs=10"),
    ("probe.sharpness.freq=5", "the setting is probe.sharpness.every; write probe.sharpness.every=5"),
    ("+probe.sharpness.freq=5", "the setting is probe.sharpness.every; write probe.sharpness.every=5"),
    ("logger.wandb.project=x", "logger= says where numbers go"),
    ("optimizer=SGD", "optimizer=SGD does not exist; write optimizer=sgd"),
    ("-m optimizer=SGD,Adam lr=0.1,0.2", "write optimizer=sgd,adam; likewise optimizer.lr=0.1,0.2 for lr=0.1,0.2"),
    ("model=resnet20", "write model=resnet model.depth=20"),
    ("probe=[sharpness,ESD]", "write probe=[sharpness,spectrum]"),
    ("launcher=sbatch -m seed=0,1", "write launcher=slurm"),
    ("--lr 0.1", "--lr 0.1: settings are typed without dashes; write optimizer.lr=0.1"),
    ("--cfg job lr=0.1", "write optimizer.lr=0.1"),
    ("optimizer.betas=[0.9,0.99]", "not a setting of the chosen optimizer; optimizer=adam and optimizer=adamw have it"),
    ("quickstart", "quickstart cannot be read; did you mean experiment=quickstart?"),
    ("epochs=None", "epochs=None: none is written null here; write epochs=null"),
    # several values without -m
    ("seed=0,1,2", "seed=0,1,2 is several values; add -m for a run with each"),
    ("model.widths=32,32", "add -m for a run with each, or write model.widths=[32,32] for a list of them"),
    ("probe=sharpness,noise", "or write probe=[sharpness,noise] for a list of them"),
    # pages
    ("--resolve", "The --resolve flag can only be used in conjunction with --cfg or --help; see --hydra-help"),
    ("--cfg settings", "invalid choice: 'settings'"),
    ("-m optimizer.lr=interval(0.1,1) --cfg job", "a grid has single values, e.g. optimizer.lr=0.1,0.2"),
    # types and ranges
    ("optimizer.lr=", "expected a number"),
    ("optimizer.lr=abc", "optimizer.lr=abc: expected a number"),
    ("optimizer.lr=-1", "optimizer.lr=-1: expected a number greater than 0"),
    ("optimizer.lr=0", "greater than 0"),
    ("optimizer.lr=nan", "optimizer.lr=nan, which is not a number: expected a finite number"),
    ("optimizer.momentum=nan", "optimizer.momentum=nan, which is not a number: expected a number less than 1"),
    ("optimizer=adam optimizer.betas=[0.9,nan]", "optimizer.betas (entry nan, which is not a number): expected"),
    ("optimizer.lr=[0.1]", "optimizer.lr=[0.1]: expected a number"),
    ("optimizer=adam optimizer.betas=[0.9,1.5]", "optimizer.betas (entry 1.5): expected a number less than 1"),
    ("optimizer.nesterov=maybe", "expected true or false"),
    ("optimizer.lr=true", "optimizer.lr=true: expected a number"),
    ("optimizer=adam optimizer.betas=[0.9,false]", "optimizer.betas[1]=false: expected a number"),
    ("optimizer.nesterov=1", "optimizer.nesterov=1: expected true or false"),
    ("probe.sharpness.every=true", "probe.sharpness.every=true: expected a whole number"),
    ("trainer.log_every=2.0", "trainer.log_every=2.0: expected a whole number"),
    ("""optimizer.lr="'0.1'" """, 'optimizer.lr="0.1": expected a number, without quotes'),
    ("model.widths=[32,x]", "model.widths (entry x): expected a whole number"),
    ("model.widths=32", "expected a list"),
    ("model.activation=swish", "'tanh'"),
    (
        "schedule=step schedule.milestones=[5,3]",
        "schedule.milestones=[5,3]: expected updates, strictly increasing, e.g.",
    ),
    (
        "schedule=step schedule.milestones=[]",
        "schedule.milestones=[]: expected updates, e.g. [500,750]; without any use",
    ),
    ("optimizer=adam optimizer.betas=[0.9]", "optimizer.betas=[0.9]: expected a list of at least 2"),
    ("optimizer=adam optimizer.betas=[]", "optimizer.betas=[]: expected a list of at least 2"),
    ("optimizer=adam optimizer.betas=[0.9,0.9,0.9]", "optimizer.betas=[0.9,0.9,0.9]: expected a list of at most 2"),
    ("steps=0", "steps=0: expected a whole number of at least 1"),
    ("steps=ten", "steps=ten: expected a whole number"),
    ("steps=true", "steps=true: expected a whole number"),
    ("seed=null", "seed=null: expected a whole number of at least 0"),
    ("seed=-1", "at least 0"),
    ("seed=9223372036854775808", "expected a whole number of at most 9223372036854775807"),
    ("trainer.max_loss=inf", "trainer.max_loss=inf: expected a finite number"),
    ("trainer.threads=0", "greater than 0 or 'auto'"),
    ("trainer.threads=1025", "less than or equal to 1024 or 'auto'"),
    ("trainer.precision=16", "'32-true'"),
    ("trainer.accelerator=mps", "expected 'cpu', 'gpu' or 'auto'"),
    ("trainer.checkpoint_every=0", "greater than 0"),
    ("probe.sharpness.every=0", "probe.sharpness.every=0: expected a number greater than 0"),
    # settings that contradict each other, the data or the machine
    ("steps=10 epochs=2", "contradict each other"),
    ("optimizer.nesterov=true", "needs optimizer.momentum > 0"),
    ("model=resnet", "model=resnet needs images"),
    ("data.batch_size=100000", "use data.batch_size=full for gradient descent"),
    ("data.examples=1", "at least two classes"),
    ("data.classes=[0,zebra]", "asks for zebra"),
    ("probe.sharpness.examples=99999", "larger than the 1797 training examples"),
    ("trainer.accelerator=gpu", "use trainer.accelerator=cpu or auto"),
    (
        "probe.sharpness.k=5 probe.sharpness.max_matvecs=4",
        "is too few for probe.sharpness.k=5; use probe.sharpness.max_matvecs=5",
    ),
    ("probe.sharpness.k=650 probe.sharpness.bottom=true model.widths=[]", "more eigenvalues than the 650 weights"),
    (
        "probe=[spectrum] probe.spectrum.max_matvecs=8",
        "probe.spectrum.max_matvecs=8 is too few for the eigenpairs; use",
    ),
    (
        "probe=[fisher] probe.fisher.k=5000 model.widths=[]",
        "probe.fisher.max_matvecs=200 is too few for probe.fisher.k=5000 in a model of 650 weights; use "
        "probe.fisher.k=199 or less, or probe.fisher.max_matvecs=650 or more",
    ),
    ("probe=[fisher] probe.fisher.k=200", "use probe.fisher.k=199 or less, or probe.fisher.max_matvecs=201 or more"),
    ("probe=[spectrum] probe.spectrum.parameters=conv*", "probe.spectrum.parameters=conv*: no parameter matches"),
    ("probe=[spectrum] probe.spectrum.engine=both", "probe.spectrum.engine=both: expected 'lab' or 'pyhessian'"),
    ("probe=[spectrum] probe.spectrum.examples=99999", "probe.spectrum.examples=99999 is larger than the 1797"),
    ("model.widths=[10000000000000000]", "not enough memory (for 2.38e+09 GiB more); use a smaller model"),
    ("hydra.run.dir=/proc/nope", "choose another hydra.run.dir"),
    ("hydra.run.dir=/dev/null", "hydra.run.dir=/dev/null: this is a file; choose another hydra.run.dir"),
    ("hydra.run.dir=", "hydra.run.dir= names no folder"),
    ("-m seed=0,1 hydra.sweep.dir=", "hydra.sweep.dir= names no folder"),
    ("data=image_folder", "data.root is empty"),
    ("data=image_folder data.root=. data.cache=", "data.cache=: expected user, beside, a folder or null"),
    ("data=image_folder data.root=/nonexistent", "holds no folder train"),
    ("data=cifar10", "it cannot be downloaded there"),
    ("data=cifar10 optimizer.nesterov=true", "needs optimizer.momentum > 0"),
    # sweeps
    ("-m optimizer.lr=-1,-2", "optimizer.lr=-1: optimizer.lr=-1: expected a number greater than 0"),
    ("-m steps=ten,3.5 data.batch_size=8,full", "data.batch_size=8,steps=ten: steps=ten: expected a whole number"),
    ("-m optimizer=sgd,adam optimizer.momentum=0,0.9", "optimizer.momentum is not a setting of the chosen optimizer"),
    ("-m optimizer.momentum=0 optimizer.nesterov=true hydra/launcher=joblib", "esterov=True: optimizer.nesterov="),
    (
        "hydra/launcher=joblib",
        "launcher=joblib says how the runs of a grid are made, and this is one run here; add -m",
    ),
    ("launcher=joblib launcher.n_jobs=2", "launcher=joblib says how the runs of a grid are made, and this is one run"),
    ("-m seed=0,1 launcher=jblib", "launcher=jblib does not exist; expected one of joblib, local, slurm; did you mean"),
    ("-m seed=0,1 launcher=joblib,local", "launcher=joblib,local: one launcher makes all cells of a grid"),
    (
        "-m seed=0,1 launcher.n_jobs=2",
        "launcher.n_jobs is not a setting of launcher=local; add launcher=joblib, which has it",
    ),
    (
        "-m seed=0,1 launcher=joblib launcher.jobs=2",
        "launcher.jobs is not a setting of launcher=joblib; expected launcher.n_",
    ),
    ("-m seed=0,1 launcher=joblib launcher.n_jobs=two", "launcher.n_jobs=two: expected a whole number"),
    ("-m seed=0,1 launcher=null", "launcher=null is not the name of a card"),
    ("-m seed=0,1 +launcher=joblib", "+launcher=joblib: a card is chosen without the +: launcher=joblib"),
    ("sweep=batch_rl", "sweep=batch_rl does not exist; expected one of batch_lr; did you mean sweep=batch_lr?"),
    ("-m sweep=batch_lr optimizer.lr=-1,-2", "optimizer.lr=-1: expected a number greater than 0"),
    ("hydra.sweep.dir=there", "add -m"),
    ("-m optimzer.lr=0.1,0.2", "the setting is optimizer.lr; write optimizer.lr=0.1,0.2"),
    ("-m optimizer=sgd,sgdd", "optimizer=sgdd does not exist"),
    ("optimizer.momentum=0.5 -m optimizer.lr=-1,-2", "optimizer.lr=-1: expected a number greater than 0"),
]


def no_network(*arguments: object, **settings: object) -> None:
    raise OSError("no network")


@pytest.mark.parametrize(("line", "says"), SLIPS, ids=[line for line, _ in SLIPS])
def test_a_slip_is_told_in_one_line_and_writes_nothing(
    line: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lab.train", *shlex.split(line)])
    monkeypatch.setattr(cifar10.CIFAR10, "download", no_network)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as stopped:
        main()
    told = capsys.readouterr().err
    assert stopped.value.code == 2
    assert told.startswith("error: ")
    assert told.count("\n") == 1, told
    assert says in told
    assert list(tmp_path.iterdir()) == []


MEASURE_SLIPS = [
    ("", "checkpoint= is missing"),
    ("model=mlp", "checkpoint= is missing"),
    ("checkpoint=nope.pt", "checkpoint=nope.pt: there is no such file"),
    ("checkpoint='outputs/*/*'", "there is no such file"),
    ("checkpoint=.", "is a folder without checkpoints/last.ckpt"),
    ("w.pt", "w.pt cannot be read; write checkpoint=w.pt"),
    ("ckpt_path=w.pt model=mlp", "ckpt_path=w.pt: the setting is checkpoint; write checkpoint=w.pt"),
    ("--ckpt w.pt", "settings are typed without dashes; write checkpoint=w.pt"),
    (
        "checkpoint=w.pt model=MLP lr=0.1",
        "model=MLP does not exist; write model=mlp; likewise optimizer.lr=0.1 for lr=0.1\n",
    ),
    ("checkpoint=w.pt model=mlp max_epochs=3", "max_epochs: epochs: lab.measure does not read it"),
    ("checkpoint=w.pt model=mlp probe.sharpness.freq=3", "probe.sharpness.every is the rhythm of a run"),
    ("checkpoint=w.pt model=mlp optimizer.lr=0.1,0.2 --cfg job", "lab.measure takes one value of a setting at a time"),
    ("checkpoint=w.pt", "lies in no run folder of lab.train; say which model it is"),
    ("checkpoint='*.txt*'", "there is no such file"),
    (
        "checkpoint='note*'",
        "finds no folder with checkpoints/last.ckpt and no file in .ckpt, .pt, .pth, .safetensors; name a run",
    ),
    ("checkpoint=notes.yaml model=mlp", "notes.yaml is no torch file, or was cut off"),
    ("checkpoint='*.yaml' model=mlp", "notes.yaml is no torch file, or was cut off"),
    ("checkpoint=w.pt model=mlp ~optimizer.lr", "~optimizer.lr: a setting cannot be taken away"),
    ("checkpoint=w.pt model=mlp probe=[sharpness,sharpness]", "sharpness stands there twice"),
    ("checkpoint=w.pt model=mlp optimizer.lr=inf", "optimizer.lr=inf: expected a finite number"),
    ("checkpoint=w.pt model=mlp model.widths=[10000000000000000]", "not enough memory"),
    ("-m checkpoint=w.pt model=mlp", "has no sweeps; give a glob"),
    ("checkpoint=w.pt model=mlp --run", "--run: of Hydra's"),
    ("checkpoint=w.pt model=mlp --config-dir x", "--config-dir=x: there is no such folder"),
    ("checkpoint=w.pt model=mlp foo", GRAMMAR),
    ("checkpoint=w.pt model=mlp model.widths=[32", GRAMMAR),
    ("checkpoint=w.pt model=mlp data=mnist", "data=mnist does not exist; expected one of cifar10"),
    ("checkpoint=w.pt model=mlp experiment=quickstart", "unknown setting experiment"),
    ("checkpoint=w.pt model=mlp probe=[sharpnes]", "did you mean probe=sharpness?"),
    ("checkpoint=w.pt model=mlp scaling.lr=linear", "lab.measure has no such setting: leave it out"),
    ("checkpoint=w.pt model=mlp noise.trace=1", "lab.measure has no such setting: leave it out"),
    ("checkpoint=w.pt model=mlp optimizer/noise=fisher", "lab.measure has no such setting: leave it out"),
    ("checkpoint=w.pt model=mlp probe=[spectrum] probe.sharpness.k=2", "is for a probe that is not selected"),
    (
        "checkpoint=w.pt model=mlp probe.sharpness.evry=2",
        "probe.sharpness.every is the rhythm of a run; lab.measure looks",
    ),
    ("checkpoint=w.pt model=mlp probe.sharpness.every=2", "looks once: leave it out"),
    ("checkpoint=w.pt model=mlp probe.sharpness.k=0", "probe.sharpness.k=0: expected a number greater than 0"),
    ("checkpoint=w.pt model=mlp probe.sharpness.examples=99999", "larger than the 1797 training examples"),
    ("checkpoint=w.pt model=mlp probe.sharpness.tol=1,2", "one value of a setting at a time"),
    ("checkpoint=w.pt model=mlp trainer.accelerator=gpu", "use trainer.accelerator=cpu or auto"),
    ("checkpoint=w.pt model=mlp hydra.run.dir=/proc/nope", "choose another hydra.run.dir"),
    ("checkpoint=w.pt model=mlp model.widths=[8]", "w.pt does not fit the model: it has besides"),
    ("checkpoint=w.pt model=mlp model.widths=[32,32,32]", "w.pt does not fit the model: it lacks"),
    (
        "checkpoint=w.pt model=mlp model.widths=[32,31]",
        "2.weight has shape [32, 32] in the file, [31, 32] in the model",
    ),
    ("checkpoint=w.pt model=resnet", "model=resnet needs images"),
    ("checkpoint=empty.pt model=mlp", "empty.pt is empty; name another checkpoint"),
    ("checkpoint=cut.pt model=mlp", "cut.pt is no torch file, or was cut off; name another checkpoint"),
    ("checkpoint=w.pt model=mlp probe=[]", "probe=[]: there is nothing to measure"),
    ("checkpoint=list/checkpoints/last.ckpt", "provenance.json does not hold the settings of the run"),
    ("checkpoint=none/checkpoints/last.ckpt", "provenance.json does not hold the settings of the run"),
    ("checkpoint=word/checkpoints/last.ckpt", "provenance.json does not hold the settings of the run"),
    ("checkpoint=half/checkpoints/last.ckpt", "provenance.json does not hold the settings of the run"),
    ("checkpoint=flipped.pt model=mlp", "flipped.pt is damaged"),
    ("checkpoint=text.pt model=mlp", "text.pt is no torch file, or was cut off"),
    ("checkpoint=pickled.pt model=mlp", "it holds a torch.nn.modules.container.Sequential"),
    ("checkpoint=numbers.pt model=mlp", "numbers.pt holds no weights by name"),
    ("checkpoint=nan.pt model=mlp", "0.weight is not finite"),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights, sound and otherwise."""
    folder, model = tmp_path_factory.mktemp("weights"), Mlp().build((64,), 10, 0)
    torch.save(model.state_dict(), folder / "w.pt")
    flipped = bytearray((folder / "w.pt").read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (folder / "flipped.pt").write_bytes(flipped)
    (folder / "empty.pt").touch()
    (folder / "cut.pt").write_bytes((folder / "w.pt").read_bytes()[:3000])
    for name, told in (
        ("list", "[]"),
        ("none", '{"settings": {}}'),
        ("word", '{"settings": {"model": "x"}}'),
        ("half", "{"),
    ):
        (folder / name / "checkpoints").mkdir(parents=True)
        torch.save({"model": model.state_dict()}, folder / name / "checkpoints/last.ckpt")
        (folder / name / "provenance.json").write_text(told)
    for name in ("text.pt", "notes.yaml"):
        (folder / name).write_text("epoch,loss\n1,2\n")
    torch.save(model, folder / "pickled.pt")
    torch.save({"loss": 1.0}, folder / "numbers.pt")
    torch.save(model.state_dict() | {"0.weight": torch.full((32, 64), torch.nan)}, folder / "nan.pt")
    return folder


@pytest.mark.parametrize(("line", "says"), MEASURE_SLIPS, ids=[line for line, _ in MEASURE_SLIPS])
def test_a_slip_with_measure_is_told_in_one_line_too_and_writes_nothing(
    line: str,
    says: str,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(weights)
    monkeypatch.setattr(sys, "argv", ["lab.measure", *shlex.split(line)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = sorted(weights.rglob("*"))
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as stopped:
        measure()
    told = capsys.readouterr().err
    assert stopped.value.code == 2
    assert told.startswith("error: ")
    assert told.count("\n") == 1, told
    assert says in told
    assert sorted(weights.rglob("*")) == before


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
        for file in (Path(__file__).parents[1] / "conf" / group).glob("*.yaml"):
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
    GlobalHydra.instance().clear()
    with suppress(SystemExit):  # of --help, without an error
        main()
    page = capsys.readouterr().out
    assert page.startswith(begins) and holds in page
    assert list(tmp_path.iterdir()) == []


def environment() -> dict[str, str]:
    """The package from this checkout, whatever the current folder is."""

    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}


def test_a_reader_that_has_gone_ends_the_program_without_a_word() -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "lab.train", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert program.stdout is not None
    program.stdout.close()
    _, told = program.communicate()
    assert (program.returncode, told) == (128 + signal.SIGPIPE, b"")
