"""The gradients g_i of some examples in all parameters: those of known layers by their records, the others formed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lab.layers.layer import Layer, squares
from lab.layers.recorder import Modules, record
from lab.objective import NetworkObjective

Rows = dict[str, Tensor]
"""Parameter -> gradients of some examples in it (b, P)."""


@dataclass(frozen=True)
class Formed:
    """Gradients of the examples `index` in some parameters, that `form` makes of `step` examples at a time."""

    index: Tensor
    step: int
    form: Callable[[Tensor], Rows]

    def rows(self) -> Iterator[tuple[slice, Rows]]:
        """The gradients of some examples after the other."""
        for begin in range(0, len(self.index), self.step):
            part = slice(begin, begin + self.step)
            yield part, self.form(self.index[part])


@dataclass
class Chunk:
    """The examples `part` of all: what layer knows a parameter, as its "weight" or "bias", and what has to be formed."""

    part: slice
    known: dict[str, tuple[Layer, str]] = field(default_factory=dict)
    formed: Formed | None = None

    @property
    def num_examples(self) -> int:
        return self.part.stop - self.part.start

    @property
    def bytes(self) -> int:
        """Memory the records hold."""
        return sum(layer.bytes for layer in {id(layer): layer for layer, _ in self.known.values()}.values())

    def rows(self) -> Iterator[tuple[slice, Rows]]:
        """The gradients that are formed, of some examples after the other."""
        if self.formed is not None:
            yield from self.formed.rows()

    def at(self, index: Tensor) -> "Chunk":
        """The examples `index` of this chunk only."""
        layers = {id(layer): layer.at(index) for layer, _ in self.known.values()}
        known = {name: (layers[id(layer)], local) for name, (layer, local) in self.known.items()}
        return Chunk(self.part, known, self.formed and replace(self.formed, index=self.formed.index[index]))

    def squared_norms(self, v: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """|g_i|^2 by parameter, name -> (n,) float64; or |g_i - v|^2 for v in named pieces, from rows that are formed."""
        norms = {
            name: layer.squared_norms(local, None if v is None else v[name])
            for name, (layer, local) in self.known.items()
        }
        return norms | joined([_squares(rows, v) for _, rows in self.rows()])

    def moments(self, c: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """`squared_norms` and `weighted` together: what has to be formed is formed once."""
        found = {name: layer.moments(local, c) for name, (layer, local) in self.known.items()}
        norms, sums = {name: each[0] for name, each in found.items()}, {name: each[1] for name, each in found.items()}
        formed = [(_squares(rows), _weighted(rows, c[part])) for part, rows in self.rows()]
        return norms | joined([each for each, _ in formed]), sums | _total([each for _, each in formed])

    def along(self, v: Mapping[str, Tensor]) -> Tensor:
        """g_i'v (n,) float64 for v in named pieces."""
        products = [layer.along(local, v[name]) for name, (layer, local) in self.known.items()]
        formed = joined([{name: g @ v[name].flatten() for name, g in rows.items()} for _, rows in self.rows()])
        return torch.stack([*products, *(product.double() for product in formed.values())]).sum(0)

    def weighted(self, c: Tensor) -> dict[str, Tensor]:
        """sum_i c_i g_i by name, flat, for c (n,)."""
        sums = {name: layer.weighted(local, c) for name, (layer, local) in self.known.items()}
        return sums | _total([_weighted(rows, c[part]) for part, rows in self.rows()])


def recorded(network: NetworkObjective, modules: Modules, formed: AbstractSet[str], w: Tensor, part: slice) -> Chunk:
    """One forward pass, and one backward pass to the outputs of the layers: records of all parameters but `formed` and those
    that are used in a way that no record stands for.
    """
    wanted = {module: names for module, names in modules.items() if not formed >= set(names.values())}
    found = record(network, wanted, w.detach().requires_grad_(), part)
    loss = found.criterion(found.outputs)
    gradients = found.derivatives([loss], [torch.full_like(loss, found.num)])  # a mean: these are of single examples
    chunk = Chunk(part)
    for layer, g in zip(found.layers, gradients, strict=True):
        layer.g = g
        known = {name: (layer, local) for local, name in layer.names.items()}
        chunk.known |= {name: call for name, call in known.items() if name not in formed | found.unclear}
    return chunk


def joined(parts: Sequence[Rows]) -> Rows:
    """Numbers of all examples by parameter, from those of some after the other; nothing where there are no parts."""
    return {name: torch.cat([each[name] for each in parts]) for name in parts[0]} if parts else {}


def _total(parts: Sequence[Rows]) -> Rows:
    return {name: torch.stack([each[name] for each in parts]).sum(0) for name in parts[0]} if parts else {}


def _squares(rows: Rows, v: Mapping[str, Tensor] | None = None) -> Rows:
    return {name: squares(g if v is None else g - v[name].flatten()).double() for name, g in rows.items()}


def _weighted(rows: Rows, c: Tensor) -> Rows:
    return {name: c @ g for name, g in rows.items()}
