"""The optimiser of a run for many replicas at once: the same kind and settings on one stacked parameter (R, P).

Elementwise optimisers do to a row what they would do to it alone. The state (momentum, second moments, step count) is that
of the live optimiser, copied to every row, so that replicas go on from where the run stands.
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, optim

from lab.optim.rules import held_by

Make = Callable[[list[Tensor]], optim.Optimizer]


def stacked(optimizers: Iterable[optim.Optimizer], params: Iterable[Tensor]) -> Callable[[float], Make]:
    """make(lr)([W]) is the optimiser of `params` on the stacked parameter W (R, P) at learning rate lr; nothing is changed.

    A row of W is w: the tensors `params` in their order, whatever the order of parameter groups. make raises TypeError,
    one line, where they have no one setting: in several optimisers, in none, in groups that differ (but for the learning
    rate), or updated so many times and others.

    >>> w, W = torch.ones(2, requires_grad=True), torch.ones(3, 2, requires_grad=True)
    >>> W.grad = torch.arange(6.0).reshape(3, 2)
    >>> stacked([optim.SGD([w], lr=0.1)], [w])(0.5)([W]).step()
    >>> W.tolist(), w.tolist()
    ([[1.0, 0.5], [0.0, -0.5], [-1.0, -1.5]], [1.0, 1.0])
    """
    optimizers, params = list(optimizers), list(params)

    def make(lr: float) -> Make:
        optimizer, settings = _owner(optimizers, params)
        known = settings.keys() & inspect.signature(type(optimizer)).parameters.keys() - ITS_OWN
        updates = {float(s["step"]) for p in params if (s := optimizer.state.get(p)) and "step" in s}
        if len(updates) > 1:
            counts = ", ".join(f"{number:g}" for number in sorted(updates))
            raise TypeError(f"some weights have had {counts} updates each: replicas count one number for all weights")

        def build(stack: list[Tensor]) -> optim.Optimizer:
            built = type(optimizer)(stack, **({name: settings[name] for name in known} | {"lr": lr}))  # type: ignore[call-arg]
            (W,) = stack
            entries: dict[str, Any] = next((s for p in params if (s := optimizer.state.get(p))), {})
            if entries:
                built.state[W] = {name: _rows(name, optimizer, params, W) for name in entries}
            return built

        return build

    return make


ITS_OWN = {"params", "lr", "initial_lr"}
"""What a parameter group may have for itself."""


def _owner(optimizers: list[optim.Optimizer], params: list[Tensor]) -> tuple[optim.Optimizer, dict[str, Any]]:
    """The one optimiser of all params, and their one setting."""
    held = held_by(optimizers, params)
    owners = [owner for owner in held if owner is not None]
    if not owners or len(owners) < len(held):
        still = sum(p.numel() for p, owner in zip(params, held, strict=True) if owner is None)
        raise TypeError(
            f"{still} weights are in no optimiser: replicas move all of them; freeze them (requires_grad=False)"
        )
    if len({id(optimizer) for optimizer, _ in owners}) > 1:
        raise TypeError("several optimisers move the weights: replicas need one for all")
    settings = [{name: value for name, value in group.items() if name not in ITS_OWN} for _, group in owners]
    if any(other != settings[0] for other in settings[1:]):
        raise TypeError("the parameter groups of the optimiser differ: replicas need one setting for all weights")
    return owners[0][0], settings[0]


def _rows(name: str, optimizer: optim.Optimizer, params: list[Tensor], W: Tensor) -> Any:
    """An entry of the state for the stack: what has the shape of the parameters in rows, counters as they are. Where a
    parameter has had no gradient so far it is zero, as if it had been.
    """
    known = [(p, state[name]) for p in params if (state := optimizer.state.get(p)) and name in state]
    first, entry = known[0]
    if not isinstance(entry, Tensor):
        return entry
    if entry.shape != first.shape or name == "step":
        return entry.clone()
    entries = {id(p): value for p, value in known}
    row = torch.cat([entries.get(id(p), torch.zeros_like(p)).detach().reshape(-1) for p in params])
    return row.to(W).expand(len(W), -1).clone()
