"""Norms, inner products and weighted sums of per-example gradients against the matrix of them, formed by vmap."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lab.landscapes.quadratic import Quadratic
from lab.layers.examples import ExampleGradients, TooLarge
from lab.objective import NetworkObjective, Objective

DOUBLE = torch.float64
Build = Callable[..., NetworkObjective]


class Regression(Objective):
    """L = mean of (x_i'w - y_i)^2 / 2, an objective that is no network: g_i = (x_i'w - y_i) x_i."""

    def __init__(self, x: Tensor, y: Tensor):
        self.x, self.y, self.num_params, self.num_examples = x, y, x.shape[1], len(x)

    def parts(self, w: Tensor):
        yield 1.0, (self.x @ w - self.y).square().mean() / 2

    def example_grads(self, w: Tensor, index: Tensor | None = None) -> Tensor:
        x, y = (self.x, self.y) if index is None else (self.x[index], self.y[index])
        return (x @ w - y)[:, None] * x


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_squared_norms_of_every_parameter_are_those_of_vmap(network: Build, name: str, chunk_size: int | None) -> None:
    loss = network(name, chunk_size=chunk_size)
    truth = loss.example_grads(loss.weights)
    found = ExampleGradients(loss, loss.weights).squared_norms()
    assert list(found) == list(loss.layout.names)
    for parameter, place in loss.layout.slices().items():
        expected = truth[:, place].square().sum(1)
        assert found[parameter].dtype == DOUBLE
        assert (found[parameter] - expected).abs().max() < 1e-10 * truth.square().sum(1).max(), parameter


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_inner_products_are_those_of_vmap(network: Build, name: str, chunk_size: int | None) -> None:
    loss = network(name, chunk_size=chunk_size)
    truth = loss.example_grads(loss.weights)
    assert (ExampleGradients(loss, loss.weights).gram() - truth @ truth.T).abs().max() < 1e-10 * truth.square().sum(
        1
    ).max()


@pytest.mark.parametrize("memory", [None, 0])
def test_products_and_weighted_sums_are_those_of_vmap(network: Build, name: str, memory: int | None) -> None:
    loss = network(name, chunk_size=4)
    truth = loss.example_grads(loss.weights)
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(len(loss.weights), 2, dtype=DOUBLE, generator=generator)
    c = torch.randn(len(truth), dtype=DOUBLE, generator=generator)
    examples = ExampleGradients(loss, loss.weights, memory=memory)
    for _ in range(2):  # made, and kept
        assert (examples.along(v) - truth @ v).abs().max() < 1e-10 * truth.norm()
        assert (examples.weighted(c) - c @ truth).abs().max() < 1e-10 * truth.norm()
    assert (examples.along(v[:, 0]) - truth @ v[:, 0]).abs().max() < 1e-10 * truth.norm()
    assert (examples.gradient() - loss.grad(loss.weights)).abs().max() < 1e-10 * truth.norm()


def test_only_what_layers_do_not_account_for_is_formed(network: Build) -> None:
    def formed(name: str) -> set[str]:
        loss = network(name)
        examples = ExampleGradients(loss, loss.weights)
        examples.squared_norms()
        return examples.formed

    assert formed("convolutions") == formed("resnet-20, batch norm") == formed("words") == set()
    assert formed("tied, unused and frozen") == {"a.weight", "scale"}
    assert formed("used twice") == {"a.weight", "a.bias", "b.weight"}


def test_a_float64_point_of_a_float32_model_is_measured_in_float64() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    loss = NetworkObjective(model, nn.CrossEntropyLoss(), (x, torch.arange(7) % 2))
    w = loss.weights.double()
    truth = loss.example_grads(w)
    assert (sum(ExampleGradients(loss, w).squared_norms().values()) - truth.square().sum(1)).abs().max() < 1e-14
    rounded = sum(ExampleGradients(loss, loss.weights).squared_norms().values())
    assert rounded.dtype == DOUBLE and 0 < (rounded - truth.square().sum(1)).abs().max() < 1e-5


def test_one_example_and_examples_without_gradient() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        model[0].bias.fill_(-100.0)  # dead
    x = torch.randn(4, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    loss = NetworkObjective(model, nn.MSELoss(), (x, torch.ones(4, 1, dtype=DOUBLE)))
    for part in (loss, loss.restrict(torch.tensor([2]))):
        truth = part.example_grads(part.weights)
        assert (ExampleGradients(part, part.weights).gram() - truth @ truth.T).abs().max() < 1e-14
        assert float(ExampleGradients(part, part.weights).squared_norms()["0.weight"].max()) == 0.0


def test_an_objective_that_is_no_network_gives_its_own_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 3, dtype=DOUBLE, generator=generator), torch.randn(8, dtype=DOUBLE, generator=generator)
    loss, w = Regression(x, y), torch.randn(3, dtype=DOUBLE, generator=generator)
    residuals = x @ w - y
    assert (ExampleGradients(loss, w).squared_norms()["w"] - residuals.square() * x.square().sum(1)).abs().max() < 1e-13
    assert (ExampleGradients(loss, w).gram() - torch.outer(residuals, residuals) * (x @ x.T)).abs().max() < 1e-13


def test_a_landscape_has_no_examples() -> None:
    with pytest.raises(TypeError, match="Quadratic is not a mean over examples"):
        ExampleGradients(Quadratic(torch.ones(2)), torch.zeros(2))


def test_examples_that_see_each_other_are_refused(network: Build) -> None:
    loss = network("resnet-20, batch norm")
    coupled = NetworkObjective(loss.model, loss.criterion, (loss.x, loss.y), batch_norm="train")
    with pytest.raises(ValueError, match="train-mode BatchNorm couples the examples of a batch"):
        ExampleGradients(coupled, loss.weights).squared_norms()


def test_a_gram_matrix_that_does_not_fit_into_memory_is_refused(
    network: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = network("convolutions")
    monkeypatch.setattr("lab.layers.examples.memory_of", lambda device: 10_000)
    with pytest.raises(TooLarge, match=r"need .* GiB of memory; take fewer examples: objective.restrict\(index\)"):
        ExampleGradients(loss, loss.weights).gram()


def test_the_model_is_left_as_found(network: Build, name: str) -> None:
    loss = network(name)
    model = loss.model.train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    ExampleGradients(loss, loss.weights).squared_norms()
    ExampleGradients(loss, loss.weights).gram()
    assert all(module.training for module in model.modules())
    assert all(bool((parameter.grad == 1).all()) for parameter in model.parameters())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)
