"""A minimum that fits every example exactly: Gauss-Newton steps of least length, from where training came close.

    w <- w + t J'(JJ')^+ d,    d_i = -C_i^+ s_i,    s = dloss/df,  C = d2loss/df2,  J = df/dw   (1/2 |f - y|^2: d = y - f)

the shortest of all steps that would make a network linear in w fit. Near a minimum with more weights than outputs times
examples the residual is squared at every step, down to round-off: at the end no single example has a gradient left, there
is no noise whatever the batch, and SGD stays or leaves by its linear stability alone (`lab.noise.lyapunov`).
Ben-Israel, A Newton-Raphson method for the solution of systems of equations (1966).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lab.objective import CHUNK_BYTES, NetworkObjective, pulled_back

HALVINGS = 12
"""How often a step that does not lower the loss is halved before the search is given up."""
ROUND_OFF = 1e-13
"""Eigenvalues of JJ' below this times the largest are zero."""
MAX_BYTES = 16 * CHUNK_BYTES
"""Of the Jacobian, examples x outputs x parameters."""


@dataclass(frozen=True)
class Interpolation:
    """Where the steps ended: weights w (P,), the losses before and after every step, and whether the last is within tol."""

    w: Tensor
    losses: tuple[float, ...]
    converged: bool

    @property
    def loss(self) -> float:
        """L(w)."""
        return self.losses[-1]


def interpolate(objective: NetworkObjective, w: Tensor, *, tol: float = 1e-26, max_steps: int = 20) -> Interpolation:
    """The minimum of zero loss next to w, to L <= tol; w in float64.

    The loss must be one that is zero where it fits, as the squared error; a cross-entropy has no such minimum and comes back
    not converged. Steps that do not lower the loss are halved; with L <= tol, or with none that lowers it, the search ends.
    Cost: examples x outputs gradients and an eigensolve of that size a step; memory the Jacobian. Raises ValueError for
    weights that are not float64, for a Jacobian that does not fit, and for train-mode BatchNorm.
    """
    if w.dtype != torch.float64:
        raise ValueError(f"weights of {w.dtype}: a minimum is found to round-off, use float64")
    losses = [float(objective.value(w))]
    while losses[-1] > tol and len(losses) <= max_steps:
        step, share = least_step(objective, w), 1.0
        for _ in range(HALVINGS):
            loss = float(objective.value(w + share * step))
            if loss < losses[-1]:
                break
            share /= 2
        else:
            break
        w = w + share * step
        losses.append(loss)
    return Interpolation(w, tuple(losses), losses[-1] <= tol)


def least_step(objective: NetworkObjective, w: Tensor) -> Tensor:
    """J'(JJ')^+ d, (P,): the shortest step after which the linearised network fits."""
    wanted, J = _wanted(objective, w).flatten(), jacobian(objective, w)
    values, vectors = torch.linalg.eigh(J @ J.T)
    kept = values > ROUND_OFF * values[-1]
    return J.T @ (vectors[:, kept] @ ((vectors[:, kept].T @ wanted) / values[kept]))


def _wanted(objective: NetworkObjective, w: Tensor) -> Tensor:
    """d (N, K): the change of the outputs of every example that Newton's method asks for."""
    steps = []
    for weight, outputs, loss in objective.composition(w.detach()):
        f = outputs.detach().reshape(round(weight * len(objective.x)), -1).requires_grad_()
        slope = objective.slope(loss(f.reshape(outputs.shape)), f)
        rows = [torch.autograd.grad(column.sum(), f, retain_graph=True)[0] for column in slope.unbind(1)]
        steps.append(-(torch.linalg.pinv(torch.stack(rows, 1), hermitian=True) @ slope.detach()[:, :, None])[:, :, 0])
    return torch.cat(steps)


def jacobian(objective: NetworkObjective, w: Tensor) -> Tensor:
    """J (N K, P), rows df_k(x_i)/dw, the outputs of an example one after another."""
    objective.require_single_examples()
    with torch.no_grad():
        outputs = objective.outputs(w, objective.x[:1]).numel()
    rows = outputs * len(objective.x)
    if rows * w.numel() * w.element_size() > MAX_BYTES:
        raise ValueError(
            f"the Jacobian of {rows} outputs by {w.numel()} parameters takes more than {MAX_BYTES >> 30} GiB; "
            "use fewer examples"
        )
    units = torch.eye(outputs, dtype=w.dtype, device=w.device).expand(len(objective.x), -1, -1)
    return pulled_back(objective, units).example_grads(w)
