"""Gradients clipped before the optimiser has them, after any noise that is added to them, as torch.nn.utils does it:

norm    g min(1, c / |g|), |g| over all parameters of the optimiser (Pascanu, Mikolov and Bengio 2013, arXiv 1211.5063)
value   each entry brought into [-c, c]
"""

from collections.abc import Callable

from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from lab.optim.joint import Updater


class GradientClip:
    """One of norm and value; neither: nothing is clipped. `before` is called ahead of every clipping."""

    def __init__(self, norm: float | None = None, value: float | None = None):
        self.norm, self.value = norm, value
        self.before: Callable[[], object] = lambda: None

    def __bool__(self) -> bool:
        """Whether anything may be clipped."""
        return self.norm is not None or self.value is not None

    def __call__(self, optimizer: Updater) -> None:
        """Clip `.grad` of all parameters in place."""
        params = [p for group in optimizer.param_groups for p in group["params"]] if self else []
        if self:
            self.before()
        if self.norm is not None:
            clip_grad_norm_(params, self.norm)
        if self.value is not None:
            clip_grad_value_(params, self.value)
