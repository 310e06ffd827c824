"""Fisher against Hessian: matrices that are often taken for one another, measured side by side on the same examples.

    true          F = mean E[g g'], labels drawn from the model     lab.noise.fisher: exact expectation over labels
    sampled       the same from drawn labels, one an example        unbiased: how near so many labels get at best
    empirical     (1/N) sum g_i g_i', labels of the data            lab.noise.covariance
    covariance    D = empirical - g g'                              the noise of mini-batches, for one example
    gauss_newton  G = mean J'(d2 loss/df2) J                        true = c G for every loss measured here
    hessian       H
    residual      R = H - G

The first four are in the unit of the gradient of one example, the last three in that of the loss, and c parts them: the loss
of an example is c (-log p), with c = 1 for one label and 1/T for the mean over T tokens or labels (`lab.noise.fisher`).
Were "the Fisher the Hessian", all cosines but those of R would be 1 and, with c = 1, all traces equal. BatchNorm normalises
by its running statistics in all of them, also where training and the sharpness go by those of the batch: with these a single
example has no gradient.
"""

import math
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from time import perf_counter
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as card
from torch import Tensor

from lab.curvature.eigen import Extremes, lanczos
from lab.curvature.operators import GaussNewton, Hessian, LinearOperator, difference, gauss_newton, hessian
from lab.curvature.trace import gauss_newton_trace, hessian_trace
from lab.curvature.vectors import dot, norm
from lab.layers.anatomy import Anatomy, take_apart
from lab.layers.recorder import Recording
from lab.noise.comparison import FEWEST, Comparison, compare
from lab.noise.covariance import Covariance, covariance
from lab.noise.fisher import ScoreFisher, TrueFisher, sampled_fisher, true_fisher
from lab.noise.likelihood import Likelihood
from lab.noise.size import trace
from lab.objective import CHUNK_BYTES, NetworkObjective
from lab.probes.base import Examples, Probe, Snapshot, Value
from lab.probes.fisher_figures import MATRICES, REMEMBERED, matrices_figure, remembered, training_figure
from lab.results import Estimate
from lab.settings import CARD, SettingError
from lab.streams import random_signs, stream

BLIND = 100
"""A difference of matrices is nothing but round-off where its norm is below so many eps of theirs."""
TRACE_TOL = 0.01
"""Wanted error of Tr H relative to itself."""
MOST_OUTPUTS = 100
"""Outputs up to which the traces of the true Fisher and of G are exact, at a backward pass for each; sampled beyond."""
REDRAWS = 10
"""Draws of labels that are real numbers, from which the variance of the sampled trace is estimated."""
FEW, AFFORDABLE = 32, CHUNK_BYTES // 4
"""examples=auto: as many as the graph of a gradient stays below so many bytes with, but so many at least."""
GRADIENTS = 2.5
"""What a product costs, about."""
LONG = 60.0
"""Seconds of a measurement above which its cost is said before it starts."""
SMALL = 0.1
"""Standard error of the sampled trace over the true one up to which it is a yardstick."""


@dataclass(frozen=True)
class Matrices:
    """The matrices of an objective at w: five operators and D; R comes with their products."""

    objective: NetworkObjective
    w: Tensor
    true: TrueFisher
    sampled: ScoreFisher
    noise: Covariance
    gauss_newton: GaussNewton
    hessian: Hessian

    def products(self, v: Tensor) -> Tensor:
        """Rows A v (7, P) in the order of `MATRICES`; those in the unit of the gradient over c, so that differences say
        something: true / c = G.
        """
        true, sampled, empirical, G, H = (operator @ v for operator in self.five)
        noise = torch.stack([true, sampled, empirical, self.noise @ v])
        return torch.cat([noise / self.true.likelihood.scale, torch.stack([G, H, H - G])])

    @property
    def units(self) -> Tensor:
        """What the rows of `products` are to be multiplied by, (7,) float64."""
        return torch.tensor([self.true.likelihood.scale] * 4 + [1.0] * 3, dtype=torch.float64)

    @cached_property
    def empirical(self) -> Covariance:
        return Covariance(self.noise.examples, centred=False, dtype=self.noise.dtype)

    @property
    def five(self) -> tuple[LinearOperator, ...]:
        return self.true, self.sampled, self.empirical, self.gauss_newton, self.hessian

    @property
    def matvecs(self) -> int:
        """Products so far."""
        return sum(operator.matvecs for operator in (*self.five, self.noise))

    def all(self, generator: torch.Generator) -> dict[str, LinearOperator]:
        """An operator for every matrix; R only where it is more than round-off."""
        R = difference(self.hessian, self.gauss_newton)
        found = dict(zip(MATRICES, (*self.five[:3], self.noise, *self.five[3:], R), strict=True))
        z = random_signs((len(self.w),), self.w, generator)
        if norm(R @ z) <= BLIND * torch.finfo(z.dtype).eps * norm(self.hessian @ z):
            del found["residual"]
        return found

    def traces(self, generator: torch.Generator) -> dict[str, Estimate]:
        """Those that records of the layers give: exact but for H and R, which are where outputs are piecewise linear."""
        D = trace(self.objective, self.w)
        found = {"empirical": Estimate(D.mean_square, 0.0, 1, "exact")}
        found["covariance"] = Estimate(D.value, D.round_off, D.matvecs, D.method)
        with suppress(TypeError, ValueError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error of Tr H is reported; no setting of this probe would change it
            anatomy = take_apart(self.objective, self.w)  # else the traces are those of the random vectors: TypeError
            few = self.true.num_outputs <= MOST_OUTPUTS
            error = self._label_error(anatomy, generator) if few else math.nan
            found["sampled"] = replace(self.sampled.trace(self.w), error=error)
            if few:
                found |= {"true": self.true.trace(self.w), "gauss_newton": gauss_newton_trace(self.objective, self.w)}
            if few and anatomy.piecewise_linear:  # R has no diagonal
                found |= {"hessian": found["gauss_newton"], "residual": Estimate(0.0, 0.0, 0, "exact")}
                return found
            found["hessian"] = H = hessian_trace(self.objective, self.w, tol=TRACE_TOL, generator=generator)
            if few:
                found["residual"] = Estimate(H.value - found["gauss_newton"].value, H.error, 0, "difference")
        return found

    def _label_error(self, anatomy: Anatomy, generator: torch.Generator) -> float:
        """Standard error of the trace of the sampled Fisher: it is the mean of |J_n's|^2 over examples and labels drawn."""
        total, likelihood = 0.0, self.true.likelihood
        for chunk in anatomy.chunks(self.w):
            total += (chunk.weight / chunk.num) ** 2 * float(label_variance(chunk, likelihood, generator).sum())
        return math.sqrt(total / len(self.sampled.scores))


def label_variance(chunk: Recording, likelihood: Likelihood, generator: torch.Generator) -> Tensor:
    """Var_y |J_n's(y)|^2 of every example (n,) float64, s(y) the score of labels y drawn from the model.

    Exact for one label among classes, sum_k p_k (q_k - sum_j p_j q_j)^2 with q_k = |J_n'(p - e_k)|^2, at a backward pass
    each: a class of small probability has a large q and is seldom drawn, so draws would miss it. Real labels are drawn,
    `REDRAWS` times; so are several labels an example, and the sum of their exact ones is what it is at least.
    """
    f = chunk.outputs.detach().reshape(chunk.num, -1).double()

    def squares(scores: list[Tensor]) -> Tensor:
        return torch.stack([chunk.squared_norms(s.to(chunk.outputs.dtype)) for s in scores])

    exact, labels = f.new_zeros(len(f)), 0
    for scores, p in likelihood.labels(f):
        q, labels = squares(scores), labels + 1
        exact += (p * (q - (p * q).sum(0)).square()).sum(0)
    if labels == 1:
        return exact
    return torch.maximum(exact, squares([likelihood.sampled_scores(f, generator) for _ in range(REDRAWS)]).var(0))


@card(kw_only=True, config=CARD)
class Fisher(Probe):
    """Traces, top eigenvalues, cosines and distances of the Fisher matrices, Gauss-Newton, Hessian, every `every` steps.

    every        steps between measurements.
    k            number of largest eigenvalues of each matrix; their vectors also sharpen the cosines.
    tol          wanted error of an eigenvalue relative to the largest |lambda| of its matrix.
    max_matvecs  products allowed per eigensolve.
    vectors      random vectors for cosines, distances and norms; their errors fall as 1/sqrt(vectors).
    draws        labels an example of the sampled Fisher.
    examples     size of the fixed, class-balanced probe set; all; auto (all up to 5000, else 2000; fewer, but 32 at least,
                 where the graph of a gradient would take more than 64 MiB: 32 in a ResNet-20). fisher/examples tells.

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

    every: Annotated[int, Field(gt=0)] = 130
    k: Annotated[int, Field(gt=0)] = 3
    tol: Annotated[float, Field(gt=0, lt=1)] = 1e-2
    max_matvecs: Annotated[int, Field(gt=3)] = 200
    vectors: Annotated[int, Field(ge=FEWEST)] = 20
    draws: Annotated[int, Field(gt=0)] = 1
    examples: Annotated[int, Field(gt=0)] | Literal["all", "auto"] = "auto"
    _history: Tensor | None = field(default=None, init=False, repr=False)
    _said: bool = field(default=False, init=False, repr=False)

    def measure(self, snapshot: Snapshot) -> dict[str, Value]:
        """The tags above with their errors, arrays of them, a figure of this step and one of the run so far."""
        begin, w = perf_counter(), snapshot.w
        try:
            matrices = self._matrices(snapshot)
        except (TypeError, ValueError) as error:
            raise SettingError(f"probe=[fisher]: {error}") from None
        if matrices is None:  # the network diverged: there is nothing to draw labels from
            return {"cost/fisher/seconds": perf_counter() - begin}
        spent = matrices.matvecs  # of a Hessian that other probes use too
        ends = self._eigenpairs(matrices, snapshot)
        basis = torch.cat([found.start for found in ends.values()], dim=1)
        generator = stream(snapshot.seed, "fisher/vectors", snapshot.step)
        found = compare(matrices.products, w, basis=basis, vectors=self.vectors, generator=generator)
        traces = matrices.traces(stream(snapshot.seed, "fisher/traces", snapshot.step))
        arrays = _arrays(found, matrices.units, traces, ends, torch.finfo(w.dtype).eps)
        values: dict[str, Value] = dict(_numbers(arrays, ends))
        values["fisher/examples"] = float(len(matrices.objective.x))
        values["fisher/rao_norm"] = float(dot(w[None], matrices.true @ w))
        values["fisher/scale"] = matrices.true.likelihood.scale
        values["fisher/converged"] = float(all(end.top.converged and end.bottom.converged for end in ends.values()))
        self._remember(snapshot.step, arrays)
        values |= {f"fisher/{name}": array for name, array in arrays.items()}
        values["fisher/matrices"] = matrices_figure(arrays, f"Fisher against Hessian, step {snapshot.step}")
        if self._history is not None and len(self._history) > 1:
            values["fisher/training"] = training_figure(self._history)
        values["cost/fisher/matvecs"] = float(matrices.matvecs - spent)
        values["cost/fisher/seconds"] = perf_counter() - begin
        return values

    def finding(self, values: dict[str, float]) -> str:
        """How near the Hessian and the empirical Fisher are to the true Fisher, and how that changed in the run.

        The sampled Fisher is the yardstick of the empirical one: what as many labels give where the model holds. It is told
        of only where its trace is known to 10 % of the true one: a network sure of its labels seldom draws those that count.
        """
        parts = ("cosine_true_hessian", "residual_share", "cosine_true_empirical", "cosine_true_sampled")
        if any(f"fisher/{name}" not in values for name in (*parts, "trace_true", "trace_empirical", "trace_sampled")):
            return ""
        with_hessian, share, with_empirical, with_sampled = (values[f"fisher/{name}"] for name in parts)
        true, empirical, sampled = (values[f"fisher/trace_{name}"] for name in ("true", "empirical", "sampled"))
        since = ("", "")
        if self._history is not None and len(self._history) > 1:
            step, cosines = int(self._history[0, 0]), remembered(self._history)["cosines"][0, 0]
            then = (float(cosines[MATRICES.index(name)]) for name in ("hessian", "empirical"))
            since = f" ({next(then):.2f} at step {step})", f" ({next(then):.2f} at step {step})"
        yardstick = ""
        if values.get("error/fisher/trace_sampled", math.nan) <= SMALL * true:
            yardstick = (
                f"; with labels drawn from the network itself they would be {with_sampled:.2f} and {sampled / true:.2g}"
            )
        return (
            f"The cosine of the Hessian with the true Fisher is {with_hessian:.2f}{since[0]}, |H - Gauss-Newton| is "
            f"{share:.2f} of |H|. That of the empirical Fisher is {with_empirical:.2f}{since[1]}, its trace "
            f"{empirical / true:.2g} of the true one{yardstick}."
        )

    def _matrices(self, snapshot: Snapshot) -> Matrices | None:
        """The five operators; None where the outputs are not finite. BatchNorm in eval statistics."""
        examples, w = self._affordable(snapshot), snapshot.w
        loss = snapshot.loss_on(examples)
        if not isinstance(loss, NetworkObjective):
            raise TypeError(f"{type(loss).__name__} is no network: it has no labels to draw")
        begin = perf_counter()
        value, _ = loss.value_and_grad(w)
        self._say(perf_counter() - begin, len(loss.x))
        if not bool(value.isfinite()):
            return None
        if loss.batch_statistics:
            loss = loss.with_running_statistics()
            H = hessian(loss, w)
        else:
            H = snapshot.once(("hessian", examples), lambda: hessian(loss, w))
        labels = stream(snapshot.seed, "fisher/labels", snapshot.step)
        return Matrices(
            loss,
            w,
            true=true_fisher(loss, w),
            sampled=sampled_fisher(loss, w, generator=labels, draws=self.draws),
            noise=covariance(loss, w),
            gauss_newton=gauss_newton(loss, w),
            hessian=H,
        )

    def _affordable(self, snapshot: Snapshot) -> Examples:
        """The probe set: of `auto` as many examples as `AFFORDABLE` allows."""
        loss = snapshot.loss_on(self.examples)
        if self.examples != "auto" or not isinstance(loss, NetworkObjective):
            return self.examples
        fit = max(FEW, AFFORDABLE // loss.bytes_per_example(snapshot.w))
        return fit if fit < len(loss.x) else self.examples

    def _say(self, seconds: float, num: int) -> None:
        """Warn, once, of a measurement that will take long, given the seconds of a gradient."""
        vectors = 5 * (self.vectors + len(MATRICES) * self.k)
        solves = len(MATRICES) + 1  # a product of the residual is two
        low, high = (GRADIENTS * seconds * (vectors + solves * each) for each in (4 * self.k, self.max_matvecs))
        if self._said or low < LONG:
            return
        self._said = True
        warnings.warn(
            f"probe=[fisher]: a measurement on {num} examples takes {low:.0f} to {high:.0f} s, {len(MATRICES)} matrices at "
            f"{seconds:.2g} s a gradient; smaller probe.fisher.examples, .vectors and .max_matvecs are cheaper",
            stacklevel=2,
        )

    def _eigenpairs(self, matrices: Matrices, snapshot: Snapshot) -> dict[str, Extremes]:
        """The k largest of every matrix, and the smallest of those that may be indefinite."""
        found = {}
        for name, operator in matrices.all(stream(snapshot.seed, "fisher/blind", snapshot.step)).items():
            bottom = int(name in ("hessian", "residual") and operator.size > 1)
            found[name] = lanczos(
                operator,
                top=min(self.k, operator.size - bottom),
                bottom=bottom,
                tol=self.tol,
                max_matvecs=self.max_matvecs,
                generator=stream(snapshot.seed, f"fisher/eigen/{name}", snapshot.step),
            )
        return found

    def _remember(self, step: int, arrays: Mapping[str, Tensor]) -> None:
        """One row more of what `training_figure` draws; measurements from this step on are those of a run cut off."""
        row = torch.cat([torch.tensor([float(step)]), *(arrays[name].flatten() for name in REMEMBERED)])[None]
        before = self._history if self._history is not None else row[:0]
        self._history = torch.cat([before[before[:, 0] < step].to(row), row])

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self._history is None else {"history": self._history}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._history = state["history"].cpu() if "history" in state else None


def _arrays(
    found: Comparison, units: Tensor, traces: Mapping[str, Estimate], ends: Mapping[str, Extremes], eps: float
) -> dict[str, Tensor]:
    """All numbers by kind, float64, in the order of `MATRICES`; NaN where there is none. found: matrices over their `units`.

    Of two traces that with the smaller error; that of the sampled Fisher is over its labels.
    Cosines with a difference of matrices that is round-off are none.
    """
    arrays = {"traces": units * found.traces, "trace_errors": units * found.trace_errors}
    arrays["trace_errors"][MATRICES.index("sampled")] = math.nan
    for i, name in enumerate(MATRICES):
        if name in traces and (name == "sampled" or traces[name].error <= float(arrays["trace_errors"][i])):
            arrays["traces"][i], arrays["trace_errors"][i] = traces[name].value, traces[name].error
    arrays |= {"norms": units * found.norms, "norm_errors": units * found.norm_errors}
    arrays |= {"cosines": found.cosines.clone(), "cosine_errors": found.cosine_errors.clone()}
    for part, whole in (("residual", "hessian"), ("covariance", "empirical")):
        i = MATRICES.index(part)
        if not float(found.norms[i]) > BLIND * eps * float(found.norms[MATRICES.index(whole)]):
            for each in (arrays["cosines"], arrays["cosine_errors"]):
                each[i], each[:, i] = math.nan, math.nan
    true, G, H = (MATRICES.index(name) for name in ("true", "gauss_newton", "hessian"))
    arrays |= {"distances": found.distances[:, true], "distance_errors": found.distance_errors[:, true]}
    arrays |= {"share": found.distances[G, H], "share_error": found.distance_errors[G, H]}
    k = max(len(end.top.values) for end in ends.values())
    arrays["top"], arrays["bottom"] = torch.full((len(MATRICES), k), math.nan), torch.full((len(MATRICES),), math.nan)
    for name, end in ends.items():
        arrays["top"][MATRICES.index(name), : len(end.top.values)] = end.top.values
        if len(end.bottom.values):
            arrays["bottom"][MATRICES.index(name)] = end.bottom.values[0]
    return {name: array.double() for name, array in arrays.items()}


def _numbers(arrays: Mapping[str, Tensor], ends: Mapping[str, Extremes]) -> dict[str, float]:
    """Every number under its tag, every error under error/ and the same tag."""
    numbers = dict[str, float]()

    def put(tag: str, value: Tensor, error: Tensor) -> None:
        numbers[tag], numbers[f"error/{tag}"] = float(value), float(error)

    for i, name in enumerate(MATRICES):
        put(f"fisher/trace_{name}", arrays["traces"][i], arrays["trace_errors"][i])
        put(f"fisher/norm_{name}", arrays["norms"][i], arrays["norm_errors"][i])
        if name not in ("true", "residual"):
            put(f"fisher/distance_{name}", arrays["distances"][i], arrays["distance_errors"][i])
        for j in range(i + 1, len(MATRICES)):
            put(f"fisher/cosine_{name}_{MATRICES[j]}", arrays["cosines"][i, j], arrays["cosine_errors"][i, j])
    for name, end in ends.items():
        for rank, (value, error) in enumerate(zip(end.top.values, end.top.errors, strict=True), 1):
            put(f"fisher/lambda_{rank}_{name}", value, error)
        for value, error in zip(end.bottom.values, end.bottom.errors, strict=True):
            put(f"fisher/lambda_min_{name}", value, error)
    put("fisher/residual_share", arrays["share"], arrays["share_error"])
    return numbers
