"""Real mini-batch gradients, drawn to hold the covariance of `lab.sampling` against them.

    E |g_B - g|^2 = factor * Tr D,     E (g_B - g)'(g_B' - g) = cross * Tr D        Smith and Le (2018), Lemma 1

The gradients are those of batches as a whole, by autograd; nothing here goes through the gradients of single examples or
the formula that is to be checked.
"""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor
from torch.func import grad, vmap

from lab.curvature.vectors import norm
from lab.objective import CHUNK_BYTES, NetworkObjective, Objective


def batch_gradients(objective: Objective, w: Tensor, index: Tensor) -> Iterable[Tensor]:
    """The gradients (some, P) of the mini-batches `index` (b, m), all b of them, some at a time.

    Networks: many batches at once, where vmap can go. Cost: b m / N gradients. Raises TypeError where there are no
    examples, ValueError for coupled ones.
    """
    if not isinstance(objective, NetworkObjective):
        for row in index:
            yield objective.restrict(row).grad(w)[None]
        return
    objective.require_single_examples()
    network, index = objective, index.to(objective.y.device)

    def loss(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return network.loss_of(w, x, y)

    by_graph = network.chunk_size(w) // index.shape[1]
    by_size = CHUNK_BYTES // (4 * w.numel() * w.element_size())
    if min(by_graph, by_size) < 2:  # large batches or networks: nothing to gain from several at once
        for row in index:
            yield network.restrict(row).grad(w)[None]
        return
    every = vmap(grad(loss), in_dims=(None, 0, 0))
    for part in index.split(min(by_graph, by_size)):
        with torch.no_grad():
            found = network.vectorised.attempt(partial(every, w.detach(), network.x[part], network.y[part]))
        yield torch.stack([network.restrict(row).grad(w) for row in part]) if found is None else found


def batch_moments(objective: Objective, w: Tensor, index: Tensor) -> tuple[float, float]:
    """Of the batches `index` (b, m): the means of |g_B - g|^2, and of (g_B - g)'(g_B' - g) over pairs of different ones.

    g is the gradient of all examples; pairs are all there are, NaN for one batch alone. Cost: 1 + b m / N gradients.

    >>> from lab.objective import NetworkObjective
    >>> model, x = torch.nn.Linear(1, 1, bias=False).double(), torch.ones(4, 1, dtype=torch.float64)
    >>> y = torch.tensor([[0.0], [2.0], [4.0], [6.0]], dtype=torch.float64)
    >>> loss = NetworkObjective(model, lambda f, y: ((f - y) ** 2 / 2).mean(), (x, y))
    >>> batch_moments(loss, loss.weights, torch.tensor([[0, 1], [2, 3]]))  # g = w - 3, and w - 1, w - 5 of the batches
    (4.0, -4.0)
    """
    g = objective.grad(w)
    total, squares = torch.zeros_like(g), 0.0
    for gradients in batch_gradients(objective, w, index):
        off = gradients - g
        total += off.sum(0)
        squares += sum(norm(row) ** 2 for row in off)
    count = len(index)
    return squares / count, (norm(total) ** 2 - squares) / (count * (count - 1)) if count > 1 else float("nan")
