"""Whether the records of the layers explain the gradient: weighted sums of them against plain backward passes.

A parameter may be used where no layer tells of it: by a function of somebody's own, for some of the examples only, or where
another axis has as many entries as there are examples. The graph does not always show it, the numbers do.
"""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet

import torch
from torch import Tensor

from lab.layers.chunk import Chunk
from lab.objective import NetworkObjective
from lab.objective.singles import single_gradient
from lab.streams import random_signs

MOST_LOOKED = 32
"""Examples of a chunk on which the records are checked together."""


def unexplained(network: NetworkObjective, w: Tensor, chunk: Chunk, formed: AbstractSet[str]) -> set[str]:
    """Parameters, but those that are `formed`, whose gradients are not those that the chunk has on record, or that have no
    record although the loss of the chunk depends on them.

    Looked at: the example with the largest output gradient, the first, the last, and a random sum over `MOST_LOOKED`. Cost:
    one gradient of these examples, and one of the chunk where a parameter has no record. NaN tells nothing.
    """
    wrong = set[str]()
    eps = max(torch.finfo(w.dtype).eps, min(network.look.eps, torch.finfo(torch.float32).eps))  # float32 inside float64
    for index, c, truth in _sums(network, w, chunk):
        if not bool(truth.isfinite().all()):
            continue
        sums, size = chunk.at(index.to(w.device)).weighted(c), truth.norm()
        for name, piece in network.layout.unflatten(truth).items():
            bound = 10 * eps**0.5 * piece.norm() + 1e3 * eps * size
            if name in sums and not (piece.flatten() - sums[name]).norm() <= bound:
                wrong.add(name)
    unseen = set(network.layout.names) - formed - set(chunk.known)
    if unseen:
        gradient = single_gradient(network.loss_of, w, network.x[chunk.part], network.y[chunk.part])
        pieces = network.layout.unflatten(gradient)
        wrong |= {name for name in unseen if bool((pieces[name] != 0).any())}
    return wrong


def _sums(network: NetworkObjective, w: Tensor, chunk: Chunk) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Examples of the chunk, their weights c, and sum_i c_i g_i (P,) by backward passes."""
    looked, begin = {0, chunk.num_examples - 1}, chunk.part.start
    if chunk.known:
        last, _ = list(chunk.known.values())[-1]
        looked.add(int(last.g.flatten(1).square().sum(1).argmax()))
    for j in looked:
        one = slice(begin + j, begin + j + 1)
        yield torch.tensor([j]), w.new_ones(1), single_gradient(network.loss_of, w, network.x[one], network.y[one])
    spread = torch.linspace(0, chunk.num_examples - 1, min(chunk.num_examples, MOST_LOOKED)).round().long()
    yield spread, *_weighted_gradient(network, w, spread + begin)


def _weighted_gradient(network: NetworkObjective, w: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Weights c of the examples `index`, and sum_i c_i g_i by one backward pass: random signs over the size of the output
    gradients, so that no example outweighs the others, and none that is fitted to round-off counts.
    """
    leaf, index = w.detach().requires_grad_(), index.to(network.x.device)
    with torch.enable_grad():
        outputs = network._outputs(leaf, network.x[index])
        f = outputs.detach().requires_grad_()
        (u,) = torch.autograd.grad(network._criterion(f, y=network.y[index]), f, materialize_grads=True)
    u = len(index) * u.reshape(len(index), -1)  # d loss_i/df of single examples
    sizes = u.norm(dim=1)
    scale = sizes + 0.01 * sizes.max() + torch.finfo(w.dtype).tiny
    c = random_signs((len(index),), w, torch.Generator(w.device).manual_seed(0)) / scale
    (truth,) = torch.autograd.grad(outputs, leaf, (c[:, None] * u).reshape(outputs.shape), materialize_grads=True)
    return c, truth
