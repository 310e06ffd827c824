"""Top to bottom: from the upper half of a handwritten digit to its lower half, a regression whose residual stays finite.

The first n rows of scikit-learn's digits, pixels in [0, 1]. X are the scores of the upper half (pixels 0..31) on its d
first principal components, Y those of the lower half on its k first; both centred on the n rows and divided by ONE number,
the standard deviation of all their entries. The sign of a component is that which makes its largest loading positive.
With a hidden layer of two or three tanh neurons the loss

    L(w) = mean_i 1/2 |f_w(x_i) - y_i|^2

has isolated minima and saddles that can be found exactly, and noise of mini-batches that does not die at them: a small
network on which rates of escape are well defined. Classes as targets would not do: there the weights of so small a network
run away. To remove soft directions put `lab.objective.Decayed` around it.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from lab.models.mlp import Mlp
from lab.objective import NetworkObjective

HALF = 32
"""Pixels of half an image: four rows of eight."""


def top_to_bottom(n: int, d: int, k: int) -> tuple[Tensor, Tensor]:
    """X (n, d) and Y (n, k), float64, of the first n digits. Raises ValueError for more than there are or can be.

    >>> X, Y = top_to_bottom(200, 8, 2)
    >>> X.shape, Y.shape, round(float(X.std(correction=0)), 12)
    (torch.Size([200, 8]), torch.Size([200, 2]), 1.0)
    """
    pixels = load_digits().data / 16
    if not 2 <= n <= len(pixels):
        raise ValueError(f"n={n}: expected 2 to {len(pixels)}, the digits there are")
    for name, size in (("d", d), ("k", k)):
        if not 1 <= size <= min(HALF, n - 1):
            raise ValueError(
                f"{name}={size}: expected 1 to {min(HALF, n - 1)} components of half an image of {n} digits"
            )
    return _scores(pixels[:n, :HALF], d), _scores(pixels[:n, HALF:], k)


def _scores(half: np.ndarray, components: int) -> Tensor:
    """Scores on the first principal components, divided by the standard deviation of all of them."""
    centred = half - half.mean(0)
    _, _, loadings = np.linalg.svd(centred, full_matrices=False)
    loadings = loadings[:components]
    largest = np.take_along_axis(loadings, np.abs(loadings).argmax(1)[:, None], 1)
    scores = centred @ (loadings * np.sign(largest)).T
    return torch.from_numpy(scores / scores.std())


def halves_loss(n: int, d: int, k: int, hidden: int) -> NetworkObjective:
    """L of a d - hidden - k network of tanh neurons with biases on `top_to_bottom(n, d, k)`, float64, all in one chunk.

    Parameters in the order W1 (hidden, d), b1, W2 (k, hidden), b2: hidden (d + k + 1) + k of them.

    >>> halves_loss(200, 8, 2, 3).num_params
    35
    """
    X, Y = top_to_bottom(n, d, k)
    model = Mlp(widths=(hidden,), activation="tanh").build((d,), k, seed=0).double()
    return NetworkObjective(model, half_square, (X, Y), chunk_size=n)


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over examples of 1/2 |f - y|^2: summed over the outputs, as the lab's mean squared error.

    >>> half_square(torch.tensor([[3.0, 1.0]]), torch.tensor([[0.0, 0.0]]))
    tensor(5.)
    """
    return 0.5 * (outputs - targets).square().sum(-1).mean()
