"""The fixed set of training examples that a probe measures on, chosen by the seed of the run."""

from typing import Any

import torch
from torch import Tensor

from lab.data.base import class_balanced
from lab.objective import BatchesObjective, BatchSource
from lab.probes.base import Examples
from lab.settings import SettingError
from lab.streams import stream

AUTO_ALL, AUTO_EXAMPLES = 5000, 2000
"""A probe set of size "auto" has all of a training set of up to the first number of examples, else the second number."""


def probe_set(data: tuple[Tensor, Tensor], examples: Examples, seed: int) -> tuple[Tensor, Tensor]:
    """`examples` of the training examples (x, y), chosen by the seed of the run; where all are wanted, all in their order.

    Labels are balanced over the classes; targets that are no labels are drawn uniformly. Raises SettingError as
    `class_balanced` does.
    """
    x, y = data
    count = _count(examples, len(y))
    if count >= len(y):
        return x, y
    labels = y.dim() == 1 and not y.is_floating_point()
    choose = class_balanced if labels else _any_examples
    index = choose(y.cpu(), count, stream(seed, "probe set")).to(y.device)
    return x[index], y[index]


def batches_set(whole: BatchesObjective, examples: Examples, seed: int) -> BatchesObjective:
    """The loss over `examples` of the examples of `whole`, drawn uniformly by the seed and gathered in memory in one pass;
    where all are wanted, `whole`. Where examples see each other, or the loss of a batch is no mean over them, whole batches
    are drawn until there are as many examples. Raises SettingError where the number of examples is not known.
    """
    num = whole.num_examples
    if num is None and isinstance(examples, int):
        raise SettingError(
            f"data.examples={examples}: the tensors of a batch share no first dimension, and how many examples there are is "
            "not known; use data.examples=all"
        )
    if num is None or (count := _count(examples, num)) >= num:
        return whole
    generator = stream(seed, "probe set")
    if not whole.coupled:
        return whole.restrict(torch.randperm(num, generator=generator)[:count].sort().values)
    order = torch.randperm(len(whole.source), generator=generator)
    rows = torch.tensor(whole.source.found.rows)[order].cumsum(0)
    return whole.some_batches(order[: int((rows < count).sum()) + 1])


def as_data(data: Any, *, described: bool) -> tuple[Tensor, Tensor] | BatchSource:
    """(x, y), tensors of equal length, or batches. Raises TypeError or ValueError, one line, for anything else.

    described: whether it was said how a batch is to be run or weighted, which (x, y) are not.
    """
    parts = list(data) if isinstance(data, tuple | list) else []
    if len(parts) != 2 or not all(isinstance(part, Tensor) for part in parts):
        return BatchSource(data)
    x, y = parts
    if described:
        raise ValueError(
            "forward and weight are of data given as batches; data is (x, y): use data=[(x, y)], one batch"
        )
    if x.shape[:1] != y.shape[:1] or not x.numel():
        raise ValueError(
            f"data=(x, y) of shapes {tuple(x.shape)} and {tuple(y.shape)}; expected as many targets y as "
            "inputs x, one at least"
        )
    return x, y


def _count(examples: Examples, num: int) -> int:
    """How many of `num` examples are wanted."""
    if examples == "auto":
        return num if num <= AUTO_ALL else AUTO_EXAMPLES
    return num if examples == "all" else examples


def _any_examples(y: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` different examples of a set without class labels."""
    return torch.randperm(len(y), generator=generator)[:count]
