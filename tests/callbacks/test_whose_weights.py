"""The ratio in strangers' projects: groups in any order, several optimisers, a part of the weights, frozen and thawed."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from callbacks.strangers import Make, Project, Truth, fit
from pytorch_lightning.callbacks import BaseFinetuning
from torch import nn, optim

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = {"rel": 1e-6}


def body_and_head(m: Project, *lrs: float, **more: Any) -> list[dict[str, Any]]:
    return [{"params": m.net[i].parameters(), "lr": lr, **more} for i, lr in zip((2, 0), lrs, strict=True)]


def decay_groups(m: Project) -> list[dict[str, Any]]:
    params = list(m.net.parameters())
    return [
        {"params": [p for p in params if p.dim() == 1], "weight_decay": 0.0},
        {"params": [p for p in params if p.dim() > 1], "weight_decay": 0.3},
    ]


ONE: dict[str, Make] = {
    "momentum, head first": lambda m: optim.SGD(body_and_head(m, 0.2, 0.05), momentum=0.9),
    "Nesterov on the head alone": lambda m: optim.SGD(
        [{"params": m.net[2].parameters(), "nesterov": True}, {"params": m.net[0].parameters()}], lr=0.05, momentum=0.9
    ),
    "AdamW, biases first": lambda m: optim.AdamW(decay_groups(m), lr=0.01),
    "RMSprop, reversed": lambda m: optim.RMSprop(
        [{"params": [p], "lr": 0.001 * (i + 1)} for i, p in enumerate(reversed(list(m.net.parameters())))], momentum=0.5
    ),
    "Adam, groups that differ in beta": lambda m: optim.Adam(
        [{"params": m.net[2].parameters(), "betas": (0.5, 0.9)}, {"params": m.net[0].parameters()}], lr=0.01
    ),
    "the head alone": lambda m: optim.SGD(m.net[2].parameters(), lr=0.2),
    "Adam on the head": lambda m: optim.Adam(m.net[2].parameters(), lr=0.01),
    "the biases alone": lambda m: optim.SGD([p for p in m.net.parameters() if p.dim() == 1], lr=0.2, momentum=0.5),
    "a body at rest": lambda m: optim.SGD(body_and_head(m, 0.2, 0.0)),
    "an auxiliary head, too": lambda m: optim.SGD(
        [*body_and_head(m, 0.1, 0.1), {"params": m.aux.parameters(), "lr": 1.0}]
    ),
    "Adam with a weight that has no gradient": lambda m: optim.Adam([m.aux.bias, *m.net.parameters()], lr=0.01),
}
SEVERAL: dict[str, Make] = {
    "one for the net, one for elsewhere": lambda m: [
        optim.Adagrad(m.aux.parameters()),
        optim.SGD(m.net.parameters(), lr=0.5),
    ],
    "SGD and Adam share it": lambda m: [
        optim.Adam(m.net[2].parameters(), lr=0.01),
        optim.SGD(m.net[0].parameters(), lr=0.1, momentum=0.9),
    ],
    "three": lambda m: [
        optim.SGD([m.net[2].bias], lr=0.1, momentum=0.8, nesterov=True),
        optim.RMSprop([m.net[0].weight, m.net[0].bias], lr=0.01),
        optim.AdamW([m.net[2].weight, m.aux.weight], lr=0.01, weight_decay=0.1),
    ],
}


@pytest.mark.parametrize("make", [*ONE.values(), *SEVERAL.values()], ids=[*ONE, *SEVERAL])
def test_the_ratio_is_that_of_the_dense_hessian_with_the_settings_of_every_weight(make: Make) -> None:
    project = Project(make, manual=make in SEVERAL.values())
    truth = Truth(project.net)
    probe = fit(project, truth, model=project.net, steps=15)
    ratios = {step: ratio for step, ratio in truth.ratios.items() if math.isfinite(ratio)}
    assert max(truth.ratios) in ratios and len(ratios) >= 2
    assert dict(probe.tracker.ratios) == pytest.approx(ratios, **SMALL)


def test_weights_without_a_gradient_inside_the_model_are_left_out_and_it_is_said() -> None:
    project = Project(lambda m: optim.Adam(m.parameters(), lr=0.01))
    truth = Truth(project)
    with pytest.warns(UserWarning, match="16 of 82 weights of the model do not move") as said:
        probe = fit(project, truth)
    assert sum("do not move" in str(one.message) for one in said) == 1
    assert probe.latest["sharpness/ratio"] == pytest.approx(truth.ratios[13], **SMALL)


def test_what_is_left_out_is_said_once_and_stands_in_the_summary() -> None:
    project = Project(lambda m: optim.SGD(m.net[2].parameters(), lr=0.2))
    with pytest.warns(UserWarning, match="42 of 66 weights of the model do not move") as said:
        probe = fit(project, model=project.net, every=3)
    assert sum("do not move" in str(one.message) for one in said) == 1
    summary = probe.summary()
    assert "block of the other 24" in summary["left_out"]
    assert summary["quantity"] == "sharpness/moved" and summary["threshold_formula"] == "2/lr"
    assert probe.latest["sharpness/moved"] < probe.latest["sharpness/lambda_max"]
    assert fit(Project(lambda m: optim.SGD(m.net.parameters(), lr=0.2)), steps=1).summary()["left_out"] is not None
    assert fit(Project(lambda m: optim.SGD(m.parameters(), lr=0.2)), steps=1).summary()["left_out"] is None


REFUSED: dict[str, tuple[Make, str]] = {
    "no optimiser for the model": (lambda m: optim.SGD(m.aux.parameters(), lr=0.1), "no optimiser holds a weight"),
    "two for the same weights": (
        lambda m: [optim.SGD(m.net.parameters(), lr=0.1), optim.Adam(m.parameters())],
        "two optimisers hold the same weights",
    ),
    "one without a rule": (
        lambda m: [optim.SGD(m.net[0].parameters(), lr=0.1), optim.Adagrad(m.net[2].parameters())],
        "no stability threshold is known for Adagrad",
    ),
}


@pytest.mark.parametrize(("make", "why"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_threshold_is_measured_against_none_and_it_is_said(make: Make, why: str) -> None:
    project = Project(make, manual=True)
    with pytest.warns(UserWarning, match=why):
        probe = fit(project, model=project.net)
    assert "sharpness/lambda_max" in probe.latest and "sharpness/ratio" not in probe.latest


# --- frozen, thawed, added, replaced ----------


class Finetune(BaseFinetuning):
    """Lightning's own way: the body is frozen, and thawed at an epoch with a group of its own."""

    def freeze_before_training(self, module: Any) -> None:
        self.freeze(module.net[0])

    def finetune_function(self, module: Any, epoch: int, optimizer: optim.Optimizer) -> None:
        if epoch == 7:
            self.unfreeze_and_add_param_group(module.net[0], optimizer, lr=0.01)


class AtEpoch(pl.Callback):
    """Something of one's own at the begin of epoch 7."""

    def __init__(self, what: Callable[[pl.Trainer, Any], None]):
        self.what = what

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 7:
            self.what(trainer, pl_module)


def freeze(trainer: pl.Trainer, module: Any) -> None:
    module.net[0].requires_grad_(False)


def add(trainer: pl.Trainer, module: Any) -> None:
    trainer.optimizers[0].add_param_group({"params": module.net[0].parameters(), "lr": 0.03})


def replace(trainer: pl.Trainer, module: Any) -> None:
    module.net[2] = nn.Linear(7, 3).double()
    trainer.optimizers[0].param_groups[0]["params"] = list(module.net.parameters())


def resize(trainer: pl.Trainer, module: Any) -> None:
    module.net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    trainer.optimizers[0].param_groups[0]["params"] = list(module.net.parameters())


def trained(m: Project) -> list[Any]:
    return [p for p in m.parameters() if p.requires_grad]


CHANGES: dict[str, tuple[Make, Callable[[], pl.Callback]]] = {
    "finetuning, SGD": (lambda m: optim.SGD(trained(m), lr=0.1), Finetune),
    "finetuning, Adam": (lambda m: optim.Adam(trained(m), lr=0.01), Finetune),
    "frozen by hand": (lambda m: optim.SGD(m.parameters(), lr=0.1, momentum=0.9), lambda: AtEpoch(freeze)),
    "a group added": (lambda m: optim.RMSprop(m.net[2].parameters(), lr=0.01), lambda: AtEpoch(add)),
    "a head replaced": (lambda m: optim.SGD(m.net.parameters(), lr=0.1), lambda: AtEpoch(replace)),
    "another network": (lambda m: optim.SGD(m.net.parameters(), lr=0.1), lambda: AtEpoch(resize)),
}


@pytest.mark.parametrize(("make", "change"), CHANGES.values(), ids=CHANGES)
def test_the_measurement_follows_what_is_trained_and_says_so_once(make: Make, change: Callable) -> None:
    project = Project(make)
    truth = Truth(project)
    with pytest.warns(UserWarning, match="are others than before") as said:
        probe = fit(project, change(), truth, every=3)
    assert sum("are others than before" in str(one.message) for one in said) == 1
    assert probe.latest["sharpness/ratio"] == pytest.approx(truth.ratios[13], **SMALL)
    bare = Project(make)
    fit(bare, change(), every=0)
    for a, b in zip(project.parameters(), bare.parameters(), strict=True):
        assert torch.equal(a, b)


def test_thawed_weights_have_no_preconditioner_before_their_first_update() -> None:
    project = Project(lambda m: optim.Adam(trained(m), lr=0.01))
    probe = fit(project, Finetune(), every=7, steps=8)  # measured at the very step of the thaw
    assert "sharpness/lambda_max" in probe.latest
    assert [step for step, _ in probe.tracker.ratios] == [8], "at the end, an update later"


def test_nothing_trainable_is_no_end_of_the_run() -> None:
    class Later(BaseFinetuning):
        def freeze_before_training(self, module: Any) -> None:
            self.freeze(module.net)

        def finetune_function(self, module: Any, epoch: int, optimizer: optim.Optimizer) -> None:
            if epoch == 2:
                self.unfreeze_and_add_param_group(module.net, optimizer, lr=0.1)

    class Silent(Project):
        def training_step(self, batch: Any, _: int) -> Any:
            return super().training_step(batch, _) + self.aux.weight.sum() * 0

    project = Silent(lambda m: optim.SGD(m.aux.parameters(), lr=0.1))
    with pytest.warns(UserWarning, match="no weight of the model is trainable"):
        probe = fit(project, Later(), model=project.net, every=4)
    assert "sharpness/ratio" in probe.latest


def test_midpoints_begin_anew_where_the_weights_change() -> None:
    project = Project(lambda m: optim.SGD(trained(m), lr=0.1))
    assert "sharpness/midpoint" not in fit(project, Finetune(), steps=8, every=8, midpoints=True).latest
    project = Project(lambda m: optim.SGD(trained(m), lr=0.1))
    assert "sharpness/midpoint" in fit(project, Finetune(), steps=10, every=9, midpoints=True).latest


@pytest.mark.parametrize("saved", [5, 9])
def test_a_run_resumed_before_or_after_a_thaw_measures_what_the_whole_one_does(tmp_path: Path, saved: int) -> None:
    class Thaw(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            pl_module.net[0].requires_grad_(trainer.current_epoch >= 7)

    def project() -> Project:
        return Project(lambda m: optim.SGD(m.parameters(), lr=0.1, momentum=0.9))

    whole = fit(project(), Thaw(), every=2)
    file = str(tmp_path / "at.ckpt")
    fit(project(), Thaw(), every=2, steps=saved, save=file)
    resumed = fit(project(), Thaw(), every=2, resume=file)
    told = {tag: value for tag, value in whole.latest.items() if "seconds" not in tag}
    assert told == {tag: value for tag, value in resumed.latest.items() if "seconds" not in tag}
