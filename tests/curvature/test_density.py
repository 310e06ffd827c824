"""Stochastic Lanczos quadrature on spectra that are known: moments, errors, outliers, and what can go wrong.

Four standard errors raise a false alarm in 1 of 16,000 cases; all draws are seeded.
"""

import math

import pytest
import torch
from torch import Tensor

from lab.curvature.density import SpectralDensity, density
from lab.curvature.eigen import lanczos
from lab.curvature.operators import LinearOperator, hessian, of_matrix
from lab.landscapes.quadratic import Quadratic
from lab.results import Eigenpairs
from lab.streams import stream


def diagonal(values: Tensor) -> LinearOperator:
    return hessian(Quadratic(values), torch.zeros_like(values))


def ends(operator: LinearOperator, top: int, bottom: int = 0, tol: float = 1e-3) -> Eigenpairs:
    found = lanczos(operator, top=top, bottom=bottom, tol=tol, max_matvecs=400)
    joined = [torch.cat([getattr(found.top, n), getattr(found.bottom, n)]) for n in ("values", "residuals", "errors")]
    vectors = torch.cat([found.top.vectors, found.bottom.vectors], dim=1)
    return Eigenpairs(joined[0], vectors, joined[1], joined[2], found.top.matvecs, True)


def normal(count: int, name: str = "values") -> Tensor:
    return torch.randn(count, generator=stream(0, name), dtype=torch.float64)


SPECTRA = {
    "bulk and outliers": torch.cat([normal(2000) * 0.1, torch.linspace(5, 20, 10).double()]),
    "exponential": torch.logspace(2, -6, 3000, dtype=torch.float64),
    "two values": torch.cat([torch.ones(300), -2 * torch.ones(100)]).double(),
    "smaller than the steps": torch.tensor([3.0, 1.0, -0.5, 0.1]).double(),
    "one weight": torch.tensor([2.0]).double(),
    "far from zero": 1000 + normal(1000, "far"),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SPECTRA)
def test_moments_are_traces_of_powers_within_their_errors(name: str, dtype: torch.dtype) -> None:
    values = SPECTRA[name]
    phi = density(diagonal(values.to(dtype)), steps=40, vectors=3, generator=stream(1, name))
    for power in range(1, 7):
        truth, found = float((values**power).mean()), phi.moment(power)
        # beside the draws: round-off of the products, power times; 1e-5 of the largest in float32
        round_off = power * (1e-5 if dtype == torch.float32 else 1e-12) * float(values.abs().max() ** power)
        assert abs(found.value - truth) <= 4 * found.error + round_off, power
    assert phi.matvecs == 3 * min(40, len(values)) or name == "two values"


@pytest.mark.parametrize("name", SPECTRA)
def test_the_density_integrates_to_1_and_lies_in_its_band(name: str) -> None:
    phi = density(diagonal(SPECTRA[name]), steps=60, vectors=4)
    assert float(torch.trapezoid(phi.values, phi.grid)) == pytest.approx(1, abs=1e-3)
    assert bool((phi.low <= phi.values).all()) and bool((phi.values <= phi.high).all())
    torch.testing.assert_close(phi.weights.sum(1), torch.ones(4).double(), rtol=0, atol=1e-6)


def test_the_stated_error_is_the_spread_of_repeated_draws() -> None:
    operator = diagonal(torch.cat([normal(300) * 0.1, torch.linspace(5, 20, 10).double()]))
    runs = [density(operator, steps=12, vectors=6, generator=stream(2, "run", i)) for i in range(100)]
    for name in ("trace", "frobenius", "effective_rank", "negative_mass"):
        values = torch.tensor([getattr(run, name).value for run in runs])
        stated = torch.tensor([getattr(run, name).error for run in runs]).square().mean().sqrt()
        # the spread of 100 draws is known to 7 %; Student's t of 30 degrees of freedom and more widens by 4 % at most
        spread = float(values.std() / stated)
        assert spread < 1.25, name
        assert spread > 0.75 or name == "negative_mass", name  # which has the error of the quadrature beside it


STEEP = {
    "each 0.7 times the one before": 0.7 ** torch.arange(200).double(),
    "a power law": torch.arange(1, 201).double() ** -1.5,
    "forty equal ones": torch.cat([torch.full((40,), 10.0).double(), 0.1 * normal(160)]),
    "of either sign": torch.cat(
        [torch.tensor([30.0, 9.0, 3.0]).double(), 0.3 * normal(120).square(), -0.05 * normal(77)]
    ),
}


@pytest.mark.parametrize(("vectors", "steps"), [(1, 30), (3, 12)])
@pytest.mark.parametrize("name", STEEP)
def test_intervals_cover_where_few_eigenvalues_carry_the_number(name: str, vectors: int, steps: int) -> None:
    """Of 80 intervals of 95 % fewer than 71 cover in 1 case of 1000; with errors not widened 0.80 do, of one vector."""
    values = STEEP[name]
    truth = {
        "trace": float(values.sum()),
        "frobenius": float(values.norm()),
        "effective_rank": float(values.sum() ** 2 / values.square().sum()),
        "negative_mass": float(-values.clamp(max=0).sum() / values.abs().sum()),
    }
    top = torch.eye(len(values)).double()[:, values.argsort(descending=True)[:2]]
    nothing = torch.zeros(2).double()
    known = Eigenpairs(values.sort(descending=True).values[:2], top, nothing, nothing, 0, True)
    runs = [
        density(diagonal(values), steps=steps, vectors=vectors, known=known, generator=stream(5, "run", i))
        for i in range(80)
    ]
    for quantity, value in truth.items():
        found = [getattr(run, quantity) for run in runs]
        assert sum(abs(each.value - value) <= 1.96 * each.error + 1e-9 for each in found) >= 71, quantity


def test_one_vector_has_errors_but_no_band() -> None:
    phi = density(diagonal(SPECTRA["exponential"]), vectors=1)
    assert phi.trace.error > 0
    assert bool(phi.low.isnan().all()) and bool(phi.high.isnan().all())


def test_goe_is_a_semicircle() -> None:
    size = 1200
    a = torch.randn(size, size, generator=stream(0, "goe"), dtype=torch.float64)
    phi = density(of_matrix((a + a.T) / math.sqrt(2 * size)), steps=80, vectors=4, generator=stream(0, "goe vectors"))
    x = torch.linspace(-1.9, 1.9, 39).double()
    semicircle = torch.sqrt(4 - x**2) / (2 * math.pi)
    found = torch.tensor([float(phi.values[(phi.grid - at).abs().argmin()]) for at in x])
    # A bump of width 2.5 sigma = 0.1 holds some 30 eigenvalues: 4 sqrt(2 / (4 * 30)) = 50 % at worst, 13 % in the mean
    assert float(((found - semicircle) / 0.318).abs().max()) < 0.35
    assert float(((found - semicircle) / 0.318).abs().mean()) < 0.08
    # moments of the semicircle are Catalan numbers; the matrix itself deviates by O(power / size)
    for power, catalan in ((2, 1), (4, 2), (6, 5)):
        moment = phi.moment(power)
        assert abs(moment.value - catalan) < 4 * moment.error + 4 * power * catalan / size
    assert phi.outliers.value == 0
    assert phi.negative_mass.value == pytest.approx(0.5, abs=4 * phi.negative_mass.error + 0.01)


@pytest.mark.parametrize("tol", [1e-6, 0.2])
def test_known_pairs_leave_the_traces_right_and_shrink_their_errors(tol: float) -> None:
    values = SPECTRA["bulk and outliers"]
    operator = diagonal(values)
    whole = density(operator, vectors=3, generator=stream(3, "known"))
    phi = density(operator, vectors=3, known=ends(operator, 10, 3, tol), generator=stream(3, "known"))
    assert phi.exact == 13
    assert bool((phi.weights[:, :13] == 1 / phi.size).all())  # exact, not to float32
    for name, truth in (("trace", values.sum()), ("frobenius", values.norm())):
        found = getattr(phi, name)
        assert abs(found.value - float(truth)) <= 4 * found.error
        assert found.error < getattr(whole, name).error / (10 if tol < 0.1 else 1)
    torch.testing.assert_close(phi.weights.sum(1), torch.ones(3).double())


def test_all_pairs_known_is_exact() -> None:
    values = torch.tensor([3.0, 1.0, -0.5, 0.1]).double()
    phi = density(diagonal(values), known=ends(diagonal(values), 4, tol=0))
    assert phi.trace.value == pytest.approx(3.6) and phi.trace.error == 0
    assert phi.negative_mass.value == pytest.approx(0.5 / 4.6) and phi.matvecs == 0
    assert phi.effective_rank.value == pytest.approx(3.6**2 / 10.26)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("top", [10.0, 1e4])
def test_an_outlier_has_no_ghosts(top: float, dtype: torch.dtype) -> None:
    """Without reorthogonalisation it would appear again every time it has converged."""
    values = torch.cat([torch.tensor([top]).double(), normal(3000)])
    phi = density(diagonal(values.to(dtype)), steps=80, vectors=2)
    assert (phi.nodes > 6).sum(1).tolist() == [1, 1]
    assert float(phi.nodes.max()) == pytest.approx(top, rel=1e-5)


@pytest.mark.parametrize(("known", "spread"), [(10, 10.0), (0, 10.0), (10, 0.5), (12, 0.0)])
def test_ten_outliers_are_ten(known: int, spread: float) -> None:
    values = torch.cat([normal(4000) * 0.2, 15 + torch.linspace(0, spread, 10).double()])
    operator = diagonal(values)
    pairs = ends(operator, known) if known else None
    phi = density(operator, vectors=8, known=pairs, generator=stream(4, "ten"))
    count = phi.outliers
    assert 0.2 * 3.5 < phi.bulk_edge < 15
    assert abs(count.value - 10) <= (4 * count.error if known == 0 else 1e-6)


def test_the_classes_times_classes_structure_is_counted_where_a_gap_can_be_seen() -> None:
    """K outliers and K(K - 1) smaller ones above the bulk, K = 10: all of them above the edge, K above the gap."""
    values = torch.cat([normal(4000) * 0.05, torch.linspace(4, 6, 90).double(), torch.linspace(15, 25, 10).double()])
    operator = diagonal(values)
    phi = density(operator, vectors=8, known=ends(operator, 10), generator=stream(5, "classes"))
    assert abs(phi.outliers.value - 100) <= 4 * phi.outliers.error
    assert phi.above(10).value == pytest.approx(10, abs=1e-6)


def test_summaries_of_a_known_spectrum() -> None:
    values = SPECTRA["bulk and outliers"]
    phi = density(diagonal(values), vectors=20, known=ends(diagonal(values), 10), generator=stream(6, "summary"))
    truths = {
        "trace": values.sum(),
        "frobenius": values.norm(),
        "effective_rank": values.sum() ** 2 / values.square().sum(),
    }
    for name, truth in truths.items():
        found = getattr(phi, name)
        assert abs(found.value - float(truth)) <= 4 * found.error, name
    mass = float(-values.clamp(max=0).sum() / values.abs().sum())
    assert phi.negative_mass.value == pytest.approx(mass, abs=4 * phi.negative_mass.error + 1e-3)


def test_an_invariant_subspace_ends_the_steps() -> None:
    phi = density(diagonal(SPECTRA["two values"]), steps=50, vectors=2)
    assert phi.matvecs == 4
    assert sorted({round(float(x), 6) for x in phi.nodes[phi.weights > 0]}) == [-2.0, 1.0]


@pytest.mark.parametrize("values", [torch.zeros(50), torch.full((50,), 3.0)])
def test_a_multiple_of_the_identity_has_no_error(values: Tensor) -> None:
    phi = density(diagonal(values))
    assert phi.trace.value == pytest.approx(float(values.sum()), rel=1e-6)
    assert phi.trace.error == pytest.approx(0, abs=1e-3)
    assert float(torch.trapezoid(phi.values, phi.grid)) == pytest.approx(1, abs=1e-3)
    assert math.isnan(phi.negative_mass.value) == (not values.any())


def test_a_product_that_is_not_finite_makes_everything_nan() -> None:
    phi = density(diagonal(torch.tensor([1.0, float("nan"), 2.0])))
    assert bool(phi.values.isnan().all())
    for name in ("trace", "frobenius", "negative_mass", "effective_rank", "outliers"):
        assert math.isnan(getattr(phi, name).value), name
    assert math.isnan(phi.bulk_edge)


def test_the_same_generator_gives_the_same_density_and_the_global_one_is_left_alone() -> None:
    state = torch.get_rng_state()
    a, b = (density(diagonal(SPECTRA["exponential"]), generator=stream(7, "same")) for _ in range(2))
    assert a.nodes.equal(b.nodes) and a.weights.equal(b.weights)
    assert torch.get_rng_state().equal(state)


def test_sigma_is_the_width_of_a_line() -> None:
    phi: SpectralDensity = density(diagonal(torch.tensor([1.0, 3.0]).double()), sigma=0.1)
    assert float(phi.values.max()) == pytest.approx(0.5 / (math.sqrt(2 * math.pi) * 0.1), rel=0.9)
    second = float((phi.grid**2 * phi.values).sum() * (phi.grid[1] - phi.grid[0]))
    assert second == pytest.approx(float((phi.weights * phi.nodes**2).sum(1).mean()) + 0.1**2, rel=1e-3)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"vectors": 0}, {"grid": 1}, {"sigma": 0.0}])
def test_what_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected positive"):
        density(diagonal(torch.ones(3)), **wrong)  # type: ignore[arg-type]
