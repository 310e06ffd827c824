"""Is this a critical point, and of which kind? Gradient first, then index and nullity of the Hessian.

    index     number of negative eigenvalues of H          nullity    of those that are not told from zero

`lab.points.critical` says what counts as critical and as zero, `lab.points.finding` how the nearest critical point is found
from weights that are none, as those of a run are. Index against loss, the figure of Dauphin et al. 2014 (arXiv
1406.2572), comes from several measurements: of one run, or of several checkpoints given to `lab.measure`. Everything is
computed in float64; coupled weight decay c adds c/2 |w|^2 to the loss, as it does in training.
"""

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from lab.objective import Decayed, Objective
from lab.points.critical import classify
from lab.points.finding import find_critical
from lab.probes.base import Memory, Probe, Snapshot, measures, quantities
from lab.probes.critical_point_result import KINDS, CriticalPointResult, in_words
from lab.probes.knobs import Count, Natural, Positive, ProbeSet, Rhythm, Share, knob
from lab.settings import settings as card


@card(frozen=False)
class CriticalPoint(Probe):
    """Is the point a critical point of the loss, and of which kind? Gradient, index and nullity of the Hessian.

    `kind` is 0 not critical, 1 minimum, 2 saddle, 3 maximum, 4 degenerate, 5 undetermined; `search` 0 found, 1 at a minimum
    of |g| that is no zero, 2 at the round-off of such a place, 3 out of iterations or products. Where the point is not
    critical, index and nullity are those of the Hessian there. Cost: in cost/critical_point/matvecs.
    """

    name: ClassVar[str] = "critical_point"
    auto: ClassVar[Mapping[str, float]] = {"every": 500}

    every: Annotated[Rhythm, knob("steps between measurements: n | auto: 500, more seldom where probe.budget asks")] = (
        "auto"
    )
    examples: ProbeSet = "auto"
    gradient_tol: Annotated[Positive, knob("|g| above it: no critical point; a search goes down to it")] = 1e-8
    tol: Annotated[Share, knob("eigenvalues within tol x the largest |eigenvalue| count as zero")] = 1e-4
    dense: Annotated[Natural, knob("weights up to which all eigenvalues, at a product each; beyond, Lanczos")] = 500
    max_matvecs: Annotated[int, knob("Hessian products for Lanczos; too few: the index is a lower bound", ge=2)] = 400
    find: Annotated[bool, knob("first look for the critical point nearby, by Newton steps on |g|^2")] = False
    max_iterations: Annotated[Count, knob("of that search")] = 100
    search_matvecs: Annotated[Count, knob("Hessian products of that search")] = 5000

    def expected_gradients(self, here: Snapshot, loss: Objective) -> float:
        """The products are made in float64, and every vector is held against all before it."""
        products = len(here.w) if len(here.w) <= self.dense else self.max_matvecs
        return 3.5 * products + (2.0 * self.search_matvecs if self.find else 0.0)

    def finding(self, values: dict[str, float]) -> str:
        return in_words(quantities(self.name, values), self)


@measures(CriticalPoint)
def critical_point(here: Snapshot, settings: CriticalPoint, memory: Memory) -> CriticalPointResult:
    """What the point is where training stands, or the critical point that is found from there.

    >>> from lab.landscapes.saddle import Saddle
    >>> result = critical_point(Saddle(), torch.zeros(2))
    >>> result.point.kind, result.point.index
    ('saddle', 1)
    """
    w, loss, search = here.w.double(), _loss(here, settings), None
    past = {step: dot.cpu() for step, dot in memory.items()}
    try:
        if settings.find:
            most, allowed = settings.max_iterations, settings.search_matvecs
            search = find_critical(loss, w, tol=settings.gradient_tol, max_iterations=most, max_matvecs=allowed)
        point = classify(
            loss,
            w if search is None else search.w,
            gradient_tol=settings.gradient_tol,
            tol=settings.tol,
            dense=settings.dense,
            max_matvecs=settings.max_matvecs,
            generator=here.stream("critical_point"),
        )
    except ValueError as error:
        if "not finite" not in str(error):
            raise
        return CriticalPointResult(None, None, math.nan, settings, past)  # a diverged run
    moved = math.nan if search is None else float((search.w - w).norm())
    dot = [point.value, point.index_fraction, KINDS.index(point.kind), point.index_exact]
    past[str(here.step)] = torch.tensor(dot, dtype=torch.float64)
    return CriticalPointResult(point, search, moved, settings, past)


def _loss(here: Snapshot, settings: CriticalPoint) -> Objective:
    """What training descends on the probe set: with the weight decay that joins the gradient."""
    loss, rule = here.loss_on(settings.examples), here.rule
    decay = 0.0 if rule is None or isinstance(rule.coupled_decay, Tensor) else rule.coupled_decay
    return Decayed(loss, decay) if decay else loss
