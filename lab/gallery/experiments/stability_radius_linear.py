"""Where the noise vanishes at the minimum: growth of second moments and of typical runs, by learning rate.

x <- (1 - lr h_B) x,   h_B the mean curvature of a batch without replacement out of `examples`
typical growth   E log|1 - lr h_B|, exact over all batches          mean square   E (1 - lr h_B)^2
"""

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch

from lab.curvature.stability import UpdateRule
from lab.gallery.base import Surroundings
from lab.noise.example_curvature import ExampleCurvature
from lab.noise.lyapunov import critical_lr, lyapunov
from lab.noise.second_moments import in_plane, plane_lr
from lab.sampling import batch_factor

REPLICAS, GROWTH_STEPS = 64, 400
TINY = np.finfo(float).tiny


@dataclass(frozen=True)
class LinearStability:
    """Learning rates at the edge of mean square, of typical runs and of the full batch; growth over a grid, and measured."""

    edges: np.ndarray
    grid: np.ndarray
    mean_square: np.ndarray
    typical: np.ndarray
    tried: np.ndarray
    expected: np.ndarray
    seen: np.ndarray


def linear_stability(examples: tuple[float, ...], batch_size: int, around: Surroundings) -> LinearStability:
    """Edges and growth for batches of `batch_size` out of examples of these curvatures."""
    h = np.array(examples)
    batches = np.array([np.mean(batch) for batch in combinations(h, batch_size)])
    curvature = ExampleCurvature(torch.from_numpy(h).sqrt()[:, None, None])
    factor = batch_factor(len(h), batch_size, "without_replacement")
    a, s = curvature.sharpness, curvature.non_uniformity

    def typical(lr: float) -> float:
        return float(np.log(np.abs(1 - lr * batches) + TINY).mean())

    square = plane_lr(a, s, factor=factor)
    edge = critical_lr(typical, square, 2 / a)
    grid = np.linspace(0.02, 1.5, 400) * 2 / a
    tried = np.array([0.5 * square, 0.9 * square, 0.5 * (square + edge), 1.1 * edge])
    seen = _growth(curvature, batch_size, tried, around)
    ends = np.isfinite(seen).all(1)  # where a batch maps everything to zero there is no growth to compare
    return LinearStability(
        edges=np.array([square, edge, 2 / a]),
        grid=grid,
        mean_square=np.array([0.5 * math.log(in_plane(a, s, lr=float(lr), factor=factor) + TINY) for lr in grid]),
        typical=np.array([typical(float(lr)) for lr in grid]),
        tried=tried[ends],
        expected=np.array([typical(float(lr)) for lr in tried[ends]]),
        seen=seen[ends],
    )


def _growth(curvature: ExampleCurvature, batch_size: int, tried: np.ndarray, around: Surroundings) -> np.ndarray:
    """Growth a step with its error (n, 2), by the product of random steps at every learning rate."""
    seen, tick = [], around.stage("linear stability")
    for i, lr in enumerate(tried):
        seed = around.stream("stability_radius/linear", i).initial_seed()
        growth = lyapunov(
            curvature,
            UpdateRule(lr=float(lr)),
            batch_size=batch_size,
            sampling="without_replacement",
            steps=GROWTH_STEPS,
            replicas=REPLICAS,
            generator=torch.Generator().manual_seed(seed),
        )
        seen.append((growth.value, growth.error))
        tick((i + 1) / len(tried))
    return np.array(seen)
