"""Gradients of single examples: all at once by vmap where it can go, else one by one.

vmap cannot take recurrent layers, functions of somebody's own, branches on the data, `one_hot` in a criterion and more, and
says so in words of its own, or in none. So it is tried, its first results are held against plain backward passes of single
examples, and where either fails these passes are what is used.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.func import grad, vmap

LONG = 5.0
"""Seconds that a loop may take before it tells beforehand how many it will."""

Weights = Tensor | Mapping[str, Tensor]
Loss = Callable[[Any, Tensor, Tensor], Tensor]
"""(weights, x, y) -> the mean over these examples."""


class Vectorised:
    """Whether vmap takes a network: unknown, yes, or no, and why. Shared by all mini-batches of one."""

    def __init__(self) -> None:
        self.works: bool | None = None
        self.cause = ""

    def give_up(self, cause: str) -> None:
        self.works, self.cause = False, cause

    def attempt(self, function: Callable[[], Any]) -> Any:
        """function(), which goes through vmap; None where that was found not to work, now or before."""
        if self.works is False:
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of slow fallbacks inside functorch
                return function()
        except (
            Exception
        ) as error:  # whatever a stranger's network does to functorch: the loop is right, or says what is wrong
            if isinstance(error, torch.OutOfMemoryError):
                raise
            self.give_up(f"{type(error).__name__}: {str(error).strip().splitlines()[0][:80] if str(error) else ''}")
            return None


def example_gradients(
    loss: Loss,
    at: Weights,
    x: Tensor,
    y: Tensor,
    *,
    chunk_size: int,
    known: Vectorised,
) -> Any:
    """d loss(at, x[i:i+1], y[i:i+1]) / d at for every i, in the structure of `at` with a first axis of examples.

    `chunk_size` examples at a time. Cost: that of len(x) gradients of one example, several times less where vmap can go.
    """

    def one(at: Weights, x: Tensor, y: Tensor) -> Tensor:
        return loss(at, x[None], y[None])

    with torch.no_grad():
        gradients = known.attempt(lambda: vmap(grad(one), in_dims=(None, 0, 0), chunk_size=chunk_size)(at, x, y))
    if gradients is not None and known.works is None:
        known.works = True
        if not _agree(gradients, at, loss, x, y):
            known.give_up("its gradients differ from those of single examples")
    return gradients if known.works else _joined(_one_by_one(loss, at, x, y, known.cause))


def single_gradient(loss: Loss, at: Weights, x: Tensor, y: Tensor) -> Any:
    """d loss(at, x, y) / d at by plain backward, detached, in the structure of `at`."""
    named = {"": at} if isinstance(at, Tensor) else at
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in named.items()}
    with torch.enable_grad():
        value = loss(leaves[""] if isinstance(at, Tensor) else leaves, x, y)
        gradients = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    return gradients[0] if isinstance(at, Tensor) else dict(zip(leaves, gradients, strict=True))


def _one_by_one(loss: Loss, at: Weights, x: Tensor, y: Tensor, cause: str) -> Iterator[Any]:
    """Every gradient in turn; what will take long says so and shows how far it is."""
    begin = perf_counter()
    yield single_gradient(loss, at, x[:1], y[:1])
    seconds = (perf_counter() - begin) * (len(x) - 1)
    if seconds > LONG:
        warnings.warn(
            f"gradients of {len(x)} examples are formed one by one, which vmap cannot do ({cause}): about {seconds:.0f} s",
            stacklevel=4,
        )
    rest = track(
        range(1, len(x)),
        description="gradients of single examples",
        console=Console(stderr=True),
        transient=True,
        disable=seconds <= LONG,
    )
    for i in rest:
        yield single_gradient(loss, at, x[i : i + 1], y[i : i + 1])


def _joined(rows: Iterator[Any]) -> Any:
    every = list(rows)
    if isinstance(every[0], Tensor):
        return torch.stack(every)
    return {name: torch.stack([row[name] for row in every]) for name in every[0]}


def _tensors(at: Weights) -> list[Tensor]:
    return [at] if isinstance(at, Tensor) else list(at.values())


def _agree(gradients: Any, at: Weights, loss: Loss, x: Tensor, y: Tensor) -> bool:
    """Whether the first and the last row are those of plain backward passes. NaN agrees with anything: it tells nothing."""
    for i in {0, len(x) - 1}:
        truth = torch.cat([t.flatten() for t in _tensors(single_gradient(loss, at, x[i : i + 1], y[i : i + 1]))])
        row = torch.cat([t[i].flatten() for t in _tensors(gradients)])
        if not bool(truth.isfinite().all()):
            continue
        eps = torch.finfo(truth.dtype).eps
        if not (row - truth).norm() <= 10 * eps**0.5 * truth.norm() + 1e3 * eps:
            return False
    return True
