"""A few points in many dimensions: their principal components, and whether they fall into clusters.

spread  Tr Cov = sum_b |w_b - mean|^2 / (R - 1)                     of R points
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, ward
from scipy.spatial.distance import squareform
from torch import Tensor

from lab.curvature.vectors import dots

MOST_CLUSTERS, FEWEST = 6, 3
"""Clusters looked for, and points that make one: two far off are no cluster."""
SURROGATES = 99
"""Gaussian clouds that a silhouette is held against."""


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
    """The best partition: `count` clusters (1: none), labels (R,), its silhouette, and that of a single cloud."""

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
    labels, best = _partition(coordinates)
    scale = points.variances[:2].sqrt()
    shape = SURROGATES, *coordinates.shape
    surrogates = torch.randn(shape, generator=generator, dtype=torch.float64).to(coordinates) * scale
    null = float(np.quantile([_partition(surrogate)[1] for surrogate in surrogates], 0.95))
    return Clusters(int(labels.max()) if best > null else 1, labels, best, null)


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
