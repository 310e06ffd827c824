"""The update rule of a live torch optimiser: read from its parameter groups and its state, never typed in by a user."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, optim

from lab.curvature.stability import UpdateRule
from lab.objective import at_least_single
from lab.params import flatten

Group = dict[str, Any]
KNOWN = (optim.SGD, optim.RMSprop, optim.Adam, optim.AdamW)
"""The optimisers whose threshold is known."""


def rule_of(optimizers: Iterable[optim.Optimizer], params: Iterable[Tensor]) -> UpdateRule:
    """The rule of the next update of the weights that `params` make up, in their order: each by the optimiser that holds it.

    Every tensor has the settings and the state of the group it is in, whatever the order of groups and optimisers. Those
    that none holds have learning rate 0, and so do those of a group whose rate is 0: they are no part of
    `UpdateRule.moving`. Adaptive optimisers give the preconditioner of their LAST update (bias corrections included); before
    the first one it is NaN: not defined yet. Raises TypeError for an optimiser whose threshold is not known, for a tensor
    that two optimisers hold, and where none holds any.

    >>> w = torch.ones(1, requires_grad=True)
    >>> rule_of([optim.SGD([w], lr=0.1, momentum=0.5)], [w]).threshold  # (2 + 2b)/lr
    30.0
    """
    params = list(params)
    held, rules = held_by(optimizers, params), dict[int, UpdateRule]()
    for owner in held:
        if owner is not None and id(owner[1]) not in rules:
            rules[id(owner[1])] = _read(*owner)
    if not rules:
        raise TypeError("no optimiser holds a weight of the model: nothing moves it, so that it has no threshold")
    pieces = [_STILL if owner is None else rules[id(owner[1])] for owner in held]
    diagonals = [
        None if owner is None else _diagonal(owner[0], owner[1], p) for owner, p in zip(held, params, strict=True)
    ]
    return _join(pieces, diagonals, params)


def held_by(
    optimizers: Iterable[optim.Optimizer], params: Iterable[Tensor]
) -> list[tuple[optim.Optimizer, Group] | None]:
    """The optimiser that holds each very tensor of `params`, and the group it is in; None where none does. Raises TypeError
    where two do.
    """
    owners: dict[int, list[tuple[optim.Optimizer, Group]]] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for p in group["params"]:
                owners.setdefault(id(p), []).append((optimizer, group))
    owning = [owners.get(id(p), []) for p in params]
    if any(len(those) > 1 for those in owning):
        raise TypeError("two optimisers hold the same weights: what moves them is the rule of neither")
    return [those[0] if those else None for those in owning]


_STILL = UpdateRule(lr=0.0)
"""Of a weight that no optimiser holds."""


def _read(optimizer: optim.Optimizer, group: Group) -> UpdateRule:
    """The coefficients of one group."""
    if type(optimizer) not in KNOWN:
        known = ", ".join(kind.__name__ for kind in KNOWN)
        raise TypeError(f"no stability threshold is known for {type(optimizer).__name__}; known are {known}")
    if group["maximize"]:
        raise TypeError("maximize=True climbs the loss: the threshold holds for descent; minimise -L instead")
    lr, decay = float(group["lr"]), group["weight_decay"]
    if "betas" in group:
        b1 = float(group["betas"][0])
        decoupled = isinstance(optimizer, optim.AdamW) or group.get("decoupled_weight_decay", False)
        decays = (0.0, decay) if decoupled else (decay, 0.0)
        return UpdateRule(lr, b1, b1, coupled_decay=decays[0], decoupled_decay=decays[1])
    momentum, nesterov = group["momentum"], group.get("nesterov", False)
    dampening = group.get("dampening", 0.0) if momentum else 0.0  # torch ignores it without momentum
    return UpdateRule(lr, momentum, dampening, nesterov, coupled_decay=decay)


def _diagonal(optimizer: optim.Optimizer, group: Group, p: Tensor) -> Tensor | None:
    """The preconditioner of one parameter, of its shape; NaN where it has not been updated yet, None where there is none."""
    if type(optimizer) is optim.SGD:
        return None
    s = optimizer.state.get(p)
    if not s:
        return torch.full_like(p, torch.nan)
    if type(optimizer) is optim.RMSprop:
        variance = at_least_single(s["square_avg"])
        if group["centered"]:
            variance = variance - at_least_single(s["grad_avg"]) ** 2
        return variance.sqrt() + group["eps"]
    b1, b2 = (float(b) for b in group["betas"])
    t, square = float(s["step"]), at_least_single(s["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"])
    return (1 - b1**t) * ((square / (1 - b2**t)).sqrt() + group["eps"])


def _join(rules: list[UpdateRule], diagonals: list[Tensor | None], params: list[Tensor]) -> UpdateRule:
    """One rule over all parameters: numbers where they agree, vectors where they differ."""
    sizes = torch.tensor([p.numel() for p in params])

    def common(name: str) -> float | Tensor:
        values = [getattr(rule, name) for rule in rules]
        if all(value == values[0] for value in values):
            return values[0]
        flag = isinstance(values[0], bool)
        return torch.tensor(values, dtype=torch.bool if flag else torch.float64).repeat_interleave(sizes)

    names = ("lr", "momentum", "dampening", "nesterov", "coupled_decay", "decoupled_decay")
    pieces = (torch.ones_like(p) if one is None else one for p, one in zip(params, diagonals, strict=True))
    known = any(diagonal is not None for diagonal in diagonals)
    return UpdateRule(
        **{name: common(name) for name in names},  # type: ignore[arg-type]
        preconditioner=flatten(pieces) if known else None,
    )
