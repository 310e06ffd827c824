"""What the measurement of the gradient noise returns, and the words for it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from matplotlib.figure import Figure
from torch import Tensor

from lab.noise.alignment import Alignment
from lab.noise.covariance import NoiseSpectrum
from lab.noise.slope import Along
from lab.probes.noise_figure import alignment_figure, draws_figure, eigenvalue_figure
from lab.results import Estimate, Result, finite, numbered, ranked, with_errors
from lab.sampling import SAMPLINGS


@dataclass(frozen=True)
class NoiseAlong:
    """The noise along eigenvectors u of H.

    curvature (k,) = u'Hu, those of the top first; variance u'Du of the same u, with the slope fitted to the top; theory the
    slope expected, NaN for none; mean Tr D/P, that of all directions; alignment Tr(HD) and the cosine of H and D; matvecs
    Hessian products spent.
    """

    curvature: Tensor
    variance: Along
    theory: float
    mean: float
    alignment: Alignment
    matvecs: int

    def numbers(self) -> dict[str, float]:
        down, along = int(self.curvature.argmin()), self.variance
        numbers = with_errors({"slope": (along.slope, along.slope_error)}) | {"slope_theory": self.theory}
        if bool(self.curvature[-1] < 0):
            numbers |= with_errors({"downhill": (along.variance[down], along.error[down])})
        return numbers | numbered({"alignment": self.alignment.trace, "cosine": self.alignment.cosine})


@dataclass(frozen=True)
class NoiseResult(Result):
    """The gradient noise of one example and of a batch.

    trace     Tr D of one example, 0 where nothing but round-off is left of it.
    scale     Tr D / |g|^2 in examples; None where |g|^2 is no more than the noise of the probe set.
    spectrum  the eigenvalues of D; None without noise.
    along     None where H was not looked at, or no eigenvector of it bends.
    others    grad_norm, and what there is of the batch in use, layers, tails and draws, by name, with error/name.
    draws     what the drawn batches showed, for S sizes: arrays (S,) and (3, S) in units of Tr D, rows as `SAMPLINGS`.
    """

    blank: ClassVar[str] = "there is no gradient noise here: nothing to draw"
    trace: Estimate
    scale: Estimate | None
    spectrum: NoiseSpectrum | None
    along: NoiseAlong | None
    others: Mapping[str, float]
    draws: Mapping[str, Tensor]

    def numbers(self) -> dict[str, float]:
        numbers = numbered({"trace": self.trace} | ({} if self.scale is None else {"scale": self.scale}))
        if (spectrum := self.spectrum) is not None:
            names = ["lambda_max", *(f"lambda_{i}" for i in range(2, len(spectrum.pairs.values) + 1))]
            numbers |= ranked(names, spectrum.pairs)
            numbers |= with_errors({"effective_rank": (spectrum.effective_rank, spectrum.effective_rank_error)})
            numbers |= {"rank_bound": float(spectrum.rank_bound)}
        return numbers | ({} if self.along is None else self.along.numbers()) | dict(self.others)

    def sentence(self) -> str:
        return in_words(self.numbers()) or "Gradient noise: not measured, for it is not finite."

    def figures(self, when: str = "") -> dict[str, Figure]:
        """The noise against the curvature, where H was looked at; its eigenvalues; the drawn batches."""
        figures: dict[str, Figure] = {}
        if self.along is not None:
            figures["along"] = alignment_figure(self.along, f"gradient noise along eigenvectors of the Hessian{when}")
        if self.spectrum is not None:
            figures["spectrum"] = eigenvalue_figure(self.spectrum, f"gradient noise of one example{when}")
        if self.draws:
            figures["draws"] = draws_figure(self.draws, f"variance of mini-batch gradients{when}")
        return figures

    def arrays(self) -> dict[str, Tensor]:
        arrays = {f"draws_{name}": array for name, array in self.draws.items()}
        arrays |= {} if self.spectrum is None else {"eigenvalues": self.spectrum.values}
        if self.along is None:
            return arrays
        variance = {"variance": self.along.variance.variance, "variance_error": self.along.variance.error}
        return arrays | {"curvature": self.along.curvature} | variance

    def costs(self) -> dict[str, float]:
        return {} if self.along is None else {"matvecs": float(self.along.matvecs)}


def in_words(numbers: Mapping[str, float]) -> str:
    """Size of the noise, what it has to do with H, and whether the draws bear Lemma 1 out; of what is finite."""
    numbers = finite(numbers)
    if "trace" not in numbers:
        return ""
    words = [_size_in_words(numbers)]
    if "slope" in numbers:
        theory = numbers.get("slope_theory", math.nan)
        against = ""
        if math.isfinite(theory):
            against = f" (theory {theory:.3g}: 2L/K of a squared error, or of a well-specified likelihood)"
            against = " (1 for a well-specified likelihood)" if theory == 1 else against
        words.append(
            f"Along the top eigenvectors of H it is {_with_error(numbers, 'slope', '.3g')} times their curvature"
            f"{against}; cos(D, H) = {numbers.get('cosine', math.nan):.2f}."
        )
    if "kurtosis_batch" in numbers:
        m = numbers["batch_size"] if numbers.get("batch_factor") else 1
        words.append(
            f"Along random directions the noise of {'a batch' if m > 1 else 'one example'} has an excess kurtosis of "
            f"{_with_error(numbers, 'kurtosis_batch', '.2g')} (0: Gaussian)."
        )
    if "tail_index" in numbers and "tail_gamma" in numbers:
        words.append(
            f"Tail index of |g_i - g| {_with_error(numbers, 'tail_index', '.2g')}, gamma "
            f"{_with_error(numbers, 'tail_gamma', '.2f')} (above 0: heavy; of one finite set, so it tells how far the "
            "largest examples reach and nothing beyond them)."
        )
    names = [*(name.replace("_", " ") for name in SAMPLINGS), "two batches of an epoch: -Tr D/(N-1)"]
    ratios = [f"measured_over_predicted.{name}" for name in (*SAMPLINGS, "cross")]
    if ratios[0] in numbers:
        pairs = [(ratio, name) for ratio, name in zip(ratios, names, strict=True) if ratio in numbers]
        parts = [f"{_with_error(numbers, ratio, '.4f')} ({name})" for ratio, name in pairs]
        words.append(f"Drawn batches, variance measured/predicted: {', '.join(parts)}.")
    return " ".join(words)


def _size_in_words(numbers: Mapping[str, float]) -> str:
    text = f"Gradient noise: Tr D = {_with_error(numbers, 'trace', '.4g')} for one example"
    if numbers.get("batch_factor") == 0:
        text += ", 0 for the full batch in use (factor 0)"
    elif "batch_factor" in numbers:
        batch, m, factor = (numbers[name] for name in ("trace_batch", "batch_size", "batch_factor"))
        text += f", {batch:.3g} for a batch of {m:.0f} (factor {factor:.3g})"
        if numbers["trace_cross"] < 0:
            text += f", {numbers['trace_cross']:.2g} between two batches of an epoch"
    if "scale" in numbers:
        text += f"; noise scale Tr D/|g|^2 = {_with_error(numbers, 'scale', '.3g')} examples"
    if "effective_rank" in numbers:
        rank = {name: number for name, number in numbers.items() if number > 0 or name != "error/effective_rank"}
        text += f"; effective rank {_with_error(rank, 'effective_rank', '.3g')} of at most {numbers['rank_bound']:.0f}"
    return text + ("; BatchNorm with running statistics." if "running_statistics" in numbers else ".")


def _with_error(numbers: Mapping[str, float], name: str, form: str) -> str:
    """A number with its error, where that is known: a single example has none."""
    error = numbers.get(f"error/{name}")
    return f"{numbers[name]:{form}}" + ("" if error is None else f" +- {error:.1g}")
