"""When may a Krylov search end? When an eigenvalue that it has not seen would be a rare accident of its start vectors.

To go on is easy, to stop is not. A Ritz value converges like |r|^2 / gap (Kato and Temple), so that waiting for a small
residual |r| costs three times too many products; but the gap is not known, and Ritz values flatter it. A small residual
says that SOME eigenvalue is near: of two within 2 % of each other the larger one may stay unseen meanwhile.

Let u be any unit eigenvector, A u = lambda u. Multiplied by u' from the left, A Q' = Q'T + N'C' (`lab.curvature.basis`) says

    lambda Qu = T Qu + C Nu     =>     Qu = (lambda - T)^-1 C (Nu),    |Nu| <= 1

The start vectors X = (x_1 .. x_b) = Q'E lie in the span of Q, so that along u they have the components

    X'u = E'Qu = F(lambda) (Nu),    F(lambda) = E'(lambda - T)^-1 C

which is known for every lambda, and which away from Ritz values shrinks by a factor with every product.

COLD: the entries of X are drawn from N(0, 1). Then X'u ~ N(0, 1_b) for every u, whatever A is; but an eigenvector that has
not been seen confines it to the ellipsoid F(lambda) (Nu), which has a probability of at most P(chi^2_b <= |F(lambda)|^2).
The search ends when that is below `DECEIVED` for every lambda above the last wanted Ritz value + tol, except within tol of
a Ritz value: for each wanted pair a bound on false claims for ANY operator, a posteriori, where Kuczynski and Wozniakowski
(SIAM J. Matrix Anal. 13, 1992) give one a priori. For b = 1 log |F| = const - sum_i log |lambda - theta_i| is convex between
Ritz values, so that the ends of these intervals stand for all between them. Where c copies of an eigenvalue have been seen,
one more is held against what is left: b - c degrees of freedom and the singular value c + 1 of F. So b - 1 copies at most
can be known to be all of them: b = 1 serves one wanted pair, b = 2 several.

WARM: X are vectors near the wanted eigenvectors, those of a nearby operator, made orthonormal. Now |X'u| is the share of u
in their span, and the search ends when an unseen eigenvector could have a share of at most `OVERLAP`. That none with a
smaller share comes up between two solves is an assumption, so a chain of warm solves should start cold again from time to
time (`lab.probes.sharpness` does).

RESTART: a cycle that begins with Ritz vectors and the N of the cycle before knows N u = (rows of its own Q) u, so that the
F of the cycles multiply.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

DECEIVED = 0.001
"""Cold: probability, over the random start vectors, below which an unseen eigenvalue is ruled out."""
OVERLAP = 0.1
"""Warm: the share that an unseen eigenvector above may have in the span of the start vectors. Of 1000 clustered spectra
that had moved by 1 % of the top 4 solves missed one, of 1000 that had moved by 5 % two did, by 3.4 tolerances at most."""


@dataclass
class Cycle:
    """The part of a search up to a restart: T (m, m), C (m, c), and E: the rows of Q that were the N of the cycle before, or
    the given start vectors, and the coordinates in Q of each random vector drawn. closed: there is no N, Q is invariant.
    """

    t: Tensor = field(init=False)
    c: Tensor = field(init=False)
    begun: list[int] = field(default_factory=list)
    random: list[Tensor] = field(default_factory=list)
    closed: bool = False


class Evidence:
    """What start vectors prove about eigenvectors that have not been seen.

    given      start vectors that were not random; overlap: the share in them that is tolerated.
    saturated  whether as many copies of an eigenvalue were seen as there are start vectors: only one more can settle it.
    """

    def __init__(self) -> None:
        self.past: list[Cycle] = []
        self.now = Cycle()
        self.given, self.overlap, self.saturated = 0, OVERLAP, False

    @property
    def draws(self) -> int:
        """Random start vectors so far."""
        return sum(len(cycle.random) for cycle in (*self.past, self.now))

    def certain(self, theta: Tensor, wanted: int, tol: float, *, sign: int = 1) -> bool:
        """Whether every eigenvalue above the last of the `wanted` is within `tol` of a Ritz value, copies counted.

        theta  (m,) Ritz values, descending; of -A with sign -1.
        """
        if wanted == 0:
            return True
        scale = float(theta.abs().max())
        if scale == 0.0:  # where random vectors have no image the operator is zero; given ones prove nothing
            return self.draws > 0
        checks = self._checks(theta, wanted, max(tol, 1e-12 * scale))
        self.saturated = any(copies >= (self.draws or self.given) for _, copies in checks)
        return all(self.excludes(sign * value, copies) for value, copies in checks)

    def _checks(self, theta: Tensor, wanted: int, tol: float) -> list[tuple[float, int]]:
        """The values at which one more eigenvector is to be ruled out, beside so many copies that have been seen."""
        level = float(theta[wanted - 1]) + tol
        if bool(((theta - level).abs() < 1e-3 * tol).any()):  # beside another Ritz value, not at it
            level += 2e-3 * tol
        near = ((theta[:, None] - theta[None, :]).abs() <= tol).sum(0)  # (m,)
        # A copy that is missed shifts the ranks below it: harmless where the gaps there are small.
        gaps = theta[: wanted - 1] - theta[1:wanted]  # (wanted - 1,)
        checks = [(level, 0)]
        for i, value in enumerate(theta[:wanted].tolist()):
            if value > level and (self.draws or self.given) > 1 and bool((gaps[i:] > tol).any()):
                checks.append((value + 1e-3 * tol, int(near[i])))
            edges = (value - 1.001 * tol, value + 1.001 * tol)
            checks += [(edge, 0) for edge in edges if edge > level and not bool(((theta - edge).abs() < tol).any())]
        return checks

    def excludes(self, value: float, copies: int) -> bool:
        """Whether there is hardly one more eigenvector of eigenvalue `value` beside the `copies` that have been seen."""
        F = self._components(value)
        if F is None:
            return False
        if self.draws:
            freedom = self.draws - copies
            lengths = torch.linalg.svdvals(F[self.given :])  # those of the random vectors alone
            if freedom <= 0 or copies >= len(lengths):
                return freedom > 0
            half = torch.tensor(freedom / 2, dtype=torch.float64)
            hidden = float(torch.special.gammainc(half, lengths[copies] ** 2 / 2))  # P(chi^2 <= lengths^2)
            # The directions of the copies are random too: a factor of 1.6 was measured for one copy of two vectors.
            return hidden * (copies + 1) <= DECEIVED
        if self.now.closed:  # an invariant subspace tells nothing of the rest
            return False
        shares = torch.linalg.svdvals(F)
        return copies < self.given and (copies >= len(shares) or float(shares[copies]) <= self.overlap)

    def _components(self, value: float) -> Tensor | None:
        """F(value) (start vectors, c), the given ones first; None at a Ritz value to the last bit."""
        F = None
        for cycle in (*self.past, self.now):
            shifted = value * torch.eye(len(cycle.t), dtype=torch.float64) - cycle.t  # (m, m)
            through, singular = torch.linalg.solve_ex(shifted, cycle.c)  # (m, c)
            if int(singular):
                return None
            begun = through[cycle.begun]  # (b, c)
            drawn = [(x @ through[: len(x)])[None] for x in cycle.random]  # (1, c) each
            F = torch.cat([begun if F is None else F @ begun, *drawn])
        return F
