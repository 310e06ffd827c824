"""Fisher against Hessian: matrices that are often taken for one another, measured side by side on the same examples.

    true          F = mean E[g g'], labels drawn from the model     lab.noise.information: exact expectation over labels
    sampled       the same from drawn labels, one an example        unbiased: how near so many labels get at best
    empirical     (1/N) sum g_i g_i', labels of the data            lab.noise.covariance
    covariance    D = empirical - g g'                              the noise of mini-batches, for one example
    gauss_newton  G = mean J'(d2 loss/df2) J                        true = c G for every loss measured here
    hessian       H
    residual      R = H - G

The first four are in the unit of the gradient of one example, the last three in that of the loss, and c parts them: the loss
of an example is c (-log p), with c = 1 for one label and 1/T for the mean over T tokens or labels (`lab.noise.information`).
Were "the Fisher the Hessian", all cosines but those of R would be 1 and, with c = 1, all traces equal. BatchNorm normalises
by its running statistics in all of them, also where training and the sharpness go by those of the batch: with these a single
example has no gradient.
"""

import warnings
from collections.abc import Mapping
from time import perf_counter
from typing import Annotated, ClassVar

import torch

from lab.curvature.eigen import Extremes, lanczos
from lab.curvature.operators import gauss_newton, hessian
from lab.curvature.vectors import dot
from lab.noise.comparison import FEWEST, compare
from lab.noise.covariance import covariance
from lab.noise.information import sampled_fisher, true_fisher
from lab.objective import CHUNK_BYTES, BatchesObjective, NetworkObjective, Objective
from lab.params import layout
from lab.probes.base import Memory, Plan, Probe, Snapshot, continued, measures, quantities
from lab.probes.fisher_matrices import MATRICES, Matrices
from lab.probes.fisher_result import FisherResult, history_row, in_words, side_by_side
from lab.probes.knobs import Count, ProbeSet, Rhythm, Share, knob
from lab.probes.snapshot import NO_PAIRS
from lab.settings import SettingError
from lab.settings import settings as card

FEW, AFFORDABLE = 32, CHUNK_BYTES // 4
"""examples=auto: as many as the graph of a gradient stays below so many bytes with, but so many at least."""
GRADIENTS = 2.5
"""What a product costs, about."""
LONG = 60.0
"""Seconds of a measurement above which its cost is said before it starts."""


@card(frozen=False)
class Fisher(Probe):
    """True, sampled and empirical Fisher, Gauss-Newton, Hessian and residual: traces, eigenvalues, cosines, distances.

    examples=auto takes fewer, but 32 at least, where the graph of a gradient would take more than 64 MiB: 32 in a ResNet-20.
    fisher/examples tells.

    Tags, with m, n of true | sampled | empirical | covariance | gauss_newton | hessian | residual (head of this file):
    fisher/trace_m, norm_m (Frobenius), lambda_1_m .. lambda_k_m, lambda_min_hessian, lambda_min_residual; cosine_m_n =
    Tr(mn)/(|m||n|); distance_m = |m - true|/|true|, of matrices in one unit (over c where they are in that of the gradient);
    scale = c; residual_share = |R|/|H|; rao_norm = w'Fw of the true Fisher, the
    square of the Fisher-Rao norm of Liang et al. (2019): a number about w, no bound on anything here.
    Traces are exact, but for those of H and R where the network is not piecewise linear, and for all but empirical and
    covariance where its layers cannot be taken apart; error/fisher/trace_sampled is the standard error over the labels
    drawn, not measured there and for more than 100 outputs. Errors of norms, cosines and distances are over the random
    vectors: of the sampled Fisher they hold for the labels that were drawn, and other labels would give other ones. Where
    P <= vectors all is exact.
    Cost: five products for each random vector and each eigenvector, 10 to 25 for each eigenvalue (the residual of a ResNet
    takes all that are allowed), three backward passes for each output for the exact traces and that error; as reported in
    cost/fisher/matvecs and seconds. Where it will be more than a minute the first measurement says so before it starts.
    Memory: a vector (P,) or two for every product of one eigensolve, and four graphs of the gradient, where they are kept.
    Raises SettingError where the loss is no known log-likelihood of its outputs: it has no Fisher matrix.
    """

    name: ClassVar[str] = "fisher"
    auto: ClassVar[Mapping[str, float]] = {"every": 130}

    every: Annotated[Rhythm, knob("steps between measurements: n | auto: 130, more seldom where probe.budget asks")] = (
        "auto"
    )
    k: Annotated[Count, knob("largest eigenvalues of each matrix; more of them sharpen the cosines too")] = 3
    tol: Annotated[Share, knob("wanted error of an eigenvalue, relative to the largest |eigenvalue| of its matrix")] = (
        1e-2
    )
    max_matvecs: Annotated[int, knob("products allowed per eigensolve (each about one gradient)", gt=3)] = 200
    vectors: Annotated[
        int, knob("random vectors of cosines, distances, norms: errors ~ 1/sqrt(vectors)", ge=FEWEST)
    ] = 20
    draws: Annotated[Count, knob("labels drawn per example for the sampled Fisher")] = 1
    examples: Annotated[
        ProbeSet,
        knob("probe set: all | n (class-balanced, fixed) | auto: all up to 5000, else 2000; fewer in large models"),
    ] = "auto"

    def require(self, plan: Plan) -> None:
        """Also where a product is missing for the k largest of every matrix, or for the smallest of some."""
        super().require(plan)
        num_weights = layout(plan.model).size
        if self.max_matvecs < (fewest := min(self.k + 1, num_weights)):
            few = f"probe.fisher.max_matvecs={self.max_matvecs} is too few for probe.fisher.k={self.k}"
            cure = f"probe.fisher.k={self.max_matvecs - 1} or less, or probe.fisher.max_matvecs={fewest} or more"
            raise SettingError(f"{few} in a model of {num_weights} weights; use {cure}")

    def expected_gradients(self, here: Snapshot, loss: Objective) -> float:
        """Of the examples that are left where the graph of a gradient is large."""
        products = 5 * (self.vectors + len(MATRICES) * self.k) + 14 * (len(MATRICES) + 1) * self.k
        share = 1.0
        if self.examples == "auto" and isinstance(loss, NetworkObjective):
            share = min(1.0, max(FEW, AFFORDABLE // max(1, loss.bytes_per_example(here.w))) / len(loss.x))
        return share * products

    def finding(self, values: dict[str, float]) -> str:
        return in_words(quantities(self.name, values), self._memory.get("history"))


@measures(Fisher)
def fisher(here: Snapshot, settings: Fisher, memory: Memory) -> FisherResult:
    """The Fisher matrices of a network, Gauss-Newton and Hessian side by side. BatchNorm goes by running statistics.

    Raises SettingError where the loss is no known log-likelihood of the outputs of a network.

    >>> data = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0], [1.0]])
    >>> result = fisher(NetworkObjective(torch.nn.Linear(2, 1), torch.nn.MSELoss(), data), k=1)
    >>> numbers = result.numbers()
    >>> round(numbers["trace_hessian"], 3), round(numbers["cosine_true_hessian"], 3)  # mean of 2 (|x|^2 + 1)
    (7.0, 1.0)
    """
    try:
        matrices = _matrices(here, settings, warned="history" in memory)
    except (TypeError, ValueError) as error:
        raise SettingError(f"probe=[fisher]: {error}") from None
    history = memory["history"].cpu() if "history" in memory else None
    if matrices is None:  # the network diverged: there is nothing to draw labels from
        return FisherResult({}, {}, {}, 0, history)
    spent = matrices.matvecs  # of a Hessian that other probes use too
    ends = _eigenpairs(matrices, here, settings)
    basis = torch.cat([end.start for end in ends.values()], dim=1)
    draw = here.stream("fisher/vectors")
    compared = compare(matrices.products, here.w, basis=basis, vectors=settings.vectors, generator=draw)
    traces = matrices.traces(here.stream("fisher/traces"))
    parts = side_by_side(compared, matrices.units, traces, ends, torch.finfo(here.w.dtype).eps)
    others = {
        "examples": float(len(matrices.objective.x)),
        "rao_norm": float(dot(here.w[None], matrices.true @ here.w)),
        "scale": matrices.true.likelihood.scale,
        "converged": float(all(end.top.converged and end.bottom.converged for end in ends.values())),
    }
    return FisherResult(
        parts, ends, others, matrices.matvecs - spent, continued(history, history_row(here.step, parts))
    )


def _matrices(here: Snapshot, settings: Fisher, *, warned: bool) -> Matrices | None:
    """The matrices; None where the outputs are not finite. A long measurement is warned of, unless it was before."""
    examples, w = settings.examples, here.w
    loss = _network(here.loss_on(examples))
    if examples == "auto" and (fit := max(FEW, AFFORDABLE // loss.bytes_per_example(w))) < len(loss.x):
        examples, loss = fit, _network(here.loss_on(fit))
    begin = perf_counter()
    value, _ = loss.value_and_grad(w)
    if not warned:
        _warn_of_cost(perf_counter() - begin, len(loss.x), settings)
    if not bool(value.isfinite()):
        return None
    if loss.batch_statistics:
        loss = loss.with_running_statistics()
        H = hessian(loss, w)
    else:
        H = here.hessian(examples)
    labels = here.stream("fisher/labels")
    sampled = sampled_fisher(loss, w, generator=labels, draws=settings.draws)
    return Matrices(loss, w, true_fisher(loss, w), sampled, covariance(loss, w), gauss_newton(loss, w), H)


def _network(loss: Objective) -> NetworkObjective:
    if isinstance(loss, BatchesObjective):
        raise TypeError(NO_PAIRS)
    if not isinstance(loss, NetworkObjective):
        raise TypeError(f"{type(loss).__name__} is no network: it has no labels to draw")
    return loss


def _warn_of_cost(seconds: float, num: int, settings: Fisher) -> None:
    """Warn of a measurement that will take long, given the seconds of a gradient."""
    vectors = 5 * (settings.vectors + len(MATRICES) * settings.k)
    solves = len(MATRICES) + 1  # a product of the residual is two
    low, high = (GRADIENTS * seconds * (vectors + solves * each) for each in (4 * settings.k, settings.max_matvecs))
    if low >= LONG:
        long = f"a measurement on {num} examples takes {low:.0f} to {high:.0f} s, {len(MATRICES)} matrices at "
        cure = "smaller probe.fisher.examples, .vectors and .max_matvecs are cheaper"
        warnings.warn(f"probe=[fisher]: {long}{seconds:.2g} s a gradient; {cure}", stacklevel=2)


def _eigenpairs(matrices: Matrices, here: Snapshot, settings: Fisher) -> dict[str, Extremes]:
    """The k largest of every matrix, and the smallest of those that may be indefinite."""
    ends = {}
    for name, operator in matrices.all(here.stream("fisher/blind")).items():
        bottom = int(name in ("hessian", "residual") and operator.size > 1)
        ends[name] = lanczos(
            operator,
            top=min(settings.k, operator.size - bottom),
            bottom=bottom,
            tol=settings.tol,
            max_matvecs=settings.max_matvecs,
            generator=here.stream(f"fisher/eigen/{name}"),
        )
    return ends
