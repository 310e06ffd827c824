"""What a plain loop does to its gradients between backward and `optimizer.step`: clipping by hand, and any other change.

    norms of every parameter's gradient after its last accumulation     hooks on the parameters
    norms of the same gradients as the optimiser steps                   its hook before the step

One factor f < 1 of all that varies from step to step is clipping by norm: the step is that of the learning rate lr f, as in
`lab.callbacks.clipping`. One factor that is the same twice, to round-off, is a scale, as of a mean over accumulated batches:
it is told and left alone; that of a GradScaler is known. No one factor: the gradient was changed, and no phase is judged;
so it is where gradients are coarser than float32, whose round-off hides which of these it is.

Only steps before which something is measured are looked at: two norms a parameter and accumulation, two at the step.
"""

import math
import sys
from collections.abc import Iterable, Mapping
from types import FrameType
from typing import Any

import torch
from torch import Tensor, optim

from lab.callbacks.clipping import ALIKE, CLIPPED, CLIPPED_ONLY, Clipping, norms_of
from lab.curvature.stability import UpdateRule

FINE = 1e-6
"""Round-off of float32 is below it, that of half and bfloat16 above."""
FRAMES = 40
"""Calls above `optimizer.step` among which a GradScaler is looked for."""
BY_NORM = (
    "gradients are clipped by norm between backward and optimizer.step: sharpness/ratio is that of steps that are not; "
    "sharpness/clipped_threshold and clipped_ratio, by which the phase is judged, are those of the effective learning rate "
    "lr f of the step, f the factor by which its gradient shrank; train/clipped is the share of the measured steps"
)
CHANGED = (
    "gradients are changed between backward and optimizer.step, by no one factor that can be told: threshold and ratio hold "
    "for steps on the gradient as it was only, and no phase is judged by the others; train/clipped is the share of the "
    "measured steps"
)
UNDECIDED = (
    "the gradient was {:.3g} times as large at optimizer.step as after backward: whether it is clipped or scaled is known "
    "from the next measured step on, and no phase is judged by this one"
)
SCALED = (
    "gradients are scaled by {:.3g} between backward and optimizer.step, at every measured step: threshold and ratio take "
    "what is left for the gradient of the measured loss"
)


class HandClipping(Clipping):
    """Watches the measured steps of a plain loop. steps, clipped, uneven count these only.

    scale  of all gradients, where one was found; first: the factor of the first change, until the next step decides on it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.first, self.remark = 1.0, math.nan, ""
        self._armed: list[Any] = []
        self._recorded: dict[Tensor, Tensor] = {}
        self._factors: list[Tensor] = []
        self._coarse = False

    def arm(self, params: Iterable[Tensor]) -> None:
        """Before the step to come something is measured: watch its gradients."""
        if not self._armed:
            self._armed = [p.register_post_accumulate_grad_hook(self._record) for p in params if p.is_leaf]
            self.watched = bool(self._armed)

    def disarm(self) -> None:
        for hook in self._armed:
            hook.remove()
        self._armed, self._recorded, self._factors, self.watched = [], {}, [], False

    def meet(self, optimizer: optim.Optimizer) -> None:
        """It is about to step."""
        held = [p for group in optimizer.param_groups for p in group["params"] if p in self._recorded]
        held = [p for p in held if p.grad is not None and not p.grad.is_sparse]
        if not held:
            return
        self._coarse = self._coarse or any(torch.finfo(p.dtype).eps > FINE for p in held)
        before = torch.stack([self._recorded[p].to(held[0].device) for p in held]).double().cpu()
        after = torch.stack([norms_of(p.grad).to(held[0].device) for p in held if p.grad is not None]).double().cpu()
        known = (before > 0) & before.isfinite()
        if bool(known.any()) and bool(after.isfinite().all()):
            self._factors.append(_unscaled((after / before)[known]))

    def stepped(self) -> None:
        """The update of the block is made."""
        if self._factors:
            self._judge(torch.cat(self._factors) / self.scale)
        elif self._armed:
            self.factor = math.nan if self.clipped else 1.0  # nothing is known of its gradients
        self.disarm()

    def judged(self, rule: UpdateRule | None, ratio: float) -> tuple[dict[str, float], float]:
        """As of the base; while a first change is undecided there is no ratio. A factor is that of one step: the end of a
        run, which no step follows, has none where others were clipped.
        """
        if math.isfinite(self.first):
            self._held = self._held or rule is not None
            return {}, math.nan
        made = super().judged(rule, ratio)
        self.factor = math.nan if self.clipped else 1.0
        return made

    @property
    def told(self) -> str:
        """As of the base."""
        if not self.clipped:
            return self.remark if self._held else ""
        return CLIPPED_ONLY if not self._held else CHANGED if self.uneven else BY_NORM

    def end(self) -> None:
        self.disarm()
        super().end()

    def state_dict(self) -> dict[str, float]:
        first = {"first": self.first} if math.isfinite(self.first) else {}
        return super().state_dict() | {"scale": self.scale} | first

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.scale, self.first = state.get("scale", 1.0), state.get("first", math.nan)

    def _judge(self, factors: Tensor) -> None:
        least, most, first = float(factors.min()), float(factors.max()), self.first
        self.steps, self.first, self.factor = self.steps + 1, math.nan, 1.0
        changed = least < 1 - CLIPPED or most > 1 + CLIPPED
        one = most - least < ALIKE * most and not self._coarse
        if changed and one and abs(least - first) <= CLIPPED * first:
            self.scale, self.remark = self.scale * least, SCALED.format(self.scale * least)
            return
        self.clipped += math.isfinite(first)  # it was no scale
        if not changed:
            return
        if one and math.isnan(first) and not self.clipped and self.scale == 1:
            self.first, self.factor, self.remark = least, math.nan, UNDECIDED.format(least)
            return
        self.clipped += 1
        self.factor = least if one and least < 1 else math.nan
        self.uneven += math.isnan(self.factor)

    def _record(self, parameter: Tensor) -> None:
        if parameter.grad is not None and not parameter.grad.is_sparse and parameter.numel():
            self._recorded[parameter] = norms_of(parameter.grad)


def _unscaled(factors: Tensor) -> Tensor:
    """The factors without that of a GradScaler which is stepping, where it has taken its scale out of the gradients."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(FRAMES):
        if frame is None or bool((factors == 1).all()):
            break
        scaler = frame.f_locals.get("self")
        if isinstance(scaler, torch.amp.GradScaler):
            scale = float(scaler.get_scale())
            return factors * scale if float(factors.max()) <= (1 + ALIKE) / scale else factors
        frame = frame.f_back
    return factors
