"""The noise cards on a small network: what they add to `.grad` is what the mathematics says, of the size asked for."""

import dataclasses
import importlib
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from lab.curvature.operators import gauss_newton, hessian
from lab.models.losses import CrossEntropyCriterion, MeanSquaredErrorCriterion
from lab.noise import injection
from lab.noise.likelihood import Softmax
from lab.objective import NetworkObjective
from lab.optim.noise import (
    Diagonal,
    Fisher,
    GradientNoise,
    HalfDifference,
    HessianSqrt,
    Isotropic,
    Minibatch,
    NoiseCard,
    SampleWeights,
    Sgld,
    Trained,
)
from lab.optim.noise.base import SizedNoise
from lab.optim.optimizers import Sgd
from lab.params import flatten
from lab.run.cards import choices, config_dir
from lab.settings import SettingError
from lab.streams import stream

DOUBLE = torch.float64
N = 40
SIZED: list[type[SizedNoise]] = [Isotropic, Diagonal, Minibatch, HalfDifference, SampleWeights, Fisher, HessianSqrt]
OF_EXAMPLES: dict[type[SizedNoise], Callable[[int, float, torch.Generator], Tensor]] = {
    Minibatch: injection.minibatch,
    HalfDifference: injection.half_difference,
    SampleWeights: injection.sample_weights,
}
CLASSLESS = {"none", "small_batch"}
"""Cards that add no noise."""
CARDS = sorted(
    file for file in (Path(config_dir()) / "optimizer" / "noise").glob("*.yaml") if file.stem not in CLASSLESS
)


def network(*, batch_norm: bool = False) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        middle = [nn.BatchNorm1d(6)] if batch_norm else []
        return nn.Sequential(nn.Linear(4, 6), *middle, nn.Tanh(), nn.Linear(6, 3)).double()


def data(num: int = N) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(num, 4, generator=g, dtype=DOUBLE), torch.randint(3, (num,), generator=g)


@pytest.fixture
def objective() -> NetworkObjective:
    return NetworkObjective(network(), CrossEntropyCriterion(0.0), data())


def built(card: NoiseCard, model: nn.Module, criterion: object = None, *, batch_size: int = N) -> GradientNoise:
    return card.build(Trained(model, criterion or CrossEntropyCriterion(0.0), data(), batch_size, Sgd()), 0)  # type: ignore[arg-type]


def noisy_gradient(
    noise: GradientNoise, step: int, *, chunk: int = N, measured: bool = False, lr: float = 0.1
) -> Tensor:
    """One step as the module makes it: the gradient with its noise, (P,)."""
    x, y = data()
    noise.model.zero_grad()
    draw = noise.draw(step, x, y, lr=lr, chunk_size=chunk, measured=measured)
    for begin in range(0, N, chunk):
        part = slice(begin, min(begin + chunk, N))
        outputs = noise.model(x[part])
        draw.backward(noise.criterion(outputs, y[part]) * (part.stop - begin) / N, outputs, part)
    draw.finish()
    return flatten(p.grad for p in noise.model.parameters() if p.grad is not None)


def noises(noise: GradientNoise, num: int) -> Tensor:
    """The noise of steps 0 .. num - 1, (num, P)."""
    x, y = data()
    noise.model.zero_grad()
    noise.criterion(noise.model(x), y).backward()
    plain = flatten(p.grad for p in noise.model.parameters() if p.grad is not None)
    return torch.stack([noisy_gradient(noise, step) for step in range(num)]) - plain


@pytest.mark.parametrize("file", CARDS, ids=lambda file: file.stem)
def test_a_card_lists_every_setting_with_its_default_and_a_comment(file: Path) -> None:
    text = file.read_text()
    values = yaml.safe_load(text)
    module, _, name = values.pop("_target_").rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    assert set(values) == {field.name for field in dataclasses.fields(kind) if field.init}
    assert kind(**values) == kind()
    assert text.startswith("# @package noise\n")
    assert all("#" in line for line in text.splitlines() if line.strip() and not line.startswith("_target_"))
    assert kind.name == file.stem


def test_every_noise_has_a_card() -> None:
    assert {kind.name for kind in (*SIZED, Sgld)} | CLASSLESS == set(choices("optimizer/noise"))


@pytest.mark.parametrize("kind", OF_EXAMPLES, ids=[kind.name for kind in OF_EXAMPLES])
@pytest.mark.parametrize("chunk", [N, 13])
def test_the_joined_backward_pass_adds_the_weighted_sum_of_the_gradients_of_the_examples(
    kind: type[SizedNoise], chunk: int, objective: NetworkObjective
) -> None:
    noise, w = built(kind(equivalent_batch_size=5), objective.model), objective.weights
    a = OF_EXAMPLES[kind](N, 5, stream(0, "noise", 7))
    expected = objective.grad(w) + a @ objective.example_grads(w)
    assert torch.allclose(noisy_gradient(noise, 7, chunk=chunk), expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("chunk", [N, 13])
def test_fisher_noise_is_the_gradient_at_labels_of_the_model(chunk: int, objective: NetworkObjective) -> None:
    noise, w = built(Fisher(equivalent_batch_size=5), objective.model), objective.weights
    x, _ = data()
    generator, expected = stream(0, "noise", 3), objective.grad(w)
    for part in x.split(chunk):
        f = objective.model(part)
        scores = Softmax().sampled_scores(f.detach(), generator)
        pieces = torch.autograd.grad(f, list(objective.model.parameters()), scores)
        expected = expected + flatten(pieces) / math.sqrt(5 * N)
    assert torch.allclose(noisy_gradient(noise, 3, chunk=chunk), expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_covariance_of_fisher_noise_is_the_gauss_newton_matrix_over_m(smoothing: float) -> None:
    # 40000 draws of labels for all examples at once; the noise is linear in the scores.
    model, criterion = network(), CrossEntropyCriterion(smoothing)
    objective = NetworkObjective(model, criterion, data())
    w, draws = objective.weights, 40_000
    x, y = data()
    draw = built(Fisher(equivalent_batch_size=5), model, criterion).draw(0, x, y, lr=0.1)
    f = model(x)
    rows = [
        torch.stack(
            [flatten(torch.autograd.grad(f[i, k], list(model.parameters()), retain_graph=True)) for k in range(3)]
        )
        for i in range(N)
    ]
    jacobian = torch.cat(rows)  # (3 N, P)
    assert draw.slopes is not None
    slopes = draw.slopes(f.detach().repeat(draws, 1), f.detach(), slice(0, N))
    found = slopes.reshape(draws, -1) @ jacobian
    expected = gauss_newton(objective, w).dense() / 5
    assert float((found.T @ found / draws - expected).norm() / expected.norm()) < 0.03
    assert bool((found.mean(0).abs() < 5 * found.std(0) / math.sqrt(draws)).all())


def test_fisher_noise_of_the_squared_error_is_gaussian_of_covariance_JJ() -> None:
    model, criterion = network(), MeanSquaredErrorCriterion(3)
    objective = NetworkObjective(model, criterion, data())
    draws = noises(built(Fisher(equivalent_batch_size=5), model, criterion), 1000)
    trace = float(gauss_newton(objective, objective.weights).dense().trace()) / 5
    squares = draws.square().sum(1)
    assert abs(float(squares.mean()) - trace) < 4 * float(squares.std()) / math.sqrt(1000)


@pytest.mark.parametrize("kind", SIZED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("by", ["trace", "equivalent_batch_size"])
def test_the_trace_of_the_noise_is_the_one_asked_for(
    kind: type[SizedNoise], by: str, objective: NetworkObjective
) -> None:
    # Exact: 4 standard errors over the draws.
    card = kind(trace=0.37) if by == "trace" else kind(equivalent_batch_size=4)
    one, w = objective.example_grads(objective.weights), objective.weights
    of_one = float((one - one.mean(0)).square().sum(1).mean())
    if kind is Fisher:
        of_one = float(gauss_newton(objective, w).dense().trace())
    wanted, num = (0.37, 60) if by == "trace" else (of_one / 4, 200)
    if kind is HessianSqrt:  # |n|^2 is a sum over many eigenvectors: a mean of 40 is as Gaussian
        num = 40
    squares = noises(built(card, objective.model), num).square().sum(1)
    assert abs(float(squares.mean()) - wanted) < 4 * float(squares.std()) / math.sqrt(num) + 1e-9


@pytest.mark.parametrize(("max_matvecs", "num", "slack"), [(100, 100, 0.0), (15, 25, 0.07)], ids=["dense", "lanczos"])
def test_hessian_noise_is_as_strong_along_negative_curvature(
    max_matvecs: int, num: int, slack: float, objective: NetworkObjective
) -> None:
    # 4 standard errors; the Lanczos path besides to 5 % of the root and 2 % of Tr|H|.
    values, vectors = torch.linalg.eigh(hessian(objective, objective.weights).dense())
    draws = noises(built(HessianSqrt(trace=1.0, max_matvecs=max_matvecs), objective.model), num) @ vectors
    total = float(values.abs().sum())
    below = values < -0.01 * values[-1]
    wanted, squares = float(-values[below].sum()) / total, draws[:, below].square().sum(1)
    assert wanted > 0.1
    assert abs(float(squares.mean()) - wanted) < 4 * float(squares.std()) / math.sqrt(num) + slack * wanted
    squares = draws.square().sum(1)
    assert abs(float(squares.mean()) - 1) < 4 * float(squares.std()) / math.sqrt(num) + slack


def test_hessian_noise_follows_the_absolute_value_of_the_hessian_and_not_its_square(
    objective: NetworkObjective,
) -> None:
    # n'|H|n of noise of trace 1 has the mean Tr H^2/Tr|H| for the covariance |H|, Tr|H|^3/Tr H^2 for H^2: 1.6 times as much.
    num = 40
    draws = noises(built(HessianSqrt(trace=1.0), objective.model), num)
    values, vectors = torch.linalg.eigh(hessian(objective, objective.weights).dense())
    values = values.abs()
    along = ((draws @ vectors).square() * values).sum(1)
    error = float(along.std()) / math.sqrt(num)
    expected, of_square = (float((values ** (k + 1)).sum() / (values**k).sum()) for k in (1, 2))
    assert abs(float(along.mean()) - expected) < 4 * error + 0.05 * expected
    assert of_square - float(along.mean()) > 4 * error


@pytest.mark.parametrize("kind", [*SIZED, Sgld], ids=lambda kind: kind.name)
def test_noise_is_a_function_of_seed_and_step_and_looking_at_its_norm_changes_nothing(
    kind: type[NoiseCard], objective: NetworkObjective
) -> None:
    card = Sgld(temperature=1e-3) if kind is Sgld else kind(trace=0.1)  # type: ignore[call-arg]
    noise = built(card, objective.model)
    assert torch.equal(noisy_gradient(noise, 50), noisy_gradient(noise, 50, measured=True))
    assert not torch.equal(noisy_gradient(noise, 50), noisy_gradient(noise, 51))


@pytest.mark.parametrize("kind", SIZED, ids=lambda kind: kind.name)
def test_the_measured_norm_is_that_of_the_noise(kind: type[SizedNoise], objective: NetworkObjective) -> None:
    noise = built(kind(equivalent_batch_size=4), objective.model)
    (alone,) = noises(noise, 1)
    x, y = data()
    draw = noise.draw(0, x, y, lr=0.1, measured=True)
    outputs = objective.model(x)
    draw.backward(noise.criterion(outputs, y), outputs, slice(0, N))
    draw.finish()
    assert draw.norm == pytest.approx(float(alone.norm()), rel=1e-9)


def test_without_any_difference_between_examples_there_is_no_noise() -> None:
    model = network()
    x, y = data(1)
    same = x.repeat(N, 1), y.repeat(N)
    for kind in (SampleWeights, Minibatch, HalfDifference, Diagonal):
        card = kind(trace=0.1)
        noise = card.build(Trained(model, CrossEntropyCriterion(0.0), same, N, Sgd()), 0)
        model.zero_grad()
        noise.draw(0, *same, lr=0.1)
        outputs = model(same[0])
        draw = noise.draw(0, *same, lr=0.1, measured=True)
        draw.backward(noise.criterion(outputs, same[1]), outputs, slice(0, N))
        draw.finish()
        # Tr D is a difference of equal numbers: round-off of it, or zero.
        assert draw.norm < 1e-3


def test_langevin_noise_has_the_stationary_variance_of_the_discrete_step() -> None:
    # f_k = a w_k, 1/2 sum (f_k - onehot_k)^2: every w_k alone in a parabola of curvature a^2. w <- w - lr (g + n), with
    # n ~ N(0, 2T/lr): variance 2T/(h (2 - lr h)), which the continuous T/h misses by 43 % here.
    num, a, lr, temperature, steps = 20_000, 2.0, 0.3, 0.01, 40
    h = a**2
    model = nn.Linear(1, num, bias=False)
    nn.init.zeros_(model.weight)
    x, y = torch.full((1, 1), a), torch.zeros(1, dtype=torch.long)
    criterion = MeanSquaredErrorCriterion(num)
    noise = Sgld(temperature=temperature).build(Trained(model, criterion, (x, y), 1, Sgd()), 0)
    sgd = torch.optim.SGD(model.parameters(), lr=lr)
    for step in range(steps):  # (1 - lr h)^40 = 1e-28: the beginning is forgotten
        sgd.zero_grad()
        draw = noise.draw(step, x, y, lr=lr)
        outputs = model(x)
        draw.backward(criterion(outputs, y), outputs, slice(0, 1))
        draw.finish()
        sgd.step()
    w = model.weight.detach().double()[1:, 0]
    expected = 2 * temperature / (h * (2 - lr * h))
    assert abs(float(w.square().mean()) - expected) < 4 * expected * math.sqrt(2 / num)
    assert abs(temperature / h - expected) > 40 * expected * math.sqrt(2 / num)
    assert abs(float(w.mean())) < 4 * math.sqrt(expected / num)


@pytest.mark.parametrize("kind", [Isotropic, Fisher, HessianSqrt], ids=lambda kind: kind.name)
def test_what_needs_no_gradient_of_a_single_example_works_with_batch_norm(kind: type[SizedNoise]) -> None:
    card = kind(equivalent_batch_size=5) if kind is Fisher else kind(trace=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Tr H of so small a network with BatchNorm needs all its products
        draws = noises(built(card, network(batch_norm=True)), 8)
    assert bool(draws.isfinite().all())
    assert float(draws.norm()) > 0


def refusals() -> Iterator[tuple[NoiseCard, dict[str, object], str]]:
    bn: dict[str, object] = {"batch_norm": True}
    kind: type[SizedNoise]
    for kind in (Diagonal, Minibatch, HalfDifference, SampleWeights):
        yield kind(trace=0.1), bn, "cannot be had with BatchNorm"
        yield kind(equivalent_batch_size=1), {"batch_size": 1}, "a batch of one example"
    for kind in (Isotropic, HessianSqrt):
        yield kind(equivalent_batch_size=4), bn, "cannot be had with BatchNorm"
    yield Fisher(trace=0.1), bn, "cannot be had with BatchNorm"
    for each in SIZED:
        yield each(), {}, "needs a size"
        yield each(trace=0.1, equivalent_batch_size=4), {}, "contradict each other"
        yield each(equivalent_batch_size=N + 1), {}, "larger than the 40 examples"
    yield Fisher(trace=0.1), {"criterion": lambda f, y: f.exp().mean()}, "no known log-likelihood"
    yield SampleWeights(trace=0.1), {"criterion": lambda f, y: f.square().sum()}, "no mean over examples"
    yield Sgld(), {}, "needs noise.temperature"


@pytest.mark.parametrize(("card", "what", "told"), [*refusals()])
def test_what_would_be_wrong_is_refused_in_one_line(card: NoiseCard, what: dict[str, object], told: str) -> None:
    what = dict(what)
    model = network(batch_norm=bool(what.pop("batch_norm", False)))
    with pytest.raises(SettingError, match=told) as refused:
        built(card, model, what.pop("criterion", None), **what)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


def test_dropout_is_refused_where_the_hessian_is_needed() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.1), nn.Linear(6, 3)).double()
    with pytest.raises(SettingError, match="dropout"):
        built(HessianSqrt(trace=0.1), model)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [HalfDifference, SampleWeights, Fisher], ids=lambda kind: kind.name)
def test_forty_thousand_steps_have_the_covariance(kind: type[SizedNoise], objective: NetworkObjective) -> None:
    draws = noises(built(kind(equivalent_batch_size=5), objective.model), 40_000)
    one, w = objective.example_grads(objective.weights), objective.weights
    centred = one - one.mean(0)
    expected = (gauss_newton(objective, w).dense() if kind is Fisher else centred.T @ centred / N) / 5
    assert float((draws.T @ draws / len(draws) - expected).norm() / expected.norm()) < 0.03
    assert bool((draws.mean(0).abs() < 5 * draws.std(0) / 200).all())
