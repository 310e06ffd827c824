"""A LightningModule whose batches are dicts, and the probe callback on a loader of them."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from lab import BatchesObjective
from lab.callbacks import ProbeCallback
from lab.curvature.eigen import lanczos
from lab.curvature.operators import hessian
from lab.probes import Sharpness
from lab.probes.noise import Noise


class Sentences(pl.LightningModule):
    """Embeds tokens, averages them, classifies; with dropout and a key in its batches that forward does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.drop, self.out = nn.Embedding(7, 4), nn.Dropout(0.3), nn.Linear(4, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[..., None]
        return self.out(self.drop(torch.tanh((self.embed(input_ids) * mask).sum(1) / mask.sum(1))))

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        return loss(self(batch["input_ids"], batch["attention_mask"]), batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)


def loss(outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return cross_entropy(outputs, batch["label"])


def rows() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(7, (24, 5), generator=generator)
    mask = (torch.arange(5) < torch.randint(1, 6, (24, 1), generator=generator)).float()
    return [
        {"input_ids": i, "attention_mask": m, "label": i[0] % 3, "text": "x"} for i, m in zip(ids, mask, strict=True)
    ]


def trained(callbacks: list[pl.Callback]) -> Sentences:
    pl.seed_everything(0, verbose=False)
    module = Sentences()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(max_epochs=3, callbacks=callbacks, accelerator="cpu", **quiet)  # type: ignore[arg-type]
    trainer.fit(module, DataLoader(rows(), batch_size=6, shuffle=True))  # type: ignore[arg-type]
    return module


@pytest.mark.filterwarnings("ignore")
def test_a_module_of_dicts_is_measured_and_its_training_stays_bit_identical() -> None:
    probe = ProbeCallback([Sharpness(every=5, tol=1e-6), Noise(every=5)], loss, DataLoader(rows(), batch_size=7))  # type: ignore[arg-type]
    module, plain = trained([probe]), trained([])
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), plain.parameters(), strict=True))
    assert not probe.summary()["failed_probes"]
    objective = BatchesObjective(module, loss, DataLoader(rows(), batch_size=24))  # type: ignore[arg-type]
    truth = float(lanczos(hessian(objective, objective.weights), tol=1e-6).top.values[0])
    assert probe.latest["sharpness/lambda_max"] == pytest.approx(truth, rel=1e-4)  # of the end of the run
    assert probe.latest["sharpness/threshold"] == pytest.approx(2 * 1.9 / 0.5)
    assert "on 4 batches, weighted by examples" in probe.summary()["audit"]
