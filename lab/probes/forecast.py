"""What a probe will cost, before its first measurement: from one timed gradient and one timed Hessian product.

Both are timed over a part of the probe set and scaled to the whole, for both are sums over examples; over the whole, where
that is quick, for then it is not examples that cost:

    seconds = gradients x (gradient of an example) x examples + products x (product of an example) x examples

with the numbers of gradients and products that the probe expects (`Probe.expected_gradients`, `.expected_matvecs`). On the
networks it was held against it was right to a factor of 2 (docs/measured/cost.md), `escape` aside.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lab.curvature.operators import hessian
from lab.objective import NetworkObjective, Objective, memory_of
from lab.probes.base import Probe, Snapshot
from lab.probes.bench import Bench
from lab.probes.nested import LEAST

AGAIN = 0.05
"""Seconds below which a first call is mostly what is done once; then the second one counts."""


QUICK = 0.5
"""Seconds up to which a gradient of the whole probe set is timed."""


@dataclass(frozen=True)
class Cost:
    """What one measurement takes: products and gradients of the set "auto", and seconds."""

    matvecs: float
    products: float
    seconds: float


@dataclass(frozen=True)
class Speed:
    """Seconds of a gradient, of a product, and of one that rebuilds its graph, per example; and of a training step."""

    gradient: float
    product: float
    rebuilt: float
    step: float

    @staticmethod
    def timed(bench: Bench, here: Snapshot, clock: Callable[[], float]) -> "Speed":
        """As it is now. Cost: two gradients or three and a product or two of `LEAST` examples or of a batch, where examples
        see each other; a gradient of a batch of training, of that part at most.
        """
        whole = bench.objective("auto")
        count, batch = whole.num_examples or 1, bench.batch_size or bench.num_train or 1
        chunk = whole.chunk_size(here.w) if isinstance(whole, NetworkObjective) and whole.coupled else LEAST
        size = min(count, chunk)
        part = whole.restrict(torch.arange(size, device=here.w.device))
        gradient = _timed(lambda: part.value_and_grad(here.w), clock)
        if gradient * count < QUICK * size:
            size, part = count, whole
            gradient = _timed(lambda: whole.value_and_grad(here.w), clock)
        H = hessian(part, here.w)
        product = _timed(lambda: H @ H.gradient, clock)
        few = min(batch, size)
        some = part.restrict(torch.arange(few, device=here.w.device))
        step = gradient if few == size else _timed(lambda: some.value_and_grad(here.w), clock)
        return Speed(gradient / size, product / size, (gradient + product) / size, step * batch / few)


def foretold(probe: Probe, bench: Bench, here: Snapshot, speed: Speed | None, *, warm: bool = False) -> Cost:
    """What a measurement takes by its settings; `warm`: one that builds on another. Seconds 0: not timed."""
    loss, whole = bench.objective(getattr(probe, "examples", "auto")), bench.objective("auto").num_examples or 1
    count, share = loss.num_examples or whole, probe.warm_share if warm else 1.0
    matvecs, gradients = share * probe.expected_matvecs(here.rule), share * probe.expected_gradients(here, loss)
    seconds = 0.0
    if speed is not None:
        product = speed.product if _kept(loss, here) else speed.rebuilt
        seconds = count * (gradients * speed.gradient + matvecs * product)
    return Cost(matvecs, (matvecs + gradients) * count / whole, seconds)


def _kept(loss: Objective, here: Snapshot) -> bool:
    """Whether the graph of the gradient is kept from one product to the next."""
    return not isinstance(loss, NetworkObjective) or loss.graph_bytes(here.w) <= memory_of(here.w.device) // 4


def _timed(work: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds of one call."""
    for _ in range(2):
        begin = clock()
        work()
        if (seconds := clock() - begin) > AGAIN:
            break
    return seconds
