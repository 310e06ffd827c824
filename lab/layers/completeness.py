"""Whether the records of the layers explain the gradient: weighted sums of them against plain backward passes.

A parameter may be used where no layer tells of it: by a function of somebody's own, for some of the examples only, or where
another axis has as many entries as there are examples. The graph does not always show it, the numbers do.
"""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet

import torch
from torch import Tensor

from lab.layers.algebra import Layer
from lab.layers.chunk import Chunk
from lab.objective import NetworkObjective
from lab.objective.singles import single_gradient
from lab.streams import random_signs

MOST_LOOKED = 32
"""Examples of a chunk on which the records are checked together."""


def unexplained(network: NetworkObjective, w: Tensor, chunk: Chunk, formed: AbstractSet[str]) -> set[str]:
    """Parameters, but those that are `formed`, whose gradients are not those that the chunk has on record, or that have no
    record although the loss of the chunk depends on them.

    Looked at: the first example alone and a random sum over `MOST_LOOKED`; of more examples also the last, and that of the
    largest output gradient. Cost: one gradient of these, and one of the chunk where a parameter has no record.
    """
    wrong = set[str]()
    eps = max(torch.finfo(w.dtype).eps, min(network.look.eps, torch.finfo(torch.float32).eps))  # float32 inside float64
    for places in _looked(chunk):
        c, truth = _weighted_gradient(network, w, chunk.index[places])
        if not bool(truth.isfinite().all()):
            continue
        sums, small = chunk.at(places).weighted(c), 1e3 * eps * truth.norm()
        pieces = {name: piece.flatten() for name, piece in network.layout.unflatten(truth).items() if name in sums}
        close = {name: (g - sums[name]).norm() <= 10 * eps**0.5 * g.norm() + small for name, g in pieces.items()}
        wrong |= {name for name in close if not close[name]}
    unseen = set(network.layout.names) - formed - set(chunk.known)
    if unseen:
        gradient = single_gradient(network.loss_of, w, network.x[chunk.index], network.y[chunk.index])
        wrong |= {name for name in unseen if bool((network.layout.unflatten(gradient)[name] != 0).any())}
    return wrong


def _looked(chunk: Chunk) -> Iterator[Tensor]:
    """Places in the chunk of the examples that are looked at together."""
    num, device, alone = len(chunk.index), chunk.index.device, {0}
    calls = [layer for layer in chunk.layers if isinstance(layer, Layer)]
    if num > MOST_LOOKED and calls:  # else they are all among those below
        alone |= {num - 1, int(calls[-1].g.flatten(1).square().sum(1).argmax())}
    yield from (torch.tensor([j], device=device) for j in alone)
    yield torch.linspace(0, num - 1, min(num, MOST_LOOKED), device=device).round().long()


def _weighted_gradient(network: NetworkObjective, w: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Weights c of the examples `index`, and sum_i c_i g_i by one backward pass: random signs over the size of the output
    gradients, so that no example outweighs the others, and none that is fitted to round-off counts.
    """
    leaf = w.detach().requires_grad_()
    with torch.enable_grad():
        outputs = network.outputs(leaf, network.x[index])
        f = outputs.detach().requires_grad_()
        (u,) = torch.autograd.grad(network.loss_at(f, y=network.y[index]), f, materialize_grads=True)
    u = len(index) * u.reshape(len(index), -1)  # d loss_i/df of single examples
    sizes = u.norm(dim=1)
    scale = sizes + 0.01 * sizes.max() + torch.finfo(w.dtype).tiny
    c = random_signs((len(index),), w, torch.Generator(w.device).manual_seed(0)) / scale
    (truth,) = torch.autograd.grad(outputs, leaf, (c[:, None] * u).reshape(outputs.shape), materialize_grads=True)
    return c, truth
