"""The update rule of a live torch optimiser: read from its parameter groups and its state, never typed in by a user."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, optim

from lab.curvature.stability import UpdateRule

Group = dict[str, Any]


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
    found = [owners.get(id(p), []) for p in params]
    if any(len(those) > 1 for those in found):
        raise TypeError("two optimisers hold the same weights: what moves them is the rule of neither")
    return [those[0] if those else None for those in found]


_STILL = UpdateRule(lr=0.0)
"""Of a weight that no optimiser holds."""


def _read(optimizer: optim.Optimizer, group: Group) -> UpdateRule:
    """The coefficients of one group."""
    reader = _READERS.get(type(optimizer))
    if reader is None:
        known = ", ".join(kind.__name__ for kind in _READERS)
        raise TypeError(f"no stability threshold is known for {type(optimizer).__name__}; known are {known}")
    if group["maximize"]:
        raise TypeError("maximize=True climbs the loss: the threshold holds for descent; minimise -L instead")
    return reader(group)


def _sgd(group: Group) -> UpdateRule:
    return UpdateRule(
        lr=float(group["lr"]),
        momentum=group["momentum"],
        dampening=group["dampening"] if group["momentum"] else 0.0,  # torch ignores it without momentum
        nesterov=group["nesterov"],
        coupled_decay=group["weight_decay"],
    )


def _rmsprop(group: Group) -> UpdateRule:
    return UpdateRule(lr=float(group["lr"]), momentum=group["momentum"], coupled_decay=group["weight_decay"])


def _adam(group: Group) -> UpdateRule:
    b1, decay = float(group["betas"][0]), group["weight_decay"]
    decoupled = group.get("decoupled_weight_decay", False)
    return UpdateRule(
        lr=float(group["lr"]),
        momentum=b1,
        dampening=b1,
        coupled_decay=0.0 if decoupled else decay,
        decoupled_decay=decay if decoupled else 0.0,
    )


def _adamw(group: Group) -> UpdateRule:
    return _adam({**group, "decoupled_weight_decay": True})


_READERS: dict[type, Callable[[Group], UpdateRule]] = {
    optim.SGD: _sgd,
    optim.RMSprop: _rmsprop,
    optim.Adam: _adam,
    optim.AdamW: _adamw,
}


def _diagonal(optimizer: optim.Optimizer, group: Group, p: Tensor) -> Tensor | None:
    """The preconditioner of one parameter as a vector; NaN where it has not been updated yet, None where there is none."""
    if type(optimizer) is optim.SGD:
        return None
    s = optimizer.state.get(p)
    if not s:
        return torch.full_like(p, torch.nan).detach().reshape(-1)
    s = {name: _at_least_single(value) for name, value in s.items()}
    if type(optimizer) is optim.RMSprop:
        variance = s["square_avg"] - (s["grad_avg"] ** 2 if group["centered"] else 0.0)
        return (variance.sqrt() + group["eps"]).detach().reshape(-1)
    b1, b2 = (float(b) for b in group["betas"])
    t, square = float(s["step"]), s["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    return ((1 - b1**t) * ((square / (1 - b2**t)).sqrt() + group["eps"])).detach().reshape(-1)


def _at_least_single(value: Any) -> Any:
    """Averages kept in half precision, for roots and quotients of them."""
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value


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
    pieces = [
        torch.ones_like(p).detach().reshape(-1) if diagonal is None else diagonal
        for p, diagonal in zip(params, diagonals, strict=True)
    ]
    known = any(diagonal is not None for diagonal in diagonals)
    return UpdateRule(
        **{name: common(name) for name in names},  # type: ignore[arg-type]
        preconditioner=torch.cat(pieces) if known else None,
    )
