"""ResNet-20 on real CIFAR-10 images with the sharpness probe on: it trains, it resumes, the measurement is finite."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

IMAGES = os.environ.get("LAB_CIFAR10_IMAGES", "")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not IMAGES, reason="LAB_CIFAR10_IMAGES is not set")]


def train(folder: Path, norm: str, *more: str) -> dict:
    settings = [
        "data=image_folder",
        f"data.root={IMAGES}",
        "data.batch_size=128",
        "data.augment=true",
        "model=resnet",
        f"model.norm={norm}",
        "optimizer.momentum=0.9",
        "steps=50",
        "probe.sharpness.every=25",
        "probe.sharpness.examples=256",
        "trainer.evaluate_every=null",
        "trainer.checkpoint_every=10",
        f"hydra.run.dir={folder}",
        *more,
    ]
    done = subprocess.run([sys.executable, "-m", "lab.train", *settings], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_resnet20_trains_50_steps_and_resumes_from_its_checkpoint(norm: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    summary = train(whole, norm)
    assert summary["last_loss"] < summary["first_loss"]
    values = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    sharpness = {v["step"]: v["value"] for v in values if v["tag"] == "sharpness/lambda_max"}
    assert sharpness.keys() == {0, 25}
    assert all(value > 0 for value in sharpness.values())

    # as a run killed after step 40 leaves it: the checkpoint before the last, and a status that is not "finished"
    train(cut, norm)
    (cut / "checkpoints/previous.ckpt").replace(cut / "checkpoints/last.ckpt")
    (cut / "status.json").write_text(json.dumps({"status": "running", "step": 40, "reason": ""}))
    train(cut, norm)
    final = [torch.load(f / "checkpoints/last.ckpt", weights_only=True)["model"] for f in (whole, cut)]
    assert all(torch.equal(a, b) for a, b in zip(final[0].values(), final[1].values(), strict=True))
