"""The weights of a model as its optimisers have them at this moment: which are trained, which move, and by what rule.

Tensors are told apart by identity, never by their order or their names: layers are frozen and thawed in a run, groups are
added to an optimiser, heads are replaced.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim

from lab.curvature.stability import UpdateRule
from lab.optim.direction import direction_of
from lab.optim.rules import rule_of
from lab.optim.stacked import Make, stacked
from lab.params import layout, trainable

LEFT_OUT = (
    "{} of {} weights of the model do not move (no optimiser holds them, their learning rate is 0, or they have no "
    "gradient): threshold and ratio are those of the block of the other {}"
)


class Live:
    """What the optimisers do to the trainable weights w of a model, looked at again and again.

    rule       of the next update of w; None where there is none, and `refusal` says why in one line.
    direction  g -> the step that would be made for the gradient g, None where there is none.
    replicate  lr -> the optimiser of a stack of weights.
    """

    def __init__(self) -> None:
        self.params: list[Tensor] = []
        self.rule: UpdateRule | None = None
        self.refusal = ""
        self.direction: Callable[[Tensor], Tensor] | None = None
        self.replicate: Callable[[float], Make] | None = None
        self._names: tuple[str, ...] | None = None  # None: not looked at so far
        self._moved: Tensor | None = None
        self._resumed = False

    def follow(
        self, model: nn.Module, optimizers: Sequence[optim.Optimizer] | None, gradient: Callable[[], Tensor]
    ) -> bool:
        """Take up the tensors that are trained now, and what the optimisers (None: nobody knows) do to them. Whether other
        tensors are trained, or others move, than at the last look.

        gradient: of the loss that is measured, asked for only where an adaptive optimiser has no second moments of some
        weights: those on which the loss does not depend do not move; of the others the preconditioner is NaN.
        """
        params = trainable(model)
        names = layout(model).names if params else ()
        same = len(params) == len(self.params) and all(a is b for a, b in zip(params, self.params, strict=True))
        if self._resumed:  # other tensors, of the same names
            same = names == self._names
        first, before = self._names is None, self._moved
        self.params, self._names, self._resumed = params, names, False
        if optimizers is None:
            self.rule = self._moved = self.direction = self.replicate = None
            return not (first or same)
        idle = torch.zeros(0, dtype=torch.long)
        try:
            self.rule, self.refusal = rule_of(optimizers, params), ""
            idle = self._idle(self.rule, gradient)
            self.rule = self.rule.resting(idle)
        except TypeError as error:
            self.rule, self.refusal = None, str(error)
        self.direction = _still(direction_of(optimizers, params), idle)
        self.replicate = stacked(optimizers, params)
        self._moved = None if self.rule is None else self.rule.moved
        return not first and not (same and _equal(before, self._moved))

    @property
    def left_out(self) -> str:
        """That some weights do not move, in one sentence; "" where all do."""
        total = sum(p.numel() for p in self.params)
        moved = total if self._moved is None else len(self._moved)
        return LEFT_OUT.format(total - moved, total, moved) if moved < total else ""

    @property
    def remarks(self) -> list[str]:
        """What is to be said of them, each in a sentence."""
        if not self.params:
            return ["no weight of the model is trainable (requires_grad): nothing is measured so far"]
        held = f"{self.refusal}: sharpness is measured, but not against a threshold" if self.refusal else ""
        return [text for text in (held, self.left_out) if text]

    def state_dict(self) -> dict[str, Any]:
        """Which weights were trained and moved at the last look; {} before the first."""
        return {} if self._names is None else {"names": list(self._names), "moved": self._moved}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self._names, self._moved, self._resumed = tuple(state["names"]), state["moved"], True

    def _idle(self, rule: UpdateRule, gradient: Callable[[], Tensor]) -> Tensor:
        """Places of the parameters without second moments on which the loss does not depend."""
        unknown = torch.zeros(0) if rule.preconditioner is None else rule.preconditioner.isnan()
        if not bool(unknown.any()):
            return torch.zeros(0, dtype=torch.long)
        sizes = [p.numel() for p in self.params]
        pieces = zip(unknown.split(sizes), gradient().split(sizes), strict=True)
        idle = [torch.full((len(g),), bool(missing.any()) and not bool(g.any())) for missing, g in pieces]
        places = torch.cat(idle)
        return (places & ~places.all()).nonzero()[:, 0]  # all: a critical point


def _still(direction: Callable[[Tensor], Tensor] | None, idle: Tensor) -> Callable[[Tensor], Tensor] | None:
    """The direction with these places left where they are."""
    if direction is None or not len(idle):
        return direction
    return lambda g: direction(g).index_fill(0, idle.to(g.device), 0.0)


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a, b)
