"""The gradients g_i of single examples, of which a network has too many to hold as a matrix (N, P).

    squared norms |g_i|^2,   inner products g_i'g_j,   g_i'v for a vector v,   sum_i c_i g_i for weights c

all come from one forward and one backward pass that record the inputs and output gradients of the layers
(`lab.noise.layers`). Parameters that are no weight or bias of a known layer, or that are used more than once, have their
per-example gradients formed, by vmap or one by one, a few examples at a time; so have those that a layer's record does
not account for, which the graph of the loss and the whole gradients of some examples
tell. Objectives that are no networks form theirs by
`example_grads`. Scale: of one example, mean g_i = g. BatchNorm normalises by running statistics: on those of a batch a
single example has no gradient (ValueError).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from lab.curvature.anatomy import MOST_LOOKED, used_twice
from lab.curvature.probing import random_signs
from lab.noise.layers import LAYERS, Layer, known, squares
from lab.objective import CHUNK_BYTES, NetworkObjective, Objective, memory_of, projection, with_gradients
from lab.objective.singles import example_gradients, single_gradient
from lab.params import Layout

T = TypeVar("T")

RECORD_BYTES = CHUNK_BYTES // 3
"""Size of the graph of a chunk to record, half of which is kept: larger ones are written to new memory every time."""
BLOCK = 250
"""Rows of a Gram matrix formed at a time: of symmetric ones little more than the half is."""


def squared_norms(objective: Objective, w: Tensor) -> dict[str, Tensor]:
    """|g_i|^2 of every example by parameter, name -> (N,) float64; the sum over names is that of the whole gradient.

    Exact. Cost: one gradient and a little; memory of one chunk. Where parameters have no names there is one, "w". Raises
    TypeError where the loss is no mean over examples, ValueError for train-mode BatchNorm.
    """
    return ExampleGradients(objective, w, memory=0).squared_norms()


def gram(objective: Objective, w: Tensor) -> Tensor:
    """The inner products g_i'g_j, (N, N) float64; over N, its eigenvalues are those of the uncentred covariance.

    Exact, parameter by parameter: products of inner products (h_i'h_j)(g_i'g_j) for a linear layer on vectors, formed
    gradients elsewhere. Cost: one gradient and 2 N^2 operations for each input and output of the former and each entry of
    the latter; memory N numbers for these. Raises as `squared_norms`.
    """
    return ExampleGradients(objective, w, memory=0).gram()


def pulled_back(network: NetworkObjective, directions: Tensor) -> NetworkObjective:
    """The loss (1/(N k)) sum of v_nj'f_n over directions v (N, k, M) in the space of the M outputs of an example.

    Its example n k + j has the gradient J_n'v_nj, J_n = df_n/dw. Outputs of any shape whose first dimension is the examples.
    Memory: the inputs k times.
    """
    return network.on(network.x.repeat_interleave(directions.shape[1], 0), directions.flatten(0, 1), projection)


@dataclass(frozen=True)
class Formed:
    """Gradients of the examples `index` in some parameters, `step` at a time: form(index) gives (b, size)."""

    names: dict[str, slice]
    index: Tensor
    step: int
    form: Callable[[Tensor], Tensor]

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        for begin in range(0, len(self.index), self.step):
            part = slice(begin, begin + self.step)
            yield part, self.form(self.index[part])


@dataclass
class Chunk:
    """The examples `part` of all, the calls of known layers by parameter name, and what has to be formed."""

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

    def at(self, index: Tensor) -> "Chunk":
        """The examples `index` of this chunk only."""
        layers = {id(layer): layer.at(index) for layer, _ in self.known.values()}
        calls = {name: (layers[id(layer)], local) for name, (layer, local) in self.known.items()}
        return Chunk(self.part, calls, self.formed and replace(self.formed, index=self.formed.index[index]))

    def squared_norms(self) -> dict[str, Tensor]:
        """|g_i|^2 by parameter, name -> (n,) float64."""
        found = {name: layer.squared_norms(local) for name, (layer, local) in self.known.items()}
        if self.formed is not None:
            rows = [self._squares(rows) for _, rows in self.formed.pieces()]
            found |= {name: torch.cat([each[name] for each in rows]) for name in self.formed.names}
        return found

    def moments(self, c: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """`squared_norms` and `weighted` together: what has to be formed is formed once."""
        norms, sums = {}, {}
        for name, (layer, local) in self.known.items():
            norms[name], sums[name] = layer.moments(local, c)
        if self.formed is not None:
            found = [(self._squares(rows), c[part] @ rows) for part, rows in self.formed.pieces()]
            total = torch.stack([piece for _, piece in found]).sum(0)
            norms |= {name: torch.cat([each[name] for each, _ in found]) for name in self.formed.names}
            sums |= {name: total[place] for name, place in self.formed.names.items()}
        return norms, sums

    def distances(self, pieces: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """|g_i - v|^2 by parameter, name -> (n,) float64, for v in named pieces, from rows that are formed."""
        found = {name: layer.distances(local, pieces[name]) for name, (layer, local) in self.known.items()}
        if self.formed is not None:
            v = torch.cat([pieces[name].flatten() for name in self.formed.names])
            rows = [self._squares(rows - v) for _, rows in self.formed.pieces()]
            found |= {name: torch.cat([each[name] for each in rows]) for name in self.formed.names}
        return found

    def _squares(self, rows: Tensor) -> dict[str, Tensor]:
        assert self.formed is not None
        return {name: squares(rows[:, place]).double() for name, place in self.formed.names.items()}

    def along(self, pieces: Mapping[str, Tensor]) -> Tensor:
        """g_i'v (n,) float64 for v in named pieces."""
        totals = [layer.along(local, pieces[name]) for name, (layer, local) in self.known.items()]
        if self.formed is not None:
            v = torch.cat([pieces[name].flatten() for name in self.formed.names])
            totals.append(torch.cat([rows @ v for _, rows in self.formed.pieces()]).double())
        return torch.stack(totals).sum(0)

    def weighted(self, c: Tensor) -> dict[str, Tensor]:
        """sum_i c_i g_i by name, flat, for c (n,)."""
        sums = {name: layer.weighted(local, c) for name, (layer, local) in self.known.items()}
        if self.formed is not None:
            total = torch.stack([c[part] @ rows for part, rows in self.formed.pieces()]).sum(0)
            sums |= {name: total[place] for name, place in self.formed.names.items()}
        return sums


class ExampleGradients:
    """The per-example gradients of an objective at w, known by their norms, inner products and weighted sums.

    memory: bytes the records of all examples may take to be kept for further passes (default: a quarter of what the device
    has); where they need more, every pass makes them again, at one gradient each. A pass over kept records costs what a
    layer-wise forward pass (`along`) or a weight gradient (`weighted`) does: a third of a gradient.
    """

    def __init__(self, objective: Objective, w: Tensor, *, memory: int | None = None):
        self.objective, self.w = objective, w.detach().clone()
        self.memory = memory_of(w.device) // 4 if memory is None else memory
        self.size = w.numel()
        self._kept: list[Chunk] | None = None
        self._modules: dict[nn.Module, dict[str, str]] = {}
        if isinstance(objective, NetworkObjective):
            objective.require_single_examples()
            self.layout, self.num_examples = objective.layout, len(objective.x)
            self._modules = _known_modules(objective.model)
        else:
            if objective.num_examples is None:
                objective.example_grads(w)  # says that there are none: TypeError
                raise TypeError(f"{type(objective).__name__} has no num_examples: it is not a mean over examples")
            self.layout, self.num_examples = Layout(("w",), (w.shape,)), objective.num_examples
        inside = {name for names in self._modules.values() for name in names.values()}
        self.formed = set(self.layout.names) - inside

    def squared_norms(self) -> dict[str, Tensor]:
        """|g_i|^2 by parameter: name -> (N,) float64."""
        return self.joined(self.each(Chunk.squared_norms))

    def joined(self, chunks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Numbers per example by parameter, of all chunks; zero for a parameter that is not used."""
        nothing = self.w.new_zeros(self.num_examples, dtype=torch.float64)
        return {
            name: torch.cat([each[name] for each in chunks]) if name in chunks[0] else nothing
            for name in self.layout.names
        }

    def along(self, v: Tensor) -> Tensor:
        """g_i'v: (N,) float64 for v (P,), (N, k) for v (P, k)."""
        if v.numel() == 0:
            return self.w.new_zeros(self.num_examples, 0, dtype=torch.float64)
        columns = [self.layout.unflatten(column.to(self.w)) for column in v.reshape(self.size, -1).T.contiguous()]
        chunks = self.each(lambda chunk: torch.stack([chunk.along(pieces) for pieces in columns], dim=1))
        found = torch.cat(chunks)
        return found if v.dim() == 2 else found[:, 0]

    def weighted(self, c: Tensor) -> Tensor:
        """sum_i c_i g_i (P,) for weights c (N,)."""
        c = c.to(self.w)
        return torch.stack(self.each(lambda chunk: self.flat(chunk.weighted(c[chunk.part])))).sum(0)

    def gradient(self) -> Tensor:
        """The mean g (P,)."""
        return self.weighted(self.w.new_full((self.num_examples,), 1 / self.num_examples))

    def flat(self, pieces: Mapping[str, Tensor]) -> Tensor:
        """Named pieces as one vector (P,), zero where there is none."""
        sizes = zip(self.layout.names, self.layout.sizes, strict=True)
        return torch.cat([pieces[name].flatten() if name in pieces else self.w.new_zeros(size) for name, size in sizes])

    def gram(self) -> Tensor:
        """g_i'g_j (N, N) float64."""
        total = torch.zeros(self.num_examples, self.num_examples, dtype=torch.float64, device=self.w.device)
        chunks = self.each(self._held)
        for name in chunks[0].known:
            calls = [chunk.known[name] for chunk in chunks]
            factors = [layer.factors(local) for layer, local in calls]
            if all(pair is not None for pair in factors):
                u, g = (torch.cat(side) for side in zip(*factors, strict=True))
                add_products(total, u, g)
            else:
                add_products(total, torch.cat([layer.rows(local) for layer, local in calls]))
        if chunks[0].formed is not None:
            formed = [chunk.formed for chunk in chunks if chunk.formed is not None]
            add_products(total, torch.cat([rows for each in formed for _, rows in each.pieces()]))
        return total.tril_().add_(total.tril(-1).T)

    def _held(self, chunk: Chunk) -> Chunk:
        """The chunk, unless all of them with the largest formed gradients are more than half of the memory there is."""
        sizes = dict(zip(self.layout.names, self.layout.sizes, strict=True))
        largest = max((sizes[n] for n, (layer, a) in chunk.known.items() if layer.factors(a) is None), default=0)
        if chunk.formed is not None:
            largest = max(largest, sum(place.stop - place.start for place in chunk.formed.names.values()))
        needed = chunk.bytes / chunk.num_examples + 2 * largest * self.w.element_size() + 8 * self.num_examples
        if self.num_examples * needed > memory_of(self.w.device) / 2:
            raise TooLarge(
                f"the inner products of {self.num_examples} gradients need {self.num_examples * needed / 2**30:.1f} GiB of "
                "memory; take fewer examples: objective.restrict(index)"
            )
        return chunk

    @with_gradients
    def each(self, work: Callable[[Chunk], T]) -> list[T]:
        """`work` of every chunk, in order."""
        while True:
            try:
                return [work(chunk) for chunk in self._chunks()]
            except _Unaccounted as found:
                self.formed |= found.names

    def _chunks(self) -> Iterator[Chunk]:
        if self._kept is not None:
            yield from self._kept
            return
        kept, keep = list[Chunk](), True
        for chunk in self._recorded():
            if not kept and keep:
                keep = chunk.bytes <= chunk.num_examples / self.num_examples * self.memory
            if keep:
                kept.append(chunk)
            yield chunk
        if keep:
            self._kept = kept

    def _recorded(self) -> Iterator[Chunk]:
        network = self.objective
        if not isinstance(network, NetworkObjective):
            yield Chunk(slice(0, self.num_examples), formed=self._by_example_grads())
            return
        size = network.chunk_size(self.w)
        if network._chunk_size is None:
            size = max(1, min(size, RECORD_BYTES // max(1, network.bytes_per_example(self.w))))
            even = (k for k in range(size, size + size // 8 + 1) if self.num_examples % k == 0)
            size = next(even, size)  # a ragged last chunk is looked at like the first: that costs more than it is worth
        first = set[str]()
        for begin in range(0, self.num_examples, size):
            part = slice(begin, min(begin + size, self.num_examples))
            chunk = _record(network, self._modules, self.formed, self.w, part)
            new = not begin or chunk.num_examples != size  # another axis may have as many entries as there are examples
            wrong = _unaccounted(network, self.w, chunk, self.formed) if new else set()
            if begin:
                wrong |= first ^ set(chunk.known)  # used in another way, or not at all, by some of the examples
            else:
                first = set(chunk.known) - wrong
            if wrong and begin:
                raise _Unaccounted(wrong)
            self.formed |= wrong
            for name in wrong:
                chunk.known.pop(name, None)
            if self.formed:
                chunk.formed = self._by_rows(network, part)
            yield chunk

    def _by_example_grads(self) -> Formed:
        every = torch.arange(self.num_examples, device=self.w.device)
        step = self._step(self.size)
        return Formed({"w": slice(0, self.size)}, every, step, partial(self.objective.example_grads, self.w))

    def _by_rows(self, network: NetworkObjective, part: slice) -> Formed:
        """Gradients in the parameters `formed` only, the others constant."""
        pieces = self.layout.unflatten(self.w)
        names = [name for name in self.layout.names if name in self.formed]
        free = {name: pieces[name] for name in names}
        sizes = [free[name].numel() for name in names]
        ends = torch.tensor([0, *sizes]).cumsum(0).tolist()

        def loss(free: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return network.loss_of(self.flat(pieces | free), x, y)

        def form(index: Tensor) -> Tensor:
            x, y = network.x[index], network.y[index]
            found = example_gradients(loss, free, x, y, chunk_size=len(index), known=network.vectorised)
            return torch.cat([found[name].flatten(1) for name in names], dim=1)

        places = {name: slice(*ends[i : i + 2]) for i, name in enumerate(names)}
        index = torch.arange(part.start, part.stop, device=network.x.device)
        return Formed(places, index, min(self._step(sum(sizes)), network.chunk_size(self.w)), form)

    def _step(self, size: int) -> int:
        return max(1, CHUNK_BYTES // (2 * size * self.w.element_size()))


def add_products(total: Tensor, u: Tensor, g: Tensor | None = None) -> None:
    """The lower triangle of total += (u u') * (g g'), in float64 from rows in their own dtype, block by block."""
    for begin in range(0, len(u), BLOCK):
        rows, upto = slice(begin, begin + BLOCK), begin + BLOCK
        products = u[rows] @ u[:upto].T
        if g is None:
            total[rows, :upto] += products
        else:
            total[rows, :upto] += products.mul_(g[rows] @ g[:upto].T)


class TooLarge(ValueError):
    """The records and formed gradients behind a Gram matrix do not fit into memory."""


class _Unaccounted(Exception):
    """Parameters whose records turned out not to be the whole of their gradients."""

    def __init__(self, names: set[str]):
        self.names = names


def _known_modules(model: nn.Module) -> dict[nn.Module, dict[str, str]]:
    """Module -> local name -> parameter name, of known layers with trainable parameters of their own, none tied."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    found: dict[nn.Module, dict[str, str]] = {}
    for prefix, module in model.named_modules():
        for local, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and known(module) and owners[id(parameter)] == 1:
                found.setdefault(module, {})[local] = f"{prefix}.{local}" if prefix else local
    return found


def _record(
    network: NetworkObjective, modules: dict[nn.Module, dict[str, str]], formed: set[str], w: Tensor, part: slice
) -> Chunk:
    """One forward and one backward pass to the outputs of the layers; hooks are taken off again.

    A parameter that enters the graph of the loss in two places has no record: the layer knows of one.
    """
    calls: dict[nn.Module, tuple[Layer, GradientEdge, int, torch.Size]] = {}
    parameters, leaf = dict[str, Tensor](), w.detach().requires_grad_()
    repeated: set[nn.Module] = set()
    x, y = network.x[part], network.y[part]

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if module in calls or len(inputs) != 1 or len(output) != len(x) or output.dim() < 2:
            repeated.add(module)
            return None
        with torch.no_grad():
            layer = LAYERS[type(module)](module, inputs[0], output)
        started = not output.requires_grad
        if started:
            output = output.detach().requires_grad_()
        calls[module] = layer, get_gradient_edge(output), layer.h._version, output.shape
        parameters.update({name: getattr(module, local) for local, name in modules[module].items()})
        return output.clone() if started else None

    wanted = [module for module, names in modules.items() if not formed.issuperset(names.values())]
    handles = [module.register_forward_hook(record) for module in wanted]
    try:
        with torch.enable_grad():
            loss = network._criterion(network._outputs(leaf, x), y=y)
    finally:
        for handle in handles:
            handle.remove()
    chunk, left = Chunk(part), formed | used_twice(loss, parameters)
    used = {
        module: call
        for module, call in calls.items()
        if module not in repeated and call[0].h._version == call[2]  # else its input was changed in place afterwards
    }
    if used and loss.requires_grad:
        scale = torch.full_like(loss, len(x))  # the criterion is a mean; these are gradients of single examples
        gradients = torch.autograd.grad(loss, [edge for _, edge, *_ in used.values()], scale, allow_unused=True)
        for (module, (layer, _, _, shape)), g in zip(used.items(), gradients, strict=True):
            layer.g = loss.new_zeros(shape) if g is None else g
            for local, name in modules[module].items():
                if name not in left:
                    chunk.known[name] = layer, local
    return chunk


def _unaccounted(network: NetworkObjective, w: Tensor, chunk: Chunk, formed: set[str]) -> set[str]:
    """Parameters, beside those that are formed, whose records are not their gradients: of the example with the largest
    output gradient, of the first and of the last, and of up to `MOST_LOOKED` weighted at random; or that have no record
    though the loss of the chunk depends on them. Cost: one gradient of these examples, and of the chunk for the latter.
    """
    looked, n = {0, chunk.num_examples - 1}, chunk.num_examples
    if chunk.known:
        last = list(chunk.known.values())[-1][0]
        looked.add(int(last.g.flatten(1).square().sum(1).argmax()))
    laws = list[tuple[Tensor, Tensor, Tensor]]()  # examples, their weights, the weighted sum of their gradients
    for j in looked:
        i = chunk.part.start + j
        truth = single_gradient(network.loss_of, w, network.x[i : i + 1], network.y[i : i + 1])
        laws.append((torch.tensor([j]), w.new_ones(1), truth))
    spread = torch.linspace(0, n - 1, min(n, MOST_LOOKED)).round().long()
    laws.append((spread, *_weighted_gradient(network, w, spread + chunk.part.start)))
    wrong = set[str]()
    for index, c, truth in laws:
        if not bool(truth.isfinite().all()):
            continue
        eps, size, few = torch.finfo(w.dtype).eps, truth.norm(), chunk.at(index.to(w.device))
        for name, piece in network.layout.unflatten(truth).items():
            if name in formed or name not in few.known:
                continue
            layer, local = few.known[name]
            found = layer.weighted(local, c)
            if not (piece.flatten() - found).norm() <= 10 * eps**0.5 * piece.norm() + 1e3 * eps * size:
                wrong.add(name)
    unseen = set(network.layout.names) - formed - set(chunk.known)
    if unseen:
        whole = network.layout.unflatten(
            single_gradient(network.loss_of, w, network.x[chunk.part], network.y[chunk.part])
        )
        wrong |= {name for name in unseen if bool((whole[name] != 0).any())}
    return wrong


def _weighted_gradient(network: NetworkObjective, w: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Weights c of the examples `index`, and sum_i c_i g_i by one backward pass: random signs over the size of the output
    gradients, so that no example outweighs the others, and none that is fitted to round-off counts.
    """
    leaf, index = w.detach().requires_grad_(), index.to(network.x.device)
    with torch.enable_grad():
        outputs = network._outputs(leaf, network.x[index])
        f = outputs.detach().requires_grad_()
        (u,) = torch.autograd.grad(network._criterion(f, y=network.y[index]), f, materialize_grads=True)
    u = len(index) * u.reshape(len(index), -1)
    sizes = u.norm(dim=1)
    scale = sizes + 0.01 * sizes.max() + torch.finfo(w.dtype).tiny
    c = random_signs((len(index),), w, torch.Generator(w.device).manual_seed(0)) / scale
    (truth,) = torch.autograd.grad(outputs, leaf, (c[:, None] * u).reshape(outputs.shape), materialize_grads=True)
    return c, truth
