"""Slips with code and data of one's own, code that has changed, and folders of runs that hold code: one line each."""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from runs.own import CODE, DATA, MODEL, SHORT, digits_as_tensors, measured, refused
from whole_runs import train

from lab.measure import main as measure_main
from lab.run.folder import RunFolder
from lab.train import main


@pytest.fixture(autouse=True)
def code(scratch: Path) -> Path:
    (scratch / "mine.py").write_text(CODE)
    return scratch / "mine.py"


SLIPS = [
    ("model=own", "model.path is missing: name your code, e.g. model=own model.path=nets.py:TinyNet"),
    ("optimizer=own", "optimizer.path is missing"),
    ("data=own", "data.path is missing"),
    ("data=tensors", "data.file is missing"),
    ("model=own model.path=mine.py:Nett", "did you mean Net?"),
    ("model=own model.path=mine.py:Net model.args.widht=3", "did you mean model.args.width?"),
    ("model=own model.path=mine.py:Net", "forward pass on inputs of shape (2, 64), float32, raised RuntimeError: "),
    ("model=own model.path=mine.py:Net model.args.inputs=64", "raised IndexError: Target 9 is out of bounds.; the labels"),
    ("model=own model.path=mine.py:Two DATA", "returned a tuple; expected one tensor"),
    ("model=own model.path=mine.py:Detached DATA", "does not depend on the weights; is there a detach"),
    ("loss=own loss.path=mine.py:vector DATA", "returned shape (2,); expected the mean over examples, a scalar tensor"),
    ("loss=own loss.path=mine.py:number DATA", "returned a float; expected the mean over examples"),
    ("loss=own loss.path=mine.py:undefined DATA", "of two examples is nan at the initial weights; expected a number"),
    ("loss=own loss.path=mine.py:total DATA", "it is no mean over examples"),
    ("loss=own loss.path=torch.nn:CrossEntropyLoss loss.args.reduction=sum DATA", "has reduction='sum'; expected"),
    ("loss=own loss.path=torch.nn:CrossEntropyLoss loss.args.ignore_index=0 DATA", "ignores targets equal to"),
    ("data=own data.path=mine.py:flat", "loss=cross_entropy needs class labels"),
    ("data=own data.path=mine.py:flat loss=own loss.path=torch.nn:MSELoss", "one would be spread over the other"),
    ("data=own data.path=mine.py:words", "whole numbers are tokens for an embedding"),
    ("optimizer=own optimizer.path=torch.optim:LBFGS DATA", "its step needs a closure"),
    ("optimizer/noise=fisher noise.equivalent_batch_size=8 loss=own loss.path=torch.nn:HuberLoss data=own "
     "data.path=mine.py:made data.args.real=true", "is no known log-likelihood of an example"),
    ("model._target_=mine.Net", "is no card of the lab: it has no method build(); code of your own is model=own"),
    ("loss._target_=torch.nn.MSELoss", "code of your own is loss=own loss.path=torch.nn:MSELoss"),
    ("optimizer=own optimizer.path=torch.optim:NAdam optimizer.lr=0.1", "are typed as optimizer.args.lr="),
    ("model.args.width=3", "the setting is model.widths; write model.widths=[3]"),
    ("-m model=own model.path=mine.py:Nett,mine.py:Nets DATA", "model.path=mine.py:Nett: mine.py has no Nett"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "says"), SLIPS, ids=[line for line, _ in SLIPS])
def test_a_slip_is_one_line_and_writes_nothing(
    line: str, says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(".")
    words = line.replace("DATA", " ".join(DATA)).split()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Converting a tensor")
        assert says in refused(capsys, main, *words)
    assert not Path("outputs").exists()


def test_what_code_raises_in_a_run_is_one_line_and_the_folder_says_that_it_failed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = refused(capsys, main, "hydra.run.dir=run", *DATA, "model=own", "model.path=mine.py:Few", *SHORT, "probe=[]")
    assert "data.path=mine.py:made, model.path=mine.py:Few raised ValueError: too many (mine.py, line 24)" in told
    assert RunFolder("run").read("status")["status"] == "failed"


def test_a_run_whose_code_has_changed_is_refused(code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = (*DATA, *MODEL, *SHORT, "probe=[]")
    folder = train("run", *settings)
    code.write_text(CODE + "\n# another line\n")
    capsys.readouterr()
    for state in ("finished", "running"):
        folder.write("status", {"status": state, "step": 3, "reason": "", "pid": 1})
        told = refused(capsys, main, "hydra.run.dir=run", *settings)
        assert (
            "run holds a run of other code: data.path=mine.py:made" in told and "choose another hydra.run.dir" in told
        )
    measured("checkpoint=run", "data.path=mine.py:made", "model.path=mine.py:Net")
    assert "warning: the code is not that of the run: data.path=mine.py:made" in capsys.readouterr().err


def test_a_file_of_tensors_that_has_changed_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("digits.npz", **digits_as_tensors())
    settings = ("data=tensors", "data.file=digits.npz", *SHORT, "probe=[]")
    train("run", *settings)
    np.savez(
        "digits.npz", **digits_as_tensors() | {"x_test": np.zeros((3, 64), np.float32), "y_test": np.zeros(3, int)}
    )
    capsys.readouterr()
    assert "run holds a run on other data: sha256 was" in refused(capsys, main, "hydra.run.dir=run", *settings)


def test_measuring_asks_for_the_code_again_and_takes_its_arguments_from_the_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    train("run", *DATA, *MODEL, "model.args.width=7", "loss=own", "loss.path=mine.py:entropy", *SHORT)
    capsys.readouterr()
    told = refused(capsys, measure_main, "checkpoint=run")
    assert "the run was made with data.path=mine.py:made, model.path=mine.py:Net, loss.path=mine.py:entropy" in told
    again = "data=own data.path=mine.py:made model=own model.path=mine.py:Net loss=own loss.path=mine.py:entropy"
    assert f"which is code; type {again} again to run it, or choose another data= or model= or loss=" in told
    measured("checkpoint=run", *again.split())
    assert "lambda_max =" in capsys.readouterr().out
    measured("checkpoint=run", "--cfg", "job")
    assert "width: 7" in capsys.readouterr().out, "a page of settings runs nothing"
    assert "does not fit the model" in refused(
        capsys, measure_main, "checkpoint=run", *again.split(), "model.args.width=2"
    )


@pytest.mark.parametrize("place", ["target", "path", "another group", "name of a setting", "interpolation", "probe"])
def test_settings_read_from_a_run_folder_import_and_resolve_nothing(
    place: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("evil.py").write_text("import pathlib\npathlib.Path('touched').touch()\nclass Evil: pass\n")
    Path("evil_module.py").write_text("import pathlib\npathlib.Path('touched').touch()\nclass Evil: pass\n")
    monkeypatch.syspath_prepend(".")
    monkeypatch.setenv("SECRET", "touched")
    folder = train("run", "data.examples=60", "model.widths=[4]", *SHORT)
    provenance = folder.read("provenance")
    settings = provenance["settings"]
    if place == "target":
        settings["model"]["_target_"] = "evil_module.Evil"
    elif place == "path":
        settings["model"] = {"_target_": "lab.models.own.OwnModel", "path": "evil.py:Evil", "args": {}}
    elif place == "another group":
        settings["loss"] = {"_target_": "lab.models.own.OwnModel", "path": "evil.py:Evil", "args": {}}
    elif place == "name of a setting":
        settings["model"]["_target_=evil_module.Evil,x"] = 1
    elif place == "interpolation":
        settings["model"]["activation"] = "${oc.env:SECRET}"
    else:
        settings["probe"]["sharpness"]["_target_=evil_module.Evil,x"] = 1
    (folder.path / "provenance.json").write_text(json.dumps(provenance))
    capsys.readouterr()
    told = refused(capsys, measure_main, "checkpoint=run")
    assert not Path("touched").exists() and "evil_module" not in sys.modules
    assert "touched" not in told
    folder.write("status", {"status": "running", "step": 3, "reason": "", "pid": 1})
    told = refused(capsys, main, "hydra.run.dir=run", "data.examples=60", "model.widths=[4]", *SHORT)
    assert "run holds a run with" in told and not Path("touched").exists() and "evil_module" not in sys.modules
