"""The optimiser of a run for many replicas at once: the same kind and settings on one stacked parameter (R, P).

Elementwise optimisers do to a row what they would do to it alone. The state (momentum, second moments, step count) is that
of the live optimiser, copied to every row, so that replicas go on from where the run stands.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, optim

ITS_OWN = ("params", "lr", "initial_lr")
"""What a parameter group may have for itself."""

Make = Callable[[list[Tensor]], optim.Optimizer]


def stacked(optimizer: optim.Optimizer) -> Callable[[float], Make]:
    """make(lr)([W]) is `optimizer` on the stacked parameter W (R, P) at learning rate lr; nothing is changed.

    P must be the trainable weights of `optimizer`, in order. make raises TypeError where its parameter groups differ in
    more than the learning rate: all weights of W have one setting.
    """

    def make(lr: float) -> Make:
        groups = [group for group in optimizer.param_groups if any(p.requires_grad for p in group["params"])]
        settings = [{key: value for key, value in group.items() if key not in ITS_OWN} for group in groups]
        if any(other != settings[0] for other in settings[1:]):
            raise TypeError("the parameter groups of the optimiser differ: replicas need one setting for all weights")
        params = [p for group in groups for p in group["params"] if p.requires_grad]
        known = settings[0].keys() & inspect.signature(type(optimizer)).parameters.keys()

        def build(stack: list[Tensor]) -> optim.Optimizer:
            built = type(optimizer)(stack, **({name: settings[0][name] for name in known} | {"lr": lr}))  # type: ignore[call-arg]
            (W,) = stack
            if all(optimizer.state.get(p) for p in params):
                built.state[W] = {name: _rows(name, optimizer, params, W) for name in optimizer.state[params[0]]}
            return built

        return build

    return make


def _rows(name: str, optimizer: optim.Optimizer, params: list[Tensor], W: Tensor) -> Any:
    """An entry of the state for the stack: what has the shape of the parameters in rows, counters as they are."""
    entries = [optimizer.state[p][name] for p in params]
    if entries[0] is None or not isinstance(entries[0], Tensor):
        return entries[0]
    if entries[0].shape != params[0].shape or name == "step":
        return entries[0].clone()
    row = torch.cat([entry.detach().reshape(-1) for entry in entries])
    return row.to(W).expand(len(W), -1).clone()
