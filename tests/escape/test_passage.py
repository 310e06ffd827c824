"""First passages by simulation: against a naive loop with the same random numbers, and against the exact chain."""

import math

import pytest
import torch
from torch import Tensor

from lab.escape.passage import beyond, first_passages
from lab.escape.survival import kaplan_meier
from lab.gallery.landscapes.piecewise_parabola import PiecewiseParabola
from lab.gallery.laws.kramers import Domain, on
from lab.gallery.laws.nystrom import StepChain
from lab.landscapes.double_well import DoubleWell
from lab.streams import stream

LINE = DoubleWell(())
START = torch.tensor([-1.0])


@pytest.mark.parametrize("curved", [False, True])
def test_every_walker_leaves_when_the_naive_loop_says(curved: bool) -> None:
    L, lr, size, steps = PiecewiseParabola(), 0.1, 6, 300
    diffusion = (lambda x: L.curvature(x) / 5) if curved else 0.3
    start, outside = torch.tensor([-1.2], dtype=torch.float64), beyond(0.5)
    found = first_passages(
        L, start, outside, lr=lr, diffusion=diffusion, walkers=size, max_steps=steps, generator=stream(0, "passage")
    )
    noise = torch.empty(steps, size, 1, dtype=torch.float64).normal_(generator=stream(0, "passage"))
    times = []
    for j in range(size):
        x, t = start.clone(), 0
        while t < steps and not bool(outside(x)):
            D = diffusion(x) if callable(diffusion) else torch.tensor(diffusion)
            x = x - lr * L.gradient(x) + (2 * lr * D).sqrt() * noise[t, j]
            t += 1
        times.append((t, bool(outside(x))))
    assert found.times.tolist() == [t for t, _ in times]
    assert found.exited.tolist() == [left for _, left in times]
    assert 0 < int(found.exited.sum()) <= size and found.inspection == 1


def test_the_mean_time_of_all_is_that_of_the_chain() -> None:
    chain = StepChain(on(LINE, 0.1), 0.1, Domain(high=0.0), -1.0)
    found = first_passages(
        LINE,
        START,
        beyond(0.0),
        lr=0.1,
        diffusion=0.1,
        walkers=3000,
        max_steps=20_000,
        generator=stream(0, "mean"),
    )
    assert bool(found.exited.all())
    error = float(found.times.std()) / 3000**0.5
    assert abs(float(found.times.mean()) - chain.mean_steps()) < 4 * error
    curve = kaplan_meier(found)
    exact = chain.survival(1, 400)[curve.times[:100].long()]
    assert bool(((curve.survival[:100] - exact).abs() < 5 * curve.error[:100] + 1e-9).all())


def test_walkers_that_are_thrown_to_infinity_have_failed() -> None:
    """Beyond |x| = sqrt(1 + 2 / lr) steps of the quartic well grow without bound."""
    found = first_passages(
        LINE, torch.tensor([-4.0]), beyond(math.inf), lr=0.5, diffusion=0.01, walkers=50, max_steps=600,
        generator=stream(0, "failed"),
    )  # fmt: skip
    assert bool(found.failed.all()) and not bool(found.exited.any())
    assert 0 < float(found.times.min()) <= float(found.times.max()) < 100


def test_walkers_in_chunks_and_in_blocks_are_all_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.escape.passage.CHUNK", 64)
    monkeypatch.setattr("lab.escape.passage.BLOCK", 256)
    told = list[float]()
    found = first_passages(
        LINE, START, beyond(0.0), lr=0.2, diffusion=0.1, walkers=200, max_steps=50,
        generator=stream(0, "chunks"), tick=told.append,
    )  # fmt: skip
    assert len(found.times) == 200 and float(found.times.max()) == 50
    assert 0 < int(found.exited.sum()) < 200
    assert bool((found.times[~found.exited] == 50).all())
    assert told == sorted(told) and told[-1] == 1


def test_outside_is_where_the_first_coordinate_is_above_the_level() -> None:
    assert beyond(0.0)(torch.tensor([[1.0, -3.0], [-1.0, 3.0], [0.0, 0.0]])).tolist() == [True, False, False]


@pytest.mark.parametrize("change", [{"lr": 0.0}, {"walkers": 0}, {"max_steps": 0}, {"start": torch.tensor([2.0])}])
def test_settings_that_cannot_be_are_refused(change: dict[str, float | Tensor]) -> None:
    settings = {"start": START, "lr": 0.1, "walkers": 5, "max_steps": 5} | change
    with pytest.raises(ValueError, match="expected"):
        first_passages(
            LINE, settings.pop("start"), beyond(0.0), diffusion=0.1, generator=stream(0, "refused"), **settings
        )  # type: ignore[arg-type]
