"""Settings belong to tensors: whatever the order of groups and optimisers, every weight has those of whoever holds it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from lab.curvature.stability import UpdateRule
from lab.optim.direction import direction_of
from lab.optim.live import Live
from lab.optim.rules import rule_of
from lab.optim.stacked import stacked
from lab.params import trainable, weights

DOUBLE = torch.float64


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()


def steps(optimizers: list[optim.Optimizer], model: nn.Module, count: int = 3) -> None:
    for step in range(count):
        generator = torch.Generator().manual_seed(step)
        for p in model.parameters():  # the same gradients whatever the order of groups
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for optimizer in optimizers:
            optimizer.step()


def alike(a: UpdateRule, b: UpdateRule) -> bool:
    size = 17

    def whole(x: Any) -> Tensor:
        return torch.as_tensor(1.0 if x is None else x, dtype=DOUBLE).expand(size)

    names = ("lr", "momentum", "dampening", "nesterov", "coupled_decay", "decoupled_decay", "preconditioner")
    return all(torch.equal(whole(getattr(a, name)), whole(getattr(b, name))) for name in names)


def reversed_(model: nn.Module) -> list[dict[str, Any]]:
    return [{"params": [p]} for p in reversed(list(model.parameters()))]


def by_dimension(model: nn.Module) -> list[dict[str, Any]]:
    params = list(model.parameters())
    return [{"params": [p for p in params if p.dim() > 1]}, {"params": [p for p in params if p.dim() == 1]}]


def shuffled(model: nn.Module) -> list[dict[str, Any]]:
    a, b, c, d = model.parameters()
    return [{"params": [c, a]}, {"params": [d, b]}]


ORDERS = {"reversed": reversed_, "weights, then biases": by_dimension, "shuffled": shuffled}
KINDS: dict[str, Callable[..., optim.Optimizer]] = {
    "momentum": lambda params: optim.SGD(params, lr=0.1, momentum=0.9),
    "Adam": lambda params: optim.Adam(params, lr=0.01, weight_decay=0.1),
    "RMSprop": lambda params: optim.RMSprop(params, lr=0.01, momentum=0.5, centered=True),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_rule_step_and_replicas_do_not_depend_on_the_order_of_groups(make: Callable, order: Callable) -> None:
    found = []
    for groups in (lambda model: list(model.parameters()), order):
        model = network()
        optimizer = make(groups(model))
        steps([optimizer], model)
        g = torch.randn(17, generator=torch.Generator().manual_seed(9), dtype=DOUBLE)
        step = direction_of([optimizer], model.parameters())(g)  # type: ignore[misc]
        W = weights(model).expand(2, -1).clone()
        replicas = stacked([optimizer], model.parameters())(optimizer.param_groups[0]["lr"])([W])
        W.grad = g.expand(2, -1).clone()
        replicas.step()
        found.append((rule_of([optimizer], model.parameters()), step, W))
    (rule, step, W), (other, other_step, other_W) = found
    assert alike(rule, other)
    assert torch.allclose(step, other_step, rtol=1e-12, atol=0)
    assert torch.allclose(W, other_W, rtol=1e-12, atol=0)
    assert torch.allclose(W[0], weights(model) + step, rtol=1e-12, atol=1e-15)


def test_every_weight_has_the_settings_of_its_own_group() -> None:
    model = network()
    expected = torch.tensor([0.05] * 9 + [0.2] * 8, dtype=DOUBLE)
    for order in ((2, 0), (0, 2)):
        groups = [{"params": model[i].parameters(), "lr": 0.2 if i else 0.05} for i in order]
        rule = rule_of([optim.SGD(groups, lr=1.0)], model.parameters())
        assert torch.equal(torch.as_tensor(rule.lr), expected)


def test_optimisers_that_share_the_weights_give_a_joint_rule() -> None:
    model = network()
    sgd = optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9, nesterov=True)
    adam = optim.Adam(model[2].parameters(), lr=0.01, betas=(0.8, 0.9))
    elsewhere = optim.Adagrad(nn.Linear(2, 2).parameters())  # no rule known, and no matter
    steps([sgd, adam], model)
    rule = rule_of([elsewhere, adam, sgd], model.parameters())
    alone = rule_of([adam], model[2].parameters())
    assert rule.preconditioner is not None and alone.preconditioner is not None
    assert torch.equal(rule.preconditioner, torch.cat([torch.ones(9, dtype=DOUBLE), alone.preconditioner]))
    edge = torch.as_tensor(rule.edge)
    assert torch.allclose(edge[:9], torch.tensor(1.9 * 20 / 2.8, dtype=DOUBLE))
    assert torch.allclose(edge[9:], torch.tensor(1.8 / 0.2 * 200, dtype=DOUBLE))
    g = torch.randn(17, dtype=DOUBLE)
    step = direction_of([elsewhere, adam, sgd], model.parameters())(g)  # type: ignore[misc]
    before = weights(model)
    for p, piece in zip(model.parameters(), g.split([6, 3, 6, 2]), strict=True):
        p.grad = piece.view_as(p)
    for optimizer in (sgd, adam):
        optimizer.step()
    assert torch.allclose(step, weights(model) - before, rtol=1e-9, atol=1e-15)


def test_weights_that_no_optimiser_moves_are_no_part_of_what_moves() -> None:
    model = network()
    head = rule_of([optim.SGD(model[2].parameters(), lr=0.2)], model.parameters())
    assert head.moved is not None and head.moved.tolist() == list(range(9, 17))
    assert head.moving == UpdateRule(lr=0.2)
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters()}]
    at_rest = rule_of([optim.SGD(groups, lr=0.2)], model.parameters())
    assert at_rest.moving == UpdateRule(lr=0.2)
    with pytest.raises(TypeError, match="no optimiser holds a weight of the model"):
        rule_of([optim.SGD(network().parameters(), lr=0.1)], model.parameters())


def test_two_optimisers_of_the_same_weights_are_refused() -> None:
    model = network()
    both = [optim.SGD(model.parameters(), lr=0.1), optim.Adam(model[2].parameters())]
    with pytest.raises(TypeError, match="two optimisers hold the same weights"):
        rule_of(both, model.parameters())
    assert direction_of(both, model.parameters()) is None


def test_tied_and_frozen_parameters_are_counted_as_w_counts_them() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3), nn.Linear(3, 3)).double()
    model[1].weight = model[0].weight  # type: ignore[assignment]
    model[2].weight.requires_grad_(False)
    groups = [
        {"params": [model[2].weight], "lr": 9.0},
        {"params": [model[2].bias], "lr": 0.3},
        {"params": [model[1].bias], "lr": 0.2},
        {"params": [model[1].weight], "lr": 0.1},
    ]
    rule = rule_of([optim.SGD(groups)], trainable(model))
    expected = torch.tensor([0.1] * 9 + [0.2] * 3 + [0.3] * 3, dtype=DOUBLE)
    assert torch.equal(torch.as_tensor(rule.lr), expected)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda m: [optim.SGD(m[0].parameters(), lr=0.1), optim.SGD(m[2].parameters(), lr=0.1)], "several optimisers"),
        (lambda m: [optim.SGD(m[0].parameters(), lr=0.1)], "8 weights are in no optimiser"),
        (
            lambda m: [
                optim.SGD([{"params": m[0].parameters(), "momentum": 0.9}, {"params": m[2].parameters()}], lr=0.1)
            ],
            "groups of the optimiser differ",
        ),
    ],
)
def test_replicas_without_one_setting_are_refused_in_one_line(make: Callable, why: str) -> None:
    model = network()
    with pytest.raises(TypeError, match=why):
        stacked(make(model), model.parameters())(0.1)


def test_replicas_of_weights_updated_different_numbers_of_times_are_refused() -> None:
    model = network()
    optimizer = optim.Adam(model[0].parameters())
    steps([optimizer], model)
    optimizer.add_param_group({"params": model[2].parameters()})
    steps([optimizer], model)
    with pytest.raises(TypeError, match="3, 6 updates"):
        stacked([optimizer], model.parameters())(0.1)


def test_replicas_have_zeros_in_the_state_of_a_weight_without_a_gradient_so_far() -> None:
    model = network()
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    steps([optimizer], model[0])
    W = weights(model).expand(2, -1).clone()
    built = stacked([optimizer], model.parameters())(0.1)([W])
    assert not built.state[W]["exp_avg"][:, 9:].any()
    live = torch.cat([optimizer.state[p]["exp_avg"].flatten() for p in model[0].parameters()])
    assert torch.equal(built.state[W]["exp_avg"][1, :9], live)


def test_a_weight_on_which_the_loss_does_not_depend_harms_no_preconditioner() -> None:
    model = network()
    optimizer = optim.Adam(model.parameters(), lr=0.1, weight_decay=0.5)
    steps([optimizer], model[0])
    live, g = Live(), torch.cat([torch.ones(9), torch.zeros(8)]).double()
    live.follow(model, [optimizer], lambda: g)
    assert live.rule is not None and live.rule.moved is not None
    assert live.rule.moved.tolist() == list(range(9))
    assert bool(live.rule.moving.preconditioner.isfinite().all())  # type: ignore[union-attr]
    assert not live.direction(g)[9:].any()  # type: ignore[misc]
    live.follow(model, [optimizer], lambda: torch.ones(17).double())  # it depends on them: not moved so far, not known
    assert live.rule.moved is None and bool(live.rule.preconditioner.isnan().any())  # type: ignore[union-attr]


def test_following_tells_other_tensors_apart_by_identity() -> None:
    model, live = network(), Live()
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def changed() -> bool:
        return live.follow(model, [optimizer], lambda: torch.zeros(17))

    assert not changed() and not changed()
    model[2].weight = nn.Parameter(model[2].weight.detach().clone())  # the same numbers, another tensor
    assert changed() and not changed()
    assert "6 of 17 weights of the model do not move" in live.left_out
    model[0].requires_grad_(False)
    assert changed() and not changed()
    resumed = Live()
    resumed.load_state_dict(live.state_dict())
    assert not resumed.follow(model, [optimizer], lambda: torch.zeros(8))
    model[0].requires_grad_(True)
    again = Live()
    again.load_state_dict(live.state_dict())
    assert again.follow(model, [optimizer], lambda: torch.zeros(17))


@pytest.mark.parametrize("kind", [optim.Adam, optim.AdamW, optim.RMSprop])
def test_averages_in_half_precision_give_a_preconditioner_in_single(kind: Callable[..., optim.Optimizer]) -> None:
    model = network().bfloat16()
    optimizer = kind(model.parameters(), lr=0.01)
    steps([optimizer], model)
    found = rule_of([optimizer], model.parameters()).preconditioner
    for state in optimizer.state.values():
        for name, value in state.items():
            state[name] = value.double() if isinstance(value, Tensor) else value
    exact = rule_of([optimizer], model.parameters()).preconditioner
    assert found is not None and exact is not None and found.dtype == torch.float32
    assert torch.allclose(found.double(), exact.double(), rtol=1e-5, atol=0)
