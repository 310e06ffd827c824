"""The update rule of a live torch optimiser: read from its parameter groups and its state, never typed in by a user."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, optim

from lab.curvature.stability import Coefficient, UpdateRule

Group = dict[str, Any]


def rule_of(optimizer: optim.Optimizer) -> UpdateRule:
    """The rule of the next update of `optimizer`, over its trainable parameters in order.

    Adaptive optimisers give the preconditioner of their LAST update (bias corrections included); before the first one
    it is all NaN: not defined yet. Parameter groups may differ in learning rate, momentum and decay, not in Nesterov.
    Raises TypeError for an optimiser whose threshold is not known.
    """
    reader = next((read for kind, read in _READERS if type(optimizer) is kind), None)
    if reader is None:
        known = ", ".join(kind.__name__ for kind, _ in _READERS)
        raise TypeError(f"no stability threshold is known for {type(optimizer).__name__}; known are {known}")
    groups = [g for g in optimizer.param_groups if any(p.requires_grad for p in g["params"])]
    if any(group["maximize"] for group in groups):
        raise TypeError("maximize=True climbs the loss: the threshold holds for descent; minimise -L instead")
    return _join([reader(group, optimizer.state) for group in groups], [_size(group) for group in groups])


def _sgd(group: Group, state: dict) -> UpdateRule:
    return UpdateRule(
        lr=float(group["lr"]),
        momentum=group["momentum"],
        dampening=group["dampening"] if group["momentum"] else 0.0,  # torch ignores it without momentum
        nesterov=group["nesterov"],
        coupled_decay=group["weight_decay"],
    )


def _rmsprop(group: Group, state: dict) -> UpdateRule:
    def diagonal(s: dict) -> Tensor:
        variance = s["square_avg"] - (s["grad_avg"] ** 2 if group["centered"] else 0.0)
        return variance.sqrt() + group["eps"]

    return UpdateRule(
        lr=float(group["lr"]),
        momentum=group["momentum"],
        coupled_decay=group["weight_decay"],
        preconditioner=_diagonal(group, state, diagonal),
    )


def _adam(group: Group, state: dict) -> UpdateRule:
    b1, b2 = (float(b) for b in group["betas"])
    decoupled = group.get("decoupled_weight_decay", False)

    def diagonal(s: dict) -> Tensor:
        t, square = float(s["step"]), s["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
        return (1 - b1**t) * ((square / (1 - b2**t)).sqrt() + group["eps"])

    return UpdateRule(
        lr=float(group["lr"]),
        momentum=b1,
        dampening=b1,
        coupled_decay=0.0 if decoupled else group["weight_decay"],
        decoupled_decay=group["weight_decay"] if decoupled else 0.0,
        preconditioner=_diagonal(group, state, diagonal),
    )


def _adamw(group: Group, state: dict) -> UpdateRule:
    return _adam({**group, "decoupled_weight_decay": True}, state)


_READERS: list[tuple[type, Callable[[Group, dict], UpdateRule]]] = [
    (optim.SGD, _sgd),
    (optim.RMSprop, _rmsprop),
    (optim.Adam, _adam),
    (optim.AdamW, _adamw),
]


def _trainable(group: Group) -> Iterable[Tensor]:
    return (p for p in group["params"] if p.requires_grad)


def _size(group: Group) -> int:
    return sum(p.numel() for p in _trainable(group))


def _diagonal(group: Group, state: dict, diagonal: Callable[[dict], Tensor]) -> Tensor:
    """The preconditioner of one group as a vector; NaN where the parameter has not been updated yet."""
    pieces = [
        diagonal(state[p]).detach().reshape(-1) if state.get(p) else torch.full_like(p, torch.nan).detach().reshape(-1)
        for p in _trainable(group)
    ]
    return torch.cat(pieces)


def _join(rules: list[UpdateRule], sizes: list[int]) -> UpdateRule:
    """One rule over all groups: numbers where the groups agree, vectors where they differ."""
    if len({rule.nesterov for rule in rules}) > 1:
        raise TypeError("parameter groups differ in nesterov: no common stability threshold")

    def common(name: str) -> Coefficient:
        values = [getattr(rule, name) for rule in rules]
        if all(value == values[0] for value in values):
            return values[0]
        return torch.cat(
            [torch.full((size,), float(value), dtype=torch.float64) for value, size in zip(values, sizes, strict=True)]
        )

    diagonals = [rule.preconditioner for rule in rules if rule.preconditioner is not None]
    names = ("lr", "momentum", "dampening", "coupled_decay", "decoupled_decay")
    return UpdateRule(
        **{name: common(name) for name in names},  # type: ignore[arg-type]
        nesterov=rules[0].nesterov,
        preconditioner=torch.cat(diagonals) if diagonals else None,
    )
