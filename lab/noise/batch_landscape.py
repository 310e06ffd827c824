"""Every batch has a landscape of its own: where its minima lie, beside each other and beside that of all examples.

    w_b     where descent on L_b, the mean over batch b, goes from w;  w_full likewise on L
    spread  Tr Cov = sum_b |w_b - mean|^2 / (R - 1)                     of R batches
    shift   of the minimum when example i is left out: (H_rest + damping)^-1 g_i / (N - 1)

Linear regression, Gaussian inputs, batches of B > d + 1 examples: the minima are centred at w_full with spread
d sigma^2 / (B - d - 1), larger than the d sigma^2 / B of a fixed H; where B <= d they are affine subspaces, and w_b is the
point of one that is nearest to w. The shift is exact there: -(X'X)^-1 x_i e_i / (1 - h_i), e_i the residual and h_i the
leverage (Cook and Weisberg, Residuals and influence in regression, 1982); with the Gauss-Newton matrix in the place of H
it is the influence function for networks of Koh and Liang (2017, arXiv 1703.04730). Descent is the spectral gradient
method of Barzilai and Borwein (1988) with the non-monotone line search of Raydan (1997), all batches at once.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, ward
from scipy.spatial.distance import squareform
from torch import Tensor
from torch.func import grad_and_value, vmap

from lab.curvature.operators import LinearOperator, gauss_newton
from lab.curvature.vectors import dots
from lab.objective import CHUNK_BYTES, NetworkObjective
from lab.sampling import Sampling

MEMORY = 10
"""Non-monotone line search: a step must lead below the largest of so many last losses."""
DECREASE = 1e-4
"""By at least this times step |g|^2."""
MOST_CLUSTERS, FEWEST = 6, 3
"""Clusters looked for, and points that make one: two far off are no cluster."""
SURROGATES = 99
"""Gaussian clouds that a silhouette is held against."""


def draw_batches(
    num_examples: int, batch_size: int, count: int, sampling: Sampling, generator: torch.Generator
) -> Tensor:
    """Indices (count, batch_size) of batches drawn as in training; of an epoch the full ones, disjoint, then the next.

    Raises ValueError where a batch is larger than the set and not drawn with replacement.
    """
    if sampling == "with_replacement":
        return torch.randint(num_examples, (count, batch_size), generator=generator)
    if batch_size > num_examples:
        raise ValueError(f"a batch of {batch_size} out of {num_examples} examples; expected at most {num_examples}")
    per_order = num_examples // batch_size if sampling == "epoch" else 1
    orders = [torch.randperm(num_examples, generator=generator) for _ in range(-(-count // per_order))]
    return torch.cat([order[: per_order * batch_size].view(per_order, batch_size) for order in orders])[:count]


class BatchLosses:
    """The losses L_b of R batches, index (R, B), each at weights of its own, all at once where vmap can go."""

    def __init__(self, objective: NetworkObjective, index: Tensor):
        objective.require_single_examples()
        self.objective, self.index = objective, index.to(objective.y.device)
        self.x, self.y = objective.x[self.index], objective.y[self.index]

    def value_and_grad(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """L_b(w_b) (R,) and gradients (R, P) at W (R, P). Cost: R gradients of B examples."""
        function = vmap(grad_and_value(self.objective.loss_of), chunk_size=self._at_once(W))
        with torch.no_grad():
            found = self.objective.vectorised.attempt(lambda: function(W, self.x, self.y))
        if found is None:
            pairs = [loss.value_and_grad(w) for loss, w in self._each(W)]
            return torch.stack([value for value, _ in pairs]), torch.stack([gradient for _, gradient in pairs])
        return found[1], found[0]

    def value(self, W: Tensor) -> Tensor:
        """L_b(w_b) (R,) at W (R, P). Cost: R forward passes of B examples."""
        function = vmap(self.objective.loss_of, chunk_size=self._at_once(W))
        with torch.no_grad():
            found = self.objective.vectorised.attempt(lambda: function(W, self.x, self.y))
        return torch.stack([loss.value(w) for loss, w in self._each(W)]) if found is None else found

    def _each(self, W: Tensor) -> Iterator[tuple[NetworkObjective, Tensor]]:
        """Batch by batch, where vmap cannot go."""
        for row, w in zip(self.index, W, strict=True):
            yield self.objective.restrict(row), w

    def _at_once(self, W: Tensor) -> int:
        examples = self.x.shape[1] * self.objective.bytes_per_example(W[0])
        return max(1, CHUNK_BYTES // (examples + W[0].numel() * W.element_size()))


class WholeLoss:
    """The loss of all examples, at each of R weights, one after another and in chunks."""

    def __init__(self, objective: NetworkObjective):
        self.objective = objective

    def value_and_grad(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """L(w) (R,) and gradients (R, P) at W (R, P). Cost: R gradients."""
        pairs = [self.objective.value_and_grad(w) for w in W]
        return torch.stack([value for value, _ in pairs]), torch.stack([gradient for _, gradient in pairs])


@dataclass(frozen=True)
class Descent:
    """Where descent led: weights (R, P), the losses (R,) there, and |g| there over |g| at the start (R,)."""

    weights: Tensor
    losses: Tensor
    gradient_left: Tensor


def descend(losses: BatchLosses | WholeLoss, W: Tensor, *, steps: int, lr: float, tol: float = 0.0) -> Descent:
    """Spectral gradient descent on each loss from its row of W (R, P): the best point met in `steps` steps.

    lr: of the first step. It ends early where every |g| has fallen below `tol` of that at the start. On a quadratic of
    condition number k the error falls about as fast as with conjugate gradients, some sqrt(k) steps a digit. Cost: R
    gradients of a batch a step; memory 5 R P numbers. A loss that is not finite at the start leaves its row as it is.
    """
    value, gradient = losses.value_and_grad(W)
    first, best, lowest, left = _norms(gradient), W, value, _norms(gradient)
    recent = value[:, None].repeat(1, MEMORY)
    step = torch.full_like(value, lr)
    for i in range(steps):
        if bool((left <= tol * first).all()):
            break
        trial = W - step[:, None] * gradient
        new, slope = losses.value_and_grad(trial)
        size = _norms(gradient)
        good = new <= recent.amax(1) - DECREASE * step * size**2
        change, turn = trial - W, slope - gradient
        curved = (change * turn).sum(1)
        spectral = torch.where(curved > 0, _norms(change) ** 2 / curved, 2 * step)
        step = torch.where(good, spectral, step / 4)
        W, gradient = torch.where(good[:, None], trial, W), torch.where(good[:, None], slope, gradient)
        value = torch.where(good, new, value)
        recent[:, i % MEMORY] = value
        better = good & ((new < lowest) | ((new == lowest) & (_norms(slope) < left)))
        best, lowest = torch.where(better[:, None], trial, best), torch.where(better, new, lowest)
        left = torch.where(better, _norms(slope), left)
    return Descent(best, lowest, left / first)


def _norms(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows.double(), dim=1).to(rows.dtype)


# --- the cloud of minima ----------


@dataclass(frozen=True)
class Cloud:
    """R points in R^P by their principal components.

    mean (P,); variances (R - 1,) descending, their sum the spread; coordinates (R, R - 1) in the components; axes
    (2, P) the first two of them; float64, but mean and axes in the dtype of the points.
    """

    mean: Tensor
    variances: Tensor
    coordinates: Tensor
    axes: Tensor

    @property
    def spread(self) -> float:
        """Tr Cov, unbiased."""
        return float(self.variances.sum())

    @property
    def shares(self) -> Tensor:
        """Variance explained by each component; sums to 1, NaN where all points are one."""
        return self.variances / self.variances.sum()

    @property
    def dimension(self) -> float:
        """(Tr C)^2 / Tr C^2: how many directions the spread has; at most R - 1."""
        return float(self.variances.sum() ** 2 / self.variances.square().sum())

    def project(self, w: Tensor) -> Tensor:
        """w (P,) in the first two components."""
        return dots(self.axes, (w - self.mean)[None])[:, 0]


def cloud(points: Tensor) -> Cloud:
    """The principal components of points (R, P), R >= 2, by their Gram matrix. Cost: R^2 P operations."""
    mean = points.mean(0)
    centred = points - mean
    values, vectors = torch.linalg.eigh(dots(centred, centred))
    values, vectors = values.flip(0)[:-1].clamp(min=0), vectors.flip(1)[:, :-1]
    two = min(2, len(values))
    axes = (vectors[:, :two] / values[:two].sqrt().clamp(min=1e-300)).T.to(points) @ centred
    return Cloud(mean, values / (len(points) - 1), vectors * values.sqrt(), axes)


@dataclass(frozen=True)
class Clusters:
    """The best partition found: `count` clusters (1: none), labels (R,), its silhouette, and that of a single cloud."""

    count: int
    labels: np.ndarray
    silhouette: float
    null: float


def clusters(points: Cloud, generator: torch.Generator) -> Clusters:
    """Whether the points fall into clusters, seen in their first two components: Ward's partition into 2 to 6 with the
    best mean silhouette.

        silhouette of a point = (b - a) / max(a, b)      a, b: mean distance to its own and to the nearest other cluster

    in [-1, 1] (Rousseeuw 1987). A single cloud has a positive one too: `null` is what 95 of 100 Gaussian clouds with the
    same variances stay below; count is 1 where the points do. A cluster has at least 3 points. In more components distances
    within a cluster would hide those between. Fewer than 6 points have no clusters: NaN.
    """
    coordinates = points.coordinates[:, :2]
    if len(coordinates) < 2 * FEWEST or not points.spread > 0:
        return Clusters(1, np.ones(len(coordinates), dtype=int), math.nan, math.nan)
    labels, found = _partition(coordinates)
    scale = points.variances[:2].sqrt()
    shape = SURROGATES, *coordinates.shape
    surrogates = torch.randn(shape, generator=generator, dtype=torch.float64).to(coordinates) * scale
    null = float(np.quantile([_partition(surrogate)[1] for surrogate in surrogates], 0.95))
    return Clusters(int(labels.max()) if found > null else 1, labels, found, null)


def _partition(coordinates: Tensor) -> tuple[np.ndarray, float]:
    """Labels 1.. of the best of Ward's partitions, and its mean silhouette."""
    distances = torch.cdist(coordinates, coordinates).cpu().numpy()
    tree = ward(squareform(distances, checks=False))
    counts = range(2, min(MOST_CLUSTERS, len(distances) // FEWEST) + 1)
    partitions = [fcluster(tree, count, "maxclust") for count in counts]
    sizes = [np.bincount(labels)[1:].min() for labels in partitions]
    scores = [
        silhouette(distances, labels) if size >= FEWEST else 0.0 for labels, size in zip(partitions, sizes, strict=True)
    ]
    best = int(np.argmax(scores))
    return partitions[best], scores[best]


def silhouette(distances: np.ndarray, labels: np.ndarray) -> float:
    """Mean silhouette of a partition from distances (R, R): 0 for a point alone in its cluster, and for one cluster.

    >>> far = np.abs(np.subtract.outer([0.0, 1.0, 10.0, 11.0], [0.0, 1.0, 10.0, 11.0]))
    >>> round(float(silhouette(far, np.array([1, 1, 2, 2]))), 4)  # (10.5 - 1)/10.5 and (9.5 - 1)/9.5
    0.8997
    """
    member = labels[:, None] == np.unique(labels)
    if member.shape[1] < 2:
        return 0.0
    sums, sizes = distances @ member, member.sum(0)
    own = member.argmax(1)
    rows = np.arange(len(labels))
    inside = sums[rows, own] / np.maximum(sizes[own] - 1, 1)
    means = sums / sizes
    means[rows, own] = np.inf
    outside = means.min(1)
    score = (outside - inside) / np.maximum(np.maximum(inside, outside), 1e-300)
    return float(np.where(sizes[own] > 1, score, 0.0).mean())


# --- leaving an example out ----------


@dataclass(frozen=True)
class Shift:
    """How the minimum moves: vector (P,), the residual |A s - b| / |b| it was solved to, and the products spent."""

    vector: Tensor
    residual: float
    matvecs: int


def leave_one_out(
    objective: NetworkObjective,
    w: Tensor,
    example: int,
    *,
    damping: float = 0.0,
    tol: float = 1e-6,
    max_matvecs: int = 200,
) -> Shift:
    """How the minimum w of L moves when `example` is left out: (G_rest + damping)^-1 g_i / (N - 1), by conjugate gradients.

    G_rest is the Gauss-Newton matrix of the other examples: one Newton step, exact for linear regression. damping, in
    units of curvature: directions in which the loss is flatter do not move; a network that fits everything needs it.
    Assumes g = 0 at w. Cost: a gradient and up to `max_matvecs` Gauss-Newton products.
    """
    num = len(objective.x)
    if num < 2:
        raise ValueError("one example alone: leaving it out leaves none")
    every = torch.arange(num, device=objective.y.device)
    G = gauss_newton(objective.restrict(every[every != example]), w)
    g = objective.example_grads(w, every[example : example + 1])[0]
    return conjugate_gradients(G, g / (num - 1), damping=damping, tol=tol, max_matvecs=max_matvecs)


def conjugate_gradients(
    operator: LinearOperator, b: Tensor, *, damping: float = 0.0, tol: float = 1e-6, max_matvecs: int = 200
) -> Shift:
    """(A + damping)^-1 b for a positive semidefinite A, to a residual of `tol` |b| or as far as `max_matvecs` products go.

    >>> from lab.curvature.operators import hessian
    >>> from lab.landscapes.quadratic import Quadratic
    >>> conjugate_gradients(hessian(Quadratic(torch.tensor([2.0, 5.0])), torch.zeros(2)), torch.ones(2)).vector
    tensor([0.5000, 0.2000])
    """
    x, r = torch.zeros_like(b), b.clone()
    p, square, size = r, _dot(r, r), math.sqrt(_dot(b, b))
    spent = 0
    while spent < max_matvecs and math.sqrt(square) > tol * size:
        Ap = (operator @ p) + damping * p
        spent += 1
        curved = _dot(p, Ap)
        if not curved > 0:  # a direction without curvature: no solution lies beyond
            break
        x, r = x + square / curved * p, r - square / curved * Ap
        square, before = _dot(r, r), square
        p = r + square / before * p
    return Shift(x, math.sqrt(square) / size if size > 0 else 0.0, spent)


def _dot(a: Tensor, b: Tensor) -> float:
    return float(dots(a[None], b[None]))
