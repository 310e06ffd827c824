"""The covariance of the gradient noise, D = (1/N) sum_i g_i g_i' - g g', of one example.

    Tr D = mean |g_i|^2 - |g|^2,    D v = (1/N) sum_i g_i (g_i'v - g'v),    D = A'A / N with rows g_i - g

from the gradients of single examples (`lab.layers.examples`), never formed together. A batch of m has D times the factor of
`lab.sampling` (Smith and Le 2018, Lemma 1). D has N as its divisor: an unbiased estimate for the population the
examples come from is N / (N - 1) times as large. Its rank is at most N - 1. The nonzero eigenvalues are those of the
centred Gram matrix over N, so that all of them come from N^2 inner products.

Where |g|^2 is many times Tr D these differences cancel; then the gradients are made in float64 whatever the dtype of w
(`lab.noise.size`, which has Tr D by itself).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.curvature.eigen import lanczos
from lab.curvature.operators import LinearOperator
from lab.curvature.vectors import dots
from lab.layers.examples import ExampleGradients, TooLarge
from lab.noise.size import RELATIVE, in_double, round_off_of, spaced
from lab.noise.size import NoiseTrace as NoiseTrace  # D's trace is found beside D
from lab.noise.size import trace as trace
from lab.objective import Objective
from lab.results import Eigenpairs

GRAM_EXAMPLES = 4096
"""Examples up to which eigenvalues come from the Gram matrix: 0.13 GB for it, and an eigensolve of N^3 operations."""
RANKED = 1000
"""Examples beyond that whose inner products estimate Tr D^2: within some 10 %."""
FEWEST = 3
"""Examples whose inner products have a variance."""


@dataclass(frozen=True)
class NoiseSpectrum:
    """Top eigenpairs of D, and what all its eigenvalues say.

    pairs           the k largest, vectors (P, k).
    values          all N eigenvalues in descending order, float64, where they were computed; else those of `pairs`.
    trace           Tr D, exact but for `round_off`, which is also that of every eigenvalue.
    squares         Tr D^2: exact where all eigenvalues were computed, else `square_by_sample`; `squares_error` its standard
                    error, 0 where exact.
    effective_rank  (Tr D)^2 / Tr D^2, between 1 and the rank; its standard error is `effective_rank_error`.
    rank_bound      min(N - 1, P), the largest rank D can have.
    method          "gram" or "lanczos".
    """

    pairs: Eigenpairs
    values: Tensor
    trace: float
    squares: float
    squares_error: float
    round_off: float
    rank_bound: int
    method: str

    @property
    def effective_rank(self) -> float:
        return self.trace**2 / self.squares if self.squares > 0 and self.trace > self.round_off else math.nan

    @property
    def effective_rank_error(self) -> float:
        return self.effective_rank * self.squares_error / self.squares if self.squares > 0 else math.nan


class Covariance(LinearOperator):
    """D, or the empirical Fisher matrix; `examples` are the recorded gradients behind it, in `dtype` or in float64."""

    def __init__(self, examples: ExampleGradients, *, centred: bool, dtype: torch.dtype | None = None):
        self.examples, self.centred = examples, centred
        super().__init__(examples.size, self._product, dtype=dtype or examples.w.dtype, device=examples.w.device)

    def _product(self, v: Tensor) -> Tensor:
        return self.examples.weighted(self._centre(self.examples.along(v)) / self.examples.num_examples).to(v)

    def variances(self, vectors: Tensor) -> Tensor:
        """u'Du (k,) float64 of vectors (P, k). Cost: a third of a gradient each, where records are kept."""
        return self._centre(self.examples.along(vectors)).square().mean(0)

    def _centre(self, along: Tensor) -> Tensor:
        return along - along.mean(0) if self.centred else along


def covariance(objective: Objective, w: Tensor, *, centred: bool = True, memory: int | None = None) -> Covariance:
    """D at w as an operator, v -> (1/N) sum_i g_i (g_i'v) - g (g'v); centred=False: without the last term, the empirical
    Fisher matrix.

    memory: bytes the records of the layers may take to be kept between products (default: a quarter of what the device
    has). Where a few examples say that |g|^2 is so much larger than Tr D that differences would cancel, the gradients are
    those in float64, if the model can be evaluated so; vectors keep the dtype of w. Cost: one gradient once, then per
    product 0.7 gradients (kept), one more where not. Raises TypeError where the loss is no mean over examples, ValueError
    for train-mode BatchNorm.
    """
    examples = ExampleGradients(objective, w, memory=memory)
    if centred and _cancels(examples):
        examples = ExampleGradients(objective, w.double(), memory=memory)
    return Covariance(examples, centred=centred, dtype=w.dtype)


def _cancels(examples: ExampleGradients) -> bool:
    """Whether differences of the gradients of a few examples are near round-off, and float64 is to be had and helps."""
    if examples.w.dtype == torch.float64:
        return False
    index = spaced(examples.num_examples, examples.w.device)
    few = ExampleGradients(examples.objective.restrict(index), examples.w, memory=0)
    products = few.gram()
    square, num = float(products.diagonal().mean()), len(products)
    if RELATIVE * (square - float(products.mean())) > round_off_of(square, examples.w.dtype) or num < 2:
        return False
    return in_double(lambda w: ExampleGradients(few.objective, w, memory=0).gram(), examples.w) is not None


def eigenvalues(
    objective: Objective, w: Tensor, k: int = 1, *, tol: float = 1e-3, generator: torch.Generator | None = None
) -> NoiseSpectrum:
    """The k largest eigenvalues of D with their vectors.

    Up to `GRAM_EXAMPLES` examples whose records fit into memory: from the Gram matrix, all of them, exact up to round-off;
    k = 0 wants no vectors, each of which costs a third of a gradient. Beyond: block Lanczos on `covariance`, each within
    `tol` of the largest, and Tr D^2 from `RANKED` examples drawn by `generator` (default: a fixed seed). Raises as
    `covariance`, and ValueError for k beyond the rank bound.
    """
    operator = covariance(objective, w)
    examples = operator.examples
    num = examples.num_examples
    bound = min(num - 1, examples.size)
    if not 0 <= k <= bound:
        raise ValueError(
            f"k={k}: the covariance of {num} gradients of {examples.size} entries has rank {bound} at most"
        )
    draw = generator or torch.Generator().manual_seed(0)
    if num > GRAM_EXAMPLES:
        return _by_products(operator, k, tol, draw)
    try:
        products = examples.gram()
    except TooLarge:
        return _by_products(operator, k, tol, draw)
    matrix, left = centred(products) / num, round_off_of(float(products.diagonal().mean()), examples.w.dtype)
    values = torch.linalg.eigvalsh(matrix).flip(0).clamp(min=0)
    pairs = _pairs(operator, matrix, values, k, left)
    total, squares = max(0.0, float(matrix.trace())), float(matrix.square().sum())
    return NoiseSpectrum(pairs, values[:bound], total, squares, 0.0, left, bound, "gram")


def _by_products(operator: Covariance, k: int, tol: float, generator: torch.Generator) -> NoiseSpectrum:
    pairs = lanczos(operator, top=max(1, k), tol=tol).top
    examples = operator.examples
    g, num = examples.gradient(), examples.num_examples
    squares = torch.stack(list(examples.squared_norms().values())).sum(0)
    lengths, left = centred_squares(examples, squares, g), round_off_of(float(squares.mean()), examples.w.dtype)
    index = torch.randperm(num, generator=generator)[: min(num, RANKED)]
    square, error = square_by_sample(examples, g, lengths, index)
    bound = min(num - 1, examples.size)
    return NoiseSpectrum(pairs, pairs.values, float(lengths.mean()), square, error, left, bound, "lanczos")


def centred_squares(examples: ExampleGradients, squares: Tensor, g: Tensor) -> Tensor:
    """|g_i - g|^2 (N,) from squares = |g_i|^2 and the mean g, not below zero. Cost: a third of a gradient."""
    return (squares - 2 * examples.along(g) + dots(g[None], g[None])[0, 0]).clamp(min=0)


def square_by_sample(examples: ExampleGradients, g: Tensor, lengths: Tensor, index: Tensor) -> tuple[float, float]:
    """Tr D^2 and its standard error from the inner products of the n examples `index`, drawn without replacement.

    N^2 Tr D^2 = sum_i |c_i|^4 + sum over i != j of (c_i'c_j)^2 with c_i = g_i - g and lengths = |c_i|^2 (N,) of all: the
    first sum is exact, the mean of the second taken over the pairs of the sample, a U-statistic (Hoeffding 1948): unbiased
    over all samples. Its error is the jackknife's (Efron 1982), times sqrt(1 - n/N) for a finite set: 0 where n = N. Cost:
    the Gram matrix of the sample. NaN where the inner products do not fit into memory, or of fewer than `FEWEST` examples.
    """
    num, n = examples.num_examples, len(index)
    if n < FEWEST:
        return math.nan, math.nan
    few = ExampleGradients(examples.objective.restrict(index), examples.w)
    try:
        products = few.gram()
    except TooLarge:
        return math.nan, math.nan
    along = few.along(g)
    centred = (products - along[:, None] - along[None, :] + dots(g[None], g[None])[0, 0]).square().fill_diagonal_(0)
    rows = centred.sum(1)
    mean = float(rows.sum()) / (n * (n - 1))
    value = (float(lengths.square().sum()) / num + (num - 1) * mean) / num
    if n == num:
        return value, 0.0
    left_out = (rows.sum() - 2 * rows) / ((n - 1) * (n - 2))
    spread = math.sqrt((n - 1) * (1 - n / num)) * float(left_out.std(correction=0))
    return value, (num - 1) / num * spread


def _pairs(operator: Covariance, matrix: Tensor, values: Tensor, k: int, round_off: float) -> Eigenpairs:
    """The top k vectors of D from those of the centred Gram matrix over N, v = sum_i c_i (g_i - g), normalised."""
    examples = operator.examples
    vectors = examples.w.new_zeros(examples.size, k)
    gram = LinearOperator(len(matrix), lambda v: matrix @ v, dtype=matrix.dtype, device=matrix.device)
    if k:
        weights = lanczos(gram, top=k, tol=1e-8, max_matvecs=len(matrix)).top.vectors
        for j, c in enumerate(weights.unbind(1)):
            vectors[:, j] = examples.weighted(c - c.mean())
        tiny = torch.finfo(vectors.dtype).tiny
        vectors = torch.linalg.qr(vectors / torch.linalg.vector_norm(vectors, dim=0).clamp(min=tiny))[0]
    errors = values.new_full((k,), round_off)
    return Eigenpairs(values[:k], vectors.to(operator.dtype), errors, errors, 1, bool(values.isfinite().all()))


def centred_gram(examples: ExampleGradients) -> Tensor:
    """(g_i - g)'(g_j - g), (N, N) float64."""
    return centred(examples.gram())


def centred(products: Tensor) -> Tensor:
    """(g_i - g)'(g_j - g) (N, N) of the products g_i'g_j."""
    means = products.mean(0)
    return products - means[:, None] - means[None, :] + means.mean()
