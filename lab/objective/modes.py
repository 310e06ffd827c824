"""In which mode every module of a network is measured: that of training, less what draws random numbers."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from lab.objective.base import Unsound

States = list[Any]


class Modes:
    """The mode in which every module of `model` is measured.

    "train": the mode that it has, as whoever trains it has set it (a BatchNorm kept in eval stays in eval), but for modules
    that draw random numbers, as dropout does: these are in eval. "eval": all are in eval. What draws is not taken from a
    list of layers: the generators are looked at before and after every module, once for every setting of the flags.
    """

    def __init__(self, model: nn.Module, batch_norm: Literal["train", "eval"]):
        self.modules, self.batch_norm = list(model.modules()), batch_norm
        self._drawing: dict[tuple[bool, ...], frozenset[int]] = {}

    @property
    def flags(self) -> tuple[bool, ...]:
        """Those of the modules as they are now; all False where "eval" was asked for."""
        if self.batch_norm == "eval":
            return (False,) * len(self.modules)
        return tuple(module.training for module in self.modules)

    @property
    def silenced(self) -> list[str]:
        """The kinds of the modules that are in eval mode because they draw random numbers, as far as is known."""
        drawing = self._drawing.get(self.flags, frozenset())
        return sorted({type(self.modules[i]).__name__ for i in drawing})

    @property
    def batch_statistics(self) -> bool:
        """Whether a BatchNorm normalises by the batch that it is given."""
        norms = nn.modules.batchnorm._BatchNorm
        pairs = zip(self.modules, self.flags, strict=True)
        return any(isinstance(m, norms) and (training or m.running_mean is None) for m, training in pairs)

    @contextmanager
    def applied(self, device: torch.device, once: Callable[[], object]) -> Iterator[None]:
        """The modules in their modes, put back afterwards. `once` runs the network on few examples: what draws is found by
        it where the flags are new. Raises Unsound where random numbers are drawn whatever the modes are.
        """
        before, flags = [module.training for module in self.modules], self.flags
        try:
            if flags not in self._drawing:
                self._drawing[flags] = self._find(flags, device, once)
            self._put(flags, self._drawing[flags])
            yield
        finally:
            self._put(before, frozenset())

    def _put(self, flags: Sequence[bool], off: frozenset[int]) -> None:
        for i, (module, training) in enumerate(zip(self.modules, flags, strict=True)):
            if module.training != (training and i not in off):  # to set an attribute of a module is dear
                module.training = not module.training

    def _find(self, flags: tuple[bool, ...], device: torch.device, once: Callable[[], object]) -> frozenset[int]:
        """The innermost modules that draw are switched off, until none draws; the generators are put back."""
        off: frozenset[int] = frozenset()
        kept = _states(device)
        try:
            while True:
                self._put(flags, off)
                drawn, drew = self._watched(device, once)
                if not drew:
                    return off
                more = {i for i in drawn if flags[i]} - off
                if not more:
                    raise Unsound(
                        "the network draws random numbers though dropout is off (functional.dropout without "
                        "training=self.training?): its loss is no function of w"
                    )
                off |= more
        finally:
            _restore(kept, device)

    def _watched(self, device: torch.device, once: Callable[[], object]) -> tuple[set[int], bool]:
        """The innermost modules in which random numbers were drawn, and whether any were drawn at all."""
        drawn, inside = set[int](), list[tuple[States, set[int]]]()

        def enter(module: nn.Module, inputs: object) -> None:
            inside.append((_states(device), set(drawn)))

        def leave(i: int) -> Callable[[nn.Module, object, object], None]:
            def hook(module: nn.Module, inputs: object, output: object) -> None:
                before, known = inside.pop()
                if drawn == known and not _same(before, _states(device)):
                    drawn.add(i)

            return hook

        handles = [module.register_forward_pre_hook(enter) for module in self.modules]
        handles += [module.register_forward_hook(leave(i)) for i, module in enumerate(self.modules)]
        before = _states(device)
        try:
            with torch.no_grad():
                once()
        finally:
            for handle in handles:
                handle.remove()
        return drawn, not _same(before, _states(device))


def _states(device: torch.device) -> States:
    """Those of the generators that a network may draw from: torch's on the CPU and its device, numpy's, Python's."""
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *cuda, np.random.get_state(legacy=False), random.getstate()]


def _same(before: States, after: States) -> bool:
    *tensors, numbers, python = before
    *others, numbers_after, python_after = after
    key, other = numbers["state"], numbers_after["state"]
    return (
        all(map(torch.equal, tensors, others))
        and key["pos"] == other["pos"]
        and bool((key["key"] == other["key"]).all())
        and numbers["has_gauss"] == numbers_after["has_gauss"]
        and python == python_after
    )


def _restore(states: States, device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
    np.random.set_state(states[-2])
    random.setstate(states[-1])
