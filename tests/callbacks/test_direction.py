"""The snapshot of a training run knows the step that its optimiser would make, and asking for it does not change the run."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lab.callbacks import ProbeCallback
from lab.params import weights
from lab.probes.base import Probe, Snapshot, Value
from lab.probes.batch_sharpness import BatchSharpness

STEPS = 6


class Recorder(Probe):
    """Keeps the weights of every step and the step predicted for the gradient of the batch about to be used."""

    name, every = "recorder", 1

    def __init__(self) -> None:
        self.seen, self.predicted = list[Tensor](), list[Tensor]()

    def measure(self, snapshot: Snapshot) -> dict[str, Value]:
        index = torch.arange(8 * snapshot.step, 8 * snapshot.step + 8)
        assert snapshot.direction is not None
        self.seen.append(snapshot.w.clone())
        self.predicted.append(snapshot.direction(snapshot.loss_on("all").restrict(index).grad(snapshot.w)))
        return {}


class Plain(pl.LightningModule):
    """Adam with a schedule, batches in order."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(folder: Path, data: tuple[Tensor, Tensor], *probes: Probe) -> Plain:
    module = Plain()
    probe = ProbeCallback(probes, nn.functional.cross_entropy, data, batch_size=8)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[probe],
        max_epochs=1,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, DataLoader(TensorDataset(*data), batch_size=8))
    return module


@pytest.mark.filterwarnings("ignore:.*no sign of the edge")
def test_the_predicted_step_is_the_one_made_and_training_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8 * STEPS, 5, generator=generator)
    data = x, x[:, :3].argmax(1)
    recorder = Recorder()
    probed = fit(tmp_path, data, recorder, BatchSharpness(every=2, batches=4, lambda_batches=1))
    states = [*recorder.seen, weights(probed)]
    assert len(recorder.predicted) == STEPS
    for before, after, predicted in zip(states, states[1:], recorder.predicted, strict=False):
        # Both gradients are of single precision, and Adam divides by their size: 1e-5 of a step of 0.05.
        assert float((after - before - predicted).abs().max()) < 1e-5
        assert float(predicted.abs().max()) > 1e-3
    plain = fit(tmp_path, data)
    assert weights(plain).equal(weights(probed))
