"""Langevin samplers against closed forms and against Gibbs by quadrature."""

import math

import pytest
import torch
from torch import Tensor

from lab.flows.langevin import Langevin, periodic, reflecting
from lab.gallery.landscapes.crossings import Cusp, MinCrossing, ProductCrossing, ThreeLines
from lab.landscapes.base import Landscape
from lab.landscapes.double_well import DoubleWell
from lab.landscapes.factorisation import Factorisation
from lab.landscapes.gibbs import gibbs, inside
from lab.landscapes.quadratic import Quadratic
from lab.streams import stream

DOUBLE = torch.float64


def test_euler_on_a_quadratic_has_the_variance_of_its_step() -> None:
    # Var = T / (h (1 - lr h / 2)), the fixed point of V = (1 - lr h)^2 V + 2 lr T; four standard errors, sqrt(2/n) each.
    curvatures, lr, T, walkers = (4.0, 1.0), 0.3, 0.5, 40_000
    x = torch.zeros(walkers, 2, dtype=DOUBLE)
    Langevin(Quadratic(curvatures), T, lr).run(x, 60, stream(0, "langevin"))
    for variance, h in zip(x.var(0).tolist(), curvatures, strict=True):
        assert variance == pytest.approx(T / (h * (1 - lr * h / 2)), rel=4 * math.sqrt(2 / walkers))


def test_mala_on_a_quadratic_has_the_variance_of_gibbs_at_the_same_step() -> None:
    lr, T, walkers = 0.3, 0.5, 40_000
    x = torch.zeros(walkers, 2, dtype=DOUBLE)
    accepted = Langevin(Quadratic((4.0, 1.0)), T, lr, "mala").run(x, 100, stream(0, "langevin"))
    for variance, h in zip(x.var(0).tolist(), (4.0, 1.0), strict=True):
        assert variance == pytest.approx(T / h, rel=4 * math.sqrt(2 / walkers))
    assert 0.5 < accepted < 0.98


@pytest.mark.parametrize("lr", [0.02, 0.3])
def test_mala_between_walls_is_gibbs_between_walls(lr: float) -> None:
    landscape, walkers = Quadratic((2.0,)), 40_000
    law = gibbs(landscape, 1.0, [0.0], [1.5])
    x = torch.rand(walkers, 1, dtype=DOUBLE, generator=stream(0, "start")) * 1.5
    Langevin(landscape, 1.0, lr, "mala", boundary=reflecting(0.0, 1.5)).run(x, 150, stream(0, "walls"))
    assert float(x.mean()) == pytest.approx(law.mean(lambda x: x[:, 0]), abs=4 * float(x.std()) / math.sqrt(walkers))


def test_noise_that_depends_on_the_place_is_taken_at_the_place_before_the_step() -> None:
    # dx = -x dt + sqrt(2 c x^2) dW (Ito): E x falls as (1 - lr)^n, whatever c.
    x = torch.ones(200_000, 1, dtype=DOUBLE)
    Langevin(Quadratic((1.0,)), 0.0, 0.05, diffusion=lambda x: 0.1 * x * x).run(x, 20, stream(0, "place"))
    assert float(x.mean()) == pytest.approx(0.95**20, abs=4 * float(x.std()) / math.sqrt(len(x)))
    # E x^2 grows by (1 - lr)^2 + 2 lr c a step.
    second = (0.95**2 + 2 * 0.05 * 0.1) ** 20
    assert float(x.square().mean()) == pytest.approx(second, abs=5 * float(x.square().std()) / math.sqrt(len(x)))


def crossing_ratio(landscape: Landscape, sampler: str, lr: float, walkers: int = 12_000, steps: int = 500) -> float:
    """Time spent in the box of half-width .1 at the crossing over its share by Gibbs, on the torus [-1, 1]^2 at T = 1."""
    box = inside([-0.1, -0.1], [0.1, 0.1])
    truth = gibbs(landscape, 1.0, [-1, -1], [1, 1], at=[(0.0,)] * 2, cuts=[(-0.1, 0.1)] * 2).mean(box)
    generator = stream(0, "crossing")
    x = torch.rand(walkers, 2, generator=generator) * 2 - 1
    x[torch.arange(walkers), torch.arange(walkers) % 2] = 0.0  # in the valleys: from a wall MALA does not come down
    dynamics = Langevin(landscape, 1.0, lr, sampler, boundary=periodic(-1, 1))  # type: ignore[arg-type]
    dynamics.run(x, 100, generator)
    shares = []
    for _ in range(steps // 10):
        dynamics.run(x, 10, generator)
        shares.append(float(box(x).mean()))
    return sum(shares) / len(shares) / truth


@pytest.mark.parametrize("landscape", [MinCrossing(alpha=100.0), ProductCrossing(alpha=400.0)], ids=repr)
def test_mala_spends_at_the_crossing_what_gibbs_says(landscape: Landscape) -> None:
    assert crossing_ratio(landscape, "mala", 5e-3) == pytest.approx(1.0, abs=0.02)


def test_the_excess_at_the_crossing_is_the_step_of_euler() -> None:
    assert crossing_ratio(ProductCrossing(alpha=400.0), "euler", 5e-3) == pytest.approx(1.527, abs=0.05)
    assert crossing_ratio(MinCrossing(alpha=100.0), "euler", 5e-3) == pytest.approx(0.844, abs=0.03)


@pytest.mark.parametrize(
    "landscape",
    [
        DoubleWell(stiffness=(0.5, 8.0)),
        MinCrossing(centre=0.3),
        ProductCrossing(),
        ThreeLines(),
        Cusp(),
        Factorisation(),
    ],
    ids=repr,
)
def test_gradients_are_written_in_place_whatever_the_layout(landscape: Landscape) -> None:
    x = torch.randn(7, landscape.num_params, dtype=DOUBLE, generator=stream(0, "places"))
    truth = Landscape.gradient(landscape, x)
    for places in (x, x.T.contiguous().T):
        out = torch.full_like(places, 9.0)
        assert landscape.gradient_into(places, out) is out
        torch.testing.assert_close(out, truth, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(landscape.grad(x[0]), truth[0], rtol=1e-12, atol=1e-12)


def test_walkers_in_several_chunks_of_any_length_all_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.flows.langevin.CHUNK", 2)
    monkeypatch.setattr("lab.flows.langevin.FEWEST", 400)
    x = torch.zeros(1001, 2, dtype=DOUBLE)
    Langevin(Quadratic((4.0, 1.0)), 0.5, 0.3).run(x, 40, stream(0, "chunks"))
    assert x.ne(0).all()
    for variance, h in zip(x.var(0).tolist(), (4.0, 1.0), strict=True):
        assert variance == pytest.approx(0.5 / (h * (1 - 0.15 * h)), rel=4 * math.sqrt(2 / 1001))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_numbers_are_normal_to_their_fourth_moment(dtype: torch.dtype) -> None:
    # A step of h = 1/2 at T = 1 on a flat landscape is a normal number; four standard errors of each moment.
    x, num = torch.zeros(400_000, 1, dtype=dtype), 400_000
    Langevin(Quadratic((1e-12,)), 1.0, 0.5).run(x, 1, stream(0, "normal"))
    z = x.double()
    for power, moment, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert float(z.pow(power).mean()) == pytest.approx(moment, abs=4 * math.sqrt(variance / num))
    tail = math.erfc(3 / math.sqrt(2))
    assert float((z.abs() > 3).double().mean()) == pytest.approx(tail, abs=4 * math.sqrt(tail / num))


def test_walls_and_tori_put_walkers_back() -> None:
    x = torch.tensor([[-1.5, 0.5, 1.25, 1.0]], dtype=DOUBLE)
    wrapped, folded = x.clone(), x.clone()
    periodic(-1, 1)(wrapped)
    reflecting(-1, 1)(folded)
    assert wrapped.tolist() == [[0.5, 0.5, -0.75, -1.0]]
    assert folded.tolist() == [[-0.5, 0.5, 0.75, 1.0]]


def test_the_same_stream_gives_the_same_walk_whatever_came_before() -> None:
    def walk() -> Tensor:
        x = torch.zeros(5, 1, dtype=DOUBLE)
        Langevin(DoubleWell(stiffness=()), 0.1, 0.05).run(x, 30, stream(3, "walk"))
        return x

    first = walk()
    torch.rand(7)
    assert torch.equal(first, walk())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"temperature": 1.0, "lr": 0.0}, "lr > 0"),
        ({"temperature": -1.0, "lr": 0.1}, "temperature >= 0"),
        ({"temperature": 0.0, "lr": 0.1, "sampler": "mala"}, "mala"),
        ({"temperature": 1.0, "lr": 0.1, "sampler": "mala", "diffusion": lambda x: x}, "mala"),
    ],
)
def test_dynamics_that_cannot_be_are_refused(settings: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Langevin(DoubleWell(), **settings)
