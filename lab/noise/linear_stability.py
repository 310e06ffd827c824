"""Is a minimum stable for SGD of a given learning rate and batch size? The linearised steps as a random matrix product.

    w <- w - lr H_B (w - w*),   H_B the mean over a batch of H_i = F_i'F_i, the Gauss-Newton matrix of example i

    sharpness        a = lambda_max(H),   H = mean H_i                                              Wu, Ma and E (2018)
    non-uniformity   s = lambda_max(mean H_i^2 - H^2)^(1/2)
    the plane        (1 - lr a)^2 + c lr^2 s^2 <= 1,   c = (N - B)/(B(N - 1)), or 1/B with replacement
    mean square      E|w - w*|^2 stays bounded iff rho <= 1, rho the spectral radius of M -> E[(1 - lr H_B) M (1 - lr H_B)]
    bound            rho <= lambda_max((1 - lr H)^2 + c lr^2 (mean H_i^2 - H^2)): sufficient for stability
    typical runs     the top Lyapunov exponent lim log|w_t - w*| / t <= log(rho) / 2: it is what they follow

In one dimension plane, rho and bound are one. rho is carried by rare, ever larger excursions: between the two thresholds
second moments explode while almost every run converges. All of it is exact for a model linear in w, and near a minimum
that fits every example (H_i = F_i'F_i holds there for any loss convex in the outputs); elsewhere it is the Gauss-Newton
part of the truth. Where F_i F_j' is known for all pairs of examples nothing of size P is left: r <- r - (lr/B) K[:, B] r_B
for r = F (w - w*) and K = F F'. Wu, Ma and E, How SGD selects the global minima in over-parameterized learning (NeurIPS
2018), eqs. 5 to 9; Furstenberg and Kesten (1960) for the exponent.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import torch
from scipy.optimize import brentq
from torch import Tensor

from lab.curvature.eigen import lanczos
from lab.curvature.operators import LinearOperator
from lab.curvature.stability import UpdateRule
from lab.curvature.vectors import dots
from lab.objective import CHUNK_BYTES, NetworkObjective, pulled_back
from lab.results import Estimate
from lab.sampling import Sampling

WIDENINGS = 8
"""How often the search for a critical learning rate goes on beyond the interval it was given."""
BLOCK_BYTES = CHUNK_BYTES // 4
FLOOR = 2e-3
"""Error of an exponent that always does: a growth by e takes 500 steps."""
LONGEST = 10
"""Times the steps asked for that an exponent may take."""
DECIDED = 1 / 3
"""Relative error of an exponent whose sign alone is wanted, in the search for its zero."""
ROUND_OFF = 1e-12
"""Eigenvalues of the kernel below this times the largest are zero; the error of a growth is not below it."""


@dataclass(frozen=True)
class ExampleCurvature:
    """H_i = F_i'F_i of every example, as factors F (N, K, r) float64 in an orthonormal basis of r directions."""

    factors: Tensor

    @staticmethod
    def of_kernel(kernel: Tensor, num_examples: int) -> "ExampleCurvature":
        """From K = F F' (N K, N K), examples one after another: in the basis of the eigenvectors of H that are not null."""
        values, vectors = torch.linalg.eigh(kernel.double())
        kept = values > ROUND_OFF * values[-1].clamp(min=torch.finfo(torch.float64).tiny)
        return ExampleCurvature((vectors[:, kept] * values[kept].sqrt()).flip(1).unflatten(0, (num_examples, -1)))

    @property
    def num_examples(self) -> int:
        return len(self.factors)

    @property
    def rows(self) -> Tensor:
        """F (N K, r)."""
        return self.factors.flatten(0, 1)

    @cached_property
    def mean(self) -> Tensor:
        """H (r, r)."""
        return self.rows.T @ self.rows / self.num_examples

    @cached_property
    def variance(self) -> Tensor:
        """mean H_i^2 - H^2, (r, r)."""
        inner = self.factors @ self.factors.transpose(1, 2)
        return self.rows.T @ (inner @ self.factors).flatten(0, 1) / self.num_examples - self.mean @ self.mean

    @cached_property
    def sharpness(self) -> float:
        """a = lambda_max(H), in units of 1 / learning rate."""
        return _largest(self.mean)

    @cached_property
    def non_uniformity(self) -> float:
        """s = lambda_max(mean H_i^2 - H^2)^(1/2), in units of 1 / learning rate."""
        return max(_largest(self.variance), 0.0) ** 0.5

    def top(self, directions: int) -> "ExampleCurvature":
        """The H_i seen in the top eigenvectors of H alone."""
        if directions >= self.factors.shape[2]:
            return self
        vectors = torch.linalg.eigh(self.mean)[1][:, -directions:]
        return ExampleCurvature(self.factors @ vectors)


def _largest(matrix: Tensor) -> float:
    return float(torch.linalg.eigvalsh(matrix)[-1]) if len(matrix) else 0.0


def example_curvature(objective: NetworkObjective, w: Tensor, *, scale: Tensor | None = None) -> ExampleCurvature:
    """The Gauss-Newton matrices of all examples at w, F_i = C_i^(1/2) J_i with C_i the loss Hessian at the outputs.

    scale: a vector (P,) that multiplies the columns of J, e.g. the inverse root of a preconditioner. Cost: N K
    per-example gradients, and N K squared times P operations; memory two blocks of at most a quarter of CHUNK_BYTES and
    the kernel, 8 (N K)^2 bytes. Where C vanishes for all examples (a saturated softmax) every H_i is zero, in no direction.
    Raises ValueError for train-mode BatchNorm, for examples that see each other, for a loss not convex in the outputs and
    for weights that are not finite.
    """
    objective.require_single_examples()
    roots = _loss_roots(objective, w)
    num, outputs = roots.shape[:2]
    if outputs == 0:
        return ExampleCurvature(roots.new_zeros(num, 1, 0))
    return ExampleCurvature.of_kernel(_gram(pulled_back(objective, roots.to(w.dtype)), w, scale), num)


def _loss_roots(objective: NetworkObjective, w: Tensor) -> Tensor:
    """Columns of C_i^(1/2) as rows, (N, K, K) float64; those that vanish for all examples left out."""
    hessians, steepest = [], 0.0
    for weight, outputs, loss in objective.composition(w.detach()):
        num = round(weight * len(objective.x))
        f = outputs.detach().double().reshape(num, -1).requires_grad_()
        slope = objective.slope(loss(f.reshape(outputs.shape)), f) * num
        steepest = max(steepest, float(slope.detach().abs().max()))
        rows = [torch.autograd.grad(column.sum(), f, retain_graph=True)[0] for column in slope.unbind(1)]
        hessians.append(torch.stack(rows, 1))
    C = torch.cat(hessians)
    if not bool(C.isfinite().all()):
        raise ValueError("the loss has no finite curvature at these weights: they diverged")
    values, vectors = torch.linalg.eigh(C)
    least, most = float(values.min()), float(values.max())
    round_off = (
        torch.finfo(torch.float64).eps * steepest
    )  # what differences of probabilities leave of a saturated softmax
    if least < -1e-6 * most - round_off:
        raise ValueError(
            f"the loss is not convex in the outputs (curvature {least:.2g}): it has no Gauss-Newton factors"
        )
    roots = (vectors * values.clamp(min=0).sqrt()[:, None, :]).transpose(1, 2)
    return roots[:, values.amax(0) > max(ROUND_OFF * most, round_off)]


def _gram(objective: NetworkObjective, w: Tensor, scale: Tensor | None) -> Tensor:
    """K = G G' of the per-example gradients G (n, P), block by block, float64."""
    n = len(objective.x)
    size = max(1, BLOCK_BYTES // (w.element_size() * w.numel()))
    blocks = [torch.arange(n, device=w.device)[begin : begin + size] for begin in range(0, n, size)]

    def rows(index: Tensor) -> Tensor:
        G = objective.example_grads(w, index)
        return G if scale is None else G * scale

    K = torch.empty(n, n, dtype=torch.float64, device=w.device)
    for i, across in enumerate(blocks):
        G = rows(across)
        for down in blocks[: i + 1]:
            block = dots(G, G if down is across else rows(down))
            K[across[:, None], down] = block
            K[down[:, None], across] = block.T
    return K


# --- mean-square stability ----------


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
    return _largest(step @ step + factor * lr**2 * curvature.variance)


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
    found = _radius(lambda v: (root * second(root * v.reshape(root.shape))).flatten(), root, tol, max_matvecs)
    if not found.value > 0:
        return Estimate(math.inf, math.nan, found.matvecs, found.method, found.converged)
    return Estimate(1 / found.value, found.error / found.value**2, found.matvecs, found.method, found.converged)


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


# --- typical runs ----------


def lyapunov(
    curvature: ExampleCurvature,
    rule: UpdateRule,
    *,
    batch_size: int,
    sampling: Sampling,
    steps: int = 400,
    replicas: int = 32,
    tol: float = 0.05,
    generator: torch.Generator | None = None,
) -> Estimate:
    """The top Lyapunov exponent of the linearised steps, growth of log|w - w*| per update: above 0 runs are thrown out.

    The product of random matrices is applied to `replicas` random vectors, made of length one after every step; the first
    quarter of the steps is left out. Batches are drawn as in training, epochs cut from permutations; momentum, Nesterov and
    decay of `rule` join in. Error: standard error over replicas, ~ 1/sqrt(replicas steps), or the change from the first half
    of the steps to the second, less two of its standard errors, where that is more: soft directions are still decaying, and
    the exponent comes out too low. `steps` are made first, then as many as bring the error below `tol` of the value
    or below `FLOOR`, `LONGEST` times `steps` at most; not converged: one warning. The sign is decided where the value is
    beyond two errors (`sign`). -inf, not converged, where a batch maps everything to zero. generator: on the CPU (default: a
    fixed seed). Cost: 4 N K r operations a step and replica; `matvecs` steps. Raises ValueError for a rule whose
    coefficients differ between weights.
    """
    draws = generator or torch.Generator().manual_seed(0)
    lengths = _lengths(curvature, rule, batch_size, sampling, replicas, draws)
    logs, most, wanted = list[Tensor](), LONGEST * steps, steps
    while True:
        logs += [length.log() for length in islice(lengths, wanted - len(logs))]
        value, error = _growth(torch.stack(logs[len(logs) // 4 :]))
        if not math.isfinite(error):
            return Estimate(value, error, len(logs), "random product", False)
        aim = max(tol * abs(value), FLOOR)
        if error <= aim or len(logs) >= most:
            break
        wanted = min(most, math.ceil(len(logs) * min(4.0, 1.1 * (error / aim) ** 2)) + 1)
    found = Estimate(value, error, len(logs), "random product", error <= aim)
    if not found.converged:
        warnings.warn(
            f"Lyapunov exponent not converged: {value:.3g} +- {error:.1g} a step after {len(logs)} steps, wanted an error "
            f"of {aim:.2g}; raise steps (probe.linear_stability.steps, probe.escape.growth_steps) or replicas",
            stacklevel=2,
        )
    return found


def sign(exponent: Estimate) -> int:
    """1: typical runs are thrown out, -1: they stay; 0 where the exponent is within two errors of 0."""
    if abs(exponent.value) <= 2 * exponent.error:
        return 0
    return int(math.copysign(1, exponent.value))


def _growth(logs: Tensor) -> tuple[float, float]:
    """Mean of the logs (steps, replicas) of the lengths; its error over replicas, or what is sure of the drift, if more."""
    half, growth = len(logs) // 2, logs.mean(0)
    drift = logs[half:].mean(0) - logs[:half].mean(0)
    if logs.shape[1] < 2:
        return float(growth.mean()), math.nan
    error, uncertain = (float(each.std()) / math.sqrt(logs.shape[1]) for each in (growth, drift))
    return float(growth.mean()), max(error, abs(float(drift.mean())) - 2 * uncertain, ROUND_OFF)


def _lengths(
    curvature: ExampleCurvature,
    rule: UpdateRule,
    batch_size: int,
    sampling: Sampling,
    replicas: int,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """By how much each step multiplies the lengths of the replicas (replicas,), without end."""
    lr, momentum, dampening, coupled, decoupled = coefficients(rule)
    F, num = curvature.rows, curvature.num_examples
    z = torch.randn(replicas, F.shape[1], generator=generator, dtype=torch.float64).to(F)
    velocity = torch.zeros_like(z)
    for weights in _batches(num, batch_size, sampling, replicas, generator):
        inside = (z @ F.T).reshape(replicas, num, -1) * weights.to(F)[:, :, None]
        gradient = inside.flatten(1) @ F + coupled * z
        velocity = momentum * velocity + (1 - dampening) * gradient
        z = (1 - lr * decoupled) * z - lr * (gradient + momentum * velocity if rule.nesterov else velocity)
        state = torch.cat([z, lr * velocity], 1) if momentum else z
        length = state.norm(dim=1, keepdim=True)
        yield length[:, 0]
        z, velocity = (torch.where(length > 0, v / length, 0.0) for v in (z, velocity))


def coefficients(rule: UpdateRule) -> tuple[float, float, float, float, float]:
    """lr, momentum, dampening, coupled and decoupled decay as numbers. Raises ValueError where they differ by weight."""
    values = (rule.lr, rule.momentum, rule.dampening, rule.coupled_decay, rule.decoupled_decay)
    if not rule.uniform:
        raise ValueError(
            "the parameter groups of the optimiser differ: the linearised steps need one learning rate for all"
        )
    lr, momentum, dampening, coupled, decoupled = (float(value) for value in values)
    return lr, momentum, dampening, coupled, decoupled


def _batches(
    num: int, batch_size: int, sampling: Sampling, replicas: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Weights (replicas, N) of the examples in one batch after another: how often drawn, over the size of the batch."""
    while True:
        if sampling == "with_replacement":
            drawn = [torch.randint(num, (replicas, batch_size), generator=generator)]
        else:
            order = torch.rand(replicas, num, generator=generator).argsort(1)
            drawn = list(order.split(batch_size, 1)) if sampling == "epoch" else [order[:, :batch_size]]
        for index in drawn:
            weight = torch.full(index.shape, 1 / index.shape[1], dtype=torch.float64)
            yield torch.zeros(replicas, num, dtype=torch.float64).scatter_add_(1, index, weight)


def critical_lr(growth: Callable[[float], float], low: float, high: float, *, tol: float = 1e-2) -> float:
    """The learning rate at which growth(lr) passes through zero from below, to a relative `tol`; NaN where it does not.

    low, high: where it is expected between, e.g. the edge of mean square and that of gradient descent; the search goes
    on beyond them where it must. growth must be a deterministic function: with random numbers, the same at each call.
    """
    for _ in range(WIDENINGS):
        if growth(high) > 0:
            break
        low, high = high, 1.5 * high
    else:
        return math.nan
    for _ in range(WIDENINGS):
        if growth(low) < 0:
            return float(brentq(growth, low, high, xtol=tol * low, rtol=tol))
        low, high = low / 2, low
    return math.nan
