"""The step that a live optimiser would make for a gradient, found by making it on copies: for any torch optimiser."""

import copy
import inspect
from collections.abc import Callable, Iterable

from torch import Tensor, optim

from lab.optim.rules import held_by
from lab.params import flatten


def direction_of(optimizers: Iterable[optim.Optimizer], params: Iterable[Tensor]) -> Callable[[Tensor], Tensor] | None:
    """s(g): by how much the next `step()` of the optimisers would move the weights if their gradient were g (P,); float64.

    `params` are the tensors that make up w, in order; those that no optimiser has stay where they are, and so does what
    else the optimisers have. Momentum, decay, adaptive scales and bias corrections are those of the state when s is first
    asked for, which is copied then, in float64: s is w_{t+1} - w_t without the rounding of the weights. The optimisers,
    their state and the weights are not touched, hooks not run. Cost: a copy of weights and state, and a step, each time.
    None for an optimiser that evaluates the loss itself (LBFGS), whose step is no function of one gradient, and where two
    optimisers move the same weights, one after the other on gradients of their own.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> direction_of([optim.SGD([w], lr=0.1, weight_decay=1.0)], [w])(torch.tensor([1.0, 1.0]))
    tensor([-0.2000, -0.3000], dtype=torch.float64)
    """
    originals, kept = list(params), list[tuple[list[optim.Optimizer], list[Tensor]]]()
    try:
        owners = {id(owner[0]): owner[0] for owner in held_by(optimizers, originals) if owner is not None}
    except TypeError:
        return None
    moving = list(owners.values())
    if any(evaluates_the_loss(optimizer) for optimizer in moving):
        return None

    def direction(g: Tensor) -> Tensor:
        if not kept:
            kept.append(_in_double(*_copy(moving, originals)))
        trials, moved = _copy(*kept[0])
        for trial in trials:
            for group in trial.param_groups:
                for p in group["params"]:
                    p.grad = None
        for p, piece in zip(moved, g.detach().double().split([p.numel() for p in moved]), strict=True):
            p.grad = piece.view_as(p)
        for trial in trials:
            trial.step()
        return flatten(moved) - flatten(kept[0][1])

    return direction


def evaluates_the_loss(optimizer: optim.Optimizer) -> bool:
    """Whether its step needs a function that does so (LBFGS): it is no function of one gradient then."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def _copy(optimizers: list[optim.Optimizer], params: list[Tensor]) -> tuple[list[optim.Optimizer], list[Tensor]]:
    """The optimisers with all they hold, and the parameters, which are those of their groups.

    Copying an optimiser keeps its groups and state; attributes of a class of its own follow, but not a `step` that a
    scheduler has wrapped, for that is the step of the original.
    """
    memo: dict[int, object] = {}
    copies = copy.deepcopy(optimizers, memo)
    for optimizer, made in zip(optimizers, copies, strict=True):
        rest = {name: value for name, value in vars(optimizer).items() if name not in vars(made) and name != "step"}
        vars(made).update(copy.deepcopy(rest, memo))
    return copies, copy.deepcopy(params, memo)


def _in_double(optimizers: list[optim.Optimizer], params: list[Tensor]) -> tuple[list[optim.Optimizer], list[Tensor]]:
    """Weights and what the states hold of their shape, in float64."""
    for p in [*params, *(p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"])]:
        p.data = p.data.double()
    for optimizer in optimizers:
        for p, state in optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == p.shape and value.is_floating_point():
                    state[name] = value.double()
    return optimizers, params
