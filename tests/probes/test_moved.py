"""Probes where an optimiser moves a part of the weights: as where the others are frozen."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn, optim

from lab.noise.example_curvature import example_curvature
from lab.objective import NetworkObjective
from lab.optim.direction import direction_of
from lab.optim.rules import rule_of
from lab.params import trainable, weights
from lab.probes import Sharpness
from lab.probes.base import Snapshot
from lab.probes.batch_sharpness import BatchSharpness
from lab.probes.escape import Escape
from lab.probes.linear_stability import LinearStability
from lab.settings import SettingError

Make = Callable[[nn.Sequential], optim.Optimizer]


def state(make: Make, *, frozen: bool, updates: int = 0) -> Snapshot:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(24, 4, generator=generator, dtype=torch.float64)
    y = x[:, :2].argmax(1)
    optimizer = make(model)
    for _ in range(updates):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    model[0].requires_grad_(not frozen)
    loss = NetworkObjective(model, nn.functional.cross_entropy, (x, y))
    return Snapshot(
        3,
        weights(model),
        lambda _: loss,
        rule_of([optimizer], trainable(model)),
        batch_size=6,
        num_train=24,
        direction=direction_of([optimizer], trainable(model)),
    )


MAKES: dict[str, tuple[Make, int]] = {
    "momentum": (lambda m: optim.SGD(m[2].parameters(), lr=0.1, momentum=0.9, weight_decay=0.01), 0),
    "Adam": (lambda m: optim.Adam(m[2].parameters(), lr=0.01), 3),
    "at rest": (
        lambda m: optim.SGD([{"params": m[0].parameters(), "lr": 0.0}, {"params": m[2].parameters()}], lr=0.2),
        0,
    ),
}


@pytest.mark.parametrize(("make", "updates"), MAKES.values(), ids=MAKES)
def test_the_block_that_moves_is_measured_as_the_network_whose_other_weights_are_frozen(
    make: Make, updates: int
) -> None:
    part, alone = (state(make, frozen=frozen, updates=updates) for frozen in (False, True))
    for build, tags in (
        (lambda: Sharpness(every=1, tol=1e-9), ("sharpness/ratio", "sharpness/threshold", "sharpness/directional")),
        (
            lambda: LinearStability(examples=24, steps=40, replicas=4, critical=False),
            ("linear_stability/sharpness", "linear_stability/non_uniformity", "linear_stability/region"),
        ),
    ):
        found, expected = (build().measure(snapshot) for snapshot in (part, alone))  # type: ignore[attr-defined]
        assert [found[tag] for tag in tags] == pytest.approx([expected[tag] for tag in tags], rel=1e-6)


def test_the_exponent_of_the_block_is_that_of_the_frozen_network_and_it_is_said() -> None:
    make = MAKES["at rest"][0]
    probe = LinearStability(examples=24, steps=40, replicas=4, critical=False)
    found, alone = (numbers(probe.measure(state(make, frozen=frozen))) for frozen in (False, True))
    assert found["linear_stability/lyapunov"] == pytest.approx(alone["linear_stability/lyapunov"], rel=1e-6)
    assert "both of the weights that move" in probe.finding(found)
    assert "of the weights that move" not in probe.finding(alone)


def numbers(values: dict[str, Any]) -> dict[str, float]:
    return {tag: float(value) for tag, value in values.items() if isinstance(value, float | int)}


def test_learning_rates_that_differ_scale_the_curvatures() -> None:
    # w_i <- w_i - lr_i g_i is z <- z - lr S^1/2 g for w = S^1/2 z, S = lr_i / lr.
    groups = [{"params": [0], "lr": 0.02}, {"params": [2], "lr": 0.2}]

    def make(m: nn.Sequential) -> optim.Optimizer:
        return optim.SGD([{"params": m[g["params"][0]].parameters(), "lr": g["lr"]} for g in groups])  # type: ignore[index]

    snapshot = state(make, frozen=False)
    loss = snapshot.loss_on("all")
    S = torch.cat([torch.full((25,), 0.1), torch.ones(12)]).double()
    truth = example_curvature(loss, snapshot.w, scale=S.sqrt())  # type: ignore[arg-type]
    found = LinearStability(examples=24, steps=40, replicas=4, critical=False).measure(snapshot)
    assert found["linear_stability/sharpness"] == pytest.approx(truth.sharpness, rel=1e-9)
    assert found["linear_stability/preconditioned"] == 1 and found["linear_stability/region"] == 1


def test_generalised_batch_sharpness_is_that_along_the_steps_of_the_weights_that_move() -> None:
    probe = BatchSharpness(batches=3, gni_batches=0)
    make = MAKES["momentum"][0]
    found, alone = (probe.measure(state(make, frozen=frozen)) for frozen in (False, True))
    assert found["batch_sharpness/generalised"] == pytest.approx(alone["batch_sharpness/generalised"], rel=1e-6)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (MAKES["momentum"][0], "25 of 37 weights do not move"),
        (MAKES["at rest"][0], "25 of 37 weights do not move"),
        (
            lambda m: optim.SGD([{"params": m[0].parameters(), "lr": 0.1}, {"params": m[2].parameters()}], lr=0.2),
            "no one learning rate",
        ),
        (
            lambda m: optim.SGD(
                [{"params": m[0].parameters(), "nesterov": True}, {"params": m[2].parameters()}], lr=0.2, momentum=0.9
            ),
            "no one learning rate",
        ),
    ],
)
def test_replicas_of_weights_without_one_setting_are_refused_in_one_line(make: Make, why: str) -> None:
    with pytest.raises(SettingError, match=why):
        Escape(examples=24, replicas=2, budget=16).measure(state(make, frozen=False))
