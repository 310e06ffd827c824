"""The Gauss-Newton matrices of single examples, H_i = F_i'F_i, as the linearised steps of SGD need them.

    sharpness        a = lambda_max(H),   H = mean H_i                                Wu, Ma and E (2018)
    non-uniformity   s = lambda_max(mean H_i^2 - H^2)^(1/2)

Where F_i F_j' is known for all pairs of examples nothing of size P is left: a step r <- r - (lr/B) K[:, B] r_B is that of
r = F (w - w*) for the kernel K = F F'. H_i is the Hessian of example i for a model linear in w, and near a minimum that
fits every example (for any loss convex in the outputs); elsewhere it is the Gauss-Newton part of it.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lab.curvature.vectors import dots
from lab.objective import CHUNK_BYTES, NetworkObjective, pulled_back

BLOCK_BYTES = CHUNK_BYTES // 4
ROUND_OFF = 1e-12
"""Eigenvalues of the kernel below this times the largest are zero."""


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
        return largest(self.mean)

    @cached_property
    def non_uniformity(self) -> float:
        """s = lambda_max(mean H_i^2 - H^2)^(1/2), in units of 1 / learning rate."""
        return max(largest(self.variance), 0.0) ** 0.5

    def top(self, directions: int) -> "ExampleCurvature":
        """The H_i seen in the top eigenvectors of H alone."""
        if directions >= self.factors.shape[2]:
            return self
        vectors = torch.linalg.eigh(self.mean)[1][:, -directions:]
        return ExampleCurvature(self.factors @ vectors)


def largest(matrix: Tensor) -> float:
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
    # What differences of probabilities leave of a saturated softmax.
    round_off = torch.finfo(torch.float64).eps * steepest
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
