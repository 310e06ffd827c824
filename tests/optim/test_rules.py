"""The rule read from a live torch optimiser against what that very optimiser does on one-dimensional quadratics.

How the threshold is found. One parameter vector holds many problems L = h_i w_i^2 / 2, the optimiser is driven for 300
steps, and w_i is called unstable when it grew from step 150 to step 300. At the threshold one root of the recursion is
-1 and the other is -b (Polyak, Adam), at most 0.9 here, so after 150 steps the transient is 0.9^150 = 1e-7 of w. A
relative distance delta from the threshold changes the growth by the factor exp(150 delta) or more, so it is seen down
to 1e-9. Four rounds of 33 curvatures shrink a bracket of width 1.2 to 1.2 / 32^4 = 1e-6: 5 digits, with room.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from lab.curvature.stability import UpdateRule
from lab.optim.rules import rule_of

FROZEN_STEP = 1e20
"""So many updates ago the state began: bias corrections are 1, and in float32 the count no longer moves."""
ALMOST_ONE = 1 - 2**-53
"""beta2: the running mean of squares forgets nothing, so nu stays what it is as long as g^2 << 1e16."""
START = 1e-250
"""|w| at the start: roots of up to 5.6 grow it to 1e-26 at most in 300 steps, where g^2 is still nothing beside nu."""

Build = Callable[[list[nn.Parameter]], optim.Optimizer]


def read(optimizer: optim.Optimizer) -> UpdateRule:
    """The rule over its trainable parameters, in their order."""
    return rule_of([optimizer], [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad])


def parameter(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.clone().to(torch.float64))


def freeze(optimizer: optim.Optimizer, nu: float = 1.0) -> None:
    """Give an adaptive optimiser the state of a run so long that nu is constant; SGD has nothing to freeze."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if isinstance(optimizer, optim.Adam):
                squares = {"exp_avg_sq": torch.full_like(p, nu), "exp_avg": torch.zeros_like(p)}
                if group["amsgrad"]:
                    squares["max_exp_avg_sq"] = torch.full_like(p, nu)
                optimizer.state[p] = {"step": torch.tensor(FROZEN_STEP), **squares}
            if isinstance(optimizer, optim.RMSprop):
                state = {"step": torch.tensor(FROZEN_STEP), "square_avg": torch.full_like(p, nu)}
                if group["momentum"]:
                    state["momentum_buffer"] = torch.zeros_like(p)
                optimizer.state[p] = state


def drive(optimizer: optim.Optimizer, params: list[nn.Parameter], curvatures: list[Tensor], steps: int) -> None:
    for _ in range(steps):
        for p, h in zip(params, curvatures, strict=True):
            p.grad = h * p.detach()
        optimizer.step()


def thresholds_by_bisection(build: Build, guess: Tensor) -> Tensor:
    """For each parameter (group) the curvature from which on |w| grows, looked for in 0.6 .. 1.8 times a guess."""
    low, high = 0.6 * guess, 1.8 * guess
    for _ in range(4):
        ends = zip(low.tolist(), high.tolist(), strict=True)
        curvatures = [torch.linspace(a, b, 33, dtype=torch.float64) for a, b in ends]
        params = [nn.Parameter(torch.full((33,), START, dtype=torch.float64)) for _ in curvatures]
        optimizer = build(params)
        freeze(optimizer)
        drive(optimizer, params, curvatures, 150)
        middle = [p.detach().abs().clone() for p in params]
        drive(optimizer, params, curvatures, 150)
        for i, (p, before, h) in enumerate(zip(params, middle, curvatures, strict=True)):
            unstable = p.detach().abs() > before
            first = int(unstable.int().argmax())
            assert unstable[first:].all(), "stable above an unstable curvature"
            assert first > 0, "the threshold lies outside the bracket"
            low[i], high[i] = h[first - 1], h[first]
    return (low + high) / 2


def predicted(rule: UpdateRule, params: list[nn.Parameter]) -> Tensor:
    """The critical curvature of each coordinate by the rule: threshold * scaling - c, or the threshold where plain."""
    w = torch.cat([p.detach().reshape(-1) for p in params])
    if rule.plain:
        return torch.full_like(w, rule.threshold)
    return rule.threshold * rule.scaling(w) - rule.coupled_decay


def rule_when_frozen(build: Build, num_params: int = 1) -> tuple[UpdateRule, list[nn.Parameter]]:
    params = [nn.Parameter(torch.full((1,), START, dtype=torch.float64)) for _ in range(num_params)]
    optimizer = build(params)
    freeze(optimizer)
    return read(optimizer), params


ADAM: dict[str, Any] = {"lr": 0.1, "betas": (0.9, ALMOST_ONE)}
# The number is the theory of EDGE.md's row for each; eps 1e-8 beside sqrt(nu) = 1 moves the adaptive ones by 1e-8.
ROWS: dict[str, tuple[Build, float]] = {
    "gradient descent": (lambda p: optim.SGD(p, lr=0.1), 20.0),
    "Polyak": (lambda p: optim.SGD(p, lr=0.1, momentum=0.9), 38.0),
    "dampening": (lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5), 76.0),
    "Nesterov": (lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), 13.5714),
    "Nesterov, decay": (lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.5), 13.0714),
    "gradient descent, decay": (lambda p: optim.SGD(p, lr=0.1, weight_decay=0.5), 19.5),
    "Polyak, decay": (lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.5), 37.5),
    "Adam": (lambda p: optim.Adam(p, **ADAM), 380.0),
    "Adam, coupled decay": (lambda p: optim.Adam(p, **ADAM, weight_decay=0.5), 379.5),
    "Adam, decoupled decay": (lambda p: optim.Adam(p, **ADAM, weight_decay=0.5, decoupled_weight_decay=True), 370.5),
    "Adam, amsgrad": (lambda p: optim.Adam(p, **ADAM, amsgrad=True), 380.0),
    "AdamW": (lambda p: optim.AdamW(p, **ADAM, weight_decay=0.5), 370.5),
    "RMSprop": (lambda p: optim.RMSprop(p, lr=0.1, alpha=ALMOST_ONE), 20.0),
    "RMSprop, momentum": (lambda p: optim.RMSprop(p, lr=0.1, alpha=ALMOST_ONE, momentum=0.9), 38.0),
    "RMSprop, decay": (lambda p: optim.RMSprop(p, lr=0.1, alpha=ALMOST_ONE, weight_decay=0.5), 19.5),
}


@pytest.mark.parametrize(("build", "theory"), ROWS.values(), ids=ROWS)
def test_threshold_equals_bisection_on_the_live_optimizer_to_five_digits(build: Build, theory: float) -> None:
    rule, params = rule_when_frozen(build)
    (by_rule,) = predicted(rule, params).tolist()
    (measured,) = thresholds_by_bisection(build, torch.tensor([theory], dtype=torch.float64)).tolist()
    assert measured == pytest.approx(by_rule, rel=5e-6)
    assert by_rule == pytest.approx(theory, rel=5e-6)


GROUPS: dict[str, Callable[..., optim.Optimizer]] = {
    "SGD": lambda groups: optim.SGD(groups, lr=0.1, momentum=0.9),
    "one with Nesterov": lambda groups: optim.SGD([groups[0] | {"nesterov": True}, groups[1]], lr=0.1, momentum=0.9),
    "AdamW": lambda groups: optim.AdamW(groups, **ADAM),
    "RMSprop": lambda groups: optim.RMSprop(groups, lr=0.1, alpha=ALMOST_ONE, momentum=0.5),
}


@pytest.mark.parametrize("make", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize(
    "second", [{"lr": 0.03}, {"weight_decay": 2}, {"lr": 0.25, "weight_decay": 0.5}], ids=lambda s: "+".join(s)
)
def test_groups_that_differ_have_the_threshold_of_bisection_each(make: Callable, second: dict) -> None:
    def build(params: list[nn.Parameter]) -> optim.Optimizer:
        first, last = params
        return make([{"params": [first]}, {"params": [last], **second}])

    rule, params = rule_when_frozen(build, 2)
    by_rule = predicted(rule, params)
    measured = thresholds_by_bisection(build, by_rule * 0.9)
    assert torch.allclose(measured, by_rule, rtol=5e-6, atol=0)


def test_groups_that_a_hessian_couples_share_one_edge() -> None:
    # H = s A with A dense. At s = s* lambda_max(scaling^-1 (H + c)) = threshold; torch must grow 0.1 % above and decay
    # 0.1 % below: over 1000 steps that is a factor exp(+-1000 * 1e-3) or more, here measured from step 1000 on.
    a = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    a = a @ a.T

    def build(params: list[nn.Parameter]) -> optim.SGD:
        first, last = params
        decayed: dict[str, Any] = {"params": [last], "lr": 0.3, "weight_decay": 2.0}
        return optim.SGD([{"params": [first]}, decayed], lr=0.1, momentum=0.9)

    def growth(s: float) -> float:
        params = [parameter(torch.ones(1)), parameter(torch.ones(3))]
        optimizer, sizes = build(params), []
        for step in range(2000):
            if step % 1000 == 0:
                sizes.append(torch.cat([p.detach() for p in params]).norm())
            g = s * a @ torch.cat([p.detach() for p in params])
            params[0].grad, params[1].grad = g[:1], g[1:]
            optimizer.step()
        return float(torch.cat([p.detach() for p in params]).norm() / sizes[1])

    params = [parameter(torch.ones(1)), parameter(torch.ones(3))]
    rule = read(build(params))
    scaling, decay = rule.scaling(torch.cat([p.detach() for p in params])), torch.as_tensor(rule.coupled_decay)
    low, high = 0.0, 1e6
    for _ in range(80):
        s = (low + high) / 2
        scaled = (s * a + torch.diag(decay.double())) / (scaling[:, None] * scaling).sqrt()
        low, high = (s, high) if torch.linalg.eigvalsh(scaled)[-1] < rule.threshold else (low, s)
    assert growth(low * 0.999) < 0.9
    assert growth(low * 1.001) > 1.1


def test_a_learning_rate_moved_by_a_schedule_is_followed() -> None:
    optimizer = optim.SGD([parameter(torch.ones(2))], lr=0.1)
    schedule = optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    found = []
    for _ in range(3):
        found.append(read(optimizer).threshold)
        optimizer.step()
        schedule.step()
    assert found == pytest.approx([20.0, 40.0, 80.0])
    optimizer.param_groups[0]["lr"] = torch.tensor(0.5, dtype=torch.float64)
    assert read(optimizer).threshold == pytest.approx(4.0)


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("kind", [optim.Adam, optim.AdamW])
def test_the_step_of_adam_is_lr_m_over_the_preconditioner(kind: type, amsgrad: bool) -> None:
    # P_t = (1 - b1^t) (sqrt(nu / (1 - b2^t)) + eps): the literal update must be -lr m / P at every t, bias
    # corrections and (large) eps included. The gradient shrinks, so that amsgrad's maximum differs from nu.
    generator = torch.Generator().manual_seed(0)
    p = parameter(torch.randn(5, generator=generator))
    optimizer = kind([p], lr=0.1, betas=(0.9, 0.99), eps=0.1, weight_decay=0.0, amsgrad=amsgrad)
    for t in range(1, 11):
        before = p.detach().clone()
        p.grad = torch.randn(5, generator=generator).double() / t**2
        optimizer.step()
        if t in (1, 2, 10):
            preconditioner = read(optimizer).preconditioner
            assert preconditioner is not None
            step = -0.1 * optimizer.state[p]["exp_avg"] / preconditioner
            assert torch.allclose(p.detach() - before, step, rtol=1e-12, atol=0)


@pytest.mark.parametrize("centered", [False, True])
def test_the_step_of_rmsprop_is_lr_g_over_the_preconditioner(centered: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    p = parameter(torch.randn(5, generator=generator))
    optimizer = optim.RMSprop([p], lr=0.1, alpha=0.9, eps=0.1, centered=centered)
    for _ in range(3):
        before = p.detach().clone()
        p.grad = torch.randn(5, generator=generator).double()
        optimizer.step()
        preconditioner = read(optimizer).preconditioner
        assert preconditioner is not None
        assert torch.allclose(p.detach() - before, -0.1 * p.grad / preconditioner, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", [optim.Adam, optim.AdamW, optim.RMSprop])
def test_before_the_first_update_the_preconditioner_is_not_defined_yet(kind: type) -> None:
    p = parameter(torch.ones(3))
    rule = read(kind([p]))
    assert rule.preconditioner is not None
    assert rule.preconditioner.isnan().all()
    assert not rule.plain


def test_a_parameter_without_a_gradient_so_far_is_nan_and_the_others_are_not() -> None:
    used, unused = parameter(torch.ones(2)), parameter(torch.ones(3))
    optimizer = optim.Adam([used, unused])
    used.grad = torch.ones_like(used)
    optimizer.step()
    preconditioner = read(optimizer).preconditioner
    assert preconditioner is not None
    assert preconditioner.isnan().tolist() == [False, False, True, True, True]


def test_frozen_parameters_are_not_part_of_the_rule() -> None:
    frozen, trained = parameter(torch.ones(2)), parameter(torch.ones(3))
    frozen.requires_grad_(False)
    optimizer = optim.Adam([{"params": [frozen], "lr": 1.0}, {"params": [trained], "lr": 0.1}])
    rule = read(optimizer)
    assert rule.preconditioner is not None
    assert len(rule.preconditioner) == 3
    assert rule.lr == 0.1


def test_dampening_without_momentum_does_nothing_as_in_torch() -> None:
    assert read(optim.SGD([parameter(torch.ones(1))], lr=0.1, dampening=0.5)).threshold == 20.0


def test_an_unknown_optimizer_is_refused_with_the_known_ones_named() -> None:
    with pytest.raises(TypeError, match="Adagrad; known are SGD, RMSprop, Adam, AdamW"):
        read(optim.Adagrad([parameter(torch.ones(1))]))


def test_a_subclass_whose_step_may_differ_is_refused() -> None:
    class Mine(optim.SGD):
        pass

    with pytest.raises(TypeError, match="Mine"):
        read(Mine([parameter(torch.ones(1))], lr=0.1))


def test_an_optimizer_that_climbs_is_refused() -> None:
    # With maximize=True the curvature that destabilises is that of -L: the sign would be silently wrong.
    with pytest.raises(TypeError, match="maximize"):
        read(optim.SGD([parameter(torch.ones(1))], lr=0.1, maximize=True))
