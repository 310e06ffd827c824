"""One forward pass of a network in which known layers are recorded: their inputs, and where their outputs are in the graph.

Hooks note the input of every layer and the edge of the graph that its output is. A backward pass to these edges gives the
output gradients of all layers, and no gradient of a parameter is formed. Where w is constant the graph begins at the first
layer's output.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from lab.layers.algebra import Layer
from lab.layers.gradients import per_example
from lab.layers.kinds import LAYERS
from lab.objective import NetworkObjective, differentiating_again, require_graph

Modules = dict[nn.Module, dict[str, str]]
"""Module -> "weight", "bias" -> name in the network."""


def known_modules(model: nn.Module) -> Modules:
    """The known layers with trainable parameters, "weight" and "bias", that they share with no other module."""
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    modules: Modules = {}
    for prefix, module in model.named_modules():
        if type(module) not in LAYERS or getattr(module, "scale_grad_by_freq", False):
            continue
        for local, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and local in ("weight", "bias") and owners[id(parameter)] == 1:
                modules.setdefault(module, {})[local] = f"{prefix}.{local}" if prefix else local
    return modules


@dataclass(frozen=True)
class Recording:
    """A forward pass over n = `num` examples, `weight` = n/N of all, whose layers were recorded.

    outputs    as the network has them: (n,), (n, K), (n, T, K), (n T, K), ... with M numbers an example, in order.
    criterion  of these outputs: their part of the loss.
    edges      of the graph, one for each of `layers`: their outputs.
    unclear    parameters whose layers have no record that stands for all of their use: a layer called more than once, or not
               on one row per example, or whose input was changed in place afterwards; and, where w is differentiated, a
               parameter that enters the graph of the outputs in more than one place.
    """

    weight: float
    num: int
    outputs: Tensor
    criterion: Callable[[Tensor], Tensor]
    layers: list[Layer]
    edges: list[GradientEdge]
    unclear: set[str]

    def derivatives(
        self, outputs: Sequence[Tensor], cotangents: Sequence[Tensor], *, again: bool = False
    ) -> list[Tensor]:
        """Those of sum of outputs'cotangents in the outputs of all layers, with a graph if `again`; that of now is kept."""
        varying = [(f, v) for f, v in zip(outputs, cotangents, strict=True) if f.requires_grad]
        gradients: Sequence[Tensor | None] = [None] * len(self.edges)
        if varying and self.edges:
            f, v = zip(*varying, strict=True)
            gradients = torch.autograd.grad(f, self.edges, v, retain_graph=True, create_graph=again, allow_unused=True)
        pairs = zip(self.layers, gradients, strict=True)
        return [layer.g.new_zeros(layer.shape) if g is None else g for layer, g in pairs]

    def squared_norms(self, v: Tensor) -> Tensor:
        """|J_n' v_n|^2 (n,) float64 of v (n, M): the squared norms of per-example gradients of v'f."""
        norms = list[Tensor]()
        gradients = self.derivatives([self.outputs], [v.reshape(self.outputs.shape)])
        for layer, g in zip(self.layers, gradients, strict=True):
            layer.g, layer.repeated = g, True
            norms += [layer.squared_norms(name) for name in layer.names]
        return torch.stack(norms).sum(0)

    def pulled_norms(self, directions: Iterable[Tensor]) -> Iterator[Tensor]:
        """`squared_norms` of one direction (n, M) after the other."""
        return map(self.squared_norms, directions)

    def sign_draws(self, num: int, generator: torch.Generator) -> Tensor:
        """z'(d2 loss/da2) z for every example, (num, n) float64, that sum to Tr H in expectation: see `lab.layers.anatomy`.

        Raises ValueError where a kernel between the layers has no second derivative.
        """
        loss = self.criterion(self.outputs)
        draws = torch.zeros(num, self.num, dtype=torch.float64, device=self.outputs.device)
        with differentiating_again():
            gradients = self.derivatives([loss], [torch.ones_like(loss)], again=True)
            for g in gradients:
                require_graph(g)
            for draw in draws:
                signs = [layer.signs(generator) for layer in self.layers]
                products = self.derivatives(gradients, signs)  # (d2 loss/da2) z
                for z, product in zip(signs, products, strict=True):
                    draw += per_example(z * product)
        return self.weight * draws


def record(network: NetworkObjective, modules: Modules, w: Tensor, part: slice) -> Recording:
    """One forward pass over the examples `part` with the weights w; the hooks are taken off again."""
    calls: dict[nn.Module, tuple[Layer, GradientEdge, int]] = {}
    unclear, parameters = set[nn.Module](), dict[str, Tensor]()
    x, y = network.x[part], network.y[part]

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if module in calls or len(inputs) != 1 or len(output) != len(x) or output.dim() < 2:
            unclear.add(module)
            return None
        with torch.no_grad():
            layer = LAYERS[type(module)](module, modules[module], inputs[0], output)
        begins = not output.requires_grad
        if begins:
            output = output.detach().requires_grad_()
        calls[module] = layer, get_gradient_edge(output), layer.h._version
        parameters.update({name: getattr(module, local) for local, name in layer.names.items()})
        return output.clone() if begins else None  # a leaf must not be changed in place

    handles = [module.register_forward_hook(note) for module in modules]
    try:
        with torch.enable_grad():
            outputs = network.outputs(w, x)
    finally:
        for handle in handles:
            handle.remove()
    unclear |= {module for module, (layer, _, version) in calls.items() if layer.h._version != version}
    names = {name for module in unclear for name in modules[module].values()} | used_twice(outputs, parameters)
    clear = [call for module, call in calls.items() if module not in unclear]
    layers, edges = [layer for layer, *_ in clear], [edge for _, edge, _ in clear]
    return Recording(len(x) / len(network.x), len(x), outputs, partial(network.loss_at, y=y), layers, edges, names)


def used_twice(outputs: Tensor, parameters: dict[str, Tensor]) -> set[str]:
    """Names of the parameters that enter the graph of the outputs in more than one place; none where they are constants."""
    edges = {name: get_gradient_edge(p) for name, p in parameters.items() if p.requires_grad}
    names = {(edge.node, edge.output_nr): name for name, edge in edges.items()}
    uses = Counter(names[edge] for node in nodes(outputs) for edge in node.next_functions if edge in names)
    return {name for name, count in uses.items() if count > 1}


def nodes(outputs: Tensor) -> Iterator[Node]:
    """Every function in the graph of the outputs, once."""
    open_nodes, seen = [outputs.grad_fn], set[Node]()
    while open_nodes:
        node = open_nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            open_nodes += [parent for parent, _ in node.next_functions]
