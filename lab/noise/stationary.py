"""Where SGD of constant learning rate settles in a quadratic minimum, how fast it climbs out at first, and how large its
noise may be: exact, in closed form or by one linear system.

    loss L(w) = w'Hw / 2,   update w <- w + b (w - w_before) - lr (H w + xi),   Cov(xi) = C of the batch gradient

    discrete Lyapunov       S = (1 - lr H) S (1 - lr H) + lr^2 C           b = 0; heavy ball: the same of (w, w_before)
    mini-batches            S = E[(1 - lr H_B) S (1 - lr H_B)] + lr^2 C    linear regression: H_B is as random as the noise
    running mean            Var(mean) / Var(w) = (1-k)/(1+k) (1+k rho)/(1-k rho),   mean <- k mean + (1-k) w
    escape                  E L(t) = Tr[(1 - exp(-2Ht)) S] / 4             dw = -Hw dt + S^(1/2) dW   (Zhu et al. 2019)
    size of the noise       P(|v|^2 > a Tr D) <= 1/a  (Markov),  >= (1-a)^2 / (1 + 2 Tr D^2 / (Tr D)^2)  (Paley, Zygmund)

The continuous equation H S + S H = lr C is the limit lr -> 0 and no more: along an eigenvector of curvature h it is too
small by the factor 1 - lr h / 2. The last line is why a large trace alone does not make large steps likely: Markov bounds
from above only.
Mandt, Hoffman and Blei (2017, arXiv 1704.04289) for the continuous limit; Liu, Ziyin and Ueda (2021, arXiv 2012.03636)
for the discrete one; Zhu et al. (2019, arXiv 1803.00195), proposition 3.
"""

import torch
from torch import Tensor

from lab.sampling import Sampling, batch_factor

LARGEST = 64
"""Weights up to which the mini-batch operator is formed: a matrix of the fourth power of their number."""


def stationary_covariance(H: Tensor, C: Tensor, *, lr: float, momentum: float = 0.0) -> Tensor:
    """Covariance (d, d) of w in the long run under SGD (or heavy ball) on w'Hw/2 with noise of covariance C in the gradient.

    H symmetric, positive definite; C (d, d) the covariance of the gradient that a step uses, D times
    `sampling.batch_factor` for mini-batches. H and C need not commute. Float64, exact to round-off: in the eigenbasis of H
    every entry of the covariance is a system of four equations. Cost: d^2 of these. Raises ValueError where there is no
    stationary state: lr at or above (2 + 2 momentum)/lambda_max, or an eigenvalue of H that is not positive.

    >>> one = torch.ones(1, 1)
    >>> stationary_covariance(2 * one, 3 / 5 * one, lr=0.4)  # lr C / (h (2 - lr h))
    tensor([[0.1000]], dtype=torch.float64)
    """
    H, C = _square(H, "H"), _square(C, "C")
    if H.shape != C.shape:
        raise ValueError(f"H of shape {tuple(H.shape)} and C of shape {tuple(C.shape)}; expected the same")
    h, U = torch.linalg.eigh(H)
    _require_stable(h, lr, momentum)
    M = torch.zeros(len(h), 2, 2, dtype=h.dtype, device=h.device)  # (w, w_before) of one mode to the next
    M[:, 0, 0], M[:, 0, 1], M[:, 1, 0] = 1 + momentum - lr * h, -momentum, 1
    both = torch.einsum("iab,jcd->ijacbd", M, M).flatten(4, 5).flatten(2, 3)
    noise = torch.zeros(len(h), len(h), 4, dtype=h.dtype, device=h.device)
    noise[..., 0] = lr**2 * (U.T @ C @ U)
    return U @ torch.linalg.solve(torch.eye(4).to(both) - both, noise)[..., 0] @ U.T


def regression_covariance(
    x: Tensor, y: Tensor, *, lr: float, batch_size: int, sampling: Sampling = "with_replacement"
) -> Tensor:
    """Covariance (d, d) of w in the long run under mini-batch SGD on the mean of (x_i'w - y_i)^2 / 2, about its minimum.

    x (N, d) of full rank, y (N,). H_B = mean over the batch of x x' multiplies w, so the noise depends on w; with
    R_i = x_i x_i' and c = batch_factor (independent batches)

        S = (1 - lr H) S (1 - lr H) + lr^2 c [mean_i(R_i S R_i) - H S H] + lr^2 c D

    with D the noise of one example at the minimum. Exact, float64: a linear system of d^2 equations. Without the bracket it
    is `stationary_covariance(H, c D, lr=lr)`, which is too small. Raises ValueError where second moments grow without bound,
    for more than `LARGEST` weights, x not of full rank, or sampling="epoch", whose batches are not independent.
    """
    if x.dim() != 2 or y.shape != x.shape[:1]:
        raise ValueError(f"x of shape {tuple(x.shape)} and y of {tuple(y.shape)}; expected (N, d) and (N,)")
    if sampling == "epoch":
        raise ValueError("sampling='epoch': batches of an epoch depend on each other; use without_replacement")
    if (d := x.shape[1]) > LARGEST:
        raise ValueError(f"{d} weights: the operator has {d}^4 entries; expected at most {LARGEST} weights")
    x, y, N = x.double(), y.double(), len(x)
    H, factor = x.T @ x / N, batch_factor(N, batch_size, sampling)
    if int(torch.linalg.matrix_rank(x)) < d:
        raise ValueError(f"x is not of full rank {d}: the minimum is not a point, and w has no stationary state")
    noise = x * (x @ torch.linalg.lstsq(x, y[:, None]).solution[:, 0] - y)[:, None]  # gradients at the minimum: mean 0
    second = torch.einsum("na,nb,nc,nd->acbd", x, x, x, x).reshape(d * d, d * d) / N  # of S, flattened
    one = torch.eye(d, dtype=x.dtype, device=x.device)
    step = one - lr * H
    operator = torch.kron(step, step) + lr**2 * factor * (second - torch.kron(H, H))
    radius = float(torch.linalg.eigvals(operator).abs().max())
    if not radius < 1:
        raise ValueError(
            f"lr={lr}: second moments grow by {radius:.4g} a step and w has no stationary covariance; use a smaller lr"
        )
    added = lr**2 * factor * (noise.T @ noise / N).flatten()
    return torch.linalg.solve(torch.eye(d * d).to(operator) - operator, added).reshape(d, d)


def averaging_factor(decay: float, rho: float) -> float:
    """Var(mean) / Var(w) of the running mean m <- decay m + (1 - decay) w of an AR(1) process w with correlation rho.

    rho = 1 - lr h for SGD on a curvature h: -1 at the edge of stability, where the mean removes the oscillation; near 1 in
    flat directions, where it hardly helps. Exact. Raises ValueError outside 0 <= decay < 1, |rho| < 1.

    >>> round(averaging_factor(0.95, -0.9), 7)
    0.0020043
    """
    if not (0 <= decay < 1 and abs(rho) < 1):
        raise ValueError(f"decay={decay}, rho={rho}: expected 0 <= decay < 1 and |rho| < 1")
    return (1 - decay) / (1 + decay) * (1 + decay * rho) / (1 - decay * rho)


def stationary_width(h: float, *, lr: float, alpha: float) -> float:
    """Width of w in the long run along curvature h under independent alpha-stable noise of width 1 in the gradient.

    lr (1 - |1 - lr h|^alpha)^(-1/alpha), as sums of such noise are such noise (`lab.noise.tails.stable`); for alpha = 2 that
    is the standard deviation of `stationary_covariance`. Exact. Raises ValueError outside 0 < lr h < 2, 0 < alpha <= 2.

    >>> round(stationary_width(2.0, lr=0.4, alpha=2.0) ** 2, 9)  # lr / (h (2 - lr h))
    0.166666667
    """
    if not (0 < lr * h < 2 and 0 < alpha <= 2):
        raise ValueError(f"lr={lr}, h={h}, alpha={alpha}: expected 0 < lr h < 2 and 0 < alpha <= 2")
    return lr * (1 - abs(1 - lr * h) ** alpha) ** (-1 / alpha)


def escape_loss(H: Tensor, S: Tensor, time: float) -> float:
    """E L(t) of dw = -Hw dt + S^(1/2) dW, started at the critical point w = 0 of L = w'Hw/2: Tr[(1 - exp(-2Ht)) S] / 4.

    H symmetric, of any signs; S (d, d) the covariance of the noise per unit of time: lr times that of the batch gradient
    where an SGD step counts lr units. At first t Tr(HS)/2, the escaping efficiency of Zhu et al. (2019): noise along the
    sharp directions climbs faster than isotropic noise of the same trace. Exact, float64. Raises ValueError for t < 0.

    >>> H = torch.diag(torch.tensor([10.0, 1.0, 0.1, 0.01]))
    >>> round(escape_loss(H, H, 0.2), 3), round(escape_loss(H, H.trace() / 4 * torch.eye(4), 0.2), 4)
    (2.538, 0.9406)
    """
    if not time >= 0:
        raise ValueError(f"time={time}: expected t >= 0")
    H, S = _square(H, "H"), _square(S, "S")
    h, U = torch.linalg.eigh(H)
    return float((-torch.expm1(-2 * h * time) * (U.T @ S @ U).diagonal()).sum() / 4)


def markov_bound(multiple: float) -> float:
    """The most that P(|v|^2 > multiple Tr D) can be, for v of mean zero and covariance D, whatever its law: 1/multiple.

    An upper bound: that large steps are likely it does not say. Raises ValueError for multiple <= 0.
    """
    if not multiple > 0:
        raise ValueError(f"multiple={multiple}: expected a positive multiple of Tr D")
    return min(1.0, 1 / multiple)


def paley_zygmund_bound(multiple: float, D: Tensor) -> float:
    """The least that P(|v|^2 > multiple Tr D) can be for v ~ N(0, D): (1-a)^2 / (1 + 2 Tr D^2 / (Tr D)^2), 0 <= a < 1.

    For Gaussians E|v|^4 = (Tr D)^2 + 2 Tr D^2. With one dominant direction it is (1-a)^2/3, with many equal ones (1-a)^2.
    Raises ValueError for a multiple outside 0 .. 1 or a D without noise.

    >>> round(paley_zygmund_bound(0.5, torch.eye(4)), 4)
    0.1667
    """
    D = _square(D, "D")
    if not 0 <= multiple < 1 or not float(D.trace()) > 0:
        raise ValueError(f"multiple={multiple}, Tr D={float(D.trace()):g}: expected 0 <= multiple < 1 and Tr D > 0")
    return (1 - multiple) ** 2 / (1 + 2 * float(D.square().sum() / D.trace() ** 2))


def _square(matrix: Tensor, name: str) -> Tensor:
    """In float64; ValueError unless square and symmetric to the round-off of its dtype."""
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"{name} of shape {tuple(matrix.shape)}; expected a square matrix")
    off = float((matrix - matrix.T).abs().max())
    if not off <= 100 * torch.finfo(matrix.dtype).eps * float(matrix.abs().max()):
        raise ValueError(f"{name} differs from its transpose by {off:.2g}; expected a symmetric matrix")
    return matrix.detach().double()


def _require_stable(h: Tensor, lr: float, momentum: float) -> None:
    if not float(h.min()) > 0:
        raise ValueError(
            f"H has the eigenvalue {float(h.min()):.4g}: w spreads without end along it; expected only positive"
        )
    if not 0 <= momentum < 1 or not lr > 0:
        raise ValueError(f"lr={lr}, momentum={momentum}: expected lr > 0 and 0 <= momentum < 1")
    threshold = (2 + 2 * momentum) / float(h.max())
    if not lr < threshold:
        raise ValueError(f"lr={lr} is not below (2 + 2 momentum)/lambda_max = {threshold:.6g}: the iterates diverge")
