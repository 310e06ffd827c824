"""The threshold formula against the literal recursion: spectral radii of its matrix, in float64."""

import math

import pytest
import torch
from torch import Tensor

from lab.curvature.stability import UpdateRule


def recursion(rule: UpdateRule, h: Tensor) -> Tensor:
    """The matrix (2P, 2P) that takes (v, w) to the next (v, w) on 1/2 w'hw, written from torch's update rules.

    g = (h + c) w,  v <- b v + (1 - dampening) g,  w <- (1 - lr d) w - lr u / p,  u = v, or g + b v for Nesterov.
    """
    size = len(h)

    def diagonal(coefficient: float | Tensor) -> Tensor:
        return torch.diag(torch.as_tensor(coefficient, dtype=h.dtype) * torch.ones(size, dtype=h.dtype))

    b, c, d, lr = (diagonal(x) for x in (rule.momentum, rule.coupled_decay, rule.decoupled_decay, rule.lr))
    one, zero = torch.eye(size, dtype=h.dtype), torch.zeros(size, size, dtype=h.dtype)
    g = torch.cat([zero, h + c], dim=1)
    v = torch.cat([b, zero], dim=1) + (one - diagonal(rule.dampening)) @ g
    ahead = torch.as_tensor(rule.nesterov).double().expand(size).diag()
    u = ahead @ (g + b @ v) + (one - ahead) @ v
    p = one if rule.preconditioner is None else torch.diag(rule.preconditioner.to(h))
    w = torch.cat([zero, one - lr @ d], dim=1) - lr @ p.inverse() @ u
    return torch.cat([v, w])


def radius(rule: UpdateRule, h: Tensor) -> float:
    return float(torch.linalg.eigvals(recursion(rule, h)).abs().max())


RULES = {
    "gd": (UpdateRule(lr=0.1), 20.0),
    "polyak": (UpdateRule(lr=0.1, momentum=0.9), 38.0),
    "dampening": (UpdateRule(lr=0.1, momentum=0.9, dampening=0.5), 76.0),
    "nesterov": (UpdateRule(lr=0.1, momentum=0.9, nesterov=True), 3.8 / 0.28),
    "coupled": (UpdateRule(lr=0.1, coupled_decay=0.5), 19.5),
    "polyak coupled": (UpdateRule(lr=0.1, momentum=0.9, coupled_decay=0.5), 37.5),
    "polyak decoupled": (UpdateRule(lr=0.1, momentum=0.9, decoupled_decay=0.5), 1.9 * 19.5),
    "adam": (UpdateRule(lr=0.1, momentum=0.9, dampening=0.9), 380.0),
    "adamw": (UpdateRule(lr=0.1, momentum=0.9, dampening=0.9, decoupled_decay=0.5), 370.5),
}


@pytest.mark.parametrize(("rule", "threshold"), RULES.values(), ids=RULES)
def test_threshold_is_where_the_spectral_radius_of_the_recursion_leaves_one(rule: UpdateRule, threshold: float) -> None:
    # Below the threshold the radius is at most 1 - O(distance), above it at least 1 + O(distance): 1e-6 is far above
    # the 1e-13 of the eigenvalues.
    assert rule.plain
    assert rule.threshold == pytest.approx(threshold, rel=1e-12)
    below, above = (torch.tensor([[threshold * factor]], dtype=torch.float64) for factor in (1 - 1e-6, 1 + 1e-6))
    assert radius(rule, below) < 1 < radius(rule, above)


def positive_definite(size: int, seed: int) -> Tensor:
    a = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return a @ a.T / size


def largest_scaled(rule: UpdateRule, h: Tensor) -> float:
    """lambda_max of scaling^-1/2 (H + c) scaling^-1/2."""
    scaling = rule.scaling(h[0])
    decay = torch.as_tensor(rule.coupled_decay, dtype=h.dtype) * torch.ones_like(scaling)
    return float(torch.linalg.eigvalsh((h + torch.diag(decay)) / (scaling[:, None] * scaling).sqrt())[-1])


GROUPED = {
    "lr": UpdateRule(lr=torch.tensor([0.1, 0.1, 0.3, 0.3, 0.02])),
    "coupled decay": UpdateRule(lr=0.1, momentum=0.9, coupled_decay=torch.tensor([0.0, 0.0, 2.0, 2.0, 2.0])),
    "decoupled decay": UpdateRule(lr=0.1, momentum=0.9, decoupled_decay=torch.tensor([0.0, 0.0, 2.0, 2.0, 2.0])),
    "momentum": UpdateRule(lr=0.1, momentum=torch.tensor([0.9, 0.9, 0.0, 0.5, 0.5])),
    "nesterov": UpdateRule(lr=torch.tensor([0.1, 0.3, 0.1, 0.3, 0.1]), momentum=0.9, nesterov=True, coupled_decay=0.5),
    "adamw": UpdateRule(
        lr=torch.tensor([0.1, 0.3, 0.1, 0.3, 0.1]),
        momentum=0.9,
        dampening=0.9,
        decoupled_decay=torch.tensor([0.5, 0.0, 0.5, 0.0, 0.5]),
        preconditioner=torch.tensor([0.1, 1.0, 3.0, 0.5, 2.0]),
    ),
    "preconditioned": UpdateRule(lr=0.1, preconditioner=torch.tensor([0.1, 1.0, 3.0, 0.5, 2.0]), coupled_decay=0.1),
}


@pytest.mark.parametrize("rule", GROUPED.values(), ids=GROUPED)
@pytest.mark.parametrize("seed", range(3))
def test_groups_and_preconditioners_have_their_edge_where_the_scaled_hessian_says(rule: UpdateRule, seed: int) -> None:
    # The Hessian couples the groups, so this holds the whole claim: at lambda_max(scaling^-1 (s H + c)) = threshold the
    # block recursion has a root -1, and no root leaves the circle before. Coefficients are float32: 1e-5 around s.
    h = positive_definite(5, seed)
    assert not rule.plain
    low, high = 0.0, 1e6
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if largest_scaled(rule, middle * h) < rule.threshold else (low, middle)
    assert radius(rule, low * (1 - 1e-5) * h) < 1 < radius(rule, low * (1 + 1e-5) * h)


def drawn(seed: int) -> UpdateRule:
    """Six weights, each by an optimiser of its own: heavy ball, Nesterov or a running mean; any rates, decays, scales."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(6, dtype=torch.float64, generator=generator)

    kind, momentum = torch.randint(4, (6,), generator=generator), uniform(0, 0.98)
    momentum = torch.where(kind == 0, 0.0, momentum)
    return UpdateRule(
        lr=uniform(-6, -2).exp(),  # so that the decay alone is stable
        momentum=momentum,
        dampening=torch.where(kind == 3, momentum, torch.where(kind == 1, 0.3, 0.0)),
        nesterov=kind == 2,
        coupled_decay=uniform(0, 1),
        decoupled_decay=uniform(0, 0.5),
        preconditioner=uniform(-2, 1).exp(),
    )


@pytest.mark.parametrize("seed", range(40))
def test_weights_with_optimisers_of_their_own_have_one_exact_edge_however_the_hessian_couples_them(seed: int) -> None:
    # The theorem of the module, against the spectral radius of the whole recursion: stable all the way up to the edge,
    # unstable beyond it and on, whatever is mixed. The step 1e-6 is far above the rounding of a bisection in float64.
    rule, h = drawn(seed), positive_definite(6, seed)
    low, high = 0.0, 1e6
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if largest_scaled(rule, middle * h) < rule.threshold else (low, middle)
    for share in (0.01, 0.2, 0.5, 0.8, 0.95, 1 - 1e-6):
        assert radius(rule, share * low * h) < 1
    for factor in (1 + 1e-6, 1.1, 2, 10):
        assert radius(rule, factor * low * h) > 1


def test_blocks_that_do_not_see_each_other_share_the_edge_of_the_first_to_reach_its_own() -> None:
    rule = UpdateRule(
        lr=torch.tensor([0.1, 0.3, 0.05], dtype=torch.float64),
        momentum=torch.tensor([0.9, 0.0, 0.9], dtype=torch.float64),
        nesterov=torch.tensor([False, False, True]),
    )
    edges = torch.tensor([38.0, 2 / 0.3, 1.9 * 40 / 2.8], dtype=torch.float64)
    assert torch.allclose(torch.as_tensor(rule.edge), edges)
    h = torch.tensor([19.0, 0.9 * 2 / 0.3, 1.0], dtype=torch.float64)
    assert largest_scaled(rule, h.diag()) / rule.threshold == pytest.approx(0.9)


def test_the_rule_of_some_weights_has_numbers_where_they_agree() -> None:
    lr = torch.tensor([0.0, 0.1, 0.0, 0.1], dtype=torch.float64)
    rule = UpdateRule(lr=lr, momentum=torch.tensor([0.0, 0.9, 0.5, 0.9], dtype=torch.float64), nesterov=lr > 0)
    assert rule.moved is not None and rule.moved.tolist() == [1, 3]
    assert rule.moving == UpdateRule(lr=0.1, momentum=0.9, nesterov=True)
    assert UpdateRule(lr=0.1).moved is None and UpdateRule(lr=0.0).moving == UpdateRule(lr=0.0)


def test_a_mixture_without_a_common_formula_says_so() -> None:
    adam = torch.tensor([0.9, 0.0], dtype=torch.float64)
    assert UpdateRule(lr=0.1, momentum=adam, dampening=adam).formula == "(1+b)/(1-b) x 2/lr"
    assert "least threshold" in UpdateRule(lr=0.1, momentum=0.9, dampening=adam).formula
    assert "least threshold" in UpdateRule(lr=0.1, momentum=0.9, nesterov=adam > 0).formula


def test_scaling_of_a_plain_rule_is_one() -> None:
    assert torch.equal(UpdateRule(lr=0.1, momentum=0.9).scaling(torch.zeros(3)), torch.ones(3))


def test_scaling_takes_dtype_of_w() -> None:
    rule = UpdateRule(lr=torch.tensor([0.1, 0.2]), preconditioner=torch.tensor([1.0, 2.0]))
    assert rule.scaling(torch.zeros(2, dtype=torch.float64)).dtype == torch.float64
    assert rule.scaling(torch.zeros(2)).dtype == torch.float32


def test_a_learning_rate_of_zero_is_stable_at_any_sharpness() -> None:
    assert UpdateRule(lr=0.0).threshold > 1e200


@pytest.mark.parametrize("lr", [[0.0, 0.1], [0.1, 0.0]])
def test_a_group_at_rest_does_not_move_the_threshold_of_the_others(lr: list[float]) -> None:
    # Coordinates that do not move drop out: their scaling is infinite, and the edge is that of the moving block.
    rule = UpdateRule(lr=torch.tensor(lr))
    scaling = rule.scaling(torch.zeros(2))
    assert math.isfinite(rule.threshold)
    assert [bool(s.isinf()) for s in scaling] == [rate == 0 for rate in lr]
    moving = lr.index(0.1)
    assert rule.threshold * float(scaling[moving]) == pytest.approx(20.0, rel=1e-6)
