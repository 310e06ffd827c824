"""Small runs, measurements of their checkpoints, both in this process, and what is true of them without lab.measure."""

import json
import sys
from pathlib import Path

from torch import nn

from lab.curvature.eigen import lanczos
from lab.curvature.operators import hessian
from lab.data.digits import Digits
from lab.measure import main as measure_main
from lab.models.losses import CrossEntropy
from lab.objective import NetworkObjective
from lab.run.folder import RunFolder
from lab.train import main as train_main

STEP = 20
"""The step of the checkpoint `previous.ckpt`, and of a measurement of the run."""
RHYTHM = ("trainer.threads=1", "steps=40", f"trainer.checkpoint_every={STEP}", f"probe.sharpness.every={STEP}")
MLP = ("data.examples=200", "model.widths=[8]", "loss=mse", "optimizer.lr=0.3")
RUNS = {
    "gradient descent": MLP,
    "momentum, mini-batches, schedule, probe set": (
        *MLP,
        "data.batch_size=16",
        "optimizer.momentum=0.9",
        "schedule=cosine",
        "probe.sharpness.examples=77",
        "seed=3",
    ),
    "adam, double precision": (*MLP, "optimizer=adam", "optimizer.lr=0.003", "trainer.precision=64-true"),
    "resnet with BatchNorm": (
        "data=image_folder",
        "data.batch_size=8",
        "model=resnet",
        "model.depth=8",
        "model.width=2",
    ),
}


def run(folder: Path, *overrides: str) -> RunFolder:
    """`python -m lab.train`, in this process."""
    sys.argv = ["lab.train", f"hydra.run.dir={folder}", *RHYTHM, *overrides]
    train_main()
    return RunFolder(folder)


def measure(*words: str) -> None:
    """`python -m lab.measure`, in this process."""
    sys.argv = ["lab.measure", *words, "trainer.threads=1"]
    measure_main()


def values(folder: Path | str) -> dict[str, float]:
    return json.loads((Path(folder) / "summary.json").read_text())["values"]


def digits_sharpness(model: nn.Module, examples: int) -> float:
    """lambda_max of the cross-entropy on the first digits, without anything of lab.measure."""
    train = Digits(examples=examples).load().train
    loss = NetworkObjective(model, CrossEntropy().build(10), (train.x, train.y))
    return float(lanczos(hessian(loss, loss.weights), tol=1e-6).top.values[0])
