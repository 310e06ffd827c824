"""The noise of mini-batch gradients: how large it is, where it points, and what it has to do with the Hessian.

    D = (1/N) sum_i g_i g_i' - g g'           covariance of the gradient of one example; that of a batch is factor * D
    factor = 1/m, or (N - m) / (m (N - 1))    with replacement, or without (an epoch too); Smith and Le (2018), Lemma 1
    scale = Tr D / |g|^2                      the batch, in examples, whose noise is as large as the gradient;
                                              McCandlish et al. (2018, arXiv 1812.06162)
    u'Du against lambda = u'Hu                slope 2L/K for half squared error of K outputs near a minimum, slope 1 for
                                              a well-specified likelihood
    Tr(HD)                                    first-order growth of the loss by the noise; Zhu et al. (2019)

D is singular: its rank is at most N - 1. Through BatchNorm all of this, the Hessian too, is measured with running
statistics, for batch statistics couple the examples. Tail and Gaussianity: see the caveat in `lab.noise.tails`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from inspect import signature
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from lab.curvature.eigen import lanczos
from lab.curvature.forms import Interval
from lab.curvature.operators import Hessian, hessian
from lab.curvature.vectors import norm
from lab.data.batches import Batches
from lab.noise.alignment import alignment
from lab.noise.covariance import GRAM_EXAMPLES, Covariance, NoiseSpectrum, centred_squares, covariance, eigenvalues
from lab.noise.draws import batch_moments
from lab.noise.size import trace
from lab.noise.slope import along, expected_slope
from lab.noise.tails import excess_kurtosis, extreme_index, gaussianity, tail_index
from lab.objective import CHUNK_BYTES, ModuleLoss, Objective
from lab.params import layout
from lab.probes.base import Memory, Plan, Probe, Snapshot, measures, quantities
from lab.probes.knobs import Count, Natural, ProbeSet, Rhythm, Share, When, knob
from lab.probes.noise_result import NoiseAlong, NoiseResult, in_words
from lab.results import Estimate, numbered
from lab.sampling import SAMPLINGS, Sampling, batch_factor, cross_factor
from lab.settings import SettingError
from lab.settings import settings as card

EIGEN_TOL = 1e-2
"""Wanted error of the eigenvalues of H relative to the largest. u'Hu and u'Du are exact for the computed vectors."""
GAUSSIAN_DRAWS = 1000
"""Batches whose noise is tested for being Gaussian."""
AFFORDABLE = CHUNK_BYTES // 4
"""Bytes of the graph of a gradient up to which hessian=auto looks at H: 2000 images in an MLP, 50 in a ResNet-8."""
FEWEST = 40
"""Examples below which nothing is said of tails."""


@card(frozen=False)
class Noise(Probe):
    """Covariance D of the gradient noise: trace, spectrum, tails, and what it has to do with the Hessian.

    Tags that do not speak for themselves: trace_cross, Tr of the covariance of two batches of an epoch; tail_gamma, 0 for a
    Gaussian, above for a heavy tail; kurtosis, the excess of one example, kurtosis_batch of a batch; not_gaussian, share of
    directions along which a test of 5 % rejects for batches drawn from these examples; gaussian_p, of all together;
    alignment, Tr(HD); downhill, u'Du along the most negative direction of H; measured_over_predicted.<sampling>, of `draws`;
    trace.<parameter>, of `layers`. All eigenvalues of D go to arrays/.
    Cost without `hessian`: a gradient for Tr D, some for the eigenvalues (from inner products of per-example gradients), a
    third of one for each direction. With it some 70 Hessian products, of 1.1 gradients or more. `draws`: 3 gradients of
    the probe set for each size and epoch, in small batches.
    """

    name: ClassVar[str] = "noise"
    halves: ClassVar[str] = "its numbers are those of these examples"
    auto: ClassVar[Mapping[str, float]] = {"every": 130}

    every: Annotated[Rhythm, knob("steps between measurements: n | auto: 130, more seldom where probe.budget asks")] = (
        "auto"
    )
    at: When = "steps"
    k: Annotated[Count, knob("number of top eigenvalues of D to log")] = 5
    examples: ProbeSet = "auto"
    hessian: Annotated[
        bool | Literal["auto"],
        knob("also Tr(HD), cos(D, H), u'Du along eigenvectors u of H (some 100 products): true | false | auto: MLPs"),
    ] = "auto"
    pairs: Annotated[Count, knob("eigenvectors of H at each end of its spectrum")] = 5
    tol: Annotated[Share, knob("wanted error of Tr(HD) and of the cosine, relative")] = 0.05
    max_matvecs: Annotated[
        int, knob("Hessian products for the eigenvectors, for Tr(HD) and for |H|_F, each", gt=20)
    ] = 200
    directions: Annotated[Count, knob("random directions along which the noise is tested for being Gaussian")] = 10
    layers: Annotated[bool, knob("also the trace of every parameter's block of D")] = False
    draws: Annotated[Natural, knob("epochs of batches drawn for each size and sampling, against Lemma 1; 0: none")] = 0

    @model_validator(mode="after")
    def _consistent(self) -> "Noise":
        if self.max_matvecs < (fewest := 2 * self.pairs):
            raise ValueError(f"max_matvecs={self.max_matvecs} is too few for the eigenvectors; use {fewest} or more")
        return self

    def require(self, plan: Plan) -> None:
        """Also where the k largest of D, with too many examples for the Gram matrix, take more products than allowed."""
        super().require(plan)
        examples, most = plan.examples(self.examples), signature(lanczos).parameters["max_matvecs"].default
        if examples > GRAM_EXAMPLES and most < min(self.k, examples - 1, layout(plan.model).size):
            cure = f"use probe.noise.k={most} or less, or probe.noise.examples={GRAM_EXAMPLES} or less"
            allowed = f"the {most} products allowed for a probe set of {examples} examples"
            raise SettingError(f"probe.noise.k={self.k} takes more than {allowed}; {cure}")

    def expected_gradients(self, here: Snapshot, loss: Objective) -> float:
        """With H some 150 products, and what goes with them."""
        return 15.0 + (350.0 if self.affords_hessian(loss, here.w) else 0.0) + 18.0 * self.draws

    def affords_hessian(self, loss: Objective, w: Tensor) -> bool:
        """Whether H is to be looked at."""
        return loss.graph_bytes(w) <= AFFORDABLE if self.hessian == "auto" else self.hessian

    def finding(self, values: dict[str, float]) -> str:
        return in_words(quantities(self.name, values))


@measures(Noise)
def noise(here: Snapshot, settings: Noise, memory: Memory) -> NoiseResult:
    """The noise of mini-batch gradients; that of a batch where the training is known.

    >>> from lab.objective import NetworkObjective
    >>> data = torch.ones(4, 1), torch.tensor([[1.0], [0.0], [0.0], [0.0]])
    >>> loss = NetworkObjective(torch.nn.Linear(1, 1, bias=False), torch.nn.MSELoss(), data)
    >>> noise(loss, torch.zeros(1), hessian=False).trace.value  # of gradients -2, 0, 0, 0
    0.75
    """
    loss, running = _of_examples(here.loss_on(settings.examples))
    D, spectrum, against = covariance(loss, here.w), None, None
    size, scale, others = _size(here, settings, loss, D)
    bound = min((loss.num_examples or 0) - 1, len(here.w))
    if bound >= 1 and size.value > 0:
        draw = here.stream("noise/rank")
        spectrum = eigenvalues(loss, here.w, min(settings.k, bound), generator=draw)
    others |= _tails(here, settings, D) | ({"running_statistics": 1.0} if running else {})
    if spectrum is not None and settings.affords_hessian(loss, here.w):
        key = ("hessian", settings.examples, "running statistics")
        H = here.once(key, lambda: hessian(loss, here.w)) if running else here.hessian(settings.examples)
        against = _against(here, settings, H, loss, D, spectrum)
    ratios, draws = _drawn(here, loss, size.value, settings.draws) if settings.draws else ({}, {})
    return NoiseResult(size, scale, spectrum, against, others | ratios, draws)


def _size(
    here: Snapshot, settings: Noise, loss: Objective, D: Covariance
) -> tuple[Estimate, Estimate | None, dict[str, float]]:
    """Tr D of one example, the noise scale, and the numbers of the batch in use, where training is known."""
    whole, n, m = trace(loss, here.w), loss.num_examples or 0, here.batch_size
    N = here.num_train or n
    size = Estimate(0.0 if whole.value <= whole.round_off else whole.value, whole.error, whole.matvecs, whole.method)
    # A probe set of n out of N examples has a noise of its own: |g|^2 of it is too large by `excess` on average.
    share, grad_norm, scale = batch_factor(max(n, N), n, "without_replacement"), norm(whole.gradient), None
    excess = share * size.value
    if (rest := grad_norm**2 - excess) > 0:
        variance = float(D.variances(whole.gradient[:, None])[0])  # g'Dg
        relative = math.hypot(size.error / size.value if size.value else 0.0, _spread(share, variance, excess) / rest)
        scale = Estimate(size.value / rest, size.value / rest * relative, 0, "ratio")
    others = {"grad_norm": grad_norm}
    others |= {f"trace.{name}": part for name, part in whole.by_parameter.items()} if settings.layers else {}
    if m is None and here.num_train is None:
        return size, scale, others
    factor = 0.0 if m is None else batch_factor(N, m, here.sampling)
    cross = 0.0 if m is None or m == N else cross_factor(N, here.sampling)
    for name, times in (("trace_batch", factor), ("trace_cross", cross)):
        others |= {name: times * size.value, f"error/{name}": abs(times) * size.error}
    return size, scale, others | {"batch_factor": factor, "batch_size": float(N if m is None else m)}


def _tails(here: Snapshot, settings: Noise, D: Covariance) -> dict[str, float]:
    """Tail of |g_i - g| over the examples; Gaussianity along random directions, of one example and of a batch."""
    examples, P = D.examples, D.size
    if examples.num_examples < FEWEST:
        return {}
    generator = here.stream("noise/tails")
    g = examples.gradient()
    z = torch.randn(P, settings.directions, generator=generator, dtype=torch.float32).to(g) / math.sqrt(P)
    projected = examples.along(z)
    squares = torch.stack(list(examples.squared_norms().values())).sum(0)
    lengths = centred_squares(examples, squares, g).sqrt()
    of_one = projected - projected.mean(0)
    m = here.batch_size or 1  # independent examples: their mean has exactly 1/m of the excess kurtosis
    tested = gaussianity(_batch_means(of_one, m, generator))
    kurtosis = excess_kurtosis(of_one)
    of_batch = replace(kurtosis, value=kurtosis.value / m, error=kurtosis.error / m)
    tails = {"tail_index": tail_index(lengths), "tail_gamma": extreme_index(lengths)}
    numbers = numbered(tails | {"kurtosis": kurtosis, "kurtosis_batch": of_batch})
    return numbers | {"not_gaussian": tested.rejected, "gaussian_p": tested.p_value}


def _against(
    here: Snapshot, settings: Noise, H: Hessian, loss: Objective, D: Covariance, spectrum: NoiseSpectrum
) -> NoiseAlong | None:
    """u'Du against u'Hu, its slope and the theory; Tr(HD) and the cosine. None where no eigenvector bends."""
    before, w, P, limit = H.matvecs, here.w, H.size, settings.max_matvecs
    pairs = min(settings.pairs, P // 2) or 1
    bottom = min(pairs, P - pairs)
    generator = here.stream("noise/hessian")
    ends = lanczos(H, top=pairs, bottom=bottom, tol=EIGEN_TOL, max_matvecs=limit, copies=False, generator=generator)
    bends = torch.cat([ends.top.values > 0, ends.bottom.values < 0])  # the others are no top, or not negative
    if not bool(bends.any()):
        return None
    curvature = torch.cat([ends.top.values, ends.bottom.values])[bends]
    vectors = torch.cat([ends.top.vectors, ends.bottom.vectors], dim=1)[:, bends]
    variance = along(D.examples, vectors, curvature, fitted=len(ends.top.values))
    theory = expected_slope(loss, w, generator=here.stream("noise/theory"))
    squares = Interval(spectrum.squares, spectrum.squares_error, math.inf) if spectrum.squares > 0 else None
    draw = here.stream("noise/alignment")
    both = alignment(H, D, squares=squares, tol=settings.tol, generator=draw, max_matvecs=limit)
    return NoiseAlong(curvature, variance, theory, spectrum.trace / P, both, H.matvecs - before)


def _drawn(here: Snapshot, loss: Objective, whole: float, epochs: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Gradients of mini-batches of many sizes, in units of `whole` = Tr D; nothing without noise, or of too few examples.

    measured_over_predicted, pooled over the sizes, of the variance by sampling and of the covariance of two batches of an
    epoch ("cross"), with errors; and the arrays of `NoiseResult.draws`.
    """
    N = loss.num_examples or 0
    if not whole > 0 or N < 4:
        return {}, {}
    sizes = sorted({m for m in (4**i for i in range(20)) if m <= N // 2} | {N // 2})
    numbers = torch.full((4, len(SAMPLINGS), len(sizes)), math.nan, dtype=torch.float64)
    for i, sampling in enumerate(SAMPLINGS):
        for j, m in enumerate(sizes):
            seed = here.stream(f"noise/draws/{sampling}/{m}").initial_seed()
            moments = [batch_moments(loss, here.w, index) for index in _epochs(N, m, sampling, seed, max(2, epochs))]
            units = torch.tensor(moments, dtype=torch.float64) / whole
            numbers[:2, i, j] = units.mean(0)
            numbers[2:, i, j] = units.std(0) / math.sqrt(len(units))
    variance, cross, variance_error, cross_error = numbers
    counts, ratios = torch.tensor([N // m for m in sizes], dtype=torch.float64), dict[str, Estimate]()
    for i, sampling in enumerate(SAMPLINGS):
        theory = torch.tensor([batch_factor(N, m, sampling) for m in sizes], dtype=torch.float64)
        ratios[sampling] = _pooled(variance[i] / theory, variance_error[i] / theory, counts)
    theory, row = torch.tensor(cross_factor(N, "epoch")), SAMPLINGS.index("epoch")
    ratios["cross"] = _pooled(cross[row] / theory, cross_error[row] / theory.abs(), counts)
    arrays = {"sizes": torch.tensor(sizes), "examples": torch.tensor(N), "variance": variance, "cross": cross}
    arrays |= {"variance_error": variance_error, "cross_error": cross_error}
    return numbered({f"measured_over_predicted.{name}": ratio for name, ratio in ratios.items()}), arrays


def _of_examples(loss: Objective) -> tuple[Objective, bool]:
    """The same loss through BatchNorm of running statistics, where it has batch statistics; and whether it had."""
    if not isinstance(loss, ModuleLoss):
        return loss, False
    calm = loss.with_running_statistics()
    return calm, calm is not loss


def _spread(share: float, variance: float, excess: float) -> float:
    """Standard error of |g|^2 of a subset, whose g has covariance share * D: 4 share g'Dg and at most 2 (share Tr D)^2."""
    return math.sqrt(4 * share * max(variance, 0.0) + 2 * excess**2)


def _batch_means(of_one: Tensor, m: int, generator: torch.Generator) -> Tensor:
    """Means of m rows drawn with replacement, (GAUSSIAN_DRAWS, q): batches of m out of a far larger set."""
    n, q = of_one.shape
    step = max(1, 2**22 // (m * q))
    means = []
    for begin in range(0, GAUSSIAN_DRAWS, step):
        count = min(step, GAUSSIAN_DRAWS - begin)
        index = torch.randint(n, (count, m), generator=generator)
        means.append(of_one[index.to(of_one.device)].mean(1))
    return torch.cat(means)


def _epochs(N: int, m: int, sampling: Sampling, seed: int, count: int) -> Iterator[Tensor]:
    """The whole batches of `count` epochs, each (N // m, m), as training draws them."""
    batches = Batches(N, m, sampling, seed)
    for epoch in range(count):
        steps = range(epoch * batches.steps_per_epoch, epoch * batches.steps_per_epoch + N // m)
        yield torch.stack([index for step in steps if (index := batches.index(step)) is not None])


def _pooled(values: Tensor, errors: Tensor, counts: Tensor) -> Estimate:
    """Mean of the values weighted by how many batches each rests on, where there was anything to draw."""
    known = values.isfinite() & (errors > 1e-6 * values.abs())  # an epoch of single examples has no other outcome
    weights = counts[known] / counts[known].sum()
    if not len(weights):
        return Estimate(math.nan, math.nan, 0, "draws", False)
    return Estimate(float(weights @ values[known]), float((weights * errors[known]).norm()), 0, "draws")
