"""The audit in a fit and at the doors: made once, refused or silent, and nothing of training changed by it."""

import json
import sys
import warnings
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from strangers import BROKEN, COUPLED, Apply, data, mlp
from torch import Tensor, nn

from lab.callbacks import ProbeCallback
from lab.probes import Sharpness, Spectrum

CE = nn.CrossEntropyLoss()


class Mine(pl.LightningModule):
    """A stranger's module."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return CE(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(net: nn.Module, *callbacks: pl.Callback, steps: int = 6, batch: int = 8) -> Mine:
    module = Mine(net)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data("vectors")), batch_size=batch)
    trainer = pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(module, loader)
    return module


def test_training_is_bit_identical_with_the_audit_on_and_its_cost_is_told() -> None:
    def made() -> nn.Module:
        torch.manual_seed(0)
        return mlp(nn.BatchNorm1d(24), nn.Dropout(0.3), nn.ReLU())

    torch.manual_seed(1)
    plain = fit(made()).state_dict()
    torch.manual_seed(1)
    probe = ProbeCallback([Sharpness(every=3)], CE, data("vectors"))
    watched = fit(made(), probe).state_dict()
    assert all(torch.equal(watched[name], tensor) for name, tensor in plain.items())
    assert 0 < probe.latest["cost/audit/gradients"] < 20
    assert "laws hold" in probe.summary()["audit"]
    assert any("Dropout" in note for note in probe.notes())


@pytest.mark.parametrize("name", ["saved output", "remembers its batch", "numpy's generator"])
def test_a_broken_loss_silences_every_probe_of_a_fit_with_one_warning_each(name: str) -> None:
    torch.manual_seed(0)
    probe = ProbeCallback(
        [Sharpness(every=2), Spectrum(every=2, k=1, bottom=1, steps=3, vectors=1)], CE, data("vectors")
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit(mlp(BROKEN[name]()), probe)
    said = [str(one.message) for one in told if "not measured" in str(one.message)]
    assert [line.split()[1] for line in said] == ["sharpness", "spectrum"]
    assert not any(tag.startswith(("sharpness/", "spectrum/")) for tag in probe.latest)
    assert probe.summary()["failed_probes"] == {"sharpness": 1, "spectrum": 1}


def test_the_audit_can_be_left_out() -> None:
    torch.manual_seed(0)
    probe = ProbeCallback([Sharpness(every=3)], CE, data("vectors"), audit=False)
    fit(mlp(BROKEN["saved output"]()), probe)
    assert "sharpness/lambda_max" in probe.latest and probe.summary()["audit"] is None


def test_where_examples_see_each_other_the_chunk_is_the_batch_of_training() -> None:
    for layer in (nn.BatchNorm1d(24), COUPLED["batch norm by hand"]()):
        torch.manual_seed(0)
        net = mlp(layer)
        probe = ProbeCallback([Sharpness(every=3)], CE, data("vectors"))
        fit(net, probe, batch=6)
        loss = probe.objective("auto")
        assert loss.chunk_size(loss.weights) == 6
        x, y = data("vectors")
        truth = sum(float(CE(net(x[i : i + 6]), y[i : i + 6])) * 6 / 24 for i in range(0, 24, 6))
        assert float(loss.value(loss.weights)) == pytest.approx(truth, rel=1e-5)


def test_a_batch_norm_that_training_keeps_in_eval_is_measured_so() -> None:
    class Frozen(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            pl_module.net[1].eval()  # type: ignore[operator, index]

    torch.manual_seed(0)
    net = mlp(nn.BatchNorm1d(24), Apply(torch.tanh))
    probe = ProbeCallback([Sharpness(every=1)], CE, data("vectors"))
    fit(net, Frozen(), probe, steps=1, batch=24)
    net[1].eval()
    x, y = data("vectors")
    assert float(CE(net(x), y)) == pytest.approx(probe.latest["sharpness/loss"], rel=1e-5)


def test_a_compiled_fit_is_measured() -> None:
    torch.manual_seed(0)
    net = mlp(nn.Tanh())
    probe = ProbeCallback([Sharpness(every=2)], CE, data("vectors"))
    fit(nn.Sequential(torch.compile(net, backend="aot_eager")), probe, steps=3)  # type: ignore[arg-type]
    assert probe.latest["sharpness/lambda_max"] > 0


def test_the_doors_audit_and_can_leave_it_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lab.measure import main as measure
    from lab.train import main as train

    monkeypatch.chdir(tmp_path)

    def door(main, *words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["lab", *words])
        main()

    for audited in ("true", "false"):
        folder = tmp_path / audited
        small = "data.examples=40", "model.widths=[8]", "steps=2"
        door(train, *small, f"audit={audited}", f"hydra.run.dir={folder}")
        tags = {json.loads(line)["tag"] for line in (folder / "metrics.jsonl").read_text().splitlines()}
        assert ("cost/audit/gradients" in tags) == (audited == "true")
        assert bool(json.loads((folder / "summary.json").read_text())["audit"]) == (audited == "true")
    door(measure, f"checkpoint={tmp_path / 'true'}")
    results = next((tmp_path / "true" / "measure").rglob("metrics.jsonl")).read_text()
    assert "cost/audit/gradients" in results
