"""At which curvature does an optimiser become unstable? The threshold of every torch optimiser, as one formula.

On a quadratic with curvature h a step with momentum b, learning rate lr and decay d is a linear recursion in (v, w)

    v <- b v + gain_g (h + c) w,     w <- (1 - lr d) w - lr (v, or (h + c) w + b v for Nesterov) / p

with c the weight decay added to the gradient (coupled), d the decay taken off the weights (decoupled), p the
preconditioner. Its largest root passes through -1 when

    (h + c) / p = (1 + b) (2 / lr - d) / gain,    gain = 1 - dampening,  or 1 + 2 b for Nesterov.

Adam's momentum is a running mean: dampening = b1. Sources: Polyak (1964); Cohen et al. 2021 (arXiv 2103.00065), section
2 and appendix B; Cohen et al. 2022 (arXiv 2207.14484), eq. 2 for frozen Adam. Each row is tested against torch.optim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

Coefficient = float | Tensor
"""A number, or a vector (P,) where the parameter groups of the optimiser differ."""


@dataclass(frozen=True)
class UpdateRule:
    """One update of an optimiser at one moment, as far as linear stability needs it.

    lr, momentum b, dampening, nesterov: of the step. coupled_decay c joins the gradient, decoupled_decay d shrinks the
    weights by lr d. preconditioner p (P,) divides the step; None is the identity. Coefficients are numbers, or vectors
    (P,) where parameter groups differ.
    """

    lr: Coefficient
    momentum: Coefficient = 0.0
    dampening: Coefficient = 0.0
    nesterov: bool = False
    coupled_decay: Coefficient = 0.0
    decoupled_decay: Coefficient = 0.0
    preconditioner: Tensor | None = None

    @property
    def edge(self) -> Coefficient:
        """The eigenvalue of p^-1 (H + c) at which the recursion reaches -1: (1+b)(2/lr - d)/gain, per coordinate."""
        gain = 1 + 2 * self.momentum if self.nesterov else 1 - self.dampening
        safe_lr = self.lr if isinstance(self.lr, Tensor) else max(self.lr, 1e-300)
        return (1 + self.momentum) * (2 / safe_lr - self.decoupled_decay) / gain

    @property
    def plain(self) -> bool:
        """Whether the edge is one number for the eigenvalues of H itself: no preconditioner, no per-group differences."""
        return (
            self.preconditioner is None
            and not isinstance(self.edge, Tensor)
            and not isinstance(self.coupled_decay, Tensor)
        )

    @property
    def threshold(self) -> float:
        """The largest stable sharpness: of H where the rule is plain (edge - c), else of `scaling^-1 (H + c)`."""
        if self.plain:
            return float(self.edge) - float(self.coupled_decay)
        return float(self.edge.min() if isinstance(self.edge, Tensor) else self.edge)

    @property
    def formula(self) -> str:
        """The threshold in words, e.g. "(2+2b)/lr - wd"."""
        decay = " - wd" if _positive(self.coupled_decay) and self.preconditioner is None else ""
        two = "(2/lr - wd)" if _positive(self.decoupled_decay) else "2/lr"
        if not _positive(self.momentum):
            return two + decay
        if self.nesterov:
            return f"(1+b)/(1+2b) x {two}{decay}"
        if _positive(self.dampening):
            mean = self.dampening is self.momentum or self.dampening == self.momentum  # Adam's running mean
            return f"(1+b)/(1-{'b' if mean else 't'}) x {two}{decay}"
        return f"(1+b) x {two}{decay}"

    def scaling(self, w: Tensor) -> Tensor:
        """The diagonal (P,) by which H + c must be divided for its largest eigenvalue to be held against `threshold`."""
        diagonal = torch.ones_like(w) if self.preconditioner is None else self.preconditioner.to(w)
        return diagonal * (self.edge / self.threshold).to(w) if isinstance(self.edge, Tensor) else diagonal


def _positive(coefficient: Coefficient) -> bool:
    return bool(coefficient.max() > 0) if isinstance(coefficient, Tensor) else coefficient > 0
