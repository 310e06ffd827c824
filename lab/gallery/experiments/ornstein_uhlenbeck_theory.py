"""Where walkers have settled, beside the exact covariances."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lab.gallery.base import (
    Measured,
    Verdict,
    about,
    exact,
    shown,
)
from lab.gallery.experiments.ornstein_uhlenbeck_figure import KINDS, relative, tail
from lab.noise.settling import Regression, Settled, average
from lab.noise.stationary import (
    averaging_factor,
    escape_loss,
    markov_bound,
    paley_zygmund_bound,
    stationary_covariance,
    stationary_width,
)
from lab.noise.tails import excess_kurtosis, stable_index, stable_width
from lab.results import Estimate

if TYPE_CHECKING:
    from lab.gallery.experiments.ornstein_uhlenbeck import OrnsteinUhlenbeck
MULTIPLES = np.linspace(0.05, 4, 80)
"""Of Tr C, beyond which the share of |v|^2 is counted."""
CLIMBING_STEPS = 200


@dataclass(frozen=True)
class Settlings(Measured):
    """C; walkers of SGD, heavy ball and real mini-batches; these' problem; walkers in the valley; E L of the first climb and
    the last L; walkers under stable noise; sizes |v|^2.
    """

    card: "OrnsteinUhlenbeck"
    C: Tensor
    plain: Settled
    ball: Settled
    batches: Settled
    problem: Regression
    valley: dict[str, Settled]
    climbs: dict[str, tuple[Tensor, Estimate]]
    heavy_tailed: Tensor
    sizes: Tensor

    @cached_property
    def law(self) -> Tensor:
        """The exact covariance (d, d) of SGD."""
        return stationary_covariance(self.card.H, self.C, lr=self.card.lr)

    @cached_property
    def ball_law(self) -> Tensor:
        """That of the heavy ball."""
        return stationary_covariance(self.card.H, self.C, lr=self.card.lr, momentum=self.card.momentum)

    @cached_property
    def continuous_law(self) -> Tensor:
        """The solution of H S + S H = lr C."""
        h = self.card.H.diagonal()
        return self.card.lr * self.C / (h[:, None] + h)

    @cached_property
    def valley_laws(self) -> dict[str, Tensor]:
        """Variances (n,) that the valley settles at."""
        H, lr = torch.diag(self.card.V), self.card.valley_lr
        noises = {kind: torch.diag(self.card.valley_noise(kind)) for kind in KINDS}
        return {kind: stationary_covariance(H, noise, lr=lr).diagonal() for kind, noise in noises.items()}

    @cached_property
    def climb_laws(self) -> dict[str, np.ndarray]:
        """E L along the first climb."""
        H, times = torch.diag(self.card.V), np.linspace(0, self.card.time, CLIMBING_STEPS + 1)
        noises = {kind: torch.diag(self.card.valley_noise(kind)) for kind in KINDS}
        return {kind: np.array([escape_loss(H, S, float(t)) for t in times]) for kind, S in noises.items()}

    def averaged(self, i: int) -> Estimate:
        """The variance of the running mean along curvature i."""
        return average(self.plain.mean[:, i] ** 2)

    def larger(self, multiple: float) -> float:
        """The share of |v|^2 beyond a multiple of Tr C."""
        return float((self.sizes > multiple * float(self.C.trace())).double().mean())

    def along(self, name: str, theory: Tensor, measured: Callable[[int], Estimate]) -> list[Verdict]:
        """A quantity along every curvature of H."""
        h = self.card.H.diagonal().tolist()
        return [exact(f"{name}, h = {h[i]:g}", theory[i], measured(i)) for i in range(len(h))]

    def rows(self) -> list[Verdict]:
        card, h, V = self.card, self.card.H.diagonal().tolist(), self.card.V
        factors = torch.tensor([averaging_factor(card.decay, 1 - card.lr * each) for each in h], dtype=torch.float64)
        widths = torch.tensor([stationary_width(each, lr=card.lr, alpha=card.alpha) for each in h], dtype=torch.float64)
        tails = self.heavy_tailed
        return [
            *self.along("variance", self.law.diagonal(), lambda i: self.plain.product(i, i)),
            exact("covariance of the first two", self.law[0, 1], self.plain.product(0, 1)),
            *self.along("heavy ball, variance", self.ball_law.diagonal(), lambda i: self.ball.product(i, i)),
            *self.along("running mean, variance", self.law.diagonal() * factors, self.averaged),
            exact("real mini-batches, trace", self.problem.law.trace(), average(self.batches.w.square().sum(1))),
            *(
                exact(f"settled loss, {kind} noise", V @ self.valley_laws[kind] / 2, average(walk.w.square() @ V / 2))
                for kind, walk in self.valley.items()
            ),
            *(
                about(f"E L({card.time:g}), {kind} noise", self.climb_laws[kind][-1], last)
                for kind, (_, last) in self.climbs.items()
            ),
            exact("E|v|^2, v ~ N(0, C)", self.C.trace(), average(self.sizes)),
            *self.along(f"width, alpha {card.alpha:g}", widths, lambda i: stable_width(tails[:, i], card.alpha)),
            exact("stable index of w", card.alpha, stable_index(tails[:, 0])),
        ]

    def arrays(self) -> dict[str, object]:
        card, law, problem, d = self.card, self.law, self.problem, range(len(self.card.curvatures))
        walks = {"stable": self.heavy_tailed, "gaussian": self.plain.w, "batches": self.batches.w}
        return {
            "product": card.lr * card.H.diagonal(),
            "ratio": [relative(self.plain.product(i, i), law[i, i]) for i in d],
            "ball": [relative(self.ball.product(i, i), self.ball_law[i, i]) for i in d],
            "batch_product": problem.lr * problem.H.diagonal(),
            "batch": [relative(self.batches.product(i, i), problem.law[i, i]) for i in d],
            "additive": problem.additive_law.diagonal() / problem.law.diagonal(),
            "mean": [relative(self.averaged(i), law[i, i]) for i in d],
            "decay": card.decay,
            "valley": card.V,
            **{f"settled_{kind}": law for kind, law in self.valley_laws.items()},
            **{
                f"seen_{kind}": [relative(walk.product(i, i), 1.0) for i in range(len(card.V))]
                for kind, walk in self.valley.items()
            },
            "times": np.linspace(0, card.time, CLIMBING_STEPS + 1),
            **{f"climb_{kind}": seen for kind, (seen, _) in self.climbs.items()},
            **{f"climb_law_{kind}": law for kind, law in self.climb_laws.items()},
            "multiples": MULTIPLES,
            "larger": [self.larger(m) for m in MULTIPLES],
            "markov": [markov_bound(m) for m in MULTIPLES],
            "paley_zygmund": [paley_zygmund_bound(m, self.C) if m < 1 else np.nan for m in MULTIPLES],
            "alpha": card.alpha,
            **{f"tail_{name}": tail(w[:, 0]) for name, w in walks.items()},
        }

    def values(self) -> dict[str, float]:
        return {
            "continuous_error": _apart(self.continuous_law, self.law),
            "additive_error": _apart(self.problem.additive_law, self.problem.law),
            "mini_batch_error": _apart(self.batches.covariance, self.problem.law),
            "measured_error": _apart(self.plain.covariance, self.law),
            "mini_batch_kurtosis": excess_kurtosis(self.batches.w).value,
        }

    def sentence(self) -> str:
        card, of = self.card, self.values()
        flat = {kind: walk.product(-1, -1).value for kind, walk in self.valley.items()}
        variance = "" if card.alpha == 2 else " has no variance, and w none"
        climbed = {kind: shown(last) for kind, (_, last) in self.climbs.items()}
        return (
            f"SGD with noise that does not depend on w settles at the discrete Lyapunov covariance (lr "
            f"{card.lr:g}, lr x lambda_max {card.lr * max(card.curvatures):g}): measured within "
            f"{of['measured_error']:.1%} in norm of the exact one, which the continuous formula misses by "
            f"{of['continuous_error']:.1%}. Real mini-batches of {card.batch_size} out of {card.examples}, at "
            f"{card.edge:g} of the lr at which second moments explode: measured within {of['mini_batch_error']:.1%} of "
            f"the exact operator, additive noise is off by {of['additive_error']:.1%}; excess kurtosis of w "
            f"{of['mini_batch_kurtosis']:.2f}. Noise of one trace: in the flattest direction isotropic noise spreads w "
            f"over a variance of {flat['isotropic']:.3g}, aligned noise over {flat['aligned']:.3g}; in time "
            f"{card.time:g} aligned noise climbs to E L = {climbed['aligned']} (theory "
            f"{self.climb_laws['aligned'][-1]:.4g}), isotropic to {climbed['isotropic']} "
            f"({self.climb_laws['isotropic'][-1]:.4g}). A large trace bounds large noise from above only: P(|v|^2 > 2 "
            f"Tr C) = {self.larger(2):.3f} <= {markov_bound(2.0):g} (Markov), P(|v|^2 > Tr C / 2) = "
            f"{self.larger(0.5):.3f} >= {paley_zygmund_bound(0.5, self.C):.3f} (Paley-Zygmund). Noise of index "
            f"{card.alpha:g}{variance}: of w the index is {shown(stable_index(self.heavy_tailed[:, 0]))}."
        )


def _apart(one: Tensor, other: Tensor) -> float:
    """Their distance over the norm of the other."""
    return float((one - other).norm() / other.norm())
