"""A network taken apart into the layers of `lab.curvature.layers`: one forward pass that stands for many probes.

A layer a = W h + b whose input h does not depend on W has, for one example, Tr_W H = |h|^2 Tr(d2L/da2) and Tr_b H =
Tr(d2L/da2). So perturb the outputs of ALL layers at once by z = sqrt(|h|^2 + 1) s, with signs s that are independent for
each example, layer and unit. Then

    sum over examples of E z'(d2L_n/da2) z = Tr H,

since the terms between layers and units vanish in expectation and those between examples never arise: one double
backward pass through the activations alone stands for as many independent probes as there are examples. The examples'
variances over repeated draws add up to the standard error.

Where the outputs are piecewise linear in the pre-activations (ReLU, pooling, BatchNorm in eval mode) the part of H beside
the Gauss-Newton matrix has no diagonal, and Tr H = Tr G exactly.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node, get_gradient_edge

from lab.curvature.layers import LAYERS, Layer, per_example
from lab.curvature.probing import random_signs
from lab.objective import NetworkObjective, Objective, differentiating_again, require_graph, with_gradients

MOST_OUTPUTS = 1000
"""Numbers the network may put out per example where their Hessian is formed."""
LINEAR = frozenset(
    """Add Sub Neg Sum Mean View ReshapeAlias UnsafeView Transpose T Permute Slice Select Index IndexSelect Cat Stack Clone
    ToCopy Expand Squeeze Unsqueeze Split UnsafeSplit ConstantPadNd Relu LeakyRelu Threshold Hardtanh Abs Clamp Where
    MaxPool1D MaxPool2DWithIndices MaxPool3DWithIndices AdaptiveMaxPool2D Max Amax AvgPool1D AvgPool2D AvgPool3D
    AdaptiveAvgPool2D AdaptiveAvgPool3D MkldnnAdaptiveAvgPool2D NativeBatchNorm CudnnBatchNorm Repeat Alias Flip Roll
    ReflectionPad1D ReflectionPad2D ReplicationPad1D ReplicationPad2D
    AccumulateGrad""".split()  # noqa: SIM905
)
"""Functions that are piecewise linear in all their arguments together, by the names of torch's backward nodes."""
BILINEAR = frozenset({"Mul", "Div", "Mm", "Addmm", "Bmm", "Baddbmm", "Convolution"})
"""Functions that are linear in one argument while the others are constant; a quotient in its numerator only."""
MOST_LOOKED = 32
"""Examples on which the layers' account of the gradient is checked."""


@dataclass(frozen=True)
class Chunk:
    """A forward pass over n = `num` examples whose layers were recorded; `weight` is its share n/N of the loss.

    outputs   as the network has them: (n,), (n, K), (n, T, K), (n T, K), ... with M numbers an example, in order.
    """

    weight: float
    num: int
    outputs: Tensor
    layers: list[Layer]
    criterion: Callable[[Tensor], Tensor]

    def derivatives(
        self, output: Tensor | list[Tensor], cotangent: Tensor | list[Tensor] | None = None, **flags: bool
    ) -> tuple[Tensor, ...]:
        """Those of output'cotangent with respect to the output of every layer; the graph is kept."""
        shifts = [layer.shift for layer in self.layers]
        return torch.autograd.grad(output, shifts, cotangent, retain_graph=True, materialize_grads=True, **flags)

    def sign_draws(self, num: int, generator: torch.Generator) -> Tensor:
        """z'(d2 loss/da2) z for every example, (num, n) float64, that sum to Tr H in expectation.

        Raises ValueError where a kernel between the layers has no second derivative.
        """
        with differentiating_again():
            gradients = self.derivatives(self.criterion(self.outputs), create_graph=True)
            for g in gradients:
                require_graph(g)
            draws = [self._sign_draw(gradients, generator) for _ in range(num)]
        return self.weight * torch.stack(draws)

    def _sign_draw(self, gradients: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        signs = [layer.signs(generator) for layer in self.layers]
        curved = [(g, z) for g, z in zip(gradients, signs, strict=True) if g.requires_grad]
        total = torch.zeros(self.num, dtype=torch.float64, device=self.outputs.device)
        if curved:
            products = self.derivatives([g for g, _ in curved], [z for _, z in curved])
            for z, product in zip(signs, products, strict=True):
                total += per_example(z * product)
        return total

    def squared_norms(self, v: Tensor) -> Tensor:
        """|J_n' v_n|^2 (n,) float64 of v (n, M): the squared norms of per-example gradients of v'f."""
        gradients = self.derivatives(self.outputs, v.reshape(self.outputs.shape))
        norms = (layer.squared_norms(g) for layer, g in zip(self.layers, gradients, strict=True))
        return torch.stack(list(norms)).sum(0)

    @cached_property
    def curvature(self) -> tuple[Tensor, Tensor]:
        """That of the criterion: see `output_curvature`."""
        return output_curvature(self.criterion, self.outputs, self.num)

    def gauss_newton_draws(self, num: int, generator: torch.Generator) -> Tensor:
        """sum over signs of lambda of +-|J_n' sum_k sqrt|lambda_k| s_k v_k|^2, (num, n) float64, s random signs."""
        values, vectors = self.curvature
        draws = []
        for _ in range(num):
            s = random_signs(tuple(values.shape), values, generator)
            total = torch.zeros(len(values), dtype=torch.float64, device=values.device)
            for side in (1, -1):
                part = (side * values).clamp(min=0)
                if bool((part != 0).any()):
                    total += side * self.squared_norms((vectors @ (part.sqrt() * s)[:, :, None])[:, :, 0])
            draws.append(total)
        return self.weight / len(values) * torch.stack(draws)


def output_curvature(criterion: Callable[[Tensor], Tensor], outputs: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues (n, M) and eigenvectors (n, M, M) of d2 loss_n/df_n2 for n = `num` examples, loss = mean of loss_n.

    outputs of any shape, M numbers an example, one example after another.

    In float64: a fitted example has 1 - p of 1e-6, which float32 loses, and many may outweigh the few others. The k-th
    eigenvalues are set to zero where all are round-off: the softmax has one such column, and each costs a pass.
    Raises ValueError above `MOST_OUTPUTS` and where the criterion cannot be differentiated twice.
    """
    f = outputs.detach().double().requires_grad_()
    n, size = num, f.numel() // num
    if size > MOST_OUTPUTS:
        raise ValueError(f"{size} outputs for each example; their Hessian is formed for {MOST_OUTPUTS} at most")
    with differentiating_again():
        (g,) = torch.autograd.grad(criterion(f), f, create_graph=True, materialize_grads=True)
        if not g.requires_grad:
            return outputs.new_zeros(n, size), outputs.new_zeros(n, size, size)
        rows = [
            torch.autograd.grad(column.sum(), f, retain_graph=True, materialize_grads=True)[0].reshape(n, size)
            for column in g.reshape(n, size).unbind(1)
        ]
    hessians = n * torch.stack(rows, 1)
    if not bool(hessians.isfinite().all()):
        return outputs.new_full((n, size), math.nan), outputs.new_full((n, size, size), math.nan)
    values, vectors = torch.linalg.eigh((hessians + hessians.transpose(1, 2)) / 2)
    sizes = values.abs().sum(0)
    values = values * (sizes > 1e-13 * sizes.sum())
    return values.to(outputs.dtype), vectors.to(outputs.dtype)


@dataclass(frozen=True)
class Anatomy:
    """A network of known layers, each used once: where their parameters lie, and what lies between them."""

    network: NetworkObjective
    trainable: dict[nn.Module, dict[str, slice]]
    num_outputs: int
    piecewise_linear: bool

    def require_piecewise_linear(self) -> None:
        """Raise ValueError where Tr G may differ from Tr H."""
        if not self.piecewise_linear:
            raise ValueError(
                "Tr H is the Gauss-Newton trace only where outputs are piecewise linear in the pre-activations "
                "(ReLU, pooling, BatchNorm in eval mode); use method=signs, or gauss_newton_trace for Tr G itself"
            )

    def chunks(self, w: Tensor) -> Iterator[Chunk]:
        """Recorded forward passes over all examples."""
        network, size = self.network, self.network.chunk_size(w)
        for x, y in zip(network.x.split(size), network.y.split(size), strict=True):
            outputs, layers = _recorded(network, self.trainable, w, x)
            yield Chunk(len(x) / len(network.x), len(x), outputs, layers, partial(network._criterion, y=y))


def require_examples(objective: Objective, w: Tensor) -> NetworkObjective:
    """A network whose loss is a mean over examples that do not see each other, and whose outputs are those of one example
    after another, in whatever shape; TypeError, ValueError where it is none.
    """
    if not isinstance(objective, NetworkObjective):
        raise TypeError(f"{type(objective).__name__} is no network: it has no layers; use method=hutchinson or xtrace")
    if objective.coupled:
        cure = 'use batch_norm="eval" or hutchinson' if objective.batch_statistics else "use method=hutchinson"
        raise ValueError(f"{objective.coupled}; {cure}")
    objective.require_mean()
    return objective


@with_gradients
def take_apart(objective: Objective, w: Tensor) -> Anatomy:
    """Take the network apart, and check on some examples that its layers account for the whole gradient.

    No parameter may enter the graph of the outputs twice, and the layers' gradient of a random combination of the outputs of
    up to `MOST_LOOKED` examples must be that of the network: at w, and near w, where no zero hides a use.
    Cost: some five gradients of these examples. Not seen: a second use that other examples alone branch into.
    Raises TypeError where a parameter is no weight or bias of a known layer or is used in another way.
    """
    network = require_examples(objective, w)
    places, seen = network.layout.slices(), dict[int, str]()
    trainable: dict[nn.Module, dict[str, slice]] = {}
    for prefix, module in network.model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            path = f"{prefix}.{name}" if prefix else name
            if not parameter.requires_grad:
                continue
            if type(module) not in LAYERS or name not in ("weight", "bias"):
                raise TypeError(
                    f"{path} belongs to a {type(module).__name__}, no layer known here; use method=hutchinson"
                )
            if id(parameter) in seen:
                raise TypeError(f"{path} is tied to {seen[id(parameter)]}; use method=hutchinson")
            seen[id(parameter)] = path
            trainable.setdefault(module, {})[name] = places[path]
    few = network.few(max(2, min(MOST_LOOKED, network.chunk_size(w))))
    chunk = _accounted(few, trainable, w)
    near = _accounted(few, trainable, _near(w.to(network.look.dtype)))
    linear = _piecewise_linear(chunk.outputs) and not _bends(near)
    return Anatomy(network, trainable, chunk.outputs.numel() // chunk.num, linear)


def _accounted(few: NetworkObjective, trainable: dict[nn.Module, dict[str, slice]], w: Tensor) -> Chunk:
    """All examples in one chunk; TypeError where its records are not the gradients, of the first alone or of all."""
    n = len(few.x)
    chunk = Chunk(1.0, n, *_recorded(few, trainable, w, few.x), criterion=torch.sum)
    leaf, parameters = w.detach().requires_grad_(), dict[str, Tensor]()
    handles = [module.register_forward_hook(partial(_held, parameters, names)) for module, names in trainable.items()]
    try:
        outputs = few._outputs(leaf, few.x)
    finally:
        for handle in handles:
            handle.remove()
    direction = _gaussian(chunk.outputs)
    gradients = chunk.derivatives(chunk.outputs, direction)
    rows = [(place, each) for layer, g in zip(chunk.layers, gradients, strict=True) for place, each in _rows(layer, g)]
    (whole,) = torch.autograd.grad(outputs, leaf, direction, retain_graph=True, materialize_grads=True)
    alone = few._outputs(leaf, few.x[:1])
    (first,) = torch.autograd.grad(
        alone, leaf, direction[: len(direction) // n].reshape(alone.shape), materialize_grads=True
    )
    eps = max(torch.finfo(w.dtype).eps, min(few.look.eps, torch.finfo(torch.float32).eps))  # float32 inside of float64
    right = not used_twice(outputs, parameters)
    for truth, found in ((first, [(p, r[0]) for p, r in rows]), (whole, [(p, r.sum(0)) for p, r in rows])):
        rest = truth.clone()
        for place, piece in found:
            rest[place] -= piece
        if bool(truth.isfinite().all()):
            right &= all(
                bool(rest[p].norm() <= 10 * eps**0.5 * truth[p].norm() + 1e3 * eps * truth.norm())
                for p in few.layout.slices().values()
            )
    if not right:
        raise TypeError("a parameter is used outside its layer, or a layer sees other examples; use method=hutchinson")
    return chunk


def _rows(layer: Layer, g: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Where the parameters of a layer lie, and their per-example gradients (n, size)."""
    gradients = layer.gradients(g)
    for name, place in layer.trainable.items():
        yield place, gradients[name].flatten(1)


def _held(found: dict[str, Tensor], names: dict[str, slice], module: nn.Module, *_: object) -> None:
    """A forward hook that notes the tensors that stand for the parameters of a module."""
    found.update({f"{name} {names[name].start}": getattr(module, name) for name in names})


def _near(w: Tensor) -> Tensor:
    """A place near w where no parameter is zero."""
    return w + 0.1 * (w.abs() + (w.square().mean().sqrt() or 1.0)) * _gaussian(w)


def _gaussian(like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(like.shape, dtype=torch.float64, generator=generator).to(like)


def used_twice(output: Tensor, parameters: dict[str, Tensor]) -> set[str]:
    """Names of the parameters that enter the graph of the output in more than one place."""
    edges = {name: get_gradient_edge(p) for name, p in parameters.items() if p.requires_grad}
    names = {(edge.node, edge.output_nr): name for name, edge in edges.items()}
    uses = Counter(names[edge] for node in _nodes(output) for edge in node.next_functions if edge in names)
    return {name for name, count in uses.items() if count > 1}


def _nodes(output: Tensor) -> Iterator[Node]:
    """Every function in the graph of the output, once."""
    open_nodes, seen = [output.grad_fn], set[Node]()
    while open_nodes:
        node = open_nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            open_nodes += [parent for parent, _ in node.next_functions]


def _recorded(
    network: NetworkObjective, trainable: dict[nn.Module, dict[str, slice]], w: Tensor, x: Tensor
) -> tuple[Tensor, list[Layer]]:
    """The outputs on x with w as constants, differentiable in the shifts of the layers only; the hooks are taken off."""
    layers: dict[nn.Module, Layer] = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if module in layers or len(inputs) != 1 or len(output) != len(x) or output.dim() < 2:
            raise TypeError(
                f"a {type(module).__name__} is used more than once or not on one row per example; use method=hutchinson"
            )
        with torch.no_grad():
            layers[module] = LAYERS[type(module)](module, trainable[module], inputs[0], output)
        return output + layers[module].shift

    handles = [module.register_forward_hook(record) for module in trainable]
    try:
        with torch.enable_grad():
            outputs = network._outputs(w.detach(), x)
    finally:
        for handle in handles:
            handle.remove()
    return outputs, list(layers.values())


def _piecewise_linear(outputs: Tensor) -> bool:
    """Whether every function on the way from the shifts to the outputs is piecewise linear in what depends on them."""
    return all(_is_linear(node) for node in _nodes(outputs))


def _is_linear(node: Node) -> bool:
    if isinstance(node, BackwardCFunction):  # somebody's own, whatever its name
        return False
    name = re.sub(r"Backward\d*$", "", node.name().removeprefix("torch::autograd::"))
    if name in BILINEAR:
        varying = [i for i, (parent, _) in enumerate(node.next_functions) if parent is not None]
        return len(varying) == 1 and not (name == "Div" and varying == [1])
    return name in LINEAR and not getattr(node, "_saved_training", False)  # batch statistics are no constants


def _bends(chunk: Chunk) -> bool:
    """Whether the second derivative of the outputs in the pre-activations, along random directions, is more than round-off;
    also where there is none.
    """
    try:
        with differentiating_again():
            gradients = chunk.derivatives(chunk.outputs, _gaussian(chunk.outputs), create_graph=True)
            curved = [g for g in gradients if g.requires_grad]
            if not curved:
                return False
            products = chunk.derivatives(curved, [_gaussian(g) for g in curved])
    except (RuntimeError, ValueError):
        return True
    scale = sum(float(g.detach().norm()) for g in gradients)
    return any(float(p.norm()) > 1e3 * torch.finfo(p.dtype).eps * scale for p in products)
