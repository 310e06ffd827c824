"""The fixed, class-balanced probe set of a size: the same examples in a training run and in a later measurement."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from lab.data.base import class_balanced
from lab.objective import Objective
from lab.probes.base import Examples, Probe
from lab.settings import SettingError
from lab.streams import stream

AUTO_ALL, AUTO_EXAMPLES = 5000, 2000
"""Probe sets of size "auto": all of a training set up to the first, else the second number of examples."""


def probe_set(data: tuple[Tensor, Tensor], examples: Examples, seed: int) -> tuple[Tensor, Tensor]:
    """`examples` of the training examples (x, y), chosen by the seed of the run; where all are wanted, all in their order.

    Labels are balanced over the classes; targets that are no labels are drawn uniformly. Raises SettingError as
    `class_balanced` does.
    """
    x, y = data
    count = len(y) if examples == "all" else examples
    if examples == "auto":
        count = len(y) if len(y) <= AUTO_ALL else AUTO_EXAMPLES
    assert isinstance(count, int)
    if count >= len(y):
        return x, y
    labels = y.dim() == 1 and not y.is_floating_point()
    choose = class_balanced if labels else _any_examples
    index = choose(y.cpu(), count, stream(seed, "probe set")).to(y.device)
    return x[index], y[index]


def require_probe_sets(probes: Iterable[Probe], num_examples: int, objective: Callable[[Examples], Objective]) -> None:
    """Raise SettingError, one line, for a probe set that the data cannot give."""
    for probe in probes:
        examples: Examples = getattr(probe, "examples", "auto")
        setting = f"probe.{probe.name}.examples"
        if isinstance(examples, int) and examples > num_examples:
            raise SettingError(
                f"{setting}={examples} is larger than the {num_examples} training examples; use {setting}=all"
            )
        try:
            objective(examples)
        except SettingError as error:
            raise SettingError(str(error).replace("data.examples", setting)) from None


def _any_examples(y: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` different examples of a set without class labels."""
    return torch.randperm(len(y), generator=generator)[:count]
