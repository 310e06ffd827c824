"""Whole runs with a model, a loss, an optimiser and data of one's own: what is typed is what runs, and nothing else."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from runs.own import CODE, DATA, MODEL, SHORT, digits_as_tensors, measured, refused
from whole_runs import assert_same, assert_same_run, command, last, train

from lab.doors.arguments import opened
from lab.doors.request import Request, cards_at_hand, composed
from lab.doors.words import literal
from lab.measure import main as measure_main
from lab.run import checkpoints
from lab.run.folder import RunFolder
from lab.settings import SettingError
from lab.train.scaling import scaled


@pytest.fixture(autouse=True)
def code(scratch: Path) -> Path:
    (scratch / "mine.py").write_text(CODE)
    return scratch / "mine.py"


def test_a_run_of_ones_own_code_is_that_of_the_same_cards_and_notes_where_it_comes_from(code: Path) -> None:
    np.savez("digits.npz", **digits_as_tensors())
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
