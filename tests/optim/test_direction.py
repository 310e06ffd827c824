"""The predicted step is the step that follows, of any torch optimiser, and predicting it changes nothing."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn, optim

from lab.optim.direction import direction_of
from lab.params import weights

Make = Callable[[list[nn.Parameter]], optim.Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "heavy ball, dampening, decay": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.02),
    "nesterov": lambda p: optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True),
    "adam": lambda p: optim.Adam(p, lr=0.01, weight_decay=0.01),
    "adam, amsgrad, one tensor at a time": lambda p: optim.Adam(p, lr=0.01, amsgrad=True, foreach=False),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.1),
    "adadelta": lambda p: optim.Adadelta(p),
    "rprop": lambda p: optim.Rprop(p),
    "groups": lambda p: optim.SGD([{"params": p[2:], "lr": 0.5}, {"params": p[:1]}], lr=0.1, momentum=0.9),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def put(model: nn.Module, g: Tensor) -> None:
    """g as the gradient of the model."""
    parameters = list(model.parameters())
    for p, piece in zip(parameters, g.split([p.numel() for p in parameters]), strict=True):
        p.grad = piece.view_as(p).clone()


def flat_state(optimizer: optim.Optimizer) -> list[Tensor]:
    return [torch.as_tensor(v).clone() for s in optimizer.state.values() for v in s.values() if v is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_predicted_step_is_the_step_that_follows(name: str, dtype: torch.dtype) -> None:
    model = network().to(dtype)
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):  # the first step finds no state
        g = torch.randn(len(weights(model)), generator=generator, dtype=dtype)
        direction = direction_of([optimizer], model.parameters())
        assert direction is not None
        direction(-3 * g)  # a prediction leaves nothing behind for the next one
        predicted, before = direction(g), weights(model)
        put(model, g)
        optimizer.step()
        # The weights, of order 1, are rounded once or twice in the real step.
        bound = 4 * torch.finfo(dtype).eps * before.abs().max()
        assert predicted.dtype == torch.float64
        assert float((predicted - (weights(model).double() - before.double())).abs().max()) < bound
        assert float(predicted.abs().max()) > 1e-6


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_predicting_touches_neither_weights_nor_gradients_nor_state(name: str) -> None:
    model = network()
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    put(model, torch.ones(len(weights(model))))
    optimizer.step()
    calls: list[object] = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    before, state, groups = weights(model), flat_state(optimizer), copy.deepcopy(optimizer.state_dict()["param_groups"])
    direction_of([optimizer], model.parameters())(torch.randn(len(before)))  # type: ignore[misc]
    assert weights(model).equal(before)
    assert all(map(torch.equal, state, flat_state(optimizer)))
    assert optimizer.state_dict()["param_groups"] == groups
    assert all(bool((p.grad == 1).all()) for p in model.parameters() if p.grad is not None)
    assert not calls


def test_a_step_wrapped_by_a_scheduler_and_attributes_of_its_own_are_no_obstacle() -> None:
    class Signs(optim.Optimizer):
        """w <- w - size sign(g), with a setting that lies in no group."""

        def __init__(self, params: list[nn.Parameter], size: float):
            super().__init__(params, {"lr": 1.0})
            self.size = size

        @torch.no_grad()
        def step(self, closure: None = None) -> None:
            for p in self.param_groups[0]["params"]:
                p.sub_(self.param_groups[0]["lr"] * self.size * p.grad.sign())

    model = network()
    optimizer = Signs(list(model.parameters()), 0.25)
    optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    before, g = weights(model), torch.randn(len(weights(model)))
    direction = direction_of([optimizer], model.parameters())
    assert direction is not None
    assert direction(g) == pytest.approx(-0.25 * g.sign().double(), abs=1e-12)
    assert weights(model).equal(before)


def test_weights_that_the_optimiser_does_not_have_do_not_move() -> None:
    model = network()
    optimizer = optim.Adam(model[0].parameters(), lr=0.1)  # type: ignore[index]
    s = direction_of([optimizer], model.parameters())(torch.ones(len(weights(model))))  # type: ignore[misc]
    assert bool((s[:16] != 0).all())
    assert not s[16:].any()


def test_an_optimiser_that_evaluates_the_loss_itself_has_no_direction() -> None:
    model = network()
    assert direction_of([optim.LBFGS(model.parameters())], model.parameters()) is None
