"""Walkers under SGD with noise: the steps of torch's optimiser, and first exits counted one by one."""

import pytest
import torch

from lab.escape import passage
from lab.escape.walkers import Walkers
from lab.landscapes.factorisation import Factorisation
from lab.landscapes.quadratic import Quadratic


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_are_those_of_torch(momentum: float) -> None:
    start, valley = torch.tensor([[1.5, 0.3], [-0.2, 0.7]]).double(), Factorisation(1.0)
    path = Walkers(valley, 0.1, 0.0, momentum).path(start, generator(), steps=20)
    w = start.clone().requires_grad_()
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=momentum)
    for step in range(20):
        optimizer.zero_grad()
        valley.energy(w).sum().backward()
        optimizer.step()
        assert torch.allclose(w.detach(), path[step + 1], atol=1e-13)


def test_first_exits_are_those_of_the_same_path() -> None:
    walk, start = Walkers(Quadratic((1.0, -0.5)), 0.1, torch.tensor([0.3, 0.1]).double(), 0.5), torch.zeros(2).double()
    found = walk.first_exits(
        start, lambda x: x[..., 1].abs() > 0.05, generator(), walkers=48, steps=30
    )  # in one block, whose noise is that of the steps one by one
    path = walk.path(start.repeat(48, 1), generator(), steps=30)[1:]
    for i in range(48):
        steps = (path[:, i, 1].abs() > 0.05).nonzero()
        assert bool(found.exited[i]) == (len(steps) > 0)
        assert float(found.times[i]) == (int(steps[0]) + 1 if len(steps) else 30)
    assert 0 < int(found.exited.sum()) < 48
    assert not bool(found.failed.any())


def test_those_that_left_are_dropped_and_the_rest_walks_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A walker that doubles in every step passes 2^100 at step 101, after others were dropped and in several chunks."""
    monkeypatch.setattr(passage, "CHUNK", 8)
    start = torch.tensor([1.0]).double()
    gone = Walkers(Quadratic((-1.0,)), 1.0, 0.0)  # doubles
    found = gone.first_exits(start, lambda x: x[..., 0] > 2.0**100, generator(), walkers=21, steps=200)
    assert bool((found.times == 101).all()) and bool(found.exited.all())
    still = gone.first_exits(start, lambda x: x[..., 0] > 2.0**100, generator(), walkers=7, steps=60)
    assert bool((still.times == 60).all()) and not bool(still.exited.any())


def test_what_is_not_finite_has_failed_and_not_left() -> None:
    start = torch.tensor([1.0]).double()
    found = Walkers(Quadratic((-1.0,)), 1e100, 0.0).first_exits(
        start, lambda x: x[..., 0].isnan(), generator(), walkers=3, steps=50
    )
    assert bool(found.failed.all()) and not bool(found.exited.any())
    assert bool((found.times == 4).all())  # 1e100, 1e200, 1e300, inf
