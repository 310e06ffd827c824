"""Whatever a user of `python -m lab.train` gets wrong is told in ONE line, with exit code 2, and nothing is written."""

import shlex
import sys
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from lab.data import cifar10
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
