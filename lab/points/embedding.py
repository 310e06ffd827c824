"""Saddles of a network made from critical points of a smaller one: a dead output neuron, and a neuron split in two.

    f(x) = W2 phi(W1 x + b1) + b2,    w = (W1 (h, d), b1 (h), W2 (k, h), b2 (k)) flat,    residual r_i = dloss_i / df

    split    neuron j twice, (w_j, c_j, m v_j) and (w_j, c_j, (1 - m) v_j)     critical for every m, at the same loss
    dead     one more neuron (w, c, v = 0)                                    critical iff mean_i r_i phi(w'x_i + c) = 0

Both copies of a split neuron receive the same gradient from every single example up to the factors m and 1 - m: with
m = 1/2 the noise of mini-batches has no component at all along (1, -1), whatever the batch. A dead neuron's v, w and c
receive different ones. Critical for losses without weight decay only. Fukumizu and Amari, Local minima and plateaus in
hierarchical structures of multilayer perceptrons (Neural Networks 13, 2000), theorems 1 and 2.
"""

from dataclasses import dataclass

import torch
from scipy.optimize import least_squares
from torch import Tensor

from lab.objective import NetworkObjective


@dataclass(frozen=True)
class OneHidden:
    """The shape of a network with one hidden layer and biases: d inputs, h hidden neurons, k outputs."""

    inputs: int
    hidden: int
    outputs: int

    @property
    def num_params(self) -> int:
        """h (d + k + 1) + k."""
        return self.hidden * (self.inputs + self.outputs + 1) + self.outputs

    def split(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """W1 (h, d), b1 (h), W2 (k, h), b2 (k), views of w (P,).

        >>> [tuple(part.shape) for part in OneHidden(3, 2, 1).split(torch.zeros(11))]
        [(2, 3), (2,), (1, 2), (1,)]
        """
        if w.shape != (self.num_params,):
            raise ValueError(
                f"weights of shape {tuple(w.shape)}: a {self.inputs}-{self.hidden}-{self.outputs} network with biases has "
                f"({self.num_params},)"
            )
        d, h, k = self.inputs, self.hidden, self.outputs
        W1, b1, W2, b2 = w.split([h * d, h, k * h, k])
        return W1.reshape(h, d), b1, W2.reshape(k, h), b2


def joined(W1: Tensor, b1: Tensor, W2: Tensor, b2: Tensor) -> Tensor:
    """The flat weights (P,) of the four parts."""
    return torch.cat([part.flatten() for part in (W1, b1, W2, b2)])


def split_neuron(w: Tensor, shape: OneHidden, *, neuron: int = 0, share: float = 0.5) -> Tensor:
    """Weights of a network with one neuron more: `neuron` twice, with the parts `share` and 1 - share of its output weights.

    The function, the loss and, where w is critical, the vanishing gradient are kept. A strict saddle where the matrix
    mean_i (v'r_i) phi''(w'x_i + c) (x_i, 1)(x_i, 1)' has a suitable sign: its eigenvalues tell, share (1 - share) times.
    """
    if not 0 <= neuron < shape.hidden:
        raise ValueError(f"neuron={neuron}: expected 0 to {shape.hidden - 1}, one of the {shape.hidden} there are")
    W1, b1, W2, b2 = shape.split(w)
    first, second = W2.clone(), W2[:, neuron : neuron + 1]
    first[:, neuron] *= share
    return joined(
        torch.cat([W1, W1[neuron : neuron + 1]]),
        torch.cat([b1, b1[neuron : neuron + 1]]),
        torch.cat([first, (1 - share) * second], 1),
        b2,
    )


def add_neuron(w: Tensor, shape: OneHidden, incoming: Tensor) -> Tensor:
    """Weights of a network with one neuron more, `incoming` = (w, c) (d + 1,), whose output weights are zero."""
    W1, b1, W2, b2 = shape.split(w)
    return joined(
        torch.cat([W1, incoming[None, :-1].to(w)]),
        torch.cat([b1, incoming[-1:].to(w)]),
        torch.cat([W2, W2.new_zeros(shape.outputs, 1)], 1),
        b2,
    )


def dead_neuron(
    objective: NetworkObjective, w: Tensor, shape: OneHidden, *, start: Tensor, tol: float = 1e-10
) -> Tensor:
    """Incoming weights (w, c) (d + 1,) float64 with mean_i r_i tanh(w'x_i + c) = 0, found from `start` (d + 1,).

    k equations for d + 1 unknowns: a family of solutions, of which the one near `start` is found (scipy least_squares).
    objective: the loss of the smaller network, w its weights, at a critical point of which the larger one is critical too.
    Raises ValueError where no solution is found from there.
    """
    residual, x = output_slopes(objective, w), objective.x.double().flatten(1)

    def mean(incoming: Tensor) -> Tensor:
        return residual.T @ torch.tanh(x @ incoming[:-1] + incoming[-1]) / len(x)

    solution = least_squares(
        lambda v: mean(torch.from_numpy(v)).numpy(), start.double().numpy(), xtol=1e-15, ftol=1e-15, gtol=1e-15
    )
    left = float(mean(torch.from_numpy(solution.x)).norm())
    if not left <= tol:
        raise ValueError(
            f"no dead neuron was found from this start: {left:.2g} is left of the gradient; try another start"
        )
    return torch.from_numpy(solution.x)


def output_slopes(objective: NetworkObjective, w: Tensor) -> Tensor:
    """dloss_i / df of every example, (N, outputs) float64: f - y for half the squared error."""
    slopes = []
    for weight, outputs, loss in objective.composition(w.detach()):
        f, num = outputs.detach().requires_grad_(), round(weight * len(objective.x))
        slopes.append(torch.autograd.grad(loss(f), f)[0].reshape(num, -1).double() * num)
    return torch.cat(slopes)
