"""Estimators of Tr A for any symmetric operator, known by its products, and the error of a mean of draws.

E s'As = Tr A for random signs s (Hutchinson 1990). Hutch++ (Meyer, Musco, Musco, Woodruff 2021, algorithm 1) takes the
trace on the range of A S exactly and samples the rest; XTrace (Epperly, Tropp, Webber 2024, section 2.2) does so with
every probe left out in turn, which uses each product twice and tells the error.

`lab.curvature.trace` chooses between them. Each takes `tol`, the wanted error relative to |Tr A|, and the products it may
spend at `most`; errors are those of `lab.curvature.forms`, of XTrace and of sums
those of `interval`: one standard error, widened for few and skew draws.
"""

import math
from collections.abc import Callable

import torch
from scipy.special import stdtrit
from torch import Tensor

from lab.curvature.forms import FEWEST_FREEDOM, Forms, Interval
from lab.curvature.operators import LinearOperator
from lab.curvature.vectors import dots
from lab.results import Estimate
from lab.streams import random_signs

FEWEST_PROBES = 8
"""Probes of XTrace and Hutch++ before they may stop."""
CORRELATED = 1.3
"""The estimates of XTrace share all but one probe, so their spread understates the error: by 1.0 to 1.4 for 5 to 50 probes
in spectra flat, decaying and with outliers, and by 1/(1 - probes/P) more where probes are many. With this its intervals
of 95 % cover 94 to 100 %, but 87 % (5 probes) and 90 % (8 probes) where each eigenvalue is 0.7 times the one before."""


class Probes:
    """Signs S (P, k), their products Y = A S, and a basis Q of the span of Y with Z = A Q; they grow, none is redone.

    What is estimated is Tr A + `offset`, a number that is known.
    """

    def __init__(self, operator: LinearOperator, generator: torch.Generator, offset: float = 0.0):
        self.operator, self.generator, self.offset = operator, generator, offset
        self.S = self.Y = self.Q = self.Z = torch.zeros(operator.size, 0, dtype=operator.dtype, device=operator.device)
        self.spent = 0
        self.low_rank = False
        """The span of Q holds the whole range of A: Tr A = Tr Q'Z."""

    def draw(self, num: int, *, generic: bool = False) -> tuple[Tensor, Tensor]:
        """`num` columns of signs and their products, not kept.

        generic: entries of squared length uniform in 0.5 .. 1.5 instead of 1, still E s s' = 1. Signs alone may be
        dependent where A acts on a few coordinates, and would feign a low rank; the variance grows by 1/12 sum A_ii^2.
        """
        shape, device = (num, self.operator.size), self.generator.device
        signs = random_signs(shape, self.S, self.generator)
        if generic:
            squares = torch.rand(shape, generator=self.generator, device=device, dtype=signs.dtype) + 0.5
            signs *= squares.sqrt().to(signs.device)
        self.spent += num
        return signs.T, self.operator @ signs.T

    def sketch(self, num: int) -> None:
        """`num` more columns of S, Y, and of Q and Z, fewer of those where Y is of lower rank."""
        if num == 0:
            return
        S, Y = self.draw(num, generic=True)
        self.S, self.Y = torch.cat([self.S, S], 1), torch.cat([self.Y, Y], 1)
        self.extend_range(Y)

    def extend_range(self, Y: Tensor) -> None:
        """Q and Z for the span of Y too. What stays of a column beside its round-off decides the rank."""
        tiny = torch.finfo(Y.dtype).tiny
        rest = Y / Y.abs().amax(0).clamp(
            min=tiny
        )  # first by the largest entry: squares might leave the range of floats
        rest = rest / torch.linalg.vector_norm(rest, dim=0).clamp(min=tiny)
        for _ in range(2):  # once leaves round-off of the size eps |Y|, which may be all there is
            rest = rest - self.Q @ _inner(self.Q, rest).to(rest.dtype)
        basis, upper = torch.linalg.qr(rest)
        small = 20 * torch.finfo(Y.dtype).eps
        if bool((upper.diagonal().abs() <= small).any()) and bool(rest.isfinite().all()):
            self.low_rank = True
            left, singular, _ = torch.linalg.svd(rest, full_matrices=False)
            basis = left[:, singular > small]
        if basis.shape[1] == 0:
            return
        self.spent += basis.shape[1]
        self.Q, self.Z = torch.cat([self.Q, basis], 1), torch.cat([self.Z, self.operator @ basis], 1)
        self.low_rank = self.low_rank or self.Q.shape[1] == self.operator.size

    @property
    def captured(self) -> Tensor:
        """Q'AQ (k, k) float64."""
        return _inner(self.Q, self.Z)

    def exact(self, method: str) -> Estimate:
        """Tr Q'AQ + offset, where `low_rank` says that Q'AQ has the whole trace."""
        value = float(self.captured.trace()) + self.offset
        return Estimate(value, 0.0, self.spent, method, math.isfinite(value))


def automatic(probes: Probes, tol: float, most: int) -> Estimate:
    """The exact diagonal, Hutchinson or XTrace, whichever has the smallest error at equal cost.

    That is judged by 1 + `FEWEST_FREEDOM` probes, of which nothing is thrown away but by the diagonal.
    """
    size, first = probes.operator.size, 1 + FEWEST_FREEDOM
    if size <= min(most, 3 * first):
        return diagonal(probes)
    S, Y = probes.draw(first, generic=True)  # should the range be wanted, these begin it
    forms = Forms(signs=True)
    for s, image in zip(S.T, Y.T, strict=True):
        forms.add(s, image)
    plain = forms.interval().plus(probes.offset)
    needed = plain.needed(first, tol)
    if needed <= 3 * first:
        return hutchinson(probes, tol, most, forms)
    if size <= min(most - first, needed):
        return diagonal(probes)
    probes.S, probes.Y = S, Y
    probes.extend_range(Y)
    # Both errors go by 1/sqrt(products) at worst; XTrace spends two products a probe.
    if _left_out(probes).error * math.sqrt(2) < plain.error:
        return xtrace(probes, tol, most)
    return hutchinson(probes, tol, most, forms)


def diagonal(probes: Probes) -> Estimate:
    """Tr A = sum of e_i'A e_i, exact. Cost: P products, beside those spent."""
    operator, total = probes.operator, probes.offset
    for i in range(operator.size):
        unit = torch.zeros(operator.size, dtype=operator.dtype, device=operator.device)
        unit[i] = 1
        total += float((operator @ unit)[i])
    return Estimate(total, 0.0, probes.spent + operator.size, "diagonal", math.isfinite(total))


def hutchinson(probes: Probes, tol: float, most: int, forms: Forms | None = None) -> Estimate:
    """Mean of s'As over random signs s, of which the first may be given. Memory: 2 `KEPT` vectors (P,)."""
    forms = forms or Forms(signs=True)

    def draw() -> tuple[Tensor, Tensor]:
        s, image = probes.draw(1)
        return s[:, 0], image[:, 0]

    mean = forms.until(draw, probes.offset, tol, most - probes.spent + len(forms))
    return mean.estimate(tol, probes.spent, "hutchinson")


def hutch_plus_plus(probes: Probes, tol: float, most: int) -> Estimate:
    """Tr Q'AQ + mean of g'(1 - QQ')A(1 - QQ')g, Q a basis of A S: a third of the products each for A S, A Q and A G."""
    G, AG, num = probes.S, probes.S, 1 + FEWEST_FREEDOM
    while True:
        probes.sketch(num)
        more, products = probes.draw(num)
        G, AG = torch.cat([G, more], 1), torch.cat([AG, products], 1)
        if probes.low_rank:
            return probes.exact("hutch++")
        image = AG - probes.Z @ _inner(probes.Q, G).to(AG)  # A (1 - QQ') G
        image = image - probes.Q @ _inner(probes.Q, image).to(AG)
        forms = Forms(signs=True)
        for g, product in zip(G.T, image.T, strict=True):
            forms.add(g, product)
        mean = forms.interval().plus(float(probes.captured.trace()) + probes.offset)
        num = min(G.shape[1] // 2 + 1, (most - probes.spent) // 3)
        if (mean.within(tol) and len(forms) >= FEWEST_PROBES) or num < 1:
            return mean.estimate(tol, probes.spent, "hutch++")


def xtrace(probes: Probes, tol: float, most: int) -> Estimate:
    """Mean over probes i of the Hutch++ estimates of `_left_out`; two products a probe, beside what `probes` holds."""
    num = 0 if probes.Q.shape[1] else 1 + FEWEST_FREEDOM
    while True:
        probes.sketch(num)
        if probes.low_rank:
            return probes.exact("xtrace")
        mean = _left_out(probes)
        num = min(probes.S.shape[1] // 2 + 1, (most - probes.spent) // 2)
        if (mean.within(tol) and probes.S.shape[1] >= FEWEST_PROBES) or num < 1:
            return mean.estimate(tol, probes.spent, "xtrace")


def _left_out(probes: Probes) -> Interval:
    """XTrace: for every probe i the Hutch++ estimate with Q from all others and probe i for the rest.

    The projector on the others' span is Q (1 - r r') Q', r the i-th column of R^-T normalised, Y = Q R: r is orthogonal
    to the other columns of R. Nothing here costs a product.
    """
    Q, S, H = probes.Q, probes.S, probes.captured
    if probes.low_rank:
        return Interval(float(H.trace()) + probes.offset, 0.0, math.inf)
    R = _inner(Q, probes.Y)
    normal = torch.linalg.inv_ex(R).inverse.T  # inv would raise where products are not finite
    normal = normal / torch.linalg.vector_norm(normal, dim=0)
    W = _inner(Q, S)
    inside = W - normal * (normal * W).sum(0)  # (1 - r r') Q's, column by column
    through = _inner(probes.Z, S)  # Q'A s
    rest = _inner(S, probes.Y).diagonal() - 2 * (inside * through).sum(0) + (inside * (H @ inside)).sum(0)
    mean = interval((H.trace() - (normal * (H @ normal)).sum(0) + rest)[:, None] + probes.offset)
    return Interval(mean.value, mean.error * CORRELATED / (1 - Q.shape[1] / len(Q)), mean.freedom)


def interval(draws: Tensor) -> Interval:
    """The mean over m draws (m, n) of sums of n independent terms; the terms' variances add up.

    Each term has its own mean, so its variance is that over its draws; the sum of n variances of m draws each has about
    (m - 1) (sum v)^2 / sum v^2 degrees of freedom (Satterthwaite 1946).
    """
    num = len(draws)
    variances = draws.var(0)
    total, squares = float(variances.sum()), float(variances.square().sum())
    freedom = (num - 1) * (total**2 / squares if squares > 0 else draws.shape[1])
    return Interval(float(draws.sum(1).mean()), widening(freedom) * math.sqrt(total / num), freedom)


def widening(freedom: float) -> float:
    """What an error on so many degrees of freedom is multiplied by, for +- 1.96 of it to cover 95 %: Student's t."""
    return float(stdtrit(freedom, 0.975)) / 1.96 if math.isfinite(freedom) else 1.0


def sampled(sample: Callable[[int], Tensor], draws: Tensor, tol: float, most: int, method: str) -> Estimate:
    """`sample(m)` gives m more draws (m, n), beside the first `draws`, until the error is small or `most` are drawn."""
    while True:
        mean, num = interval(draws), len(draws)
        if mean.within(tol) or num >= most or not math.isfinite(mean.value):
            return mean.estimate(tol, num, method)
        more = math.ceil(1.1 * min(mean.needed(num, tol), 3 * num)) - num  # 10 % more than needed by a rough error
        draws = torch.cat([draws, sample(min(max(1, more), most - num))])


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """a'b (j, k) in float64 of columns a (P, j) and b (P, k)."""
    return dots(a.T, b.T)
