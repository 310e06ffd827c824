"""Which steps of a run were clipped, and by what factor: the gradient before Lightning clips it beside that of the step.

Nothing is read from settings: the norms of every parameter's gradient are taken before and after. Where all shrank by one
factor f, the step was that of the effective learning rate lr f, with f = min(1, c/|g|) for clipping by norm to c. Where they
did not (clipping by value), it was that of no learning rate.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor, optim

from lab.curvature.stability import UpdateRule
from lab.module import SupervisedModule
from lab.objective import at_least_single

ALIKE = 1e-3
"""Factors that differ by less, relative to 1, are one: by more than round-off, by less than matters."""
CLIPPED = 1e-6
"""A norm that falls by more than this was clipped."""

BY_NORM = (
    "gradients are clipped by norm: sharpness/ratio is that of steps that are not; sharpness/clipped_threshold and "
    "clipped_ratio, by which the phase is judged, are those of the effective learning rate lr min(1, c/|g|) of the step"
)
UNEVEN = (
    "gradients are clipped, and not by one factor (by value): threshold and ratio hold for steps that are not clipped only, "
    "and no phase is judged by the others; train/clipped is the share of clipped steps"
)

CLIPPED_ONLY = "gradients are clipped: train/clipped is the share of clipped steps"
BOUND = (
    "gradients are clipped by norm, by a factor that is not known here: threshold and ratio hold for steps that are not "
    "clipped only, and no phase is judged by the others; train/clipped is the share of clipped steps"
)


class Clipping:
    """Watches the clipping of gradients in a fit, where it can be seen: by `gradient_clip_val`, in
    `configure_gradient_clipping`, in `on_before_optimizer_step` of the LightningModule, or by that of the lab. Cost where it
    watches: four norms of the gradient a step; else nothing.

    watched        whether gradients may be clipped in this fit.
    steps, clipped how many steps were made, and how many of them on a clipped gradient.
    uneven         how many of these were clipped by no one factor, as by value.
    factor         of the last step: 1 where it was not clipped, NaN where it was and no one factor did it.
    """

    def __init__(self) -> None:
        self.watched, self.steps, self.clipped, self.uneven, self.factor = False, 0, 0, 0, math.nan
        self._configured = self._by_value = self._bounded = self._held = False
        self._before: dict[int, Tensor] = {}
        self._hooks: list[Any] = []

    @property
    def share(self) -> float | None:
        """Of the steps so far that were clipped; None where nothing is known to clip, and nothing was."""
        return self.clipped / self.steps if self.steps and (self._configured or self.clipped) else None

    def judged(self, rule: UpdateRule | None, ratio: float) -> tuple[dict[str, float], float]:
        """The tags of the step just made, whose weights had this ratio under `rule` (that of those that move), and the ratio
        that may be held against 1: the effective one, NaN where the step has none.

        A step on f g is lr f H w away: lambda_max is held against threshold / f. That is so for adaptive optimisers, too:
        their second moments, in the ratio, hold gradients clipped before. Weight decay that joins the gradient later is not
        clipped: threshold / f is exact where the rule is plain, and nothing is said where it is not.
        """
        self._held = self._held or rule is not None
        if self.share is None:
            return {}, ratio
        values, f = {"train/clipped": self.share}, self.factor
        if rule is None or not (rule.plain or bool((torch.as_tensor(rule.coupled_decay) == 0).all())):
            return values, ratio if f == 1 else math.nan
        if f > 0 and not self._by_value and math.isfinite(ratio):
            values |= {"sharpness/clipped_threshold": rule.threshold / f, "sharpness/clipped_ratio": ratio * f}
        return values, ratio * f

    def formula(self, threshold: str) -> str:
        """What the ratio of `judged` is held against, in words."""
        if not self.clipped:
            return threshold
        of = f"({threshold})" if threshold.endswith(" - wd") else threshold
        return f"{of} of unclipped steps" if self.uneven else f"{of} x max(1, |g|/c)"

    @property
    def told(self) -> str:
        """What is to be said of it, in a line; "" where no step was clipped so far. Of ratio and phase nothing under
        an optimiser whose threshold is not known.
        """
        if not self.clipped:
            return ""
        if not self._held:
            return CLIPPED_ONLY
        return BOUND if self._bounded else UNEVEN if self.uneven else BY_NORM

    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule, then: Callable[[], None]) -> None:
        """Watch the fit that starts now; `then` is called after every step."""
        self.end()
        if isinstance(pl_module, SupervisedModule):
            self._by_value, self._configured = pl_module.clip.value is not None, bool(pl_module.clip)
            pl_module.clip.before = lambda: self.see(*trainer.optimizers)
            self.watched = self._configured
        else:
            own = is_overridden("configure_gradient_clipping", pl_module)
            asked = bool(trainer.gradient_clip_val) or own
            self._by_value = trainer.gradient_clip_algorithm == "value" and not own
            self._configured = asked and pl_module.automatic_optimization
            self.watched = self._configured or is_overridden("on_before_optimizer_step", pl_module)
        if not self.watched:
            return

        def stepped(optimizer: optim.Optimizer, *_: Any) -> None:
            if (before := self._before.pop(id(optimizer), None)) is not None:
                self._count(before, _norms(optimizer))
                then()

        self._hooks = [optimizer.register_step_post_hook(stepped) for optimizer in trainer.optimizers]

    def see(self, *optimizers: optim.Optimizer) -> None:
        """The gradient of the step to come, not yet clipped: Lightning clips after `on_before_optimizer_step`."""
        for optimizer in optimizers if self.watched else ():
            self._before[id(optimizer)] = _norms(optimizer)

    def see_bound(self, optimizers: Sequence[optim.Optimizer], bound: float) -> None:
        """The gradient of the step to come, which may have been clipped by norm to `bound`: a norm that lies there was, by a
        factor that nobody tells.
        """
        norms = torch.cat([_norms(optimizer)[::2] for optimizer in optimizers])
        clipped = float(norms.square().sum().sqrt()) >= bound * (1 - ALIKE)
        self.steps, self.clipped, self.uneven = self.steps + 1, self.clipped + clipped, self.uneven + clipped
        self._configured = self._bounded = True
        self.factor = math.nan if clipped else 1.0

    def end(self) -> None:
        """Leave the optimisers alone."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._before = [], {}

    def state_dict(self) -> dict[str, float]:
        """Of the factor only what is one: NaN is equal to nothing, itself included."""
        factor = {"factor": self.factor} if math.isfinite(self.factor) else {}
        return {"steps": self.steps, "clipped": self.clipped, "uneven": self.uneven} | factor

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps, self.clipped, self.uneven = (state.get(name, 0) for name in ("steps", "clipped", "uneven"))
        self.factor = state.get("factor", math.nan)

    def _count(self, before: Tensor, after: Tensor) -> None:
        if len(before) != len(after) or not bool(before.isfinite().all()):
            self.factor = math.nan
            return
        factors = (after / before)[before > 0]
        least, most = (float(factors.min()), float(factors.max())) if len(factors) else (1.0, 1.0)
        clipped = least < 1 - CLIPPED
        self.steps, self.clipped = self.steps + 1, self.clipped + clipped
        self.factor = 1.0 if not clipped else least if most - least < ALIKE * most else math.nan
        self.uneven += math.isnan(self.factor)


@torch.no_grad()
def _norms(optimizer: optim.Optimizer) -> Tensor:
    """Euclidean and largest entry of the gradient of every parameter: (2n,) float64 on the host."""
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    dense = [g for g in grads if not g.is_sparse and g.numel()]
    kinds = [norms_of(g).double() for g in dense]
    return torch.cat([norms.to(kinds[0].device) for norms in kinds]).cpu() if kinds else torch.zeros(0)


@torch.no_grad()
def norms_of(gradient: Tensor) -> Tensor:
    """Euclidean and largest entry of a gradient: (2,), on its device."""
    single = at_least_single(gradient)
    return torch.stack([torch.linalg.vector_norm(single, order) for order in (2, math.inf)])
