"""The gradients g_i of some examples in all parameters: those of known layers by their records, the others formed."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.layers.gradients import Gradients
from lab.layers.recorder import Modules, record
from lab.objective import NetworkObjective

Pieces = dict[str, Tensor]
"""Parameter -> numbers that belong to it."""


class Formed(Gradients):
    """Gradients (n, P) that were formed, one tensor for each parameter."""

    def __init__(self, gradients: Pieces):
        self.gradients, self.names = gradients, {name: name for name in gradients}

    @property
    def bytes(self) -> int:
        return sum(g.numel() * g.element_size() for g in self.gradients.values())

    def rows(self, name: str, part: slice = slice(None)) -> Tensor:
        return self.gradients[name][part]

    def pieces(self, name: str) -> list[slice]:
        return [slice(None)]

    def at(self, index: Tensor) -> "Formed":
        return Formed({name: g[index] for name, g in self.gradients.items()})


@dataclass(frozen=True)
class Chunk:
    """The examples `index` of all, and the layers that know their gradients, each in parameters of its own."""

    index: Tensor
    layers: list[Gradients]

    @property
    def bytes(self) -> int:
        """Memory the records hold."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def known(self) -> dict[str, tuple[Gradients, str]]:
        """The layer of every parameter, and its name there."""
        return {name: (layer, local) for layer in self.layers for local, name in layer.names.items()}

    def at(self, places: Tensor) -> "Chunk":
        """The examples at these places of the chunk only."""
        return Chunk(self.index[places], [layer.at(places) for layer in self.layers])

    def squared_norms(self, v: Mapping[str, Tensor] | None = None) -> Pieces:
        """|g_i|^2 by parameter, name -> (n,) float64; or |g_i - v|^2 for v in named pieces, from rows that are formed."""
        origin: Mapping[str, Tensor | None] = dict.fromkeys(self.known) if v is None else v
        return {name: layer.squared_norms(local, origin[name]) for name, (layer, local) in self.known.items()}

    def moments(self, c: Tensor) -> tuple[Pieces, Pieces]:
        """`squared_norms` and `weighted` together: what has to be formed is formed once."""
        both = {name: layer.moments(local, c) for name, (layer, local) in self.known.items()}
        return {name: norms for name, (norms, _) in both.items()}, {name: total for name, (_, total) in both.items()}

    def along(self, v: Mapping[str, Tensor]) -> Tensor:
        """g_i'v (n,) float64 for v in named pieces."""
        return torch.stack([layer.along(local, v[name]) for name, (layer, local) in self.known.items()]).sum(0)

    def weighted(self, c: Tensor) -> Pieces:
        """sum_i c_i g_i by name, flat, for c (n,)."""
        return {name: layer.weighted(local, c) for name, (layer, local) in self.known.items()}


def recorded(network: NetworkObjective, modules: Modules, w: Tensor, part: slice, formed: AbstractSet[str]) -> Chunk:
    """One forward pass, and one backward pass to the outputs of the layers: records of all parameters but `formed` and those
    that are used in a way that no record stands for.
    """
    wanted = {module: names for module, names in modules.items() if not formed >= set(names.values())}
    recording = record(network, wanted, w.detach().requires_grad_(), part)
    loss = recording.criterion(recording.outputs)
    gradients = recording.derivatives(
        [loss], [torch.full_like(loss, recording.num)]
    )  # a mean: these are of one example
    for layer, g in zip(recording.layers, gradients, strict=True):
        layer.g = g
        layer.names = {local: name for local, name in layer.names.items() if name not in formed | recording.unclear}
    index = torch.arange(part.start, part.stop, device=network.x.device)
    return Chunk(index, [layer for layer in recording.layers if layer.names])
