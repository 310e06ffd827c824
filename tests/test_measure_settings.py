"""Every setting of lab.measure changes what is measured, or is refused: none is read and forgotten."""

import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lab.doors.pages import known_settings
from lab.measure import main
from lab.measure.training import refusal
from lab.models.mlp import Mlp
from lab.models.resnet import ResNet
from lab.run.cards import choices

MLP = ("model=mlp", "model.widths=[4]", "data.examples=60", "optimizer=sgd", "optimizer.lr=0.1", "trainer.threads=1")
RESNET = (
    *("model=resnet", "model.depth=8", "model.width=2", "data=image_folder", "data.root=images", "data.batch_size=10"),
    *("optimizer=sgd", "trainer.threads=1"),
)
NOISE = (*MLP, "probe=[noise]", "probe.noise.hessian=false", "data.batch_size=8")
SUBSET = (*MLP, "probe.sharpness.examples=40")
CHANGES = {
    "data.examples=50": MLP,
    "data.classes=[1,0,2,3,4,5,6,7,8,9]": MLP,
    "data.batch_size=16": NOISE,
    "data.sampling=with_replacement": NOISE,
    "data.random_labels=0.5": MLP,
    "data.subset_seed=1": (*MLP, "data.random_labels=0.5"),
    "data.standardise=pixel": RESNET,
    "model.activation=relu": MLP,
    "model.norm=group": RESNET,
    "loss.label_smoothing=0.1": MLP,
    "optimizer.lr=0.2": MLP,
    "optimizer.momentum=0.9": MLP,
    "optimizer.nesterov=true": (*MLP, "optimizer.momentum=0.9"),
    "optimizer.dampening=0.5": (*MLP, "optimizer.momentum=0.9"),
    "optimizer.weight_decay=0.5": MLP,
    "optimizer.betas=[0.8,0.999]": (*MLP, "optimizer=adam"),
    "optimizer.alpha=0.5": None,
    "optimizer.eps=1": None,
    "trainer.precision=64-true": MLP,
    "trainer.batch_norm=eval": RESNET,
    "trainer.chunk_examples=5": RESNET,
    "seed=1": SUBSET,
}
"""Settings, and a measurement that each changes; None: it needs the saved state of an optimiser (tests/test_measure.py)."""
ELSEWHERE = {
    *(
        "data.root",
        "data.args",
        "data.image_size",
        "model.widths",
        "model.depth",
        "model.width",
        "model.name",
    ),  # other data, or no fit
    *("data.cache", "trainer.threads", "trainer.accelerator", "audit"),  # how, not what
    *(
        "data.path",
        "data.file",
        "model.path",
        "model.args",
        "loss.path",
        "loss.args",
        "optimizer.path",
        "optimizer.args",
    ),
}
"""Settings without which nothing, or nothing of the kind, is measured."""


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small MLP and a small ResNet, and images."""
    folder, rng = tmp_path_factory.mktemp("weights"), np.random.default_rng(0)
    torch.save(Mlp(widths=(4,)).build((64,), 10, 0).state_dict(), folder / "mlp.pt")
    torch.save(ResNet(depth=8, width=2).build((3, 8, 8), 2, 0).state_dict(), folder / "resnet.pt")
    for name in ("a", "b"):
        (folder / "images/train" / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images/train" / name / f"{i}.png")
    return folder


@cache
def measured(*words: str) -> dict[str, float]:
    """The numbers of a measurement but for its cost, or what it is refused for."""
    weights = "resnet.pt" if "model=resnet" in words else "mlp.pt"
    sys.argv = ["lab.measure", f"checkpoint={weights}", "hydra.run.dir=out", *words]
    try:
        main()
    except SystemExit:
        return {}
    values = json.loads(Path("out/summary.json").read_text())["values"]
    return {tag: value for tag, value in values.items() if not tag.startswith("cost/")}


@pytest.mark.parametrize("setting", [setting for setting, words in CHANGES.items() if words is not None])
def test_a_setting_changes_what_is_measured(setting: str, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(there)
    words = CHANGES[setting]
    assert words is not None
    assert (usual := measured(*words)), "the measurement itself works"
    assert measured(*words, setting) != usual


def test_every_setting_of_a_run_changes_a_measurement_or_is_refused() -> None:
    known = {
        name for name in known_settings() if not name.startswith("probe.") and not choices(name) and "/" not in name
    }
    changing = {setting.partition("=")[0] for setting in CHANGES}
    assert changing <= known
    assert not {name for name in changing | ELSEWHERE if refusal(name)}
    assert {name for name in known - changing - ELSEWHERE if not refusal(name)} == set()


@pytest.mark.parametrize(
    "setting",
    [
        *("steps", "epochs", "schedule", "schedule.final", "scaling.lr", "compare", "noise.trace", "optimizer/noise"),
        *("escape.length", "optimizer/escape", "trainer.max_loss", "trainer.log_every", "trainer.evaluate_every"),
        *("trainer.checkpoint_every", "model.init_scale", "data.augment"),
        *(
            "probe.sharpness.every",
            "probe.sharpness.cold",
            "probe.sharpness.midpoints",
            "probe.escape.at",
            "probe.noise.at",
        ),
    ],
)
def test_what_is_refused_is_told_with_its_name_and_the_cure(setting: str) -> None:
    reason = refusal(setting)
    assert reason is not None and reason.startswith(setting) and reason.endswith("leave it out")


def test_settings_that_are_not_there_and_those_of_probes_are_none_of_these() -> None:
    for name in (
        "trainer.zebra",
        "zebra",
        "probe",
        "probe.sharpness.k",
        "probe.zebra.k",
        "data",
        "optimizer.lr",
        "seed",
    ):
        assert refusal(name) is None
