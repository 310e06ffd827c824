"""Mean times and rates of escape in one dimension: against finite differences, closed forms and published numbers."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.linalg import eigh_tridiagonal, solve_banded
from scipy.special import erf

from lab.gallery.landscapes.piecewise_parabola import PiecewiseParabola
from lab.gallery.laws.kramers import (
    Diffusion,
    Domain,
    curvature_exponent,
    escape_rate,
    kramers_time,
    log_mean_time,
    on,
)
from lab.landscapes.double_well import DoubleWell

QUARTIC = DoubleWell(())
TILTED = Diffusion(lambda x: x**3 - x + 0.1, lambda x: 0.08 + 0.04 * torch.sin(2 * x))
"""Unequal wells and a diffusion that depends on the place."""


def curved(well: float, top: float, batch_over_lr: float) -> tuple[PiecewiseParabola, Diffusion]:
    L = PiecewiseParabola(well, top, 0.25)
    return L, on(L, lambda x: L.curvature(x) / (2 * batch_over_lr), cuts=(-L.inflection, L.inflection))


def naive_time(process: Diffusion, low: float, high: float, start: float, *, low_exits: bool, n: int = 20001) -> float:
    """D tau'' - L' tau' = -1 by central differences, an error of h^2."""
    x = torch.linspace(low, high, n, dtype=torch.float64)
    h, D, slope = float(x[1] - x[0]), process.diffusion(x).numpy(), process.slope(x).numpy()
    up, down = D / h**2 - slope / (2 * h), D / h**2 + slope / (2 * h)
    middle = -(up + down)
    if low_exits:
        up[0], middle[0] = 0, 1
    else:
        up[0] = -middle[0]  # reflected
    down[-1], middle[-1] = 0, 1
    right = -np.ones(n)
    right[-1] = 0
    if low_exits:
        right[0] = 0
    bands = np.stack([np.concatenate([[0], up[:-1]]), middle, np.concatenate([down[1:], [0]])])
    return float(np.interp(start, x.numpy(), solve_banded((1, 1), bands, right)))


@pytest.mark.parametrize(
    ("temperature", "top", "well"), [(0.05, 361.9, 729.7), (0.07, 89.19, 183.68), (0.1, 30.82, 66.27)]
)
def test_mean_times_of_the_quartic_well(temperature: float, top: float, well: float) -> None:
    """Published by double quadrature, to four digits."""
    process = on(QUARTIC, temperature)
    assert math.exp(log_mean_time(process, -1.0, Domain(high=0.0))) == pytest.approx(top, rel=2e-4)
    assert math.exp(log_mean_time(process, -1.0, Domain(high=1.0))) == pytest.approx(well, rel=2e-4)


@pytest.mark.parametrize("start", [-1.2, 0.1, 0.93])
def test_mean_times_solve_the_backward_equation_also_for_a_diffusion_of_the_place(start: float) -> None:
    one = math.exp(log_mean_time(TILTED, start, Domain(high=1.0)))
    assert one == pytest.approx(naive_time(TILTED, -2.6, 1.0, start, low_exits=False), rel=1e-5)
    two = math.exp(log_mean_time(TILTED, start, Domain(-1.4, 1.0)))
    assert two == pytest.approx(naive_time(TILTED, -1.4, 1.0, start, low_exits=True), rel=1e-5)


def test_leaving_downwards_is_leaving_upwards_in_the_mirror() -> None:
    mirrored = Diffusion(lambda x: -TILTED.slope(-x), lambda x: TILTED.diffusion(-x))
    here = log_mean_time(TILTED, 0.7, Domain(low=-0.9))
    assert here == pytest.approx(log_mean_time(mirrored, -0.7, Domain(high=0.9)), rel=1e-10)
    assert escape_rate(TILTED, Domain(low=-0.9), start=0.7) == pytest.approx(
        escape_rate(mirrored, Domain(high=0.9), start=-0.7), rel=1e-9
    )


def test_an_ornstein_uhlenbeck_walker_leaves_an_interval_after_the_time_of_the_double_integral() -> None:
    h, D, r = 2.0, 0.5, 0.9
    a = math.sqrt(h / (2 * D))
    inner = lambda y: math.exp((a * y) ** 2) * math.sqrt(math.pi) / (2 * a) * erf(a * y) / D  # noqa: E731
    found = log_mean_time(Diffusion(lambda x: h * x, lambda x: 0 * x + D), 0.0, Domain(-r, r))
    assert math.exp(found) == pytest.approx(quad(inner, 0, r)[0], rel=1e-9)


@pytest.mark.parametrize("temperature", [1e-2, 1e-3, 1e-4])
def test_barriers_of_2500_temperatures_do_not_overflow_and_tend_to_kramers(temperature: float) -> None:
    """Laplace's method corrects by 1 + (3/4 + 3/4) T: 5 L'''^2 / 24 L''^3 - L'''' / 8 L''^2 at well and top."""
    found = log_mean_time(on(QUARTIC, temperature), -1.0, Domain(high=1.0))
    limit = math.log(2 * math.pi / math.sqrt(2)) + 0.25 / temperature
    assert found - limit == pytest.approx(1.5 * temperature, rel=0.1, abs=1e-9 * limit)


def test_the_asymptote_is_10_to_18_percent_low_where_one_can_simulate() -> None:
    for temperature, low in ((0.05, 0.10), (0.07, 0.14), (0.1, 0.18)):
        exact = math.exp(log_mean_time(on(QUARTIC, temperature), -1.0, Domain(high=1.0)))
        assert 1 - kramers_time(0.25 / temperature, 2.0, 1.0) / exact == pytest.approx(low, abs=0.006)


def generator(process: Diffusion, low: float, high: float, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A reversible chain on n cells, symmetrised: cell centres, diagonal, off-diagonal. Reflected at both ends."""
    edges = torch.linspace(low, high, n + 1, dtype=torch.float64)
    x, h = (edges[1:] + edges[:-1]) / 2, float(edges[1] - edges[0])
    fine = torch.linspace(low, high, 20 * n + 1, dtype=torch.float64)
    middles = (fine[1:] + fine[:-1]) / 2
    phi = torch.cat([torch.zeros(1), (process.change(middles) * fine.diff()).cumsum(0)])
    at = lambda y: np.interp(y.numpy(), fine.numpy(), phi.numpy())  # noqa: E731
    mass = np.exp(-at(x)) / process.diffusion(x).numpy() * h
    flow = np.exp(-at(edges[1:-1])) / h
    diagonal = (np.concatenate([[0], flow]) + np.concatenate([flow, [0]])) / mass
    return x.numpy(), diagonal, -flow / np.sqrt(mass[1:] * mass[:-1])


def test_the_rate_of_escape_is_the_smallest_eigenvalue_of_the_killed_generator() -> None:
    found = escape_rate(TILTED, Domain(high=0.6), start=-1.0)
    _, diagonal, off = generator(TILTED, -2.6, 0.6, 3000)
    diagonal[-1] += 2 * (diagonal[-1] + off[-1] * 0)  # the half cell to the exit: twice the flow of a whole one
    value = eigh_tridiagonal(diagonal, off, eigvals_only=True, select="i", select_range=(0, 0))[0]
    assert found == pytest.approx(value, rel=2e-3)


def test_the_top_of_the_quartic_well_is_reached_twice_as_often_as_the_well_is_left() -> None:
    """The gap of the generator is the sum of the rates to both sides, 2 x 0.005692, and that at which the top is reached."""
    to_top = escape_rate(on(QUARTIC, 0.07), Domain(high=0.0), start=-1.0)
    assert to_top / 2 == pytest.approx(0.005692, abs=5e-7)


def test_the_exponent_of_curvature_noise_saturates_once_the_well_is_sharper_than_the_top() -> None:
    found = [
        curvature_exponent(0.25, h, 1.0, share=PiecewiseParabola(h, 1.0, 0.25).share, batch_over_lr=8.0)
        for h in (0.5, 1, 2, 4, 1e6)
    ]
    assert found == pytest.approx([6.667, 4.0, 3.333, 3.4, 4.0], abs=5e-4)


@pytest.mark.parametrize(("well", "top"), [(2.0, 1.0), (1.0, 3.0), (4.0, 1.0)])
def test_the_prefactor_of_curvature_noise_has_the_curvature_of_the_well(well: float, top: float) -> None:
    """Parabolas have no corrections but what lies beyond their ends: exp(-E)-small. 2 pi / H_b is off by H_a / H_b."""
    exponent, share = 200.0, PiecewiseParabola(well, top, 0.25).share
    scale = exponent / curvature_exponent(0.25, well, top, share=share, batch_over_lr=1.0)
    L, process = curved(well, top, scale)
    found = log_mean_time(process, -L.minimum, Domain(high=L.minimum))
    assert found == pytest.approx(math.log(2 * math.pi / well) + exponent, abs=1e-6)
    formula = kramers_time(exponent, well, top, well_diffusion=well, top_diffusion=top)
    assert formula == pytest.approx(2 * math.pi / well * math.exp(exponent))


def test_curvature_noise_that_jumps_is_integrated_exactly() -> None:
    """Against the midpoint rule on 2 million cells, an error of their width."""
    L, process = curved(4.0, 1.0, 80 / 8.5)
    x = torch.linspace(-L.minimum - 3, L.minimum, 2_000_001, dtype=torch.float64)
    h, x = float(x[1] - x[0]), (x[1:] + x[:-1]) / 2
    phi = (process.change(x) * h).cumsum(0)
    mass = ((-phi).exp() / process.diffusion(x) * h).cumsum(0)
    naive = float((phi.exp() * mass * h)[x > -L.minimum].sum())
    assert math.exp(log_mean_time(process, -L.minimum, Domain(high=L.minimum))) == pytest.approx(naive, rel=2e-5)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Domain(), "at least one exit"),
        (lambda: Domain(1.0, 0.0), "low < high"),
        (lambda: log_mean_time(TILTED, 2.0, Domain(high=1.0)), "not inside"),
        (lambda: log_mean_time(on(QUARTIC, 1e-9), -1.0, Domain(high=1.0)), "more noise"),
        (lambda: log_mean_time(Diffusion(lambda x: -x, torch.ones_like), 0.0, Domain(high=1.0)), "nothing holds"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(call: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()  # type: ignore[operator]
