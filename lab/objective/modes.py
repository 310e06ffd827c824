"""In which mode every module of a network is measured: that of training, less what draws random numbers."""

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lab.objective.base import Unsound

States = list[Any]
INTERNAL = frozenset(vars(nn.Module())) | {"training"}
"""Attributes of a module that torch keeps itself."""
SMALL = 2**16
"""Numbers in a tensor that is no buffer, up to which its values are kept, for it may be changed in place."""


class Modes:
    """The mode in which every module of `model` is measured, and what it keeps in attributes, put back afterwards.

    "train": the mode that it has, as whoever trains it has set it (a BatchNorm kept in eval stays in eval), but for modules
    that draw random numbers, as dropout does: these are in eval. "eval": all are in eval. What draws is not taken from a
    list of layers: the generators are looked at before and after every module, once for every setting of the flags.
    """

    def __init__(self, model: nn.Module, batch_norm: Literal["train", "eval"]):
        self.modules, self.batch_norm = list(model.modules()), batch_norm
        self._drawing: dict[tuple[bool, ...], frozenset[int]] = {}
        self._restores = True

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
        kept = [_attributes(module) for module in self.modules] if self._restores else []
        try:
            if flags not in self._drawing:
                self._drawing[flags] = self._find(flags, device, once)
            self._put(flags, self._drawing[flags])
            yield
        finally:
            self._put(before, frozenset())
            for module, attributes in zip(self.modules, kept, strict=False):
                _put_back(module, attributes)

    def fixed(self, device: torch.device, before: States) -> bool:
        """Whether no random numbers were drawn since `states`; else they are put back, and what draws is looked for anew:
        a dropout may begin at a rate of zero.
        """
        if _same(before, states(device)):
            return True
        restore(before, device)
        self._drawing.clear()
        return False

    @contextmanager
    def unrestored(self) -> Iterator[None]:
        """What the modules keep in attributes from call to call is left to them inside, and put back in the end."""
        kept = [_attributes(module) for module in self.modules]
        self._restores = False
        try:
            yield
        finally:
            self._restores = True
            for module, attributes in zip(self.modules, kept, strict=True):
                _put_back(module, attributes)

    def _put(self, flags: Sequence[bool], off: frozenset[int]) -> None:
        for i, (module, training) in enumerate(zip(self.modules, flags, strict=True)):
            if module.training != (training and i not in off):  # to set an attribute of a module is dear
                module.training = not module.training

    def _find(self, flags: tuple[bool, ...], device: torch.device, once: Callable[[], object]) -> frozenset[int]:
        """The innermost modules that draw are switched off, until none draws; the generators are put back."""
        off: frozenset[int] = frozenset()
        kept = states(device)
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
            restore(kept, device)

    def _watched(self, device: torch.device, once: Callable[[], object]) -> tuple[set[int], bool]:
        """The innermost modules in which random numbers were drawn, and whether any were drawn at all."""
        drawn, inside = set[int](), list[tuple[States, set[int]]]()

        def enter(module: nn.Module, inputs: object) -> None:
            inside.append((states(device), set(drawn)))

        def leave(i: int) -> Callable[[nn.Module, object, object], None]:
            def hook(module: nn.Module, inputs: object, output: object) -> None:
                before, known = inside.pop()
                if drawn == known and not _same(before, states(device)):
                    drawn.add(i)

            return hook

        handles = [module.register_forward_pre_hook(enter) for module in self.modules]
        handles += [module.register_forward_hook(leave(i)) for i, module in enumerate(self.modules)]
        before = states(device)
        try:
            with torch.no_grad():
                once()
        finally:
            for handle in handles:
                handle.remove()
        return drawn, not _same(before, states(device))


def states(device: torch.device) -> States:
    """Those of the generators that a network may draw from: torch's on the CPU and its device, numpy's, Python's."""
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *cuda, np.random.get_state(legacy=False), random.getstate()]


def _attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """What a module holds beside parameters, buffers and modules: every attribute with a copy of what it may change."""
    kept = {}
    for name, value in vars(module).items():
        if name in INTERNAL:
            continue
        content: Any = None
        if isinstance(value, list | dict | set | deque):
            content = value.copy()
        elif type(value) is Tensor and value.numel() <= SMALL and not value.requires_grad:
            content = value.clone()
        kept[name] = value, content
    return kept


def _put_back(module: nn.Module, attributes: dict[str, tuple[Any, Any]]) -> None:
    """The attributes as they were; new ones are taken away."""
    now = vars(module)
    for name in [name for name in now if name not in INTERNAL and name not in attributes]:
        del now[name]
    for name, (value, content) in attributes.items():
        if now.get(name) is not value:
            now[name] = value
        if isinstance(value, Tensor):
            if content is not None and value._version and not torch.equal(value, content):
                value.copy_(content)
        elif content is not None and not _alike(value, content):
            value.clear()
            (value.update if isinstance(value, dict | set) else value.extend)(content)


def _alike(value: Any, content: Any) -> bool:
    """Whether a container holds the very same things, in order."""
    if len(value) != len(content):
        return False
    if isinstance(value, dict):
        return all(a == b and value[a] is content[b] for a, b in zip(value, content, strict=True))
    if isinstance(value, set):
        return value == content
    return all(a is b for a, b in zip(value, content, strict=True))


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


def restore(states: States, device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
    np.random.set_state(states[-2])
    random.setstate(states[-1])
