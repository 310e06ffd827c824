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
from collections.abc import Iterator
from dataclasses import replace
from time import perf_counter
from typing import Annotated, ClassVar, Literal, get_args

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from lab.curvature.eigen import lanczos
from lab.curvature.forms import Interval
from lab.curvature.operators import Hessian, hessian
from lab.curvature.vectors import norm
from lab.data.batches import Batches
from lab.noise.alignment import alignment
from lab.noise.covariance import Covariance, Spectrum, centred_squares, covariance, eigenvalues
from lab.noise.draws import batch_moments
from lab.noise.size import trace
from lab.noise.slope import along, expected_slope
from lab.noise.tails import excess_kurtosis, extreme_index, gaussianity, tail_index
from lab.objective import CHUNK_BYTES, NetworkObjective, Objective
from lab.probes.base import Probe, Snapshot, Value
from lab.results import Estimate
from lab.sampling import Sampling, batch_factor, cross_factor
from lab.settings import CARD
from lab.streams import stream

SAMPLINGS: tuple[Sampling, ...] = get_args(Sampling)
EIGEN_TOL = 1e-2
"""Wanted error of the eigenvalues of H relative to the largest. u'Hu and u'Du are exact for the vectors found."""
GAUSSIAN_DRAWS = 1000
"""Batches whose noise is tested for being Gaussian."""
AFFORDABLE = CHUNK_BYTES // 4
"""Bytes of the graph of a gradient up to which hessian=auto looks at H: 2000 images in an MLP, 50 in a ResNet-8."""
FEWEST = 40
"""Examples below which nothing is said of tails."""


@dataclass(kw_only=True, config=CARD)
class Noise(Probe):
    """Covariance of the gradient noise, every `every` steps.

    every       steps between measurements.
    k           number of top eigenvalues of D to log (all of them go to arrays/).
    examples    size of the fixed, class-balanced probe set; all; auto (all up to 5000, else 2000).
    hessian     also what D has to do with H: Tr(HD), their cosine, u'Du along eigenvectors of H with the fitted slope; auto:
                where it costs seconds, by the memory of the graph of a gradient: for MLPs, not for a ResNet.
    pairs       eigenvectors of H at each end, top and most negative, along which the noise is measured.
    tol         wanted error of Tr(HD), and of |H|_F for the cosine, relative.
    max_matvecs Hessian products allowed, for the eigenvectors, for Tr(HD) and for |H|_F each.
    directions  random directions along which the noise is tested for being Gaussian.
    layers      also the trace of every parameter's block of D, as noise/trace.<parameter>.
    draws       epochs of real mini-batches drawn for each of some batch sizes under all three samplings, to hold their
                variance against Lemma 1; 0: none.
    Tags that do not speak for themselves: trace_cross, Tr of the covariance of two batches of an epoch; tail_gamma, 0 for a
    Gaussian, above for a heavy tail; kurtosis, the excess of one example, kurtosis_batch of a batch; not_gaussian, share of
    directions along which a test of 5 % rejects for batches drawn from these examples; gaussian_p, of all together;
    alignment, Tr(HD); downhill, u'Du along the most negative direction of H; measured_over_predicted.<sampling>, of `draws`.
    Cost without `hessian`: a gradient for Tr D, some for the eigenvalues (from inner products of per-example gradients), a
    third of one for each direction. With it some 70 Hessian products, of 1.1 gradients or more. `draws`: 3 gradients of
    the probe set for each size and epoch, in small batches.
    """

    name: ClassVar[str] = "noise"

    every: Annotated[int, Field(gt=0)] = 130
    k: Annotated[int, Field(gt=0)] = 5
    examples: Annotated[int, Field(gt=0)] | Literal["all", "auto"] = "auto"
    hessian: bool | Literal["auto"] = "auto"
    pairs: Annotated[int, Field(gt=0)] = 5
    tol: Annotated[float, Field(gt=0, lt=1)] = 0.05
    max_matvecs: Annotated[int, Field(gt=20)] = 200
    directions: Annotated[int, Field(gt=0)] = 10
    layers: bool = False
    draws: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _consistent(self) -> "Noise":
        if self.max_matvecs < (fewest := 2 * self.pairs):
            raise ValueError(f"max_matvecs={self.max_matvecs} is too few for the eigenvectors; use {fewest} or more")
        return self

    def measure(self, snapshot: Snapshot) -> dict[str, Value]:
        """The tags noise/*, error/noise/*, cost/noise/*, figures, and the arrays behind them."""
        begin, w = perf_counter(), snapshot.w
        loss, running = _of_examples(snapshot.loss_on(self.examples))
        D = covariance(loss, w)
        values = self._size(snapshot, loss, D)
        spectrum = self._spectrum(snapshot, loss, values)
        values |= self._tails(snapshot, D)
        if running:
            values["noise/running_statistics"] = 1.0
        if spectrum is not None and self._affordable(loss, w):
            key = ("hessian", self.examples, "running statistics") if running else ("hessian", self.examples)
            H = snapshot.once(key, lambda: hessian(loss, w))
            values |= self._against(snapshot, H, loss, D, spectrum)
        if self.draws:
            values |= self._drawn(snapshot, loss, float(values["noise/trace"]))  # type: ignore[arg-type]
        values["cost/noise/seconds"] = perf_counter() - begin
        return values

    def _affordable(self, loss: Objective, w: Tensor) -> bool:
        """Whether H is to be looked at."""
        return loss.graph_bytes(w) <= AFFORDABLE if self.hessian == "auto" else self.hessian

    def _size(self, snapshot: Snapshot, loss: Objective, D: Covariance) -> dict[str, Value]:
        """Tr D of one example and of the batch in use, and the noise scale."""
        assert loss.num_examples is not None
        found, n, N = trace(loss, snapshot.w), loss.num_examples, snapshot.num_train or loss.num_examples
        m, sampling = snapshot.batch_size, snapshot.sampling
        factor = 0.0 if m is None else batch_factor(N, m, sampling)
        cross = 0.0 if m is None or m == N else cross_factor(N, sampling)
        whole = 0.0 if found.value <= found.round_off else found.value
        values: dict[str, Value] = {"noise/trace": whole, "error/noise/trace": found.error}
        values |= {"noise/trace_batch": factor * whole, "error/noise/trace_batch": factor * found.error}
        values |= {"noise/batch_factor": factor, "noise/trace_cross": cross * whole}
        values["error/noise/trace_cross"] = abs(cross) * found.error
        values["noise/batch_size"] = float(N if m is None else m)
        values["noise/grad_norm"] = norm(found.gradient)
        # A probe set of n out of N examples has a noise of its own: |g|^2 of it is too large by `excess` on average.
        share = batch_factor(max(n, N), n, "without_replacement")
        square, excess = norm(found.gradient) ** 2, share * whole
        if square > excess:
            rest, variance = square - excess, float(D.variances(found.gradient[:, None])[0])  # g'Dg
            scale = whole / rest
            relative = math.hypot(found.error / whole if whole else 0.0, _spread(share, variance, excess) / rest)
            values |= {"noise/scale": scale, "error/noise/scale": scale * relative}
        if self.layers:
            values |= {f"noise/trace.{name}": part for name, part in found.by_parameter.items()}
        return values

    def _spectrum(self, snapshot: Snapshot, loss: Objective, values: dict[str, Value]) -> Spectrum | None:
        """The eigenvalues of D, logged in `values`; None where there is no noise."""
        from lab.run.noise_figures import eigenvalue_figure

        assert loss.num_examples is not None
        bound = min(loss.num_examples - 1, len(snapshot.w))
        if bound < 1 or not values["noise/trace"] > 0:  # type: ignore[operator]
            return None
        draw = stream(snapshot.seed, "noise/rank", snapshot.step)
        found = eigenvalues(loss, snapshot.w, min(self.k, bound), generator=draw)
        names = ["noise/lambda_max", *(f"noise/lambda_{i}" for i in range(2, len(found.pairs.values) + 1))]
        for name, value, error in zip(names, found.pairs.values, found.pairs.errors, strict=True):
            values |= {name: float(value), f"error/{name}": float(error)}
        values |= {"noise/effective_rank": found.effective_rank, "noise/rank_bound": float(found.rank_bound)}
        values["error/noise/effective_rank"] = found.effective_rank_error
        values["noise/eigenvalues"] = found.values
        numbers = {"trace": values["noise/trace"], "effective_rank": found.effective_rank, "rank_bound": bound}
        drawn = {"eigenvalues": found.values} | {name: torch.tensor(float(x)) for name, x in numbers.items()}  # type: ignore[arg-type]
        title = f"gradient noise of one example, step {snapshot.step}"
        values["noise/spectrum"] = eigenvalue_figure({name: x.cpu().numpy() for name, x in drawn.items()}, title)
        return found

    def _tails(self, snapshot: Snapshot, D: Covariance) -> dict[str, Value]:
        """Tail of |g_i - g| over the examples; Gaussianity along random directions, of one example and of a batch."""
        examples, P = D.examples, D.size
        if examples.num_examples < FEWEST:
            return {}
        generator = stream(snapshot.seed, "noise/tails", snapshot.step)
        g = examples.gradient()
        z = torch.randn(P, self.directions, generator=generator, dtype=torch.float32).to(g) / math.sqrt(P)
        projected = examples.along(z)
        squares = torch.stack(list(examples.squared_norms().values())).sum(0)
        lengths = centred_squares(examples, squares, g).sqrt()
        of_one = projected - projected.mean(0)
        m = snapshot.batch_size or 1  # independent examples: their mean has exactly 1/m of the excess kurtosis
        tested = gaussianity(_batch_means(of_one, m, generator))
        estimates = {
            "tail_index": tail_index(lengths),
            "tail_gamma": extreme_index(lengths),
            "kurtosis": (kurtosis := excess_kurtosis(of_one)),
            "kurtosis_batch": replace(kurtosis, value=kurtosis.value / m, error=kurtosis.error / m),
        }
        values = _estimated(estimates)
        return values | {"noise/not_gaussian": tested.rejected, "noise/gaussian_p": tested.p_value}

    def _against(
        self, snapshot: Snapshot, H: Hessian, loss: Objective, D: Covariance, spectrum: Spectrum
    ) -> dict[str, Value]:
        """u'Du against u'Hu, its slope and the theory; Tr(HD) and the cosine."""
        from lab.run.noise_figures import alignment_figure

        before, w, P = H.matvecs, snapshot.w, H.size
        pairs = min(self.pairs, P // 2) or 1
        bottom = min(pairs, P - pairs)
        generator = stream(snapshot.seed, "noise/hessian", snapshot.step)
        limit = self.max_matvecs
        ends = lanczos(H, top=pairs, bottom=bottom, tol=EIGEN_TOL, max_matvecs=limit, copies=False, generator=generator)
        bends = torch.cat([ends.top.values > 0, ends.bottom.values < 0])  # the others are no top, or not negative
        if not bool(bends.any()):
            return {}
        curvature = torch.cat([ends.top.values, ends.bottom.values])[bends]
        vectors = torch.cat([ends.top.vectors, ends.bottom.vectors], dim=1)[:, bends]
        found = along(D.examples, vectors, curvature, fitted=len(ends.top.values))
        theory = expected_slope(loss, w, generator=stream(snapshot.seed, "noise/theory", snapshot.step))
        numbers = {"slope": found.slope, "slope_error": found.slope_error, "theory": theory}
        numbers["mean_variance"] = spectrum.trace / P
        arrays = {"curvature": curvature, "variance": found.variance, "variance_error": found.error}
        arrays |= {name: torch.tensor(x, dtype=torch.float64) for name, x in numbers.items()}
        values: dict[str, Value] = {f"noise/{name}": x for name, x in arrays.items() if x.dim()}
        values |= {"noise/slope": found.slope, "error/noise/slope": found.slope_error, "noise/slope_theory": theory}
        if bool(curvature[-1] < 0):
            down = int(curvature.argmin())
            values |= _estimated({"downhill": Estimate(float(found.variance[down]), float(found.error[down]), 0, "")})
        title = f"gradient noise along eigenvectors of the Hessian, step {snapshot.step}"
        values["noise/along"] = alignment_figure({name: x.cpu().numpy() for name, x in arrays.items()}, title)
        squares = Interval(spectrum.squares, spectrum.squares_error, math.inf) if spectrum.squares > 0 else None
        draw = stream(snapshot.seed, "noise/alignment", snapshot.step)
        both = alignment(H, D, squares=squares, tol=self.tol, generator=draw, max_matvecs=limit)
        values |= _estimated({"alignment": both.trace, "cosine": both.cosine})
        values["cost/noise/matvecs"] = float(H.matvecs - before)
        return values

    def _drawn(self, snapshot: Snapshot, loss: Objective, whole: float) -> dict[str, Value]:
        """Mini-batch gradients as training would draw them from the probe set, their variance against Lemma 1."""
        from lab.run.noise_figures import draws_figure

        N, w = loss.num_examples or 0, snapshot.w
        if not whole > 0 or N < 4:
            return {}
        sizes = sorted({m for m in (4**i for i in range(20)) if m <= N // 2} | {N // 2})
        numbers = torch.full((4, len(SAMPLINGS), len(sizes)), math.nan, dtype=torch.float64)
        for i, sampling in enumerate(SAMPLINGS):
            for j, m in enumerate(sizes):
                seed = stream(snapshot.seed, f"noise/draws/{sampling}/{m}", snapshot.step).initial_seed()
                epochs = [batch_moments(loss, w, index) for index in _epochs(N, m, sampling, seed, max(2, self.draws))]
                units = torch.tensor(epochs, dtype=torch.float64) / whole
                numbers[:2, i, j] = units.mean(0)
                numbers[2:, i, j] = units.std(0) / math.sqrt(len(units))
        variance, cross, variance_error, cross_error = numbers
        counts = torch.tensor([N // m for m in sizes], dtype=torch.float64)
        arrays = {"draws_sizes": torch.tensor(sizes), "draws_examples": torch.tensor(N)}
        arrays |= {"draws_variance": variance, "draws_variance_error": variance_error}
        arrays |= {"draws_cross": cross, "draws_cross_error": cross_error}
        values: dict[str, Value] = {f"noise/{name}": x for name, x in arrays.items()}
        for i, sampling in enumerate(SAMPLINGS):
            theory = torch.tensor([batch_factor(N, m, sampling) for m in sizes], dtype=torch.float64)
            ratio = _pooled(variance[i] / theory, variance_error[i] / theory, counts)
            values |= _estimated({f"measured_over_predicted.{sampling}": ratio})
        theory, row = torch.tensor(cross_factor(N, "epoch")), SAMPLINGS.index("epoch")
        ratio = _pooled(cross[row] / theory, cross_error[row] / theory.abs(), counts)
        values |= _estimated({"measured_over_predicted.cross": ratio})
        title = f"variance of mini-batch gradients, step {snapshot.step}"
        values["noise/draws"] = draws_figure({name: x.cpu().numpy() for name, x in arrays.items()}, title)
        return values

    def finding(self, values: dict[str, float]) -> str:
        """Size of the noise, what it has to do with H, and whether the draws bear Lemma 1 out."""
        if "noise/trace" not in values:
            return ""
        told = [_size_in_words(values)]
        if "noise/slope" in values:
            theory = values.get("noise/slope_theory", math.nan)
            against = ""
            if math.isfinite(theory):
                against = f" (theory {theory:.3g}: 2L/K of a squared error, or of a well-specified likelihood)"
                against = " (1 for a well-specified likelihood)" if theory == 1 else against
            told.append(
                f"Along the top eigenvectors of H it is {values['noise/slope']:.3g} +- "
                f"{values['error/noise/slope']:.1g} times their curvature{against}; cos(D, H) = "
                f"{values.get('noise/cosine', math.nan):.2f}."
            )
        if "noise/kurtosis_batch" in values:
            m = values["noise/batch_size"] if values["noise/batch_factor"] else 1
            told.append(
                f"Along random directions the noise of {'a batch' if m > 1 else 'one example'} has an excess kurtosis of "
                f"{values['noise/kurtosis_batch']:.2g} +- {values['error/noise/kurtosis_batch']:.1g} (0: Gaussian)."
            )
        if "noise/tail_index" in values and "noise/tail_gamma" in values:
            told.append(
                f"Tail index of |g_i - g| {values['noise/tail_index']:.2g} +- {values['error/noise/tail_index']:.1g}, gamma "
                f"{values['noise/tail_gamma']:.2f} +- {values['error/noise/tail_gamma']:.1g} (above 0: heavy; of one "
                "finite set, so it tells how far the largest examples reach and nothing beyond them)."
            )
        if f"noise/measured_over_predicted.{SAMPLINGS[0]}" in values:
            told.append(_lemma_in_words(values))
        return " ".join(told)


def _size_in_words(values: dict[str, float]) -> str:
    value, error, m = values["noise/trace"], values["error/noise/trace"], values["noise/batch_size"]
    said = f"Gradient noise: Tr D = {value:.4g} +- {error:.1g} for one example"
    if values["noise/batch_factor"] == 0:
        said += ", 0 for the full batch in use (factor 0)"
    else:
        said += (
            f", {values['noise/trace_batch']:.3g} for a batch of {m:.0f} (factor {values['noise/batch_factor']:.3g})"
        )
        if values["noise/trace_cross"] < 0:
            said += f", {values['noise/trace_cross']:.2g} between two batches of an epoch"
    if "noise/scale" in values:
        scale, error = values["noise/scale"], values["error/noise/scale"]
        said += f"; noise scale Tr D/|g|^2 = {scale:.3g} +- {error:.1g} examples"
    if "noise/effective_rank" in values:
        error = values.get("error/noise/effective_rank", 0.0)
        about = f" +- {error:.1g}" if error > 0 else ""
        said += (
            f"; effective rank {values['noise/effective_rank']:.3g}{about} of at most {values['noise/rank_bound']:.0f}"
        )
    return said + ("; BatchNorm with running statistics." if "noise/running_statistics" in values else ".")


def _lemma_in_words(values: dict[str, float]) -> str:
    tags = {name: f"noise/measured_over_predicted.{name}" for name in (*SAMPLINGS, "cross")}
    parts = [
        f"{values[tag]:.4f} +- {values[f'error/{tag}']:.1g} "
        + ("(two batches of an epoch: -Tr D/(N-1))" if name == "cross" else f"({name.replace('_', ' ')})")
        for name, tag in tags.items()
        if tag in values
    ]
    return f"Drawn batches, variance measured/predicted: {', '.join(parts)}."


def _of_examples(loss: Objective) -> tuple[Objective, bool]:
    """The same loss through BatchNorm of running statistics, where it has batch statistics; and whether it had."""
    if not isinstance(loss, NetworkObjective):
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


def _estimated(estimates: dict[str, Estimate]) -> dict[str, Value]:
    """noise/name and error/noise/name."""
    values: dict[str, Value] = {f"noise/{name}": estimate.value for name, estimate in estimates.items()}
    return values | {f"error/noise/{name}": estimate.error for name, estimate in estimates.items()}
