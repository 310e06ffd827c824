"""Every quantity that looks at the outputs, whatever shape they have, against brute force in float64.

Truths: J_i and gradients of single examples by a loop, the criterion's Hessian by torch.autograd.functional, the Fisher
matrix by enumeration of all labels an example can have.
"""

import itertools
import math
from collections.abc import Callable
from functools import cached_property

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian as dense_hessian
from torch.nn import functional

from lab.curvature.operators import gauss_newton, hessian
from lab.curvature.trace import gauss_newton_trace, hessian_trace
from lab.noise.batch_curvature import along_gradients
from lab.noise.covariance import eigenvalues, trace
from lab.noise.example_curvature import example_curvature
from lab.noise.information import sampled_fisher, true_fisher
from lab.noise.likelihood import Bernoulli, Gaussian, Softmax, likelihood_of
from lab.noise.slope import expected_slope
from lab.objective import NetworkObjective
from lab.points.interpolate import jacobian

Criterion = Callable[[Tensor, Tensor], Tensor]
N, D, DOUBLE = 7, 3, torch.float64
T = 3


class Shaped(nn.Module):
    """A tanh network of `last` outputs a row; `shape` makes of them what the network returns."""

    def __init__(self, last: int, shape: Callable[[Tensor], Tensor]):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, last))
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return self.shape(self.net(x))


class Recurrence(nn.Module):
    """A recurrence of its own making: one layer used at every step, and a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head, self.start = nn.Linear(D + 2, 2), nn.Linear(2, 3), nn.Parameter(0.1 * torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        h, out = self.start.expand(len(x), -1), []
        for t in range(x.shape[1]):
            h = torch.tanh(self.cell(torch.cat([x[:, t], h], 1)))
            out.append(self.head(h))
        return torch.stack(out, 1)


def half_squared(f: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (f - y).square().sum() / len(y)


def classes_last(f: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(f.reshape(-1, f.shape[-1]), y.flatten())


def summed_over_tokens(f: Tensor, y: Tensor) -> Tensor:
    return y.shape[1] * classes_last(f, y)


def real(*shape: int) -> Tensor:
    return torch.randn(N, *shape, dtype=DOUBLE)


def binary(*shape: int) -> Tensor:
    return (torch.rand(N, *shape) < 0.5).double()


def classes(*shape: int) -> Tensor:
    return torch.randint(3, (N, *shape))


def identity(f: Tensor) -> Tensor:
    return f


BCE, MSE, CE = nn.BCEWithLogitsLoss(), nn.MSELoss(), nn.CrossEntropyLoss()
CASES: dict[str, tuple[Callable[[], nn.Module], Criterion, Callable[[], Tensor], bool, float]] = {
    # network, criterion, targets, whether x is a sequence, the scale c
    "(N,) BCE": (lambda: Shaped(1, lambda f: f.squeeze(-1)), BCE, binary, False, 1),
    "(N,) MSE": (lambda: Shaped(1, lambda f: f[:, 0]), MSE, real, False, 1),
    "(N,) half squared error": (lambda: Shaped(1, lambda f: f.squeeze(-1)), half_squared, real, False, 1),
    "(N, 1) BCE": (lambda: Shaped(1, identity), BCE, lambda: binary(1), False, 1),
    "(N, 1) MSE": (lambda: Shaped(1, identity), MSE, lambda: real(1), False, 1),
    "(N, K) cross-entropy": (lambda: Shaped(3, identity), CE, classes, False, 1),
    "(N, K) twice the cross-entropy": (lambda: Shaped(3, identity), lambda f, y: 2 * CE(f, y), classes, False, 2),
    "(N, K) MSE": (lambda: Shaped(3, identity), MSE, lambda: real(3), False, 1),
    "(N, K) multi-label BCE": (lambda: Shaped(3, identity), BCE, lambda: binary(3), False, 1 / 3),
    "(N, K) multi-label margin": (
        lambda: Shaped(3, identity),
        nn.MultiLabelSoftMarginLoss(),
        lambda: binary(3),
        False,
        1 / 3,
    ),
    "(N, K) summed BCE": (lambda: Shaped(3, identity), lambda f, y: 3 * BCE(f, y), lambda: binary(3), False, 1),
    "(N, T) BCE": (lambda: Shaped(1, lambda f: f.squeeze(-1)), BCE, lambda: binary(T), True, 1 / T),
    "(N, T, K) half squared error": (lambda: Shaped(2, identity), half_squared, lambda: real(T, 2), True, 1),
    "(N, T, K) tokens": (lambda: Shaped(3, identity), classes_last, lambda: classes(T), True, 1 / T),
    "(N, T, K) tokens, summed": (lambda: Shaped(3, identity), summed_over_tokens, lambda: classes(T), True, 1),
    "(N, K, T) tokens": (lambda: Shaped(3, lambda f: f.transpose(1, 2)), CE, lambda: classes(T), True, 1 / T),
    "(N T, K) tokens": (lambda: Shaped(3, lambda f: f.flatten(0, 1)), classes_last, lambda: classes(T), True, 1 / T),
    "(N, K, 1, T) pixels": (
        lambda: Shaped(3, lambda f: f.transpose(1, 2)[:, :, None]),
        CE,
        lambda: classes(1, T),
        True,
        1 / T,
    ),
    "(N, T, K) of a recurrence": (Recurrence, classes_last, lambda: classes(T), True, 1 / T),
}


class Truth:
    """A case and its matrices by brute force."""

    def __init__(self, name: str):
        torch.manual_seed(0)
        build, self.criterion, targets, sequence, self.scale = CASES[name]
        self.net = build().double()
        self.x, self.y = real(T, D) if sequence else real(D), targets()
        self.objective = NetworkObjective(self.net, self.criterion, (self.x, self.y), chunk_size=3)
        self.w = self.objective.weights

    def outputs(self, w: Tensor, i: int) -> Tensor:
        params = dict(zip(self.objective.layout.names, self.objective.layout.unflatten(w).values(), strict=True))
        return torch.func.functional_call(self.net, params, (self.x[i : i + 1],))

    def gradient(self, i: int, y: Tensor) -> Tensor:
        """Of example i, were its label y (1, ...)."""
        leaf = self.w.clone().requires_grad_()
        return torch.autograd.grad(self.criterion(self.outputs(leaf, i), y), leaf)[0]

    @cached_property
    def G(self) -> Tensor:
        total = 0
        for i in range(N):
            J = torch.autograd.functional.jacobian(lambda w, i=i: self.outputs(w, i), self.w).flatten(0, -2)
            f = self.outputs(self.w, i).detach()
            C = dense_hessian(lambda f, i=i: self.criterion(f, self.y[i : i + 1]), f).reshape(len(J), len(J))
            total = total + J.T @ C @ J / N
        return total

    @cached_property
    def H(self) -> Tensor:
        def loss(w: Tensor) -> Tensor:
            return sum(self.criterion(self.outputs(w, i), self.y[i : i + 1]) for i in range(N)) / N  # type: ignore[return-value]

        return dense_hessian(loss, self.w)

    @cached_property
    def gradients(self) -> Tensor:
        return torch.stack([self.gradient(i, self.y[i : i + 1]) for i in range(N)])

    @property
    def D(self) -> Tensor:
        centred = self.gradients - self.gradients.mean(0)
        return centred.T @ centred / N

    def enumerated(self) -> Tensor | None:
        """mean E[g g'] over all labels an example can have, each as probable as the network has it; None of real ones."""
        shape, discrete = self.y.shape[1:], not self.y.is_floating_point()
        if not discrete and not bool(((self.y == 0) | (self.y == 1)).all()):
            return None
        total, values = torch.zeros_like(self.G), range(3 if discrete else 2)
        for i in range(N):
            f = self.outputs(self.w, i).detach()
            for labels in itertools.product(values, repeat=math.prod(shape)):
                y = torch.tensor(labels).reshape(1, *shape).to(self.y.dtype)
                logs = -self.criterion(f, y) / self.scale  # log p of all labels of the example
                g = self.gradient(i, y)
                total += float(logs.exp()) * torch.outer(g, g) / N
        return total


@pytest.fixture(params=CASES, scope="module")
def truth(request: pytest.FixtureRequest) -> Truth:
    return Truth(request.param)


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_gauss_newton_and_hessian_and_their_traces_are_those_of_the_dense_matrices(truth: Truth) -> None:
    o, w = truth.objective, truth.w
    assert off(gauss_newton(o, w).dense(), truth.G) < 1e-10
    assert off(hessian(o, w).dense(), truth.H) < 1e-10
    assert gauss_newton_trace(o, w).value == pytest.approx(float(truth.G.trace()), rel=1e-10)
    assert gauss_newton_trace(o, w).error == 0
    found = hessian_trace(o, w, tol=0.1, generator=torch.Generator().manual_seed(1))
    assert abs(found.value - float(truth.H.trace())) <= 4 * found.error + 1e-9


def test_true_fisher_is_the_mean_over_enumerated_labels_of_gradients_of_the_loss(truth: Truth) -> None:
    o, w = truth.objective, truth.w
    F, enumerated = true_fisher(o, w), truth.enumerated()
    if enumerated is not None:
        assert off(F.dense(), enumerated) < 1e-10
    assert F.likelihood.scale == pytest.approx(truth.scale, rel=1e-9)
    assert F.trace(w).value == pytest.approx(float(F.dense().trace()), rel=1e-10)


def test_true_fisher_is_the_scale_times_gauss_newton_whatever_the_labels(truth: Truth) -> None:
    o, w = truth.objective, truth.w
    assert off(true_fisher(o, w).dense(), truth.scale * truth.G) < 1e-10


def test_sampled_fisher_is_unbiased_and_its_trace_exact(truth: Truth) -> None:
    """4 standard errors of a quadratic form over 40 draws of labels: a false alarm in 1e-4, times the cases."""
    o, w, generator = truth.objective, truth.w, torch.Generator().manual_seed(2)
    one = sampled_fisher(o, w, generator=generator, draws=2)
    assert one.trace(w).value == pytest.approx(float(one.dense().trace()), rel=1e-10)
    v = torch.randn(len(w), generator=generator, dtype=DOUBLE)
    found = torch.stack([v @ (sampled_fisher(o, w, generator=generator) @ v) for _ in range(40)])
    assert abs(float(found.mean() - truth.scale * (v @ truth.G @ v))) < 4 * float(found.std()) / 40**0.5


def test_noise_is_that_of_the_loop_over_examples(truth: Truth) -> None:
    o, w = truth.objective, truth.w
    assert trace(o, w).value == pytest.approx(float(truth.D.trace()), rel=1e-9)
    values = torch.linalg.eigvalsh(truth.D).flip(0)
    assert off(eigenvalues(o, w, 2).pairs.values, values[:2]) < 1e-6


def test_example_curvatures_average_to_gauss_newton_and_the_jacobian_is_that_of_the_loop(truth: Truth) -> None:
    o, w = truth.objective, truth.w
    found = example_curvature(o, w)
    assert off(torch.linalg.eigvalsh(found.mean)[-3:], torch.linalg.eigvalsh(truth.G)[-3:]) < 1e-8
    rows = [torch.autograd.functional.jacobian(lambda w, i=i: truth.outputs(w, i), w).flatten(0, -2) for i in range(N)]
    assert off(jacobian(o, w), torch.cat(rows)) < 1e-10


def test_curvature_of_batches_along_their_gradients_is_that_of_their_dense_hessians(truth: Truth) -> None:
    o, w, batches = truth.objective, truth.w, torch.tensor([[0, 3], [5, 1]])
    found = along_gradients(o, w, batches)
    for r, batch in enumerate(batches):
        H, g = hessian(o.restrict(batch), w).dense(), truth.gradients[batch].mean(0)
        assert float(found.slope[r]) == pytest.approx(float(g @ g), rel=1e-9)
        assert float(found.curvature[r]) == pytest.approx(float(g @ H @ g), rel=1e-8)


def test_the_noise_expected_of_a_well_specified_likelihood_is_the_scale_times_the_curvature(truth: Truth) -> None:
    o, w = truth.objective, truth.w
    expected = expected_slope(o, w)
    if truth.enumerated() is not None:
        assert expected == pytest.approx(truth.scale, rel=1e-9)
    else:
        M = truth.outputs(w, 0).numel()
        residual = [float((truth.outputs(w, i) - truth.y[i : i + 1]).square().sum()) / M for i in range(N)]
        c = float(truth.G.trace()) / sum(float(r.square().sum()) / N for r in jacobian(o, w))
        assert expected == pytest.approx(c * sum(residual) / N, rel=1e-8)


def test_a_scaled_or_summed_loss_is_recognised_with_its_family() -> None:
    kinds = {name: likelihood_of((t := Truth(name)).objective, t.w) for name in CASES}
    assert kinds["(N,) BCE"] == Bernoulli() and kinds["(N, K) cross-entropy"] == Softmax()
    assert kinds["(N, K) multi-label BCE"] == Bernoulli(1 / 3) and kinds["(N, T) BCE"] == Bernoulli(1 / T)
    assert kinds["(N, T, K) tokens"] == kinds["(N T, K) tokens"] == Softmax(3, 1, 1 / T)
    assert kinds["(N, K, T) tokens"] == kinds["(N, K, 1, T) pixels"] == Softmax(3, T, 1 / T)
    assert kinds["(N, K) twice the cross-entropy"] == Softmax(scale=2.0)
    assert kinds["(N, T, K) half squared error"] == Gaussian(pytest.approx(1.0))


def test_a_masked_loss_and_outputs_that_do_not_begin_with_the_examples_are_refused_in_one_line() -> None:
    torch.manual_seed(1)

    def masked(f: Tensor, y: Tensor) -> Tensor:
        each = functional.cross_entropy(f.transpose(1, 2), y, reduction="none")
        return (each * (y != 0)).mean()

    tokens = NetworkObjective(Shaped(3, identity).double(), masked, (real(T, D), classes(T)))
    with pytest.raises(ValueError, match="no known log-likelihood") as caught:
        true_fisher(tokens, tokens.weights)
    assert "\n" not in str(caught.value)

    probabilities = NetworkObjective(Shaped(2, torch.sigmoid).double(), nn.BCELoss(), (real(D), binary(2)))
    with pytest.raises(
        ValueError, match=r"no known log-likelihood .* \(all elements of input should be between 0 and 1"
    ):
        true_fisher(probabilities, probabilities.weights)

    def time_first(f: Tensor, y: Tensor) -> Tensor:
        return classes_last(f.transpose(0, 1), y)

    turned = NetworkObjective(Shaped(3, lambda f: f.transpose(0, 1)).double(), time_first, (real(T, D), classes(T)))
    for measure in (true_fisher, gauss_newton_trace, example_curvature):
        with pytest.raises(ValueError, match="not some for each") as caught:
            measure(turned, turned.weights)
        assert "\n" not in str(caught.value)
