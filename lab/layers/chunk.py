"""The gradients g_i of some examples in all parameters: those of known layers by their records, the others formed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.layers.algebra import Layer, squares
from lab.layers.recorder import Modules, record
from lab.objective import NetworkObjective

Rows = dict[str, Tensor]
"""Parameter -> gradients of some examples in it (b, P), or numbers made of them."""


def no_rows(index: Tensor) -> Iterator[tuple[slice, Rows]]:
    """Nothing has to be formed."""
    yield from ()


@dataclass
class Chunk:
    """The examples `index` of all: `layers` that know some of the parameters, and a function that forms the gradients in the
    others, of some examples after the other: form(index) yields their places in the chunk and the rows.
    """

    index: Tensor
    layers: list[Layer]
    form: Callable[[Tensor], Iterator[tuple[slice, Rows]]] = no_rows

    @property
    def bytes(self) -> int:
        """Memory the records hold."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def known(self) -> dict[str, tuple[Layer, str]]:
        """The layer of every parameter on record, and whether it is its "weight" or "bias"."""
        return {name: (layer, local) for layer in self.layers for local, name in layer.names.items()}

    def rows(self) -> Iterator[tuple[slice, Rows]]:
        """The gradients that are formed, of some examples after the other."""
        return self.form(self.index)

    def without(self, names: AbstractSet[str]) -> "Chunk":
        """The same records, but not of these parameters."""
        for layer in self.layers:
            layer.names = {local: name for local, name in layer.names.items() if name not in names}
        return Chunk(self.index, [layer for layer in self.layers if layer.names], self.form)

    def at(self, places: Tensor) -> "Chunk":
        """The examples at these places of the chunk only."""
        return Chunk(self.index[places], [layer.at(places) for layer in self.layers], self.form)

    def squared_norms(self, v: Mapping[str, Tensor] | None = None) -> Rows:
        """|g_i|^2 by parameter, name -> (n,) float64; or |g_i - v|^2 for v in named pieces, from rows that are formed."""
        origin: Mapping[str, Tensor | None] = dict.fromkeys(self.known) if v is None else v
        norms = {name: layer.squared_norms(local, origin[name]) for name, (layer, local) in self.known.items()}
        return norms | joined([_squares(rows, v) for _, rows in self.rows()])

    def moments(self, c: Tensor) -> tuple[Rows, Rows]:
        """`squared_norms` and `weighted` together: what has to be formed is formed once."""
        both = {name: layer.moments(local, c) for name, (layer, local) in self.known.items()}
        norms, sums = ({name: each[side] for name, each in both.items()} for side in (0, 1))
        formed = [(_squares(rows), _weighted(rows, c[part])) for part, rows in self.rows()]
        return norms | joined([each for each, _ in formed]), sums | _total([each for _, each in formed])

    def along(self, v: Mapping[str, Tensor]) -> Tensor:
        """g_i'v (n,) float64 for v in named pieces."""
        products = [layer.along(local, v[name]) for name, (layer, local) in self.known.items()]
        formed = joined([{name: g @ v[name].flatten() for name, g in rows.items()} for _, rows in self.rows()])
        return torch.stack([*products, *(product.double() for product in formed.values())]).sum(0)

    def weighted(self, c: Tensor) -> Rows:
        """sum_i c_i g_i by name, flat, for c (n,)."""
        sums = {name: layer.weighted(local, c) for name, (layer, local) in self.known.items()}
        return sums | _total([_weighted(rows, c[part]) for part, rows in self.rows()])


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
    index = torch.arange(part.start, part.stop, device=network.x.device)
    return Chunk(index, recording.layers).without(formed | recording.unclear)


def joined(parts: Sequence[Rows]) -> Rows:
    """Numbers of all examples by parameter, from those of some after the other; nothing where there are no parts."""
    return {name: torch.cat([each[name] for each in parts]) for name in parts[0]} if parts else {}


def _total(parts: Sequence[Rows]) -> Rows:
    return {name: torch.stack([each[name] for each in parts]).sum(0) for name in parts[0]} if parts else {}


def _squares(rows: Rows, v: Mapping[str, Tensor] | None = None) -> Rows:
    return {name: squares(g if v is None else g - v[name].flatten()).double() for name, g in rows.items()}


def _weighted(rows: Rows, c: Tensor) -> Rows:
    return {name: c @ g for name, g in rows.items()}
