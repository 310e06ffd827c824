"""Batch sharpness against dense Hessians of every batch there is, its exact meaning, its errors, and GNI for what it is."""

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lab.curvature.operators import hessian
from lab.models.losses import CrossEntropy, MeanSquaredError
from lab.noise.batch_curvature import (
    BatchForms,
    along_gradient,
    along_gradients,
    along_step,
    along_steps,
    gradient_noise_interaction,
    top_of_batches,
)
from lab.noise.ratios import bootstrapped, mean_of_ratios, needed, ratio_of_means
from lab.objective import NetworkObjective
from lab.sampling import batch_factor

N, M = 6, 3
BATCHES = torch.tensor(list(combinations(range(N), M)))
"""All 20 batches of 3 out of 6 examples."""


class Attention(nn.Module):
    """Linear layers on sequences, whose outputs meet in a product."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(2, 2) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (2, 2))
        weights = (self.query(x) @ self.key(x).transpose(1, 2)).softmax(2)
        return self.out((weights @ self.value(x)).tanh()).flatten(1)[:, :3]


class Tied(nn.Module):
    """A weight that is used once by its layer and once behind its back."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(functional.linear(self.inner(x).tanh(), self.inner.weight).tanh())


class Twice(nn.Module):
    """A layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(self.inner(x).tanh()).tanh())


def frozen() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3))
    net[0].weight.requires_grad_(False)
    net[4].bias.requires_grad_(False)
    return net


NETWORKS = {
    "tanh": lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)),
    "relu in place": lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)),
    "linear": lambda: nn.Sequential(nn.Linear(4, 3)),
    "frozen": frozen,
    "sequences": Attention,
    "used behind its back": Tied,
    "called twice": Twice,
    "normalised": lambda: nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(2, 4), nn.Tanh(), nn.Linear(4, 3)),
    "batch norm": lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, affine=False), nn.Tanh(), nn.Linear(3, 3)),
}
THROUGH_LAYERS = ("tanh", "relu in place", "linear", "frozen", "sequences", "batch norm")


def objective(name: str, *, loss: str = "mse", batch_norm: str = "eval", **settings: int) -> NetworkObjective:
    torch.manual_seed(3)
    model = NETWORKS[name]().double()
    x, y = torch.randn(N, 4, dtype=torch.float64), torch.arange(N) % 3
    criterion = (MeanSquaredError() if loss == "mse" else CrossEntropy()).build(3)
    return NetworkObjective(model, criterion, (x, y), batch_norm=batch_norm, **settings)  # type: ignore[arg-type]


def dense(loss: NetworkObjective, w: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient and Hessian, row by row, by nothing but autograd."""
    leaf = w.clone().requires_grad_()
    total = sum(weight * part for weight, part in loss.parts(leaf))
    (g,) = torch.autograd.grad(total, leaf, create_graph=True)
    rows = [torch.autograd.grad(gi, leaf, retain_graph=True, materialize_grads=True)[0] for gi in g]
    return g.detach(), torch.stack(rows)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("name", NETWORKS)
def test_forms_of_all_20_batches_are_those_of_dense_hessians(name: str, loss: str) -> None:
    whole = objective(name, loss=loss)
    w = whole.weights
    forms = along_gradients(whole, w, BATCHES)
    pairs = [dense(whole.restrict(batch), w) for batch in BATCHES]
    curvature = torch.stack([g @ H @ g for g, H in pairs])
    slope = torch.stack([g @ g for g, _ in pairs])
    assert forms.slope == pytest.approx(slope, rel=1e-10)
    assert forms.curvature == pytest.approx(curvature, rel=1e-9, abs=1e-12)
    rom, mor = curvature.mean() / slope.mean(), (curvature / slope).mean()
    assert float(ratio_of_means(forms.curvature, forms.slope)[0]) == pytest.approx(float(rom), rel=1e-10)
    assert float(mean_of_ratios(forms.curvature, forms.slope)[0]) == pytest.approx(float(mor), rel=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_only_networks_that_their_linear_layers_tell_are_done_all_at_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, made = objective(name), []

    def counted(*arguments: object) -> object:
        made.append(1)
        return hessian(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("lab.noise.batch_curvature.hessian", counted)
    along_gradients(whole, whole.weights, BATCHES)
    assert (len(made) == 1) == (name in THROUGH_LAYERS)


def test_chunks_of_batches_change_nothing() -> None:
    whole, small, tiny = objective("tanh"), objective("tanh", chunk_size=6), objective("tanh", chunk_size=2)
    forms = along_gradients(whole, whole.weights, BATCHES)
    for other in (small, tiny):  # two batches at a time, and less than one
        again = along_gradients(other, whole.weights, BATCHES)
        assert again.curvature == pytest.approx(forms.curvature, rel=1e-12)


def test_train_mode_batch_norm_normalises_over_the_batch() -> None:
    whole = objective("batch norm", batch_norm="train")
    w = whole.weights
    forms = along_gradients(whole, w, BATCHES)
    for batch, curvature in zip(BATCHES, forms.curvature, strict=True):
        x = (whole.x[batch] @ w[:12].view(3, 4).T + w[12:15]).requires_grad_()
        normal = ((x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()).tanh()
        direct = whole.criterion(normal @ w[15:24].view(3, 3).T + w[24:], whole.y[batch])
        assert float(whole.restrict(batch).value(w)) == pytest.approx(float(direct.detach()), rel=1e-10)
        g, H = dense(whole.restrict(batch), w)
        assert float(curvature) == pytest.approx(float(g @ H @ g), rel=1e-9, abs=1e-12)


def test_the_mean_loss_of_the_batches_stands_still_exactly_where_the_ratio_of_means_is_two_over_lr() -> None:
    whole = objective("linear")  # L_B is quadratic: second order is all there is
    w = whole.weights
    forms = along_gradients(whole, w, BATCHES)
    rom, mor = (float(estimator(forms.curvature, forms.slope)[0]) for estimator in (ratio_of_means, mean_of_ratios))

    def rise(lr: float) -> float:
        parts = [whole.restrict(batch) for batch in BATCHES]
        return sum(float(part.value(w - lr * part.grad(w)) - part.value(w)) for part in parts) / len(parts)

    scale = 2 / rom * float(forms.slope.mean())
    assert abs(rise(2 / rom)) < 1e-12 * scale
    assert rise(1.02 * 2 / rom) > 1e-3 * scale > -1e-3 * scale > rise(0.98 * 2 / rom)
    assert abs(mor / rom - 1) > 0.02, "the two are different numbers here"
    assert abs(rise(2 / mor)) > 1e-3 * scale


def test_the_ratio_of_means_is_the_mean_of_ratios_weighted_by_the_square_of_the_gradient() -> None:
    whole = objective("tanh")
    forms = along_gradients(whole, whole.weights, BATCHES)
    ratios = forms.curvature / forms.slope
    gap = ((ratios - ratios.mean()) * (forms.slope - forms.slope.mean())).mean() / forms.slope.mean()
    rom, mor = (float(estimator(forms.curvature, forms.slope)[0]) for estimator in (ratio_of_means, mean_of_ratios))
    assert rom - mor == pytest.approx(float(gap), rel=1e-10)


def test_along_steps_equals_the_penalised_loss_and_is_lr_times_the_ratio_of_means_for_plain_sgd() -> None:
    whole, decay = objective("tanh"), 0.3
    w = whole.weights
    torch.manual_seed(5)
    momentum = torch.randn_like(w)

    def step(g: Tensor) -> Tensor:
        return -0.1 * (g + decay * w + 0.9 * momentum)

    gradients, steps = along_steps(whole, w, BATCHES[:8], step, decay=decay)
    for i, batch in enumerate(BATCHES[:8]):
        g, H = dense(whole.restrict(batch), w)
        s = step(g)
        g, H = g + decay * w, H + decay * torch.eye(len(w), dtype=w.dtype)
        assert float(steps.curvature[i]) == pytest.approx(float(s @ H @ s), rel=1e-10)
        assert float(steps.slope[i]) == pytest.approx(-float(s @ g), rel=1e-10)
    known = along_gradients(whole, w, BATCHES[:8])
    assert gradients.curvature == pytest.approx(known.curvature, rel=1e-10)
    _, plain = along_steps(whole, w, BATCHES[:8], lambda g: -0.1 * g)
    ratio = ratio_of_means(plain.curvature, plain.slope)[0] / ratio_of_means(known.curvature, known.slope)[0]
    assert float(ratio) == pytest.approx(0.1, rel=1e-10)


def test_the_edge_of_the_generalised_form_is_two_for_every_oscillation_of_period_two() -> None:
    whole = objective("linear")
    w = whole.weights
    H = hessian(whole, w)
    optimum = w - torch.linalg.lstsq(H.dense(), H.gradient[:, None]).solution[:, 0]
    vector = torch.linalg.eigh(H.dense())[1][:, -1]
    at = optimum + 0.7 * vector
    forms = along_step(hessian(whole, at), at, -1.4 * vector)  # w_t = w* +- 0.7 u, whatever optimiser makes it
    assert float(ratio_of_means(forms.curvature, forms.slope)[0]) == pytest.approx(2, rel=1e-8)


@pytest.mark.parametrize("sampling", ["without_replacement", "with_replacement"])
def test_gni_is_the_curvature_along_the_gradient_plus_that_along_the_noise(sampling: str) -> None:
    whole = objective("tanh")
    w = whole.weights
    g, H = dense(whole, w)
    rows = whole.example_grads(w)
    D = rows.T @ rows / N - torch.outer(g, g)
    batches = BATCHES
    if sampling == "with_replacement":
        batches = torch.cartesian_prod(*[torch.arange(N)] * 2)
    factor = batch_factor(N, batches.shape[1], sampling)  # type: ignore[arg-type]
    exact = (g @ H @ g + factor * (H * D).sum()) / (g @ g)
    forms = gradient_noise_interaction(whole, hessian(whole, w), w, batches)
    assert float(ratio_of_means(forms.curvature, forms.slope)[0]) == pytest.approx(float(exact), rel=1e-10)


def test_gni_is_two_over_lr_in_a_bowl_where_batch_sharpness_is_far_below() -> None:
    """SGD far below its edge in a quadratic bowl: E[L(w_{t+1}) - L(w_t)] = 0 in the stationary state makes GNI 2/lr."""
    generator = torch.Generator().manual_seed(0)
    size, m, lr, steps = 200, 4, 0.02, 6000
    x = torch.randn(size, 5, generator=generator, dtype=torch.float64)
    y = x.sum(1) + torch.randn(size, generator=generator, dtype=torch.float64)
    H = x.T @ x / size
    w, interaction, squares, curvature, slopes = torch.ones(5, dtype=torch.float64), 0.0, 0.0, 0.0, 0.0
    for _ in range(steps):
        index = torch.randperm(size, generator=generator)[:m]
        g, g_B = x.T @ (x @ w - y) / size, x[index].T @ (x[index] @ w - y[index]) / m
        interaction, squares = interaction + float(g_B @ H @ g_B), squares + float(g @ g)
        curvature, slopes = curvature + float((x[index] @ g_B).square().sum() / m), slopes + float(g_B @ g_B)
        w = w - lr * g_B
    gni, sharpness = interaction / squares * lr / 2, curvature / slopes * lr / 2
    # |g|^2 is correlated over 1/(lr lambda) = 50 steps: 60 independent values of 5 coordinates, 10 % at one sigma of both.
    assert gni == pytest.approx(1, abs=0.3)
    assert sharpness < 0.2


def test_mean_top_eigenvalue_of_the_batches() -> None:
    whole = objective("tanh")
    w = whole.weights
    tops = top_of_batches(whole, w, BATCHES[:6], torch.Generator().manual_seed(0), tol=1e-4)
    truth = torch.stack([torch.linalg.eigvalsh(dense(whole.restrict(b), w)[1])[-1] for b in BATCHES[:6]])
    assert tops == pytest.approx(truth, rel=2e-4)


# --- errors ----------


def heavy_tailed(trials: int, num: int) -> tuple[Tensor, Tensor]:
    """Batches with lognormal |g_B|^2 that are the sharper the larger it is: ratio of means 1.3, mean of ratios 1."""
    generator = torch.Generator().manual_seed(7)
    z, other = torch.randn(2, trials, num, generator=generator, dtype=torch.float64)
    slope = z.exp()
    return (1 + 0.3 * z + 0.3 * other) * slope, slope


@pytest.mark.parametrize(
    ("estimator", "truth", "lowest"), [(ratio_of_means, 1.3, 0.87), (mean_of_ratios, 1.0, 0.915)], ids=["rom", "mor"]
)
def test_intervals_hold_the_truth_nearly_as_often_as_they_say(
    estimator, truth: float, lowest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.noise.ratios.RESAMPLES", 500)  # a quarter of them, for speed
    trials = 300
    curvature, slope = heavy_tailed(trials, 100)
    generator = torch.Generator().manual_seed(8)
    found = [bootstrapped(estimator, BatchForms(a, d), generator) for a, d in zip(curvature, slope, strict=True)]
    covered = sum(each.low <= truth <= each.high for each in found) / trials
    # Wanted 95 %; 92 and 95 % in 2000 trials. The band is three standard errors of 300 trials, 1.6 and 1.3 %.
    assert lowest < covered < 0.99
    assert all(each.low < each.value < each.high for each in found)


@pytest.mark.parametrize("estimator", [ratio_of_means, mean_of_ratios])
def test_the_standard_error_is_the_scatter_of_the_estimator(estimator) -> None:
    values, errors = estimator(*heavy_tailed(2000, 400))
    # Both means are known to a few per cent; the tail makes the error of the ratio of means itself heavy-tailed.
    assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.12)


def test_a_pilot_asks_for_the_batches_that_bring_the_error_near_what_is_wanted() -> None:
    curvature, slope = (numbers[0] for numbers in heavy_tailed(1, 5000))
    pilot = BatchForms(curvature[:400], slope[:400])
    num = needed(ratio_of_means, pilot, 0.02, 4600)
    value, error = ratio_of_means(curvature[400 : 400 + num], slope[400 : 400 + num])
    assert 0.01 < float(error / value) < 0.02  # half as many batches again as an exact error would ask for: 0.016
    assert needed(ratio_of_means, pilot, 1e-6, 40) == 40
    assert needed(ratio_of_means, pilot, 0.9, 40) == 16
    assert needed(ratio_of_means, pilot, 0.9, 4) == 4
    nothing = BatchForms(torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64))
    assert needed(ratio_of_means, nothing, 0.1, 40) == 16


def test_equal_batches_have_no_error_one_batch_no_known_one_and_no_gradient_no_value() -> None:
    generator = torch.Generator()
    same = bootstrapped(
        ratio_of_means, BatchForms(torch.full((5,), 6.0).double(), torch.full((5,), 2.0).double()), generator
    )
    assert (same.value, same.error, same.low, same.high) == (3, 0, 3, 3)
    one = bootstrapped(
        ratio_of_means, BatchForms(torch.tensor([6.0]).double(), torch.tensor([2.0]).double()), generator
    )
    assert one.value == 3
    assert math.isnan(one.error)
    for estimator in (ratio_of_means, mean_of_ratios):
        assert estimator(torch.tensor([0.7]).double(), torch.tensor([0.3]).double())[1].isnan()  # not exact in binary
    none = bootstrapped(mean_of_ratios, BatchForms(torch.zeros(5).double(), torch.zeros(5).double()), generator)
    assert math.isnan(none.value)


def test_one_batch_alone_is_its_directional_sharpness() -> None:
    whole = objective("tanh")
    w = whole.weights
    g, H = dense(whole, w)
    forms = along_gradient(hessian(whole, w))
    assert float(ratio_of_means(forms.curvature, forms.slope)[0]) == pytest.approx(
        float(g @ H @ g / (g @ g)), rel=1e-10
    )
    alone = along_gradients(whole, w, torch.arange(N)[None])
    assert float(alone.curvature) == pytest.approx(float(forms.curvature), rel=1e-12)


def test_a_diverged_network_gives_no_number_and_no_error() -> None:
    whole = objective("tanh")
    forms = along_gradients(whole, torch.full_like(whole.weights, math.nan), BATCHES)
    assert math.isnan(bootstrapped(ratio_of_means, forms, torch.Generator()).value)
    assert needed(ratio_of_means, forms, 0.1, 100) == 16
