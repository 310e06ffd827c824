"""Losses, networks and settings whose derivatives would be wrong are refused, in one line."""

from collections.abc import Callable, Iterator

import pytest
import torch
from once_only import OnceOnly
from torch import Tensor, nn
from torch.nn import functional

from lab.curvature.operators import gauss_newton, hessian
from lab.objective import NetworkObjective, Objective
from lab.params import weights

MakeCase = Callable[..., tuple[nn.Module, Callable[..., Tensor], Tensor, Tensor]]
Method = Callable[[NetworkObjective, Tensor], object]
DOUBLE = torch.float64


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (nn.CrossEntropyLoss(reduction="sum"), "reduction='sum'"),
        (nn.MSELoss(reduction="none"), "reduction='none'"),
        (nn.CrossEntropyLoss(weight=torch.ones(3)), "class weights"),
        (nn.NLLLoss(weight=torch.ones(3)), "class weights"),
    ],
    ids=str,
)
def test_losses_whose_chunk_means_do_not_average_are_refused(criterion: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NetworkObjective(nn.Linear(2, 3), criterion, (torch.randn(4, 2), torch.zeros(4).long()))


def test_targets_that_cross_entropy_ignores_are_refused() -> None:
    # ignore_index divides by the number of kept targets: chunk means would be weighted wrongly.
    y = torch.tensor([0, 1, -100, 1])
    with pytest.raises(ValueError, match="ignore_index"):
        NetworkObjective(nn.Linear(2, 3), nn.CrossEntropyLoss(), (torch.randn(4, 2), y))


class Broken(nn.Linear):
    """A linear layer and what is wrong with it."""

    def __init__(self, after: Callable[[Tensor], object]) -> None:
        super().__init__(2, 3)
        self.after = after

    def forward(self, x: Tensor) -> object:  # type: ignore[override]
        return self.after(super().forward(x))


BROKEN: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "no kernel": (functional.hardsigmoid, "cannot be differentiated again: .*hardsigmoid_backward is not implemented"),
    "no second derivative": (OnceOnly.apply, "cannot be differentiated again: .*once_differentiable"),
    "dropout left on": (lambda f: functional.dropout(f, 0.5), "draws random numbers though dropout is off"),
    "noise": (lambda f: f + torch.randn(3), "draws random numbers though dropout is off"),
    "a pair": (lambda f: (f, f), "the network returned a tuple; expected one tensor"),
    "detached": (lambda f: f.detach(), "do not depend on its parameters; is there a no_grad"),
}


@pytest.mark.parametrize("method", ["hvp", "kept hessian", "rebuilt hessian", "kept gauss-newton"], indirect=True)
@pytest.mark.parametrize("name", BROKEN)
def test_a_network_without_the_derivative_says_so_in_one_line(name: str, method: Method) -> None:
    after, message = BROKEN[name]
    loss = NetworkObjective(Broken(after), nn.CrossEntropyLoss(), (torch.randn(4, 2), torch.zeros(4).long()))
    random = torch.get_rng_state()
    with pytest.raises(ValueError, match=message) as error:
        method(loss, loss.weights)
    assert "\n" not in str(error.value)
    assert torch.equal(torch.get_rng_state(), random)


def test_an_embedding_that_changes_its_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="max_norm"):
        NetworkObjective(nn.Embedding(3, 2, max_norm=1.0), nn.MSELoss(), (torch.tensor([1]), torch.zeros(1, 2)))


def test_sparse_gradients_are_refused() -> None:
    with pytest.raises(ValueError, match="sparse=False"):
        NetworkObjective(nn.Embedding(3, 2, sparse=True), nn.MSELoss(), (torch.tensor([1]), torch.zeros(1, 2)))


def test_the_second_derivative_that_torch_gets_wrong_is_refused_and_the_first_is_not(case: MakeCase) -> None:
    # Through weight_norm torch 2.15 is off by 150 % of the largest entry here, and plain double backward no better.
    model, criterion, x, y = case("tanh")
    nn.utils.parametrizations.weight_norm(model[0])  # type: ignore[index]
    loss = NetworkObjective(model, criterion, (x, y))
    w = loss.weights
    v = torch.randn(len(w), dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    slope = (loss.value(w + 1e-6 * v) - loss.value(w - 1e-6 * v)) / 2e-6
    assert float(loss.grad(w) @ v) == pytest.approx(float(slope), rel=1e-6)
    for method in (lambda: loss.hvp(w, v), lambda: hessian(loss, w), lambda: gauss_newton(loss, w)):
        with pytest.raises(ValueError, match="no right second derivative of weight_norm"):
            method()


def test_a_compiled_network_is_measured_as_it_was_before(case: MakeCase) -> None:
    model, criterion, x, y = case("tanh")
    truth = NetworkObjective(model, criterion, (x, y))
    compiled = NetworkObjective(torch.compile(model), criterion, (x, y))  # type: ignore[arg-type]
    assert torch.equal(compiled.hvp(compiled.weights, truth.weights), truth.hvp(truth.weights, truth.weights))


def test_a_chunk_of_one_example_has_no_batch_statistics(case: MakeCase) -> None:
    model, criterion, x, y = case("batch norm", 7)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        hessian(NetworkObjective(model, criterion, (x, y), chunk_size=1, batch_norm="train"), weights(model))


def test_a_loss_that_is_no_scalar_is_refused() -> None:
    loss = NetworkObjective(nn.Linear(2, 1), lambda f, y: (f - y) ** 2, (torch.randn(4, 2), torch.randn(4, 1)))
    with pytest.raises(ValueError, match=r"shape \(4, 1\); expected the mean, a scalar"):
        loss.value(torch.zeros(3))


@pytest.mark.parametrize(("inputs", "targets"), [(4, 3), (0, 0)])
def test_empty_and_mismatched_data_are_refused(inputs: int, targets: int) -> None:
    with pytest.raises(ValueError, match=f"{inputs} inputs and {targets} targets"):
        NetworkObjective(nn.Linear(2, 1), nn.MSELoss(), (torch.zeros(inputs, 2), torch.zeros(targets, 1)))


@pytest.mark.parametrize("setting", [{"chunk_size": 0}, {"chunk_size": -3}, {"batch_norm": "frozen"}])
def test_settings_out_of_range_are_refused_by_name(setting: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        NetworkObjective(nn.Linear(2, 1), nn.MSELoss(), (torch.zeros(2, 2), torch.zeros(2, 1)), **setting)


def test_an_objective_without_parts_says_so() -> None:
    class Empty(Objective):
        num_params = 1

        def parts(self, w: Tensor) -> Iterator[tuple[float, Tensor]]:
            return iter(())

    with pytest.raises(ValueError, match="no parts"):
        Empty().value(torch.zeros(1))
