"""The curvature of the loss of a batch along a direction of its own, for many batches.

    g_B' H_B g_B = d^2/de^2 L_B(w + e g_B) at e = 0,      |g_B|^2

In general one graph and one Hessian product a batch. Where all weights are those of linear layers no g_B is formed: at
row i of a layer a = W h + b, with inputs h and slopes d = dL_B/da, the direction moves the output by

    e_i = sum_j (h_i'h_j + 1) d_j          (j over the rows of the batch; + 1 for the bias),     |g_B|^2 = sum_i d_i'e_i

and L_B is a function of the outputs a along a curve: its second derivative is that of L_B along e_i, plus the slopes d_i
against the bend 2 G h' of the curve, G = sum_j d_j h_j' the direction in W. Both are

    g_B' H_B g_B = sum_i e_i' dF/da_i,      F = sum_i d_i'e_i + 2 sum_i h_i'c_i,      c_i = G'd_i = sum_j h_j (d_j'd_i)

with e_i and c_i held constant and sums over layers too: one forward pass, one backward pass to the outputs and one
through both, for all batches at once, and inner products within a batch. For |g_i|^2 of single examples this is Goodfellow
(2015). The first batch is done both ways: a network that is more than its linear layers goes the general way.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lab.curvature.eigen import lanczos
from lab.curvature.operators import Hessian, hessian
from lab.curvature.vectors import dot, norm
from lab.objective import NetworkObjective, Objective, differentiating_again

Direction = Callable[[Tensor], Tensor]
"""The step s (P,) that an optimiser would make for a gradient (P,)."""
_Call = tuple[nn.Linear, Tensor, Tensor]
"""A call of a layer: the layer, its inputs h and its outputs a."""
ROUND_OFF = 1e3
"""How far the two ways may differ, in units of the round-off of |g_B|^2 and of |g_B| |H_B g_B|."""


@dataclass(frozen=True)
class BatchForms:
    """Of R batches, each along its own direction s: curvature s'H_B s and slope -s'g_B, (R,) float64.

    Along s = -g_B the slope is |g_B|^2.
    """

    curvature: Tensor
    slope: Tensor

    def __len__(self) -> int:
        return len(self.curvature)

    @staticmethod
    def joined(parts: Iterable["BatchForms"]) -> "BatchForms":
        """All batches of all parts, in order."""
        return BatchForms(*(torch.cat(each) for each in zip(*((p.curvature, p.slope) for p in parts), strict=True)))


def along_gradients(objective: Objective, w: Tensor, batches: Tensor) -> BatchForms:
    """The forms of every batch along its own gradient; batches (R, m) indices of examples.

    Exact. Cost in gradients of the same R m examples: about one for networks of linear layers (1.1 for 100 batches of 8 on
    a 3072-200-200-10 network); else every batch by its own graph, three to four on a ResNet-20, and more where few examples
    meet many weights (22 on that network). Train-mode BatchNorm normalises over the batch, as training does. Raises
    TypeError where the loss is no mean over examples.
    """
    if len(batches) > 1 and isinstance(objective, NetworkObjective) and (layers := _linear_layers(objective)):
        forms = _through_layers(objective, w, batches, layers)
        if forms is not None and _agrees(forms, hessian(objective.restrict(batches[0]), w)):
            return forms
    return BatchForms.joined(along_gradient(hessian(objective.restrict(batch), w)) for batch in batches)


def along_steps(
    objective: Objective, w: Tensor, batches: Tensor, direction: Direction, *, decay: float | Tensor = 0.0
) -> tuple[BatchForms, BatchForms]:
    """The forms of every batch along its own gradient, and those along the step s = direction(g_B), as `along_step`.

    Cost: a graph, two Hessian products and a step for every batch.
    """
    gradients, steps = list[BatchForms](), list[BatchForms]()
    for batch in batches:
        H = hessian(objective.restrict(batch), w)
        gradients.append(along_gradient(H))
        steps.append(along_step(H, w, direction(H.gradient), decay=decay))
    return BatchForms.joined(gradients), BatchForms.joined(steps)


def along_gradient(H: Hessian) -> BatchForms:
    """The forms of one loss along -g, from its Hessian at w. Cost: one product."""
    g = H.gradient
    return BatchForms(_inner(g, H @ g), _inner(g, g))


def along_step(H: Hessian, w: Tensor, s: Tensor, *, decay: float | Tensor = 0.0) -> BatchForms:
    """The forms of one loss L along a step s, from its Hessian at w. Cost: one product.

    decay c (a number, or (P,)): that of a weight decay which the step has added to the gradient. What it descends is then
    L + c/2 |w|^2, and the forms are those of that loss.
    """
    s = s.to(w)
    decay = decay.to(w) if isinstance(decay, Tensor) else decay
    return BatchForms(_inner(s, H @ s + decay * s), -_inner(s, H.gradient + decay * w))


def gradient_noise_interaction(objective: Objective, H: Hessian, w: Tensor, batches: Tensor) -> BatchForms:
    """g_B'H g_B of every batch (R, m), H and g those of all examples of `objective`; the slope is |g|^2 every time.

    GNI is their ratio of means. Cost: one Hessian product of all examples a batch.
    """
    curvature = [_inner(g, H @ g) for g in (objective.restrict(batch).grad(w) for batch in batches)]
    return BatchForms(torch.cat(curvature), _inner(H.gradient, H.gradient).expand(len(batches)))


def top_of_batches(
    objective: Objective, w: Tensor, batches: Tensor, generator: torch.Generator, *, tol: float = 1e-2
) -> Tensor:
    """lambda_max(H_B) of every batch: (R,) float64. Its mean has been called mini-batch sharpness.

    Every solve is cold: the top eigenvector of one batch is no start for another. Cost: 10 to 25 Hessian products of a
    batch, each.
    """
    tops = [lanczos(hessian(objective.restrict(b), w), tol=tol, generator=generator).top.values for b in batches]
    return torch.cat(tops)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """a'b, (1,) float64."""
    return dot(a[None], b)


# --- networks of linear layers ----------


def _linear_layers(objective: NetworkObjective) -> list[nn.Linear]:
    """The linear layers, where they hold all trainable weights, each once, and no example sees another; else none."""
    if objective.coupled:
        return []
    owned = [(module, p) for module in objective.model.modules() for p in module.parameters(recurse=False)]
    owned = [(module, p) for module, p in owned if p.requires_grad]
    layers = list(dict.fromkeys(module for module, _ in owned if type(module) is nn.Linear))
    tied = len({id(p) for _, p in owned}) < len(owned)
    return [] if tied or {module for module, _ in owned} - {*layers} else layers  # type: ignore[return-value]


def _through_layers(
    objective: NetworkObjective, w: Tensor, batches: Tensor, layers: list[nn.Linear]
) -> BatchForms | None:
    """`along_gradients` by the formulas above, as many batches at a time as fill a chunk; None where they do not apply."""
    at_once = objective.chunk_size(w) // batches.shape[1]
    if at_once == 0:
        return None
    parts = [_at_once(objective, w.detach(), some, layers) for some in batches.split(at_once)]
    return None if None in parts else BatchForms.joined(forms for forms in parts if forms is not None)


def _at_once(objective: NetworkObjective, w: Tensor, batches: Tensor, layers: list[nn.Linear]) -> BatchForms | None:
    num, calls = len(batches), list[_Call]()
    with torch.enable_grad(), _recorded(layers, calls):
        ((_, outputs, criterion),) = objective.restrict(batches.flatten()).composition(w)
        total = num * criterion(outputs)  # the sum of L_B: the criterion is a mean
    once = len({layer for layer, _, _ in calls}) == len(calls) > 0
    if not once or any(h.dim() < 2 or len(h) != batches.numel() for _, h, _ in calls):
        return None
    outputs_of = [a for _, _, a in calls]
    with differentiating_again():
        slopes = torch.autograd.grad(total, outputs_of, create_graph=True, materialize_grads=True)
    square, F, moves = w.new_zeros(num, dtype=torch.float64), total.new_zeros(()), list[Tensor]()
    for (layer, inputs, _), slope in zip(calls, slopes, strict=True):
        h, d = _rows(inputs, num), _rows(slope, num)
        e = _moves(layer, h.detach(), d.detach())
        moves.append(e)
        square += (d.detach() * e).double().sum((1, 2))
        F = F + (d * e).sum()
        if h.requires_grad and layer.weight.requires_grad:
            F = F + 2 * (h * ((d @ d.transpose(1, 2)) @ h).detach()).sum()
    if not F.requires_grad:  # the loss is linear in the weights
        return BatchForms(torch.zeros_like(square), square)
    with differentiating_again():
        bends = torch.autograd.grad(F, outputs_of, materialize_grads=True)
    pairs = zip(bends, moves, strict=True)
    return BatchForms(sum((_rows(bend, num) * e).double().sum((1, 2)) for bend, e in pairs), square)  # type: ignore[arg-type]


def _moves(layer: nn.Linear, h: Tensor, d: Tensor) -> Tensor:
    """e (R, rows, out): how the layer's outputs move along the gradient of their batch."""
    e = torch.zeros_like(d)
    if layer.weight.requires_grad:
        e = (h @ h.transpose(1, 2)) @ d
    if layer.bias is not None and layer.bias.requires_grad:
        e = e + d.sum(1, keepdim=True)
    return e


@contextmanager
def _recorded(layers: list[nn.Linear], calls: list[_Call]) -> Iterator[None]:
    """Note the calls of the layers; the outputs of the first ones start the graph, for the weights are constants."""

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], a: Tensor) -> Tensor:
        a = a if a.requires_grad else a.detach().requires_grad_()
        calls.append((layer, inputs[0], a))  # type: ignore[arg-type]
        return a.clone()  # what is done to it in place is done to a copy

    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rows(a: Tensor, num: int) -> Tensor:
    """(examples, ..., features) as (batches, rows of a batch, features)."""
    return a.reshape(num, -1, a.shape[-1])


def _agrees(forms: BatchForms, H: Hessian) -> bool:
    """Whether the first batch is that of its own graph, up to round-off of |g|^2 and of |g| |Hg|."""
    g, product = H.gradient, H @ H.gradient
    slack, sizes = ROUND_OFF * torch.finfo(g.dtype).eps, norm(g)
    slope, curvature = float(_inner(g, g)), float(_inner(g, product))
    if not math.isfinite(curvature):
        return True
    return abs(float(forms.slope[0]) - slope) <= slack * slope and abs(
        float(forms.curvature[0]) - curvature
    ) <= slack * sizes * norm(product)
