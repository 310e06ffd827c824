"""The covariance of the gradient noise, D = (1/N) sum_i g_i g_i' - g g', of one example.

    Tr D = mean |g_i|^2 - |g|^2,    D v = (1/N) sum_i g_i (g_i'v - g'v),    D = A'A / N with rows g_i - g

from the gradients of single examples (`lab.noise.examples`), never formed together. A batch of m has D times the factor of
`lab.noise.sampling` (Smith and Le 2018, Lemma 1). D has N as its divisor: an unbiased estimate for the population the
examples come from is N / (N - 1) times as large. Its rank is at most N - 1. The nonzero eigenvalues are those of the
centred Gram matrix over N, so that all of them come from N^2 inner products.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.curvature.eigen import lanczos
from lab.curvature.operators import LinearOperator
from lab.curvature.vectors import dots
from lab.noise.examples import Chunk, ExampleGradients, TooLarge
from lab.objective import Objective
from lab.results import Eigenpairs

SAMPLED = 16
"""Examples whose g_i'g is computed for the standard error of Tr D; |g_i|^2, the larger part, is that of all."""
GRAM_EXAMPLES = 4096
"""Examples up to which eigenvalues come from the Gram matrix: 0.13 GB for it, and an eigensolve of N^3 operations."""
RANKED = 1000
"""Examples beyond that whose inner products estimate Tr D^2: within some 10 %."""
FEWEST = 3
"""Examples whose inner products have a variance."""


@dataclass(frozen=True)
class NoiseTrace:
    """Tr D of one example.

    value         Tr D = mean |g_i|^2 - |g|^2, exact for these examples; error its standard error as an estimate of
                  (N - 1)/N times the population's, std(|g_i - g|^2) / sqrt(N).
    mean_square   mean |g_i|^2.
    by_parameter  name -> the trace of that diagonal block of D; their sum is the value.
    gradient      g (P,).
    matvecs       gradients spent; method "exact".
    """

    value: float
    error: float
    mean_square: float
    by_parameter: dict[str, float]
    gradient: Tensor
    matvecs: int
    method: str


@dataclass(frozen=True)
class Spectrum:
    """Top eigenpairs of D, and what all its eigenvalues say.

    pairs           the k largest, vectors (P, k).
    values          all N eigenvalues in descending order, float64, where they were computed; else those of `pairs`.
    trace           Tr D, exact.
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
    rank_bound: int
    method: str

    @property
    def effective_rank(self) -> float:
        return self.trace**2 / self.squares if self.squares > 0 else math.nan

    @property
    def effective_rank_error(self) -> float:
        return self.effective_rank * self.squares_error / self.squares if self.squares > 0 else math.nan


class Covariance(LinearOperator):
    """D, or the empirical Fisher matrix; `examples` are the recorded gradients behind it."""

    def __init__(self, examples: ExampleGradients, *, centred: bool):
        self.examples, self.centred = examples, centred
        super().__init__(examples.size, self._product, dtype=examples.w.dtype, device=examples.w.device)

    def _product(self, v: Tensor) -> Tensor:
        return self.examples.weighted(self._centre(self.examples.along(v)) / self.examples.num_examples)

    def variances(self, vectors: Tensor) -> Tensor:
        """u'Du (k,) float64 of vectors (P, k). Cost: a third of a gradient each, where records are kept."""
        return self._centre(self.examples.along(vectors)).square().mean(0)

    def _centre(self, along: Tensor) -> Tensor:
        return along - along.mean(0) if self.centred else along


def covariance(objective: Objective, w: Tensor, *, centred: bool = True, memory: int | None = None) -> Covariance:
    """D at w as an operator, v -> (1/N) sum_i g_i (g_i'v) - g (g'v); centred=False: without the last term, the empirical
    Fisher matrix.

    memory: bytes the records of the layers may take to be kept between products (default: a quarter of what the device
    has). Cost: one gradient once, then per product 0.7 gradients (kept), one more where not. Raises TypeError where the
    loss is no mean over examples, ValueError for train-mode BatchNorm.
    """
    return Covariance(ExampleGradients(objective, w, memory=memory), centred=centred)


def trace(objective: Objective, w: Tensor) -> NoiseTrace:
    """Tr D of one example, exact, with the gradient.

    Cost: 1.2 gradients on a 3072-200-200-10 MLP, 1.4 on ResNet-20. The error rests on g_i'g of `SAMPLED` examples. Raises
    as `covariance`.
    """
    examples = ExampleGradients(objective, w, memory=0)
    num = examples.num_examples
    sampled = torch.linspace(0, num - 1, min(num, SAMPLED), device=w.device).round().long()

    def work(chunk: Chunk) -> tuple[dict[str, Tensor], Tensor, Chunk, Tensor]:
        norms, mean = chunk.moments(w.new_full((chunk.num_examples,), 1 / num))
        some = sampled[(sampled >= chunk.part.start) & (sampled < chunk.part.stop)] - chunk.part.start
        return norms, examples.flat(mean), chunk.at(some), torch.stack([each[some] for each in norms.values()]).sum(0)

    chunks = examples.each(work)
    squares = examples.joined([norms for norms, *_ in chunks])
    gradient = torch.stack([part for _, part, *_ in chunks]).sum(0) if len(chunks) > 1 else chunks[0][1]
    pieces = examples.layout.unflatten(gradient)
    lengths = {name: float(dots(g.reshape(1, -1), g.reshape(1, -1))) for name, g in pieces.items()}
    by_parameter = {name: float(found.mean()) - lengths[name] for name, found in squares.items()}
    total = torch.stack(list(squares.values())).sum(0)
    along = torch.cat([few.along(pieces) for _, _, few, _ in chunks])
    return NoiseTrace(
        value=math.fsum(by_parameter.values()),
        error=_spread(total, torch.cat([some for *_, some in chunks]), along) / math.sqrt(num),
        mean_square=float(total.mean()),
        by_parameter=by_parameter,
        gradient=gradient,
        matvecs=1,
        method="exact",
    )


def eigenvalues(
    objective: Objective, w: Tensor, k: int = 1, *, tol: float = 1e-3, generator: torch.Generator | None = None
) -> Spectrum:
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
        matrix = centred_gram(examples) / num
    except TooLarge:
        return _by_products(operator, k, tol, draw)
    values = torch.linalg.eigvalsh(matrix).flip(0).clamp(min=0)
    pairs = _pairs(examples, matrix, values, k)
    return Spectrum(pairs, values[:bound], float(matrix.trace()), float(matrix.square().sum()), 0.0, bound, "gram")


def _by_products(operator: Covariance, k: int, tol: float, generator: torch.Generator) -> Spectrum:
    pairs = lanczos(operator, top=max(1, k), tol=tol).top
    examples = operator.examples
    g, num = examples.gradient(), examples.num_examples
    lengths = torch.stack(list(examples.squared_norms().values())).sum(0)
    lengths = (lengths - 2 * examples.along(g) + dots(g[None], g[None])[0, 0]).clamp(min=0)  # |g_i - g|^2
    index = torch.randperm(num, generator=generator)[: min(num, RANKED)]
    square, error = square_by_sample(examples, g, lengths, index)
    bound = min(num - 1, examples.size)
    return Spectrum(pairs, pairs.values, float(lengths.mean()), square, error, bound, "lanczos")


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


def _pairs(examples: ExampleGradients, matrix: Tensor, values: Tensor, k: int) -> Eigenpairs:
    """The top k vectors of D from those of the centred Gram matrix over N, v = sum_i c_i (g_i - g), normalised."""
    vectors = examples.w.new_zeros(examples.size, k)
    operator = LinearOperator(len(matrix), lambda v: matrix @ v, dtype=matrix.dtype, device=matrix.device)
    if k:
        found = lanczos(operator, top=k, tol=1e-8, max_matvecs=len(matrix)).top.vectors
        for j, c in enumerate(found.unbind(1)):
            vectors[:, j] = examples.weighted(c - c.mean())
        tiny = torch.finfo(vectors.dtype).tiny
        vectors = torch.linalg.qr(vectors / torch.linalg.vector_norm(vectors, dim=0).clamp(min=tiny))[0]
    round_off = torch.finfo(examples.w.dtype).eps * values[:1].expand(k)
    return Eigenpairs(values[:k], vectors, round_off, round_off, 1, bool(values.isfinite().all()))


def _spread(norms: Tensor, some: Tensor, along: Tensor) -> float:
    """std of |g_i - g|^2 = |g_i|^2 - 2 g_i'g + |g|^2: that of |g_i|^2 times the ratio of the two over sampled examples."""
    if len(norms) < 2:
        return math.nan
    exact, plain = (some - 2 * along).std(), some.std()
    return float(norms.std() * exact / plain if plain > 0 else exact)


def centred_gram(examples: ExampleGradients) -> Tensor:
    """(g_i - g)'(g_j - g), (N, N) float64."""
    found = examples.gram()
    means = found.mean(0)
    return found - means[:, None] - means[None, :] + means.mean()
