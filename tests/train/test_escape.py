"""Whole runs with steps along negative curvature: they leave saddles, resume bit for bit, and cost nothing when off."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lab.data.base import Split
from lab.optim.escape import NegativeCurvature
from lab.run import checkpoints
from lab.run.folder import RunFolder
from lab.settings import SettingError

Train = Callable[..., RunFolder]
Resumed = Callable[..., tuple[RunFolder, RunFolder]]
Refused = Callable[..., str]
Read = Callable[[RunFolder], Any]
SADDLE = (
    "trainer.threads=1", "data.examples=60", "model.widths=[4]", "model.init_scale=1e-6", "loss=mse", "probe=[]",
    "optimizer.lr=0.2",
)  # fmt: skip
ESCAPE = ("optimizer/escape=negative_curvature", "escape.gradient_tol=0.03", "escape.every=4")


def test_a_saddle_is_left_where_gradient_descent_stays_and_the_drop_is_as_told(train: Train) -> None:
    bare = train("bare", *SADDLE, "steps=40")
    fled = train("fled", *SADDLE, *ESCAPE, "steps=40")
    series = fled.all_series()
    steps, actual = series["negative_curvature/actual_drop"]
    predicted, curvature = series["negative_curvature/predicted_drop"][1], series["negative_curvature/curvature"][1]
    assert steps and all(step % 4 == 0 for step in steps)
    assert curvature[0] < -0.1 and actual[0] > 0.01
    assert 0.5 < actual[0] / predicted[0] <= 1.001, (
        "the line search goes beyond the second order, the fourth holds it up"
    )
    losses = dict(zip(*series["train/loss"], strict=True))
    before = dict(zip(*bare.series("train/loss"), strict=True))
    first = steps[0]
    assert losses[first - 1] == before[first - 1], "up to then the runs are one"
    assert before[first] - losses[first] == pytest.approx(actual[0], abs=1e-6)  # of float32 losses of order 1
    assert losses[39] < before[39] - 0.03
    [told] = fled.read("summary")["findings"]
    assert told.startswith(f"Negative curvature: {'one step' if len(steps) == 1 else f'{len(steps)} steps'} along it")
    assert f"predicted to second order {sum(predicted):.4g}." in told


@pytest.mark.parametrize(
    "more",
    [
        ("data.batch_size=7", "optimizer.momentum=0.9", "optimizer.weight_decay=1e-3", "escape.gradient_tol=1"),
        ("optimizer=adamw", "optimizer.lr=1e-4", "escape.length=0.2", "escape.gradient_tol=1"),
        ("escape.gradient_tol=0.2", "escape.curvature_tol=10", "optimizer/noise=isotropic", "noise.trace=1e-4"),
    ],
    ids=["momentum", "adamw", "never far enough down"],
)
def test_a_run_with_escapes_resumes_bit_for_bit(
    more: tuple[str, ...], resumed: Resumed, metrics: Read, weights: Read
) -> None:
    settings = (*SADDLE, *ESCAPE, "steps=16", "trainer.checkpoint_every=5", *more)
    whole, again = resumed(*settings)
    assert [line for line in metrics(whole) if line["tag"] == "negative_curvature/curvature"], "it has looked"
    assert metrics(whole) == metrics(again)
    assert all(torch.equal(weights(whole)[name], tensor) for name, tensor in weights(again).items())
    assert whole.read("summary")["findings"][-1] == again.read("summary")["findings"][-1]


def test_none_is_the_default_and_an_escape_that_never_comes_changes_nothing(
    train: Train, metrics: Read, weights: Read
) -> None:
    plain, none = train("plain", *SADDLE, "steps=6"), train("none", *SADDLE, "steps=6", "optimizer/escape=none")
    idle = train("idle", *SADDLE, "steps=6", "optimizer/escape=negative_curvature", "escape.gradient_tol=1e-9")
    assert metrics(plain) == metrics(none) == metrics(idle)
    assert not none.read("provenance")["settings"].get("escape")
    assert "escape" not in checkpoints.load(plain.checkpoints / "last.ckpt")
    assert plain.read("summary")["findings"] == []
    assert idle.read("summary")["findings"] == ["Negative curvature: the gradient was never below escape.gradient_tol."]
    assert all(torch.equal(weights(plain)[name], tensor) for name, tensor in weights(idle).items())


def test_at_a_minimum_nothing_is_found_and_said(train: Train) -> None:
    convex = ("data.examples=60", "model.widths=[]", "loss=mse", "probe=[]", "steps=9", "trainer.threads=1")
    folder = train("run", *convex, "optimizer/escape=negative_curvature", "escape.gradient_tol=100", "escape.every=3")
    assert folder.read("summary")["findings"] == ["Negative curvature: looked for 3 times and not found: no saddle."]
    assert folder.series("negative_curvature/actual_drop") == ([], [])
    assert all(value > -1e-6 for value in folder.series("negative_curvature/curvature")[1])


def test_slips_are_one_line(refused: Refused) -> None:
    assert "expected one of negative_curvature, none" in refused("optimizer/escape=negative")
    assert refused("escape.length=1") == (
        "error: escape.length is not a setting of the chosen escape; choose optimizer/escape= one of negative_curvature"
    )
    said = refused("optimizer/escape=negative_curvature", "escape.gradient_tol=-1")
    assert "escape.gradient_tol=-1: expected a number greater than 0" in said
    assert "did you mean" in refused("optimizer/escape=negative_curvature", "escape.lenght=1")
    with pytest.raises(SettingError, match=r"cannot be had with BatchNorm.*use model.norm=group"):
        NegativeCurvature().build(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), nn.functional.cross_entropy, 0)


def test_weight_decays_that_differ_between_groups_are_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    groups = [
        {"params": part.parameters(), "weight_decay": decay} for part, decay in zip(model, (0.0, 0.1), strict=True)
    ]
    split = Split(torch.ones(4, 2), torch.zeros(4, dtype=torch.long))
    escape = NegativeCurvature().build(model, nn.CrossEntropyLoss(), seed=0)
    with pytest.raises(SettingError, match=r"weight decays 0, 0\.1 in one optimiser"):
        escape.loss(model, split, torch.optim.SGD(groups, lr=0.1))
