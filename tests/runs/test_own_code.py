"""Whole runs with a model, a loss, an optimiser and data of one's own: what is typed is what runs, and nothing else."""

import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from whole_runs import assert_same, assert_same_run, command, last, train

from lab.doors.arguments import opened
from lab.doors.request import Request, cards_at_hand, composed
from lab.doors.words import literal
from lab.measure import main as measure_main
from lab.run import checkpoints
from lab.run.folder import RunFolder
from lab.settings import SettingError
from lab.train.scaling import scaled

CODE = """
import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=4, inputs=3, outputs=2, drop=0.0):
        super().__init__()
        self.first, self.drop, self.head = nn.Linear(inputs, width), nn.Dropout(drop), nn.Linear(width, outputs)

    def forward(self, x):
        return self.head(self.drop(torch.tanh(self.first(x))))


class Two(Net):
    def forward(self, x):
        return super().forward(x), x


class Few(Net):
    def forward(self, x):
        if len(x) > 2:
            raise ValueError("too many")
        return super().forward(x)


class Detached(Net):
    def forward(self, x):
        return super().forward(x).detach()


class Tokens(nn.Module):
    def __init__(self, words=5):
        super().__init__()
        self.words, self.head = nn.Embedding(words, 4), nn.Linear(4, words)

    def forward(self, x):
        return self.head(self.words(x))


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.LazyLinear(2)

    def forward(self, x):
        return self.head(x)


def made(n=40, real=False):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, generator=generator)
    return x, (x[:, :2].sin() if real else (x[:, 0] > 0).long()), x[:8], (x[:8, :2].sin() if real else (x[:8, 0] > 0).long())


def flat(n=40):
    x, y, *_ = made(n)
    return x, y.float()


def words():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(5, (30, 4), generator=generator)
    return x, (x + 1) % 5


def entropy(outputs, targets, scale=1.0):
    return scale * nn.functional.cross_entropy(outputs, targets)


def vector(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def total(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="sum")


def number(outputs, targets):
    return 3.0


def undefined(outputs, targets):
    return outputs.mean() * float("nan")
"""
DATA = ("data=own", "data.path=mine.py:made")
MODEL = ("model=own", "model.path=mine.py:Net")
SHORT = ("trainer.threads=1", "steps=6")


@pytest.fixture(autouse=True)
def code(scratch: Path) -> Path:
    (scratch / "mine.py").write_text(CODE)
    return scratch / "mine.py"


def refused(capsys: pytest.CaptureFixture[str], main: Any, *words: str) -> str:
    """The one line of a command that ends with exit code 2."""
    GlobalHydra.instance().clear()
    sys.argv = ["lab", *words]
    with pytest.raises(SystemExit) as stopped:
        main()
    told = capsys.readouterr().err
    assert stopped.value.code == 2
    assert told.startswith("error: ") and told.count("\n") == 1, told
    return told


def measured(*words: str) -> None:
    GlobalHydra.instance().clear()
    sys.argv = ["lab.measure", *words]
    measure_main()


def test_a_run_of_ones_own_code_is_that_of_the_same_cards_and_notes_where_it_comes_from(code: Path) -> None:
    np.savez("digits.npz", **_digits())
    own = train("own", "data=tensors", "data.file=digits.npz", "model=own", "model.path=torch.nn:Linear",
                "model.args={in_features: 64, out_features: 10}", "loss=own", "loss.path=mine.py:entropy",
                "optimizer=own", "optimizer.path=torch.optim:SGD", "optimizer.args.lr=0.1", *SHORT)  # fmt: skip
    card = train("card", "data.examples=100", "model.widths=[]", "optimizer.lr=0.1", *SHORT)
    assert own.series("train/loss") == card.series("train/loss")
    assert own.series("sharpness/ratio") == card.series("sharpness/ratio")
    assert own.series("test/accuracy") == card.series("test/accuracy")
    noted = own.read("provenance")["code"]
    assert noted["loss"]["file"] == str(code) and len(noted["loss"]["sha256"]) == 16
    assert noted["optimizer"]["path"] == "torch.optim:SGD" and noted["optimizer"]["file"].endswith("sgd.py")
    assert {*noted} == {"model", "loss", "optimizer"}
    assert card.read("provenance")["code"] == {}


def _digits() -> dict[str, np.ndarray]:
    from lab.data.digits import Digits

    data = Digits(examples=100).load()
    assert data.test is not None
    return {"x_train": data.train.x.numpy(), "y_train": data.train.y.numpy(),
            "x_test": data.test.x.numpy(), "y_test": data.test.y.numpy()}  # fmt: skip


def test_arguments_are_typed_plainly_and_name_the_folder_so(capsys: pytest.CaptureFixture[str]) -> None:
    command("-m", *DATA, *MODEL, "model.args.width=3,5", "steps=1", "probe=[]", "trainer.threads=1")
    folders = sorted(Path("outputs/train").glob("model.args.width=*"))
    assert [last(RunFolder(folder))["model"]["first.bias"].numel() for folder in folders] == [3, 5]
    assert not list(Path("outputs/train").glob("*++*"))
    told = capsys.readouterr()
    assert "model.args.width=3" in told.err and "++" not in told.err + told.out
    command(*DATA, *MODEL, "model.args.width=3", "steps=1", "probe=[]", "trainer.threads=1")
    assert "This run was already finished." in capsys.readouterr().out, "the cell of the grid"
    assert "++" not in RunFolder(folders[0]).read("provenance")["command"]


@pytest.mark.parametrize("kind", ["muon and the rest", "dropout, mini-batches"])
def test_a_killed_run_goes_on_bit_for_bit(kind: str) -> None:
    muon = ("optimizer=own", "optimizer.path=torch.optim:Muon", "optimizer.args.lr=0.02", "data.batch_size=16")
    words = muon if kind.startswith("muon") else ("model.args.drop=0.5", "data.batch_size=16")
    settings = (*DATA, *MODEL, *words, *SHORT, "trainer.checkpoint_every=3", "probe.sharpness.every=2")
    whole, broken = train("whole", *settings), RunFolder("broken")
    shutil.copytree(whole.path, broken.path)
    (broken.checkpoints / "last.ckpt").unlink()
    assert checkpoints.load(broken.checkpoints / "previous.ckpt")["step"] == 3
    broken.write("status", {"status": "running", "step": 3, "reason": "", "pid": 1})
    torch.rand(7)
    assert_same_run(whole, train("broken", *settings))


def test_dropout_is_of_the_seed_and_probes_do_not_shift_it() -> None:
    settings = (*DATA, *MODEL, "model.args.drop=0.5", *SHORT)
    one, other, alone = (train(f"{i}", *settings, *more) for i, more in
                         enumerate(((), ("seed=1",), ("probe=[]",))))  # fmt: skip
    assert_same(last(one)["model"], last(alone)["model"])
    assert one.series("train/loss")[1] != other.series("train/loss")[1]


def test_noise_in_the_gradient_is_that_of_the_loss_whoever_wrote_it() -> None:
    noise = ("optimizer/noise=sample_weights", "noise.equivalent_batch_size=8", *DATA, *MODEL, *SHORT, "probe=[]")
    own = train("own", *noise, "loss=own", "loss.path=mine.py:entropy")
    assert own.series("train/loss") == train("card", *noise).series("train/loss")


def test_scaling_multiplies_the_learning_rate_that_the_code_is_called_with() -> None:
    card = {"_target_": "lab.train.scaling.Scaling", "batch_size": 32, "lr": "linear"}
    rest = {"data": {"batch_size": 64}, "steps": 10, "scaling": card}
    own = scaled(rest | {"optimizer": {"path": "torch.optim:NAdam", "args": {"lr": 0.1, "eps": 1e-8}}})
    assert own["optimizer"] == {"path": "torch.optim:NAdam", "args": {"lr": 0.2, "eps": 1e-8}}
    with pytest.raises(SettingError, match=r"optimizer\.args\.lr=null, but scaling\.lr=linear"):
        scaled(rest | {"optimizer": {"path": "torch.optim:NAdam", "args": {}}})


def test_nested_arguments_come_back_from_a_run_as_they_were() -> None:
    args = {"a": {"b c": [1, 2.5, None, True], "d": {}}, "e": "it's ${oc.env:HOME}, {x}: [y]"}
    words = opened(f"model.args={literal(args)}")
    with cards_at_hand():
        request = Request.of(composed("train", ["model=own", words]))
    assert request.values["model"]["args"] == args


def test_where_no_threshold_is_known_sharpness_is_measured_and_the_sentence_says_why(
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = train("run", *DATA, *MODEL, "optimizer=own", "optimizer.path=torch.optim:Muon", *SHORT,
                   "probe.sharpness.every=1")  # fmt: skip
    told = capsys.readouterr().out
    assert "Sharpness was not held against a threshold: no stability threshold is known for Muon" in told
    assert folder.series("sharpness/lambda_max")[0] == [*range(7)]
    assert not folder.series("sharpness/ratio")[0] and folder.read("summary")["phase"] is None


def test_a_regression_has_no_accuracy_and_a_loss_over_the_numbers_of_an_example(drawn: None) -> None:
    folder = train("run", *DATA, "data.args.real=true", "loss=mse", "model.widths=[4]", *SHORT, "probe=[]")
    tags = folder.all_series().keys()
    assert "test/loss" in tags and not [tag for tag in tags if "accuracy" in tag]
    assert last(folder)["model"]["2.bias"].shape == (2,)
    assert folder.read("summary")["test_accuracy"] is None
    assert folder.read("summary")["loss_unit"] == "half squared error"
    assert [file.name for file in folder.figures.iterdir()] == ["training.png"]


def test_tokens_stay_whole_numbers_and_their_places_are_counted() -> None:
    folder = train("run", "data=own", "data.path=mine.py:words", "model=own", "model.path=mine.py:Tokens",
                   "data.batch_size=10", *SHORT, "probe.sharpness.every=2")  # fmt: skip
    accuracy = folder.series("train/accuracy")[1]
    assert len(accuracy) == 6 and all((40 * value) % 1 < 1e-9 or (40 * value) % 1 > 1 - 1e-9 for value in accuracy)
    assert folder.series("sharpness/lambda_max")[1][0] > 0


def test_lazy_layers_are_made_within_the_seed() -> None:
    first = train("one", *DATA, "model=own", "model.path=mine.py:Lazy", "steps=1", "probe=[]")
    torch.rand(5)
    second = train("two", *DATA, "model=own", "model.path=mine.py:Lazy", "steps=1", "probe=[]")
    assert_same(last(first)["model"], last(second)["model"])


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
    from lab.train import main

    monkeypatch.syspath_prepend(".")
    words = line.replace("DATA", " ".join(DATA)).split()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Converting a tensor")
        assert says in refused(capsys, main, *words)
    assert not Path("outputs").exists()


def test_what_code_raises_in_a_run_is_one_line_and_the_folder_says_that_it_failed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from lab.train import main

    told = refused(capsys, main, "hydra.run.dir=run", *DATA, "model=own", "model.path=mine.py:Few", *SHORT, "probe=[]")
    assert "data.path=mine.py:made, model.path=mine.py:Few raised ValueError: too many (mine.py, line 24)" in told
    assert RunFolder("run").read("status")["status"] == "failed"


def test_a_run_whose_code_has_changed_is_refused(code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lab.train import main

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
    from lab.train import main

    np.savez("digits.npz", **_digits())
    settings = ("data=tensors", "data.file=digits.npz", *SHORT, "probe=[]")
    train("run", *settings)
    np.savez("digits.npz", **_digits() | {"x_test": np.zeros((3, 64), np.float32), "y_test": np.zeros(3, int)})
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
    from lab.train import main

    folder.write("status", {"status": "running", "step": 3, "reason": "", "pid": 1})
    told = refused(capsys, main, "hydra.run.dir=run", "data.examples=60", "model.widths=[4]", *SHORT)
    assert "run holds a run with" in told and not Path("touched").exists() and "evil_module" not in sys.modules


def test_cards_of_ones_own_come_from_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    Path("cards/model").mkdir(parents=True)
    Path("cards/model/tiny.yaml").write_text("_target_: lab.models.own.OwnModel\npath: mine.py:Net\nargs: {width: 5}\n")
    words = ("--config-dir", "cards")
    folder = train("run", *words, *DATA, "model=tiny", "model.args.drop=0.1", *SHORT, "probe=[]")
    assert last(folder)["model"]["first.bias"].shape == (5,)
    capsys.readouterr()
    measured("checkpoint=run", *words, "model=tiny", "data.path=mine.py:made")
    assert "lambda_max =" in capsys.readouterr().out
    assert "type model=own model.path=mine.py:Net again" in refused(
        capsys, measure_main, "checkpoint=run", *words, "data.path=mine.py:made"
    )


def test_a_class_of_ones_own_as_a_card_is_measured_with_its_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("tiny_cards.py").write_text(
        "from lab.models.mlp import Mlp\nfrom lab.settings import settings\n\n@settings()\nclass Tiny(Mlp):\n    pass\n"
    )
    monkeypatch.syspath_prepend(".")
    Path("cards/model").mkdir(parents=True)
    Path("cards/model/tiny.yaml").write_text("_target_: tiny_cards.Tiny\nwidths: [5]\n")
    train("run", "--config-dir", "cards", *DATA, "model=tiny", "model.widths=[6]", *SHORT, "probe=[]")
    capsys.readouterr()
    measured("checkpoint=run", "--config-dir", "cards", "data.path=mine.py:made")
    assert "lambda_max =" in capsys.readouterr().out
    told = refused(capsys, measure_main, "checkpoint=run", "data.path=mine.py:made")
    assert "which no card in conf/model/ names; choose model=, or type the --config-dir that has it" in told
