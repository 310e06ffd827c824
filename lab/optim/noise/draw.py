"""The noise of one step: from the batch in use to what is added to its gradient."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from lab.models.losses import Criterion
from lab.noise import injection
from lab.noise.likelihood import Likelihood, likelihood_of
from lab.objective import NetworkObjective
from lab.params import flatten, weights
from lab.streams import stream

Slopes = Callable[[Tensor, Tensor, slice], Tensor]
"""(outputs, d loss/d outputs, which examples) -> what to send back through the network: sum over examples of J_i's_i."""
NORM_EVERY = 50
"""Steps between looks at the norm of a noise that joins the gradient: a look costs two thirds of a step."""


@dataclass
class Batch:
    """The N examples in use at a step, the learning rate, and the random numbers of the step."""

    model: nn.Module
    criterion: Criterion
    x: Tensor
    y: Tensor
    chunk_size: int | None
    lr: float
    likelihood: Callable[[], Likelihood]
    generator: torch.Generator

    @property
    def size(self) -> int:
        return len(self.y)

    @cached_property
    def w(self) -> Tensor:
        return weights(self.model)

    def loss(self) -> NetworkObjective:
        """The loss over these examples."""
        return batch_loss(self.model, self.criterion, self.x, self.y, chunk_size=self.chunk_size)

    def example_trace(self) -> float:
        """Tr D."""
        with self.unmixed():
            return injection.example_trace(self.loss(), self.w)

    def unmixed(self) -> torch.autocast:
        """Where the network is looked at and not trained, precision is that of its weights."""
        return torch.autocast(self.x.device.type, enabled=False)


class Source(Protocol):
    """A card: it makes the noise of a batch."""

    def draw(self, batch: Batch, params: Sequence[Tensor]) -> "Draw":
        """The noise of one step."""


@dataclass
class Draw:
    """The noise of one step. `slopes` go back through the network and give n; `shape` turns n (None without slopes) into
    the noise. Without `shape` n is the noise, and joins the gradient in one backward pass. `measured`: whether its `norm`
    is asked for, at the cost of another pass where n joins.
    """

    params: Sequence[Tensor]
    slopes: Slopes | None = None
    shape: Callable[[Tensor | None], Tensor] | None = None
    measured: bool = False
    norm: float = field(default=math.nan, init=False)
    _n: Tensor | None = field(default=None, init=False)

    def backward(self, loss: Tensor, outputs: Tensor, part: slice) -> None:
        """The gradient of `loss`, the part of the loss over the examples `part`, into `.grad`, with what noise joins it."""
        slopes = self.slopes
        f = outputs.detach()  # a hook that held the outputs themselves would keep their graph alive
        if slopes is not None and self.shape is None and not self.measured:
            outputs.register_hook(lambda slope: slope + slopes(f, slope, part).to(slope.dtype))
        elif slopes is not None:
            (slope,) = torch.autograd.grad(loss, outputs, retain_graph=True)
            noise = slopes(f, slope, part).to(slope.dtype)
            pieces = torch.autograd.grad(outputs, self.params, noise, retain_graph=True, materialize_grads=True)
            n = flatten(pieces)
            self._n = n if self._n is None else self._n + n
            if self.shape is None:
                outputs.register_hook(lambda slope: slope + noise)
        loss.backward()

    def finish(self) -> None:
        """After the last part: what has not joined yet is added to `.grad`."""
        n = self._n
        if self.shape is not None:
            n = self.shape(n)
            pieces = n.split([p.numel() for p in self.params])
            for p, piece in zip(self.params, pieces, strict=True):
                p.grad = piece.view_as(p).clone() if p.grad is None else p.grad.add_(piece.view_as(p))
        if self.measured and n is not None:
            self.norm = float(n.double().norm())


class GradientNoise:
    """The noise of a card in a run: `draw` makes that of a step, a function of (seed, step) and the batch."""

    def __init__(self, card: Source, model: nn.Module, criterion: Criterion, data: tuple[Tensor, Tensor], seed: int):
        self.card, self.model, self.criterion, self.seed = card, model, criterion, seed
        self.params = [p for p in model.parameters() if p.requires_grad]
        self._few = data[0][:8], data[1][:8]
        self._likelihood: Likelihood | None = None

    def likelihood(self) -> Likelihood:
        """The model of the labels behind the loss; recognised once. Raises ValueError where there is none."""
        if self._likelihood is None:
            few = NetworkObjective(self.model, self.criterion, self._few)
            self._likelihood = likelihood_of(few, few.weights)
        return self._likelihood

    def draw(
        self, step: int, x: Tensor, y: Tensor, *, lr: float, chunk_size: int | None = None, measured: bool = False
    ) -> Draw:
        """The noise of `step` for the batch (x, y). `measured`: its norm is wanted; where that costs a pass of its own it
        is taken every `NORM_EVERY` steps.
        """
        generator = stream(self.seed, "noise", step, device=x.device)
        batch = Batch(self.model, self.criterion, x, y, chunk_size, lr, self.likelihood, generator)
        draw = self.card.draw(batch, self.params)
        draw.measured = measured and (draw.shape is not None or step % NORM_EVERY == 0)
        return draw


def batch_loss(
    model: nn.Module, criterion: Criterion, x: Tensor, y: Tensor, *, chunk_size: int | None = None
) -> NetworkObjective:
    """The loss over a batch as training has it, less dropout: BatchNorm with the statistics of its chunks."""
    if has_batch_norm(model):
        return NetworkObjective(model, criterion, (x, y), chunk_size=chunk_size or len(y), batch_norm="train")
    return NetworkObjective(model, criterion, (x, y), chunk_size=chunk_size)


def has_batch_norm(model: nn.Module) -> bool:
    """Whether examples see each other through BatchNorm when `model` is trained."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
