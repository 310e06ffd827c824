"""A LightningModule of one's own, watched: one callback, for the loggers of the trainer and a run folder.

python examples/own/lightning_module.py
"""

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits

import lab

EPOCHS = 40


class Mine(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


pl.seed_everything(0, verbose=False)
images, labels = load_digits(return_X_y=True)
x = torch.tensor(images[:500] / 16, dtype=torch.float32)
y = torch.tensor(labels[:500])
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=50, shuffle=True)

module = Mine()
watch = lab.watch(module, torch.nn.functional.cross_entropy, (x, y), probes=["sharpness"], folder="runs/lightning")
trainer = pl.Trainer(
    max_epochs=EPOCHS,
    callbacks=[watch],
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
)
trainer.fit(module, loader)
