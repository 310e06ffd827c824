"""R copies of a training run that differ in their random numbers only, moved as one program on stacked weights W (R, P).

Every replica draws its own mini-batches, and its own noise where some is chosen; all draws come from one generator that is
handed in. Networks run with the running statistics of BatchNorm, which stay fixed. Elementwise optimisers act on all rows
at once, as they would on each alone.
"""

from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Protocol

import torch
from torch import Tensor, optim

from lab.objective import Objective
from lab.sampling import Sampling

ELEMENTWISE = (optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop)
"""Optimisers whose update of a weight depends on that weight's gradients alone: the replicas do not see each other."""

MakeOptimizer = Callable[[list[Tensor]], optim.Optimizer]


class ReplicaNoise(Protocol):
    """Random numbers added to the gradients: `noise(objective, W, generator)` -> (R, P)."""

    def __call__(self, objective: Objective, W: Tensor, generator: torch.Generator) -> Tensor: ...

    def gradients(self, objective: Objective, W: Tensor, generator: torch.Generator) -> Tensor:
        """Full-batch gradients with the noise added, (R, P)."""
        return objective.replica_grads(W) + self(objective, W, generator)


def draws(
    num_examples: int, batch_size: int, sampling: Sampling, replicas: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Mini-batches (R, B) of one step after the other, independent between replicas; an epoch's last may be smaller."""
    while True:
        if sampling == "with_replacement":
            yield torch.randint(num_examples, (replicas, batch_size), generator=generator, device=generator.device)
            continue
        order = torch.rand(replicas, num_examples, generator=generator, device=generator.device).argsort(1)
        yield from order.split(batch_size, 1) if sampling == "epoch" else (order[:, :batch_size],)


def shares(index: Tensor, num_examples: int) -> Tensor:
    """The share of every example in mini-batches (R, B): (R, N), rows summing to 1."""
    share = torch.full(index.shape, 1 / index.shape[1], dtype=torch.float64, device=index.device)
    return share.new_zeros(len(index), num_examples).scatter_add_(1, index, share)


class Replicas:
    """R copies of a run on `objective` from the rows of w (R, P), which is copied.

    optimizer    makes the optimiser of a list with one stacked parameter (R, P); SGD, Adam, AdamW or RMSprop.
    batch_size   examples a mini-batch; None: the whole set. sampling: how they are drawn, for each replica anew.
    noise        added to the gradients, or None.
    W (R, P) are the weights, changed in place; `step` counts the updates made. Replicas that diverge hold NaN and stay.
    Cost: R gradients of a mini-batch a step. Raises ValueError for a batch larger than the data (with replacement any
    size will do), TypeError for an optimiser that couples the weights and for an objective without examples.
    """

    def __init__(
        self,
        objective: Objective,
        w: Tensor,
        optimizer: MakeOptimizer,
        *,
        batch_size: int | None = None,
        sampling: Sampling = "with_replacement",
        noise: ReplicaNoise | None = None,
        generator: torch.Generator,
    ) -> None:
        if w.dim() != 2 or len(w) == 0 or w.shape[1] != objective.num_params:
            raise ValueError(f"w has shape {tuple(w.shape)}: expected (replicas, {objective.num_params})")
        self.objective, self.noise, self.generator = objective, noise, generator
        self.W = w.detach().clone()
        self.optimizer = optimizer([self.W])
        if type(self.optimizer) not in ELEMENTWISE:
            known = ", ".join(kind.__name__ for kind in ELEMENTWISE)
            raise TypeError(f"{type(self.optimizer).__name__} would couple the replicas; expected one of {known}")
        self.step = 0
        self._batches: Iterator[Tensor | None] = repeat(None)
        total = objective.num_examples
        if batch_size is not None:
            if total is None:
                raise TypeError(f"{type(objective).__name__} has no examples and no mini-batches: use batch_size=None")
            if batch_size < 1 or (batch_size > total and sampling != "with_replacement"):
                raise ValueError(f"batch_size={batch_size}: expected 1 to {total}, or None for all examples")
            if batch_size < total or sampling == "with_replacement":
                self._batches = draws(total, batch_size, sampling, len(w), generator)
        self.is_full = isinstance(self._batches, repeat)
        self.is_quiet = self.is_full and noise is None

    def run(self, steps: int) -> None:
        """Make `steps` updates."""
        W, plain = self.W, self._plain_lr()
        for _ in range(steps):
            gradient = self.gradients()
            if plain is not None:
                W.add_(gradient, alpha=-plain)  # what SGD does, without its housekeeping
            else:
                W.grad = gradient
                self.optimizer.step()
            self.step += 1
        W.grad = None

    def replace(self, rows: Tensor, sources: Tensor) -> None:
        """Rows (k,) take over places and optimiser state of the rows `sources` (k,); their draws stay their own."""
        W = self.W
        W[rows] = W[sources]
        for state in self.optimizer.state.values():
            for value in state.values():
                if isinstance(value, Tensor) and value.shape == W.shape:
                    value[rows] = value[sources]

    def gradients(self) -> Tensor:
        """Gradients (R, P) of the next step, on new batches and with new noise; nothing moves."""
        index, W = next(self._batches), self.W
        if index is None and self.noise is not None:
            return self.noise.gradients(self.objective, W, self.generator)
        total = self.objective.num_examples
        if index is None:
            gradient = self.objective.replica_grads(W)
        elif (
            total is not None and index.shape[1] > total
        ):  # examples come up several times: cheaper counted than gathered
            gradient = self.objective.replica_grads(W, weights=shares(index, total).to(W))
        else:
            gradient = self.objective.replica_grads(W, index.to(W.device))
        return gradient if self.noise is None else gradient + self.noise(self.objective, W, self.generator)

    def _plain_lr(self) -> float | None:
        """The learning rate where the update is -lr times the gradient, else None."""
        (group,) = self.optimizer.param_groups
        plain = type(self.optimizer) is optim.SGD and not (group["momentum"] or group["weight_decay"])
        return float(group["lr"]) if plain and not group["maximize"] else None
