"""A look at a stranger's network: the precision it computes in, and whether the examples of a batch see each other.

An example has a gradient of its own only where its output does not depend on its companions. Lists of layers that couple
examples (BatchNorm) are never complete, so the outputs of a few examples are compared with those that they have in another
order, in smaller and doubled company. Networks that sort, average or normalise over their batch differ; rounding does not.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lab.objective.base import Objective, Unsound, at_least_single
from lab.objective.laws import Place

if TYPE_CHECKING:
    from lab.objective.chunks import ChunkedNetwork

EXAMPLES, MANY = 8, 256
"""Examples that are looked at, in whose company, and in how large a company at most."""


@dataclass(frozen=True)
class Look:
    """What a look found.

    dtype    of weights in which laws are examined: float64 where the network takes it.
    eps      round-off of the coarsest numbers it computes with, given weights of that dtype.
    coupled  how examples see each other, "" where they do not.
    rank     dimensions of the outputs of several examples.
    """

    dtype: torch.dtype
    eps: float
    coupled: str
    rank: int


def look_at(network: "ChunkedNetwork") -> Look:
    """A look at the network near its present weights, where zeros of an initialisation hide nothing. Cost: forward passes
    of `EXAMPLES` examples, and one of `MANY`, for some see each other in large batches only.

    Raises Unsound where the network changes its weights, and what it raises itself on few examples.
    """
    few = network.few(EXAMPLES)
    try:
        w = moved(few, few.weights.double())
        outputs, eps = _precise(few, w)
    except Unsound:
        raise
    except Exception:  # numbers of a fixed precision inside, and whatever a network says then
        w = moved(few, at_least_single(few.weights))
        outputs, eps = _precise(few, w)
    coupling = _coupled(few, w, few.x, outputs, eps)
    if not coupling and len(network.x) > len(few.x):
        many = network.few(MANY)
        with torch.no_grad():
            coupling = _coupled(many, w, many.x, many.outputs(w, many.x), eps)
    return Look(w.dtype, eps, coupling, outputs.dim())


def _precise(few: "ChunkedNetwork", w: Tensor) -> tuple[Tensor, float]:
    """Outputs, and the round-off of the coarsest numbers on the way to them. Raises Unsound where w itself is changed."""
    before = w.clone()
    with torch.no_grad():
        few.find_modes(w)
        with Precision() as seen:
            outputs = few.outputs(w, few.x)
    if not torch.equal(w.nan_to_num(), before.nan_to_num()):
        raise Unsound(
            "the network changes its weights when it is evaluated (does its first batch initialise them?): run one batch "
            "through it in training mode before it is measured"
        )
    return outputs, seen.eps


def moved(few: Objective, w: Tensor) -> Tensor:
    """A place near w, always the same."""
    return Place.near(few, w, torch.Generator().manual_seed(0)).w


def _coupled(few: "ChunkedNetwork", w: Tensor, x: Tensor, outputs: Tensor, eps: float) -> str:
    num = len(x)
    if num == 1:
        return ""
    if outputs.dim() == 0 or len(outputs) % num:
        return f"the network gives outputs of shape {tuple(outputs.shape)} for {num} examples, not some for each"
    backwards = torch.arange(num - 1, -1, -1, device=few.y.device)
    half = min(num // 2, EXAMPLES)
    for some in (
        backwards[:half],
        backwards[-half:],
    ):  # so that everyone is missing once, as whoever is the largest of all
        if coupling := _changed(few, w, x, outputs, torch.cat([some, some[:1]]), eps):
            return coupling
    return ""


def _changed(few: "ChunkedNetwork", w: Tensor, x: Tensor, outputs: Tensor, order: Tensor, eps: float) -> str:
    """How the outputs of the examples `order` by themselves differ from those they have among all."""
    num = len(x)
    with torch.no_grad():
        again = few.outputs(w, x[order])
    if again.dim() == 0 or len(again) % len(order):
        return f"the network gives outputs of shape {tuple(again.shape)} for {len(order)} examples, not some for each"
    before, after = outputs.reshape(num, -1)[order], again.reshape(len(order), -1)
    if before.shape != after.shape:
        return "the outputs of an example have another shape in other company"
    before, after = before.double(), after.double()
    if not bool(before.isfinite().all() and after.isfinite().all()):
        return ""  # diverged weights tell nothing
    off, size = float((before - after).abs().max()), float(before.abs().max())
    if off <= eps**0.5 * size:
        return ""
    return f"the outputs of an example depend on the others of its batch (by {100 * off / size:.2g} % of their size)"


class Precision(TorchDispatchMode):
    """The coarsest floating-point numbers that operations on such numbers make, single ones (constants, states) aside."""

    def __init__(self) -> None:
        super().__init__()
        self.eps = torch.finfo(torch.float64).eps

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(t, Tensor) and t.is_floating_point() for t in tree_leaves((args, kwargs))):
            made = [t for t in tree_leaves(result) if isinstance(t, Tensor) and t.is_floating_point() and t.dim()]
            self.eps = max([self.eps, *(torch.finfo(t.dtype).eps for t in made)])
        return result
