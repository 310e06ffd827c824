"""Escape in one dimension and continuous time, exactly: dx = -L'(x) dt + sqrt(2 D(x)) dW (Ito), D = T for additive noise.

    phi(x) = int L' / D,   scale density s = exp(phi),   speed density m = exp(-phi) / D,   S(x, y) = int_x^y s
    mean time to leave (a, b)       tau(x) = [S(x,b) int_a^x S(a,z) m dz + S(a,x) int_x^b S(z,b) m dz] / S(a,b)
    mean time to b from below       tau(x) = S(x,b) int_-inf^x m dz + int_x^b S(z,b) m dz
    rate of escape                  1 / the largest eigenvalue of that (Green's) operator: from the quasi-stationary law

All terms are positive and kept as logarithms, so barriers of any height are computed to many digits; the asymptotes are
the limit of a high barrier, off by 10 to 20 % where one can simulate:

    Kramers, Eyring                 tau = 2 pi / sqrt(L''_a |L''_b|) exp(barrier / T)
    any D                           tau = 2 pi sqrt(D_b / D_a) / sqrt(L''_a |L''_b|) exp(phi_b - phi_a)
    D = lr |L''| / 2B               tau = 2 pi / L''_a exp(E),  E = (2 B barrier / lr) (s / H_a + (1 - s) / |H_b|)

The last exponent is that of Xie, Sato and Sugiyama (2021, arXiv 2002.03495); the prefactor they give, 2 pi / |H_b|, is off
by H_a / |H_b| for SGD, whose noise is that of Ito. Times are in units of lr * step, to the other side of the barrier;
to the top it is half. Gardiner, Handbook of Stochastic Methods, 5.2.7; Pontryagin, Andronov and Vitt (1933).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.gallery.laws.panels import Panels, panels
from lab.landscapes.base import Landscape

DEPTH = 50.0
"""How far up, in units of phi, a side without exit is cut off: a mass of exp(-50)."""
FARTHEST = 1e9
ITERATIONS, TOL = 200, 1e-12


@dataclass(frozen=True)
class Diffusion:
    """dx = -slope(x) dt + sqrt(2 diffusion(x)) dW. Both act on tensors of any shape; diffusion > 0.

    cuts: where they jump.
    """

    slope: Callable[[Tensor], Tensor]
    diffusion: Callable[[Tensor], Tensor]
    cuts: tuple[float, ...] = ()

    def change(self, x: Tensor) -> Tensor:
        """phi'."""
        return self.slope(x) / self.diffusion(x)


def on(
    landscape: Landscape,
    diffusion: float | Callable[[Tensor], Tensor],
    *,
    cuts: tuple[float, ...] = (),
) -> Diffusion:
    """The diffusion along the first coordinate of a landscape, all others 0; diffusion a temperature, or D of x (..., 1)."""

    def slope(x: Tensor) -> Tensor:
        points = torch.zeros(*x.shape, landscape.num_params, dtype=x.dtype)
        points[..., 0] = x
        return landscape.gradient(points)[..., 0]

    def of(x: Tensor) -> Tensor:
        return diffusion(x[..., None])[..., 0] if callable(diffusion) else torch.full_like(x, diffusion)

    return Diffusion(slope, of, cuts)


# --- exact ----------


@dataclass(frozen=True)
class Domain:
    """Where a walker is inside: (low, high), each end an exit or, where it is None, no end at all."""

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise ValueError("low=None, high=None: expected at least one exit")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"low={self.low:g}, high={self.high:g}: expected low < high")

    def holds(self, x: float) -> bool:
        """Whether x is inside."""
        return (self.low is None or x > self.low) and (self.high is None or x < self.high)


def log_mean_time(process: Diffusion, start: float, domain: Domain) -> float:
    """log of the mean time to leave the domain from `start`, in units of lr * step. Relative error about 1e-8.

    >>> flat = Diffusion(lambda x: 0 * x, lambda x: 0 * x + 0.5)
    >>> round(math.exp(log_mean_time(flat, 0.3, Domain(0.0, 1.0))), 9)  # x (1 - x) / 2 D
    0.21
    """
    if not domain.holds(start):
        raise ValueError(f"start={start:g} is not inside the domain ({domain.low}, {domain.high})")
    green = _Green(process, domain, start)
    return float(green.apply(torch.zeros_like(green.rule.nodes), at=start))


def escape_rate(process: Diffusion, domain: Domain, *, start: float) -> float:
    """The rate at which the domain is left in the long run: -d log S/dt from the quasi-stationary law, per unit of time.

    start: any place of the well, from which the range is sought. 1 / rate is the mean time from there on, also where the
    start is forgotten slowly; a rate below 1e-300 is 0.
    """
    return math.exp(-_log_lifetime(process, domain, start))


class _Green:
    """The operator f -> E[int_0^exit f dt], whose kernel is positive, in logarithms."""

    def __init__(self, process: Diffusion, domain: Domain, start: float) -> None:
        low = domain.low if domain.low is not None else reach(process, start, -1)
        high = domain.high if domain.high is not None else reach(process, start, +1)
        # The starting point is an edge, between the nodes.
        self.rule = panels(low, high, process.change, cuts=(*process.cuts, start))
        self.low_exit, self.high_exit = domain.low is not None, domain.high is not None
        self.phi = self.rule.before(process.change(self.rule.nodes))
        self.log_speed = -self.phi - process.diffusion(self.rule.nodes).log()
        self.from_low, self.to_high = self.rule.log_before(self.phi), self.rule.log_after(self.phi)
        self.whole = self.rule.log_whole(self.phi)

    def apply(self, log_f: Tensor, *, at: float | None = None) -> Tensor:
        """log of the operator on exp(log_f) at the nodes (n, 8), or at one edge of the panels."""
        g, rule = log_f + self.log_speed, self.rule
        ahead = self.to_high if self.high_exit else torch.zeros_like(g)
        behind = self.from_low if self.low_exit else torch.zeros_like(g)
        whole = self.whole if self.low_exit and self.high_exit else torch.zeros(())
        below, above = rule.log_before(g + behind), rule.log_after(g + ahead)
        if at is None:
            return torch.logaddexp(ahead + below, behind + above) - whole
        first = int((rule.nodes[:, 0] < at).sum())  # panels before the edge
        inside, beyond = Panels(rule.edges[: first + 1]), Panels(rule.edges[first:])
        none = torch.tensor(-torch.inf, dtype=g.dtype)
        ahead_at = beyond.log_whole(self.phi[first:]) if self.high_exit else torch.zeros(())
        behind_at = inside.log_whole(self.phi[:first]) if self.low_exit else torch.zeros(())
        below_at = inside.log_whole((g + behind)[:first]) if first else none
        above_at = beyond.log_whole((g + ahead)[first:]) if first < len(rule.nodes) else none
        return torch.logaddexp(ahead_at + below_at, behind_at + above_at) - whole


def _log_lifetime(process: Diffusion, domain: Domain, start: float) -> float:
    """log of the largest eigenvalue of the Green operator, by power iteration."""
    green = _Green(process, domain, start)
    log_f, before = torch.zeros_like(green.rule.nodes), math.nan
    for _ in range(ITERATIONS):
        image = green.apply(log_f)
        # Rayleigh quotient in the measure m, in which the operator is symmetric.
        norm = green.rule.log_whole(2 * log_f + green.log_speed)
        log_rate = float(green.rule.log_whole(log_f + image + green.log_speed) - norm)
        if abs(log_rate - before) < TOL * max(1.0, abs(log_rate)):
            break
        log_f, before = image - image.max(), log_rate
    return log_rate


def reach(process: Diffusion, start: float, side: int) -> float:
    """The place on one side where phi is DEPTH above its least value between there and the start."""
    size = 0.25
    while size < FARTHEST:
        x = start + side * torch.linspace(0, size, 801, dtype=torch.float64)
        middles = (x[1:] + x[:-1]) / 2
        phi = torch.cat([torch.zeros(1).double(), (process.change(middles) * x.diff()).cumsum(0)])
        high = (phi - phi.cummin(0).values > DEPTH).nonzero()
        if len(high):
            return float(x[int(high[0])])
        size *= 2
    raise ValueError(
        f"nothing holds a walker from {start:g} {'upwards' if side > 0 else 'downwards'}: give an exit there"
    )


# --- asymptotic ----------


def kramers_time(
    exponent: float, well: float, top: float, *, well_diffusion: float = 1.0, top_diffusion: float = 1.0
) -> float:
    """tau = 2 pi sqrt(D_b / D_a) / sqrt(L''_a |L''_b|) exp(exponent): the limit of large exponents, in lr * step.

    exponent phi_b - phi_a, barrier / T for additive noise; well, top the curvatures L''_a and |L''_b|. To the other side.

    >>> round(kramers_time(0.25 / 0.07, 2.0, 1.0), 1)
    158.0
    """
    return 2 * math.pi * math.sqrt(top_diffusion / well_diffusion / (well * top)) * math.exp(exponent)


def curvature_exponent(barrier: float, well: float, top: float, *, share: float, batch_over_lr: float) -> float:
    """E = (2 B barrier / lr) (s / H_a + (1 - s) / |H_b|): noise D = lr |L''| / 2B, Xie, Sato and Sugiyama (2021).

    share s of the barrier climbed where the curvature is that of the well. As H_a grows E does not vanish: it falls to the
    part that is climbed around the top.
    """
    return 2 * batch_over_lr * barrier * (share / well + (1 - share) / top)
