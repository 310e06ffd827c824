"""
Your own Lightning project
==========================

You have a ``LightningModule`` and a ``DataLoader``. Add one callback, and the sharpness is measured while you train,
against the threshold of the optimiser that you use. Training itself does not change by a bit.
"""

# %%
# This is yours: any module, any loader, any optimiser.

import csv
import logging
from pathlib import Path
from tempfile import mkdtemp

import pytorch_lightning as pl
import torch
from matplotlib import pyplot
from sklearn.datasets import load_digits

from lab.callbacks import ProbeCallback
from lab.probes import Sharpness

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
pl.seed_everything(0, verbose=False)


class Mine(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        return torch.nn.functional.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=3.0, momentum=0.8)


images, labels = load_digits(return_X_y=True)
x = torch.tensor(images[:300] / 16, dtype=torch.float32)
x = (x - x.mean(0)) / x.std()
y = torch.nn.functional.one_hot(torch.tensor(labels[:300]), 10).float()
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=300)

# %%
# This is what you add: the probes, the loss, and the examples it is measured on. The loss has to be the one that
# ``training_step`` descends; the callback compares the two and says so where they differ. Every 9 steps the top
# eigenvalue of the Hessian is found. Take an odd number: at the edge the steps go to and fro with period 2.

probe = ProbeCallback([Sharpness(every=9)], torch.nn.functional.mse_loss, data=(x, y), stochastic=False)

# %%
# The values go to every logger that the trainer has, under the tags ``sharpness/...``. Here that is a file, so that there
# is something to draw from.

logger = pl.loggers.CSVLogger(mkdtemp(), flush_logs_every_n_steps=1000)
trainer = pl.Trainer(
    max_epochs=400,
    callbacks=[probe],
    logger=logger,
    accelerator="cpu",
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    log_every_n_steps=1000,
)
trainer.fit(Mine(), loader)
logger.save()

# %%
# What came out, in numbers. The threshold was read from the optimiser: with momentum b it lies at (2 + 2b)/lr.

summary = probe.summary()
print(f"phase: {summary['phase']}; {summary['threshold_formula']}")
print(f"sharpness / threshold at the end: {probe.tracker.ratio:.2f}")

# %%
# And in a picture.

with (Path(logger.log_dir) / "metrics.csv").open() as file:
    rows = [row for row in csv.DictReader(file) if row.get("sharpness/lambda_max")]
steps = [int(row["step"]) for row in rows]

figure, axis = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
axis.plot(steps, [float(row["sharpness/lambda_max"]) for row in rows], "o-", ms=3, label="sharpness")
axis.plot(steps, [float(row["sharpness/threshold"]) for row in rows], "--", color="tab:red", label="(2 + 2b)/lr")
axis.set(xlabel="step", ylabel="curvature (loss / weight$^2$)", ylim=(0, None))
axis.set_title("My network, SGD with momentum 0.8, lr = 3")
axis.legend(frameon=False)

# %%
# More probes go into the same list: ``Spectrum``, ``Noise``, ``BatchSharpness``, ``Fisher``, ``LinearStability``,
# ``BatchLandscape``, ``CriticalPoint`` and ``Escape``, each with its own rhythm.
