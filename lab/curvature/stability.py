"""At which curvature does an optimiser become unstable? The threshold of every torch optimiser, as one formula.

On a quadratic with curvature h a step with momentum b, learning rate lr and decay d is a linear recursion in (v, w)

    v <- b v + gain_g (h + c) w,     w <- (1 - lr d) w - lr (v, or (h + c) w + b v for Nesterov) / p

with c the weight decay added to the gradient (coupled), d the decay taken off the weights (decoupled), p the
preconditioner. Its largest root passes through -1 when

    (h + c) / p = (1 + b) (2 / lr - d) / gain = edge,    gain = 1 - dampening,  or 1 + 2 b for Nesterov.

Where every weight i has settings of its own (parameter groups, several optimisers) and H couples them, the edge is

    lambda_max(S^-1/2 (H + c) S^-1/2) = 1,    S = diag(p_i edge_i),

exactly, whatever is mixed: momenta, dampening, Nesterov, decays, rates, preconditioners. For a root z has
(H + c) w = -D(z) w with D diagonal, D_i = p_i (z - 1 + lr d) (z - b) / (lr n), n = (1 - dampening) z or (1 + b) z - b for
Nesterov. On the circle z = exp(i t), 0 < t < pi, the sign of every Im D_i is that of

    (1 - b (1 - lr d)) sin t,    or (1 + b + b^2 lr d - 2 b cos t) sin t for Nesterov:

positive. H + c is symmetric, so the sum of |w_i|^2 Im D_i would have to vanish: no complex root gets through the circle.
Through +1 one goes only where H + c + D(1) is singular, along negative curvature; through -1 where H + c - S is.

Adam's momentum is a running mean: dampening = b1. Sources: Polyak (1964); Cohen et al. 2021 (arXiv 2103.00065), section
2 and appendix B; Cohen et al. 2022 (arXiv 2207.14484), eq. 2 for frozen Adam. Each row is tested against torch.optim.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

Coefficient = float | Tensor
"""A number, or a vector (P,) where it differs from weight to weight."""
TINY = 1e-300


@dataclass(frozen=True)
class UpdateRule:
    """One update of the weights w (P,) at one moment, as far as linear stability needs it.

    lr, momentum b, dampening, nesterov: of the step. coupled_decay c joins the gradient, decoupled_decay d shrinks the
    weights by lr d. preconditioner p (P,) divides the step; None is the identity. Coefficients are numbers, or vectors
    (P,) where weights differ in them: by their parameter groups, or their optimisers. A weight that does not move has lr 0.

    >>> rule = UpdateRule(lr=0.1, momentum=0.9)
    >>> round(rule.threshold, 6), rule.formula
    (38.0, '(1+b) x 2/lr')
    """

    lr: Coefficient
    momentum: Coefficient = 0.0
    dampening: Coefficient = 0.0
    nesterov: bool | Tensor = False
    coupled_decay: Coefficient = 0.0
    decoupled_decay: Coefficient = 0.0
    preconditioner: Tensor | None = None

    @property
    def edge(self) -> Coefficient:
        """The eigenvalue of p^-1 (H + c) at which the recursion reaches -1: (1+b)(2/lr - d)/gain, per coordinate."""
        heavy, ahead = 1 - self.dampening, 1 + 2 * self.momentum
        if isinstance(self.nesterov, Tensor):
            gain: Coefficient = torch.where(self.nesterov, ahead, heavy)
        else:
            gain = ahead if self.nesterov else heavy
        safe_lr, safe_gain = (x if isinstance(x, Tensor) else max(x, TINY) for x in (self.lr, gain))
        return (1 + self.momentum) * (2 / safe_lr - self.decoupled_decay) / safe_gain

    @property
    def uniform(self) -> bool:
        """Whether all weights have the same coefficients, the preconditioner aside."""
        return not any(isinstance(getattr(self, part.name), Tensor) for part in fields(self)[:-1])

    @property
    def moved(self) -> Tensor | None:
        """The places (m,) in w of the weights that move, lr > 0; None where all do, or none does."""
        if not isinstance(self.lr, Tensor):
            return None
        places = (self.lr > 0).nonzero()[:, 0]
        return places if 0 < len(places) < len(self.lr) else None

    @property
    def moving(self) -> "UpdateRule":
        """The rule of the weights that move alone, on `moved`."""
        return self if (places := self.moved) is None else self.on(places)

    def on(self, places: Tensor) -> "UpdateRule":
        """The rule of the weights at `places` (m,) alone: numbers where these agree."""

        def cut(coefficient: float | Tensor) -> float | Tensor:
            if not isinstance(coefficient, Tensor):
                return coefficient
            part = coefficient[places.to(coefficient.device)]
            return part[0].item() if bool((part == part[0]).all()) else part

        cuts = {part.name: cut(getattr(self, part.name)) for part in fields(self)[:-1]}
        p = None if self.preconditioner is None else self.preconditioner[places.to(self.preconditioner.device)]
        return UpdateRule(**cuts, preconditioner=None if p is None or bool((p == 1).all()) else p)  # type: ignore[arg-type]

    def resting(self, places: Tensor) -> "UpdateRule":
        """The same rule with the weights at `places` (m,) at rest: learning rate 0."""
        if self.preconditioner is None or not len(places):
            return self
        p = self.preconditioner
        lr = torch.as_tensor(self.lr, dtype=torch.float64).expand(len(p)).index_fill(0, places, 0.0)
        return replace(self, lr=lr, preconditioner=p.index_fill(0, places.to(p.device), 1.0))

    @property
    def plain(self) -> bool:
        """Whether the edge is one number for the eigenvalues of H itself: no preconditioner, no differences of weights."""
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
        b, t = (torch.as_tensor(x, dtype=torch.float64) for x in (self.momentum, self.dampening))
        mean = torch.equal(b, t)  # Adam's running mean
        if isinstance(self.nesterov, Tensor) or (isinstance(self.dampening, Tensor) and not mean):
            return "the least threshold of its optimisers"
        decay = " - wd" if _positive(self.coupled_decay) and self.preconditioner is None else ""
        two = "(2/lr - wd)" if _positive(self.decoupled_decay) else "2/lr"
        if not _positive(self.momentum):
            return two + decay
        if self.nesterov:
            return f"(1+b)/(1+2b) x {two}{decay}"
        if _positive(self.dampening):
            return f"(1+b)/(1-{'b' if mean else 't'}) x {two}{decay}"
        return f"(1+b) x {two}{decay}"

    def scaling(self, w: Tensor) -> Tensor:
        """The diagonal (P,) by which H + c must be divided for its largest eigenvalue to be held against `threshold`."""
        diagonal = torch.ones_like(w) if self.preconditioner is None else self.preconditioner.to(w)
        return diagonal * (self.edge / self.threshold).to(w) if isinstance(self.edge, Tensor) else diagonal


def _positive(coefficient: Coefficient) -> bool:
    return bool(coefficient.max() > 0) if isinstance(coefficient, Tensor) else coefficient > 0
