"""Is a minimum stable for SGD in mean square? The linearised steps and their second moments.

    w <- w - lr H_B (w - w*),   H_B the mean over a batch of the H_i of `lab.noise.example_curvature`
    the plane     (1 - lr a)^2 + c lr^2 s^2 <= 1,   c = (N - B)/(B(N - 1)), or 1/B with replacement
    mean square   E|w - w*|^2 stays bounded iff rho <= 1, rho the spectral radius of M -> E[(1 - lr H_B) M (1 - lr H_B)]
    bound         rho <= lambda_max((1 - lr H)^2 + c lr^2 (mean H_i^2 - H^2)): sufficient for stability

In one dimension plane, rho and bound are one. rho is carried by rare, ever larger excursions: typical runs
(`lab.noise.lyapunov`) may converge while second moments explode. Wu, Ma and E, How SGD selects the global minima in
over-parameterized learning (NeurIPS 2018), eqs. 5 to 9.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lab.curvature.eigen import lanczos
from lab.curvature.operators import LinearOperator
from lab.noise.example_curvature import ExampleCurvature, largest
from lab.results import Estimate


def in_plane(sharpness: float, non_uniformity: float, *, lr: float, factor: float, decay: float = 0.0) -> float:
    """(1 - lr a)^2 + c lr^2 s^2: at most 1 inside the stable region of the plane; c = `sampling.batch_factor`.

    decay: weight decay, here and below: every curvature is larger by it.

    >>> in_plane(2.0, 6.5**0.5, lr=0.25, factor=1.0)  # curvatures 0, .5, 1, 1.5, 7; batches of one
    0.65625
    """
    return (1 - lr * (sharpness + decay)) ** 2 + factor * (lr * non_uniformity) ** 2


def plane_lr(sharpness: float, non_uniformity: float, *, factor: float) -> float:
    """The learning rate that puts the point on the boundary of the plane: 2a / (a^2 + c s^2); infinite where a = s = 0.

    >>> round(plane_lr(2.0, 6.5**0.5, factor=1.0), 6)
    0.380952
    """
    curved = sharpness**2 + factor * non_uniformity**2
    return 2 * sharpness / curved if curved > 0 else math.inf


def mean_square_bound(curvature: ExampleCurvature, *, lr: float, factor: float, decay: float = 0.0) -> float:
    """lambda_max of E[(1 - lr H_B)^2], the largest growth of E|w - w*|^2 in one step; rho is at most this.

    At most 1 is sufficient for stability in mean square. Cost: an eigensolve of r by r.
    """
    step = (1 - lr * decay) * torch.eye(len(curvature.mean)).to(curvature.mean) - lr * curvature.mean
    return largest(step @ step + factor * lr**2 * curvature.variance)


def second_moment_radius(
    curvature: ExampleCurvature,
    *,
    lr: float,
    factor: float,
    decay: float = 0.0,
    tol: float = 1e-4,
    max_matvecs: int = 300,
) -> Estimate:
    """rho, the spectral radius of T: M -> E[(1 - lr H_B) M (1 - lr H_B)] on matrices (r, r), for independent batches.

        T M = (1 - lr H) M (1 - lr H) + c lr^2 (mean H_i M H_i - H M H)

    T is symmetric and maps positive semidefinite matrices to such, so its largest eigenvalue is its radius, and Lanczos
    finds it; seen in fewer directions (`ExampleCurvature.top`) it is a lower bound of the whole. Error: that of the
    eigenvalue. Cost: 4 N K r^2 operations a product, some tens of them (well inside the stable region, where soft
    directions crowd below 1, hundreds); memory r^2 numbers for each.
    """
    h, second = _second_moments(curvature, factor, decay)
    sums = h[:, None] + h

    def apply(v: Tensor) -> Tensor:
        M = v.reshape(sums.shape)
        return (M - lr * sums * M + lr**2 * second(M)).flatten()

    return _radius(apply, sums, tol, max_matvecs)


def mean_square_lr(
    curvature: ExampleCurvature, *, factor: float, decay: float = 0.0, tol: float = 1e-4, max_matvecs: int = 300
) -> Estimate:
    """The learning rate at which rho = 1: below it SGD is stable in mean square, for independent batches.

    T = 1 - lr L + lr^2 Q with L M = H M + M H and Q M = E[H_B M H_B], both positive, so it is 1 / lambda_max(L^-1 Q): one
    eigensolve, in the eigenvectors of H where L is diagonal. In fewer directions an upper bound. Infinite where H = 0.
    """
    h, second = _second_moments(curvature, factor, decay)
    if not len(h):
        return Estimate(math.inf, math.nan, 0, "lanczos", True)
    root = (h[:, None] + h).rsqrt()
    top = _radius(lambda v: (root * second(root * v.reshape(root.shape))).flatten(), root, tol, max_matvecs)
    if not top.value > 0:
        return replace(top, value=math.inf, error=math.nan)
    return replace(top, value=1 / top.value, error=top.error / top.value**2)


def _second_moments(
    curvature: ExampleCurvature, factor: float, decay: float
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Eigenvalues h (r,) of H + decay, and M -> E[(H_B + decay) M (H_B + decay)] in the eigenvectors."""
    h, vectors = torch.linalg.eigh(curvature.mean)
    factors, num = curvature.factors @ vectors, curvature.num_examples
    F, shifted = factors.flatten(0, 1), h + decay
    means = torch.outer(shifted, shifted) - factor * torch.outer(h, h)

    def apply(M: Tensor) -> Tensor:
        inside = (F @ M).reshape(factors.shape) @ factors.transpose(1, 2)  # F_i M F_i'
        return means * M + factor / num * (F.T @ (inside @ factors).flatten(0, 1))

    return shifted, apply


def _radius(apply: Callable[[Tensor], Tensor], like: Tensor, tol: float, max_matvecs: int) -> Estimate:
    operator = LinearOperator(like.numel(), apply, dtype=like.dtype, device=like.device)
    pairs = lanczos(operator, tol=tol, max_matvecs=max_matvecs, generator=torch.Generator().manual_seed(0)).top
    return Estimate(float(pairs.values[0]), float(pairs.errors[0]), pairs.matvecs, "lanczos", pairs.converged)
