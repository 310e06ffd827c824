"""The Fisher matrices against brute force: enumerated labels, dense Jacobians, and what THEORY says of them, in float64."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lab.curvature.operators import gauss_newton, hessian, residual
from lab.landscapes.quadratic import Quadratic
from lab.models.losses import CrossEntropyCriterion, MeanSquaredErrorCriterion
from lab.noise.covariance import covariance
from lab.noise.information import sampled_fisher, true_fisher
from lab.noise.likelihood import Bernoulli, Gaussian, Likelihood, Softmax, likelihood_of
from lab.objective import NetworkObjective, Objective

LABELS = torch.arange(40) % 3


def network(outputs: int = 3) -> nn.Module:
    """The 4-6-K tanh network of all identities here."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, outputs)).double()


def inputs(num: int = 40, seed: int = 1) -> Tensor:
    return torch.randn(num, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_loss(criterion, y: Tensor, outputs: int = 3, chunk_size: int | None = 17) -> NetworkObjective:
    """Chunks of 17, 17 and 6: uneven, as the weights by examples must show."""
    return NetworkObjective(network(outputs), criterion, (inputs(len(y)), y), chunk_size=chunk_size)


def off(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).norm() / truth.norm())


OBJECTIVES = {
    "cross entropy": (functional.cross_entropy, LABELS, 3),
    "its module": (nn.CrossEntropyLoss(), LABELS, 3),
    "label-smoothed": (CrossEntropyCriterion(0.2), LABELS, 3),
    "soft targets": (functional.cross_entropy, inputs(seed=2)[:, :3].softmax(1), 3),
    "half squared error": (MeanSquaredErrorCriterion(3), LABELS, 3),
    "mean squared error": (nn.MSELoss(), inputs(seed=2)[:, :3], 3),
    "one number": (nn.MSELoss(), inputs(seed=2)[:, :1], 1),
    "binary cross entropy": (nn.BCEWithLogitsLoss(), (LABELS > 0)[:, None].double(), 1),
}


@pytest.fixture(params=OBJECTIVES)
def objective(request: pytest.FixtureRequest) -> NetworkObjective:
    return with_loss(*OBJECTIVES[request.param])


# --- identities ---------


def test_true_fisher_is_the_gauss_newton_matrix_whatever_the_labels(objective: NetworkObjective) -> None:
    w = objective.weights
    assert off(true_fisher(objective, w).dense(), gauss_newton(objective, w).dense()) < 1e-10


def test_true_fisher_is_the_mean_over_labels_drawn_from_the_model() -> None:
    """By enumeration: sum_k p_k g_k g_k', g_k the per-example gradient at label k, which knows nothing of J or M."""
    objective = with_loss(functional.cross_entropy, LABELS)
    w, truth = objective.weights, torch.zeros(())
    p = objective.model(objective.x).softmax(1).detach()
    for k in range(3):
        g = with_loss(functional.cross_entropy, torch.full((40,), k)).example_grads(w)
        truth = truth + (p[:, k, None] * g).T @ g / 40
    assert off(true_fisher(objective, w).dense(), truth) < 1e-12


@pytest.mark.parametrize(("criterion", "variance"), [(MeanSquaredErrorCriterion(3), 1.0), (nn.MSELoss(), 1.5)])
def test_true_fisher_of_a_squared_error_is_JtJ_over_N_and_the_variance(criterion, variance: float) -> None:
    """Unit variance for the half squared error; the mean over K outputs is the likelihood of variance K/2."""
    y = LABELS if variance == 1 else inputs(seed=2)[:, :3]
    objective = with_loss(criterion, y)
    w = objective.weights
    J = torch.autograd.functional.jacobian(lambda w: objective.outputs(w, objective.x), w).flatten(0, 1)
    assert off(true_fisher(objective, w).dense(), J.T @ J / 40 / variance) < 1e-12


def test_hessian_is_gauss_newton_plus_residual_and_the_residual_is_not_small() -> None:
    objective = with_loss(functional.cross_entropy, LABELS)
    w = objective.weights
    H, G, R = (make(objective, w).dense() for make in (hessian, gauss_newton, residual))
    assert off(G + R, H) < 1e-10
    assert R.norm() / H.norm() > 0.3  # so that the identity says something


def test_true_fisher_is_the_hessian_of_the_KL_divergence_at_the_reference_point() -> None:
    """KL(p_w || p_v) is, in v, the cross-entropy against the probabilities of w, up to a constant."""
    objective = with_loss(functional.cross_entropy, LABELS)
    w = objective.weights
    p = objective.model(objective.x).softmax(1).detach()
    KL = with_loss(functional.cross_entropy, p)
    assert KL.grad(w).norm() < 1e-14
    assert off(true_fisher(objective, w).dense(), hessian(KL, w).dense()) < 1e-10


def test_true_fisher_does_not_see_the_labels_and_the_empirical_one_does() -> None:
    one, other = (with_loss(functional.cross_entropy, y) for y in (LABELS, LABELS.flip(0)))
    w = one.weights
    assert true_fisher(one, w).dense().equal(true_fisher(other, w).dense())
    empirical = [covariance(each, w, centred=False).dense() for each in (one, other)]
    assert off(*empirical) > 0.1


@pytest.mark.parametrize("memory", [None, 0])
def test_fisher_is_the_same_with_its_graphs_kept_or_rebuilt_in_one_chunk_or_several(memory: int | None) -> None:
    truth = true_fisher(with_loss(functional.cross_entropy, LABELS, chunk_size=40), w := network_weights()).dense()
    chunks = with_loss(functional.cross_entropy, LABELS, chunk_size=7)
    assert off(true_fisher(chunks, w, memory=memory).dense(), truth) < 1e-12
    draw = [
        sampled_fisher(chunks, w, generator=torch.Generator().manual_seed(3), memory=m).dense() for m in (memory, None)
    ]
    assert off(*draw) < 1e-12


def network_weights() -> Tensor:
    return with_loss(functional.cross_entropy, LABELS).weights


def test_batch_norm_goes_by_its_running_statistics() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()
    for i in range(5):
        model(inputs(seed=i))
    data = inputs(), LABELS
    objective = NetworkObjective(model, functional.cross_entropy, data, batch_norm="eval")
    w = objective.weights
    F = true_fisher(objective, w)
    assert off(F.dense(), gauss_newton(objective, w).dense()) < 1e-10
    assert F.trace(w).value == pytest.approx(float(F.dense().trace()), rel=1e-12)
    with pytest.raises(ValueError, match="train-mode BatchNorm couples"):
        true_fisher(NetworkObjective(model, functional.cross_entropy, data, batch_norm="train"), w)


# --- drawn labels ---------


@pytest.mark.parametrize("name", ["cross entropy", "half squared error", "binary cross entropy"])
def test_sampled_fisher_is_unbiased_for_the_true_one(name: str) -> None:
    """60 independent draws: the trace and a quadratic form within 4 standard errors (false alarm 2e-4 each)."""
    objective, generator = with_loss(*OBJECTIVES[name], chunk_size=40), torch.Generator().manual_seed(5)
    w = objective.weights
    v = torch.randn(len(w), generator=generator, dtype=w.dtype)
    F = true_fisher(objective, w)
    truth = torch.tensor([F.trace(w).value, float(v @ (F @ v))], dtype=torch.float64)
    draws = (sampled_fisher(objective, w, generator=generator) for _ in range(60))
    found = torch.tensor([[S.trace(w).value, float(v @ (S @ v))] for S in draws], dtype=torch.float64)
    error = found.std(0) / 60**0.5
    assert bool((error > 0).all())
    assert bool(((found.mean(0) - truth).abs() < 4 * error).all())


def test_sampled_fisher_is_the_mean_over_its_draws_and_nears_the_true_one() -> None:
    objective = with_loss(functional.cross_entropy, LABELS)
    w = objective.weights
    many = sampled_fisher(objective, w, generator=torch.Generator().manual_seed(6), draws=4)
    each = torch.Generator().manual_seed(6)
    mean = sum(sampled_fisher(objective, w, generator=each).dense() for _ in range(4)) / 4
    assert off(many.dense(), mean) < 1e-12
    assert many.trace(w).value == pytest.approx(float(mean.trace()), rel=1e-12)
    truth = true_fisher(objective, w).dense()
    far, near = (
        off(sampled_fisher(objective, w, generator=torch.Generator().manual_seed(7), draws=m).dense(), truth)
        for m in (25, 2500)
    )
    assert near == pytest.approx(far / 10, rel=0.5)  # 1/sqrt(draws)


# --- traces ---------


def test_traces_are_exact(objective: NetworkObjective) -> None:
    w = objective.weights
    for F in (true_fisher(objective, w), sampled_fisher(objective, w, generator=torch.Generator().manual_seed(0))):
        assert F.trace(w).value == pytest.approx(float(F.dense().trace()), rel=1e-12)
        assert F.trace(w).error == 0


def test_traces_of_a_convolutional_network_are_exact() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.Tanh(), nn.Flatten(), nn.Linear(18, 3)).double()
    x = torch.randn(10, 1, 5, 5, dtype=torch.float64)
    objective = NetworkObjective(model, functional.cross_entropy, (x, torch.arange(10) % 3), chunk_size=4)
    w = objective.weights
    F = true_fisher(objective, w)
    assert F.trace(w).value == pytest.approx(float(F.dense().trace()), rel=1e-12)


# --- likelihoods ---------


@pytest.mark.parametrize(
    ("likelihood", "outputs"), [(Softmax(), 4), (Gaussian(1.0), 3), (Gaussian(2.5), 1), (Bernoulli(), 1)]
)
def test_covariance_of_the_scores_is_that_of_the_labels_and_of_its_root(likelihood: Likelihood, outputs: int) -> None:
    f = inputs(5)[:, :outputs]
    S = torch.stack([likelihood.covariance_times(f, unit.expand_as(f)) for unit in torch.eye(outputs).double()], 2)
    roots = torch.stack([likelihood.root(f, k) for k in range(outputs)], 2)
    torch.testing.assert_close(roots @ roots.transpose(1, 2), S, rtol=1e-12, atol=1e-14)
    slope = torch.autograd.functional.jacobian(lambda f: likelihood.mean(f).sum(0), f).permute(1, 0, 2)
    torch.testing.assert_close(slope, S, rtol=1e-12, atol=1e-14)  # S = d mean / df, as an exponential family has it
    draws = torch.stack(
        [likelihood.sampled_scores(f, g) for g in [torch.Generator().manual_seed(1)] for _ in range(4000)]
    )
    mean, error = draws.mean(0), draws.std(0) / 4000**0.5
    assert bool((mean.abs() < 4.5 * error + 1e-12).all())  # scores are zero on average; 7e-6 an entry
    second = torch.einsum("mni,mnj->mnij", draws, draws)
    assert bool(((second.mean(0) - S).abs() < 4.5 * second.std(0) / 4000**0.5 + 1e-12).all())


def test_a_fitted_example_keeps_its_small_probabilities() -> None:
    """p = 1 - 4e-9 is 1 in float32, where diag(p) - p p' would vanish: scores are computed in float64."""
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[9.6], [-9.6]]))
    objective = NetworkObjective(model, functional.cross_entropy, (torch.ones(3, 1), torch.zeros(3).long()))
    w = objective.weights
    q = 1 / (1 + torch.tensor(19.2, dtype=torch.float64).exp())
    truth = float(2 * q * (1 - q))
    assert true_fisher(objective, w).trace(w).value == pytest.approx(truth, rel=1e-5)
    assert float(true_fisher(objective, w).dense().trace()) == pytest.approx(truth, rel=1e-5)


@pytest.mark.parametrize(
    ("criterion", "y", "outputs"),
    [
        (nn.HuberLoss(), inputs(seed=2)[:, :3], 3),
        (nn.MultiMarginLoss(), LABELS, 3),
        (nn.NLLLoss(), LABELS, 3),
        (lambda f, y: functional.cross_entropy(f, y) + f.square().mean(), LABELS, 3),
        (lambda f, y: functional.cross_entropy(f, y, reduction="none").square().mean(), LABELS, 3),
        (nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0)), (LABELS > 0)[:, None].double(), 1),
    ],
)
def test_a_loss_without_a_probabilistic_reading_is_refused_in_one_line(criterion, y: Tensor, outputs: int) -> None:
    objective = with_loss(criterion, y, outputs)
    with pytest.raises(ValueError, match=r"no known log-likelihood of an example.*known are cross-entropy") as caught:
        true_fisher(objective, objective.weights)
    assert "\n" not in str(caught.value)


def test_a_landscape_and_no_draws_are_refused() -> None:
    quadratic: Objective = Quadratic(torch.ones(2))
    with pytest.raises(TypeError, match="Quadratic is no network"):
        true_fisher(quadratic, torch.zeros(2))
    objective = with_loss(functional.cross_entropy, LABELS)
    with pytest.raises(ValueError, match="draws=0: expected at least one"):
        sampled_fisher(objective, objective.weights, generator=torch.Generator(), draws=0)


def test_likelihoods_are_told_apart_by_what_the_loss_does() -> None:
    kinds = {name: likelihood_of(o := with_loss(*case), o.weights) for name, case in OBJECTIVES.items()}
    assert kinds["label-smoothed"] == kinds["soft targets"] == kinds["cross entropy"] == Softmax()
    assert kinds["binary cross entropy"] == Bernoulli()
    variances = {name: kind.variance for name, kind in kinds.items() if isinstance(kind, Gaussian)}
    assert variances == pytest.approx({"half squared error": 1.0, "mean squared error": 1.5, "one number": 0.5})


# --- where the model holds, and where it does not ---------


@pytest.mark.parametrize("well_specified", [True, False])
def test_empirical_fisher_nears_the_true_one_only_where_the_model_holds(well_specified: bool) -> None:
    """20000 labels drawn from the model itself (measured 0.013) or evenly, whatever x (0.127): .03 and .08 part them."""
    model, x = network(), inputs(20000, seed=8)
    with torch.no_grad():
        p = (model(x) * (1.0 if well_specified else 0.0)).softmax(1)
    y = torch.multinomial(p, 1, generator=torch.Generator().manual_seed(9))[:, 0]
    objective = NetworkObjective(model, functional.cross_entropy, (x, y))
    w = objective.weights
    far = off(covariance(objective, w, centred=False).dense(), true_fisher(objective, w).dense())
    assert far < 0.03 if well_specified else far > 0.08


@pytest.mark.parametrize(("scale", "ratio", "tol"), [("constant", 0.25, 0.01), ("proportional", 3.0, 0.03)])
def test_noise_of_linear_regression_against_its_hessian(scale: str, ratio: float, tol: float) -> None:
    """y = e: D/H = sigma^2; y = |x| e with unit variance: D/H = E x^4 = 3, far from that variance.

    400000 examples: standard errors 0.45 % and 0.92 %. The true Fisher is the Hessian in both.
    """
    generator = torch.Generator().manual_seed(10)
    x, e = torch.randn(2, 400_000, 1, generator=generator, dtype=torch.float64)
    y = 0.5 * e if scale == "constant" else x.abs() * e
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)

    def half_squared(f: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (f - y).square().sum(1).mean()

    objective = NetworkObjective(model, half_squared, (x, y))
    w = objective.weights
    D, F, H = (float(A.dense()) for A in (covariance(objective, w), true_fisher(objective, w), hessian(objective, w)))
    assert pytest.approx(H, rel=1e-12) == F
    assert pytest.approx(ratio, rel=tol) == D / H
