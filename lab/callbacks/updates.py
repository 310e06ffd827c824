"""What optimisers do in a plain loop, seen by hooks: which updates were made, at which learning rate, on which loss.

An update outside of the blocks that are measured is refused before it is made: a step that nobody counts would shift all
that is measured after it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn, optim

from lab.settings import SettingError

OUTSIDE = (
    "an update of {} outside of watch.step(): write `with watch.step():` round optimizer.step(), or round the whole body of "
    "the loop; watch.close() ends the watch"
)
TWICE = (
    "{} made {} updates in one block of watch.step(): they count as one step, and w is that before the first of them; put a "
    "block round each"
)
UNSEEN = (
    "weights changed in a block of watch.step(), and none of the optimisers given to lab.watch has made an update: give it "
    "all that move the model, as a list; no step is counted"
)


class UpdateHooks:
    """Hooks on optimisers: the updates made in the block that is open.

    say  takes a warning, and gives it once. meet: what looks at an optimiser before its update. lr: the learning rate of the
         last update, before a scheduler moved on.
    """

    def __init__(
        self,
        optimizers: Sequence[optim.Optimizer],
        say: Callable[[str], None],
        meet: Callable[[optim.Optimizer], None] = lambda optimizer: None,
    ):
        self.optimizers, self.say, self.meet, self.open, self.lr = optimizers, say, meet, False, math.nan
        self._made, self._inside, self._skipped = dict[int, int](), 0, False
        self._params, self._versions = list[Tensor](), list[int]()
        self._hooks: list[Any] = []
        for optimizer in optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(self._before))
            self._hooks.append(optimizer.register_step_post_hook(self._after))

    def begin(self, params: Sequence[Tensor]) -> None:
        """A block begins. Raises SettingError within another one: an update is measured once."""
        if self.open:
            raise SettingError(
                "watch.step() within another block of the same watch, or within the closure of an optimiser: one block "
                "round each optimizer.step()"
            )
        self.open, self._skipped, self._made, self._inside = True, False, {}, 0
        self._params, self._versions = [*params], [p._version for p in params]

    def end(self) -> bool:
        """The block ends. Whether an update was made in it."""
        self.open = False
        if not self._made and not self._skipped and [p._version for p in self._params] != self._versions:
            self.say(UNSEEN)
        return bool(self._made)

    def remove(self) -> None:
        """Leave the optimisers alone."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _before(self, optimizer: optim.Optimizer, *_: Any) -> None:
        if not self.open:
            raise SettingError(OUTSIDE.format(type(optimizer).__name__))
        if not self._inside:
            self.meet(optimizer)
        self._inside += 1  # a step that calls the step of its base class runs the hooks of both

    def _after(self, optimizer: optim.Optimizer, *_: Any) -> None:
        self._inside -= 1
        if self._inside > 0:
            return
        overflow = getattr(
            optimizer, "found_inf", None
        )  # a fused optimiser is called by GradScaler, and skips by itself
        if overflow is not None and bool(overflow):
            self._skipped = True
            return
        self.lr = lr_of(self.optimizers)
        times = self._made[id(optimizer)] = self._made.get(id(optimizer), 0) + 1
        if times > 1:
            self.say(TWICE.format(type(optimizer).__name__, times))


class Update(NamedTuple):
    """An update that was made: its step, its loss (None: not known), whether that was given, and the learning rate."""

    step: int
    loss: float | None
    given: bool
    lr: float


class LossCurves:
    """Loss and learning rate of every update, kept until they are asked for: an accelerator is then waited for once.

    The losses given in blocks without an update add up, as their gradients do, unless these were thrown away.
    """

    def __init__(self) -> None:
        self.any_given = False
        self._given: Tensor | float | None = None
        self._rows: list[tuple[int, Tensor | float | None, bool, float]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def give(self, loss: Any) -> None:
        """What backward is called on for the next update, or a part of it. Raises SettingError for what is no number."""
        if isinstance(loss, Tensor):
            if loss.numel() != 1:
                raise SettingError(
                    f"the loss of a step has the shape {tuple(loss.shape)}; give what backward is called on"
                )
            value: Tensor | float = loss.detach().reshape(()).clone()
        else:
            try:
                value = float(loss)
            except (TypeError, ValueError):
                kind = type(loss).__name__
                raise SettingError(f"the loss of a step is a {kind}; expected a scalar tensor or a number") from None
        self._given = value if self._given is None else self._given + value
        self.any_given = True

    def rest(self, params: Sequence[Tensor]) -> None:
        """No update was made: the loss is kept where the gradients are, for the update that is to come."""
        if self._given is not None and not _accumulated(params):
            self._given = None

    def updated(self, step: int, lr: float, seen: float | None = None) -> None:
        """The update `step` was made on what was given, or, where nothing ever was, at a point whose loss was `seen`."""
        loss = self._given if self.any_given else seen
        self._rows.append((step, loss, self.any_given, lr))
        self._given = None

    def take(self) -> list[Update]:
        """The updates since the last time."""
        rows, self._rows = self._rows, []
        return [Update(step, None if loss is None else float(loss), given, lr) for step, loss, given, lr in rows]


def bare(optimizer: Any) -> Any:
    """The torch optimiser within the wrappers that Lightning and accelerate put around it."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), optim.Optimizer):
        if isinstance(optimizer, optim.lr_scheduler.LRScheduler | optim.lr_scheduler.ReduceLROnPlateau):
            break
        optimizer = inner
    return optimizer


def lr_of(optimizers: Sequence[optim.Optimizer]) -> float:
    """The learning rate of the first group of the first optimiser; NaN where there is none."""
    groups = optimizers[0].param_groups if optimizers else []
    return float(groups[0].get("lr", math.nan)) if groups else math.nan


@torch.no_grad()
def finite(model: nn.Module) -> bool:
    """Whether all weights are finite."""
    return all(bool(p.isfinite().all()) for p in model.parameters())


@torch.no_grad()
def _accumulated(params: Sequence[Tensor]) -> bool:
    """Whether there are gradients that go into the next update: some, and finite."""
    grads = [p.grad for p in params if p.grad is not None]
    return all(bool(g.isfinite().all()) for g in grads) and any(bool(g.any()) for g in grads)
