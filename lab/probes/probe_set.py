"""The loss on the fixed set of training examples that a probe measures on, chosen by the seed of the run."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lab.data.base import class_balanced
from lab.objective import BatchesObjective, BatchSource, NetworkObjective, Weight
from lab.probes.base import Examples
from lab.probes.nested import Nested, nested
from lab.settings import SettingError
from lab.streams import stream

AUTO_ALL, AUTO_EXAMPLES = 5000, 2000
"""A probe set of size "auto" has all of a training set of up to the first number of examples, else the second number."""


class ProbeSets:
    """The loss of a model on probe sets of its training data, (x, y) or batches, each built once."""

    batch_norm: Literal["train", "eval"] = "train"
    chunk_size: int | None = None
    batch_examples: int | None = None
    forward: Callable[[nn.Module, Any], Any] | None = None
    weight: Weight = "examples"

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Any, Any], Tensor] | None,
        data: tuple[Tensor, Tensor] | BatchSource,
        seed: int,
    ):
        if criterion is None and not isinstance(data, BatchSource):
            raise ValueError("criterion=None is of batches, whose model computes the loss itself; data is (x, y)")
        self.model, self.criterion, self.data, self.seed = model, criterion, data, seed
        self.objectives: dict[Examples, NetworkObjective | BatchesObjective] = {}

    @property
    def num_train(self) -> int:
        """Training examples; 0 where the batches do not tell."""
        if isinstance(self.data, BatchSource):
            return self.data.num_examples or 0
        return len(self.data[1])

    def place(self, device: torch.device | str, dtype: torch.dtype) -> None:
        """Bring the data to the device, and where they are real numbers to the precision, of the model. Batches are brought
        one at a time, when they are needed.
        """
        if not isinstance(self.data, BatchSource):
            x, y = self.data
            x = x.to(device, dtype) if x.is_floating_point() else x.to(device)
            self.data = x, y.to(device)
        self.objectives.clear()

    def objective(self, examples: Examples) -> NetworkObjective | BatchesObjective:
        """The loss on the fixed, class-balanced probe set of a size; built once. Raises SettingError as `probe_set`, and
        `batches_set`, in which classes are not balanced.
        """
        if examples not in self.objectives:
            if isinstance(examples, Nested):
                auto = self.objective("auto")
                assert isinstance(auto, NetworkObjective)
                self.objectives[examples] = nested(auto, examples, self.seed)
            elif not isinstance(self.data, BatchSource):
                self.objectives[examples] = self._loss(probe_set(self.data, examples, self.seed))
            elif examples == "all":
                self.objectives[examples] = self._of_batches(self.data)
            else:
                whole = self.objective("all")
                assert isinstance(whole, BatchesObjective)
                self.objectives[examples] = batches_set(whole, examples, self.seed)
        return self.objectives[examples]

    def see_together(self, examples: int | None) -> None:
        """Training sees so many examples in one forward pass; batches have sizes of their own."""
        self.batch_examples = examples
        if not isinstance(self.data, BatchSource):
            self.objectives.clear()

    def of(self, index: Tensor) -> NetworkObjective | BatchesObjective:
        """The loss over the training examples `index` (m,)."""
        if isinstance(self.data, BatchSource):
            return self.objective("all").restrict(index)
        x, y = self.data
        index = index.to(y.device)
        return self._loss((x[index], y[index]))

    def _of_batches(self, source: BatchSource) -> BatchesObjective:
        how = {"forward": self.forward, "weight": self.weight, "batch_norm": self.batch_norm}
        return BatchesObjective(self.model, self.criterion, source, **how)  # type: ignore[arg-type]

    def _loss(self, data: tuple[Tensor, Tensor]) -> NetworkObjective:
        assert self.criterion is not None
        loss = NetworkObjective(
            self.model, self.criterion, data, chunk_size=self.chunk_size, batch_norm=self.batch_norm
        )
        if self.chunk_size is None and self.batch_examples is not None and loss.coupled:
            loss = loss.in_chunks(self.batch_examples)
        return loss


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
    assert not isinstance(examples, Nested), "a part of the probe set is drawn out of it"
    return num if examples == "all" else examples


def _any_examples(y: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` different examples of a set without class labels."""
    return torch.randperm(len(y), generator=generator)[:count]
