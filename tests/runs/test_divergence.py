"""Divergence is an answer, and is seen wherever it shows."""

import json
import math

import pytest
import pytorch_lightning as pl
import torch
from whole_runs import SMALL, train

from lab.data.base import Dataset, Split
from lab.data.batches import Batches
from lab.module import SupervisedModule, _norm
from lab.run import checkpoints
from lab.run.agenda import Agenda


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (("optimizer.lr=1e4", "trainer.max_loss=1e30"), "the training loss became"),
        (("optimizer.lr=5", "trainer.max_loss=20"), "above the bound 20"),
        (("optimizer.lr=1e30", "trainer.max_loss=1e39"), "the training loss became"),
    ],
)
def test_divergence_is_an_answer_not_a_failure(
    settings: tuple[str, ...], reason: str, drawn: None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train("run", *SMALL, "loss=mse", "steps=500", *settings)
    status, summary = folder.read("status"), folder.read("summary")
    assert status["status"] == "diverged"
    assert reason in status["reason"]
    assert summary["phase"] == "diverged"
    assert summary["steps"] == status["step"] < 500
    assert "The run diverged at step" in capsys.readouterr().out
    state = checkpoints.load(folder.checkpoints / "last_finite.ckpt")
    assert all(bool(tensor.isfinite().all()) for tensor in state["model"].values())
    assert (folder.figures / "edge.png").stat().st_size > 10_000
    for file in folder.path.glob("*.json"):
        json.loads(file.read_text(), parse_constant=pytest.fail)  # no NaN, no Infinity
    train("run", *SMALL, "loss=mse", "steps=500", *settings)
    assert "already finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (("optimizer.lr=1e30",), "the training loss became inf"),
        (("optimizer.lr=100", "trainer.max_loss=20"), "above the bound 20"),
    ],
)
def test_a_divergence_of_the_last_update_is_seen(settings: tuple[str, ...], reason: str) -> None:
    folder = train("run", *SMALL, "loss=mse", "steps=1", *settings)
    status = folder.read("status")
    assert (status["status"], status["step"]) == ("diverged", 1)
    assert reason in status["reason"]
    state = checkpoints.load(folder.checkpoints / "last_finite.ckpt")
    assert state["step"] == 0
    assert all(bool(tensor.isfinite().all()) for tensor in state["model"].values())


def test_an_infinite_weight_that_the_loss_does_not_show_is_a_divergence() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Tanh())  # tanh(-inf) is -1
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    data = Split(torch.ones(2, 1), torch.zeros(2, dtype=torch.long))
    sgd = torch.optim.SGD(model.parameters(), lr=1e38)
    trained = SupervisedModule(
        model,
        lambda outputs, y: 1000 * outputs.sum(),
        sgd,
        Dataset(data, None, ("a",), {}),
        Batches(2, "full", "epoch", 0),
        Agenda(0, 1),
    )
    pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True).fit(
        trained, train_dataloaders=trained.agenda
    )
    assert trained.divergence == "a weight is no longer finite"
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_a_test_loss_that_is_not_finite_was_not_measured() -> None:
    # The training loss stays finite: every step is looked at, only the test set has examples that overflow.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lab.callbacks.run.evaluate", lambda *given: {"loss": math.inf, "accuracy": 0.5})
        folder = train("run", *SMALL, "steps=3")
    assert folder.read("status")["status"] == "finished"
    assert folder.read("summary")["test_loss"] is None
    assert folder.read("summary")["test_accuracy"] == 0.5


def test_norms_are_read_from_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = list[torch.Tensor]()
    read = torch.Tensor.__float__

    def counted(tensor: torch.Tensor) -> float:
        reads.append(tensor)
        return read(tensor)

    monkeypatch.setattr(torch.Tensor, "__float__", counted)
    assert _norm([torch.tensor([3.0]), torch.tensor([0.0, 4.0])]) == 5.0
    assert len(reads) == 1
    assert _norm([]) == 0.0
