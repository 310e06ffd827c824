"""The weights of a module as one flat vector w in R^P, and back.

The order is that of `module.named_parameters()`: tied parameters count once, frozen ones (`requires_grad=False`) are not
part of w. Cutting w back into tensors is one `split`, whose derivative is one concatenation, so the flat view costs one
copy of P numbers per derivative and nothing else.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """Where each named parameter lies in w: names, shapes and sizes, in order."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(prod(shape) for shape in self.shapes)

    @property
    def size(self) -> int:
        return sum(self.sizes)

    def slices(self) -> dict[str, slice]:
        """The place of every parameter in w, by name."""
        places, begin = {}, 0
        for name, size in zip(self.names, self.sizes, strict=True):
            places[name] = slice(begin, begin + size)
            begin += size
        return places

    def layers(self) -> dict[str, slice]:
        """The place of every module that has parameters of its own (weight and bias together), by its name; the outermost
        module is called "". A tied parameter lies where it is named first.
        """
        places: dict[str, slice] = {}
        for name, place in self.slices().items():  # parameters of one module follow each other
            layer = name.rpartition(".")[0]
            places[layer] = slice(places[layer].start if layer in places else place.start, place.stop)
        return places

    def select(self, glob: str) -> Tensor:
        """The places (k,) in w of all parameters whose name matches `glob`, as "blocks.0.*" or "*.bias". Raises
        ValueError where none does.
        """
        chosen = [torch.arange(s.start, s.stop) for name, s in self.slices().items() if fnmatchcase(name, glob)]
        if not chosen:
            raise ValueError(f"no parameter matches {glob!r}; there are {', '.join(self.names)}")
        return torch.cat(chosen)

    def unflatten(self, w: Tensor) -> dict[str, Tensor]:
        """w (P,) as named tensors; differentiable."""
        pieces = w.split(self.sizes)
        return {name: piece.view(shape) for name, shape, piece in zip(self.names, self.shapes, pieces, strict=True)}

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Named tensors as one detached vector (P,)."""
        return flatten(tensors[name] for name in self.names)


def layout(module: nn.Module) -> Layout:
    """The layout of the trainable parameters of `module`. Raises ValueError when there are none."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError(f"{type(module).__name__} has no trainable parameter: w would be empty")
    return Layout(tuple(name for name, _ in named), tuple(p.shape for _, p in named))


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """Tensors, in the order given, as one detached vector that shares no memory with them."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def trainable(module: nn.Module) -> list[Tensor]:
    """The tensors that w is made of, in order."""
    return [p for p in module.parameters() if p.requires_grad]


def weights(module: nn.Module) -> Tensor:
    """The trainable parameters of `module` as a detached copy w (P,)."""
    return flatten(trainable(module))
