"""A network made of known layers only, each used once: one forward pass then stands for many probes of its Hessian.

A layer a = W h + b whose input h does not depend on W has, for one example, Tr_W H = |h|^2 Tr(d2L/da2) and Tr_b H =
Tr(d2L/da2). So perturb the outputs of ALL layers at once by z = sqrt(|h|^2 + 1) s, with signs s that are independent for
each example, layer and unit. Then

    sum over examples of E z'(d2L_n/da2) z = Tr H,

since the terms between layers and units vanish in expectation and those between examples never arise: one double
backward pass through the activations alone stands for as many independent probes as there are examples. The examples'
variances over repeated draws add up to the standard error. (`lab.layers.algebra`: z of any layer.)

Where the outputs are piecewise linear in the pre-activations (ReLU, pooling, BatchNorm in eval mode) the part of H beside
the Gauss-Newton matrix has no diagonal, and Tr H = Tr G exactly.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.layers.chunk import recorded
from lab.layers.completeness import MOST_LOOKED, unexplained
from lab.layers.examples import ExampleGradients
from lab.layers.piecewise import bends, gaussian, is_piecewise_linear
from lab.layers.recorder import Modules, Recording, known_modules, record
from lab.objective import NetworkObjective, Objective, projection, pulled_back, with_gradients

MISUSED = "is used outside its layer, more than once, or not on one row per example"
"""What is wrong with a parameter that its record does not stand for."""


@dataclass(frozen=True)
class Anatomy:
    """A network of known layers, each used once: the names of their parameters, and what lies between them."""

    network: NetworkObjective
    modules: Modules
    num_outputs: int
    piecewise_linear: bool

    def require_piecewise_linear(self) -> None:
        """Raise ValueError where Tr G may differ from Tr H."""
        if not self.piecewise_linear:
            raise ValueError(
                "Tr H is the Gauss-Newton trace only where outputs are piecewise linear in the pre-activations "
                "(ReLU, pooling, BatchNorm in eval mode); use method=signs, or gauss_newton_trace for Tr G itself"
            )

    def chunks(self, w: Tensor) -> Iterator[Recording]:
        """Recorded forward passes over all examples, with w constant; TypeError where some examples use a layer twice."""
        for recording in _passes(self.network, self.modules, w):
            _refuse(self.network, recording.unclear, MISUSED)
            yield recording


def require_examples(objective: Objective) -> NetworkObjective:
    """A network whose loss is a mean over examples that do not see each other; TypeError, ValueError where it is none."""
    if not isinstance(objective, NetworkObjective):
        raise TypeError(f"{type(objective).__name__} is no network: it has no layers; use method=hutchinson or xtrace")
    objective.require_single_examples()
    return objective


@with_gradients
def take_apart(objective: Objective, w: Tensor) -> Anatomy:
    """Take the network apart, and check on some examples that its layers account for the whole gradient.

    No parameter may enter the graph of the outputs twice, and the layers' gradients of a random combination of the outputs
    of up to `MOST_LOOKED` examples must be those of the network: at w, and near w, where no zero hides a use.
    Cost: some six gradients of these examples. Not seen: a second use that other examples alone branch into.
    Raises TypeError where a parameter is no weight or bias of a known layer or is used in another way.
    """
    network = require_examples(objective)
    modules = known_modules(network.model)
    unknown = set(network.layout.names).difference(*(names.values() for names in modules.values()))
    _refuse(network, unknown, "has no layer of its own that is known here")
    few = network.few(max(2, min(MOST_LOOKED, network.chunk_size(w))))
    every, near = slice(0, len(few.x)), _near(w.to(network.look.dtype))
    here, there = (record(few, modules, place.detach(), every) for place in (w, near))
    directions = gaussian(here.outputs).reshape(here.num, -1)
    projected = few.on(few.x, directions, projection)
    for place in (w, near):
        chunk = recorded(projected, modules, place, every, set())
        _refuse(network, here.unclear | unexplained(projected, place, chunk, set()), MISUSED)
    linear = is_piecewise_linear(here.outputs) and not bends(there)
    return Anatomy(network, modules, here.outputs.numel() // here.num, linear)


def output_passes(network: NetworkObjective, w: Tensor) -> Iterator[Recording]:
    """Forward passes over all examples, of which `pulled_norms` is asked: by the layers, or by gradients of single examples
    where these do not tell.
    """
    try:
        modules = take_apart(network, w).modules
    except TypeError:
        modules = {}
    begin = 0
    for recording in _passes(network, modules, w):
        index = torch.arange(begin, begin := begin + recording.num, device=network.y.device)
        few = None if modules and not recording.unclear else network.restrict(index)
        yield recording if few is None else _ByExamples(**vars(recording), network=few, w=w)


def _passes(network: NetworkObjective, modules: Modules, w: Tensor) -> Iterator[Recording]:
    size, num = network.chunk_size(w), len(network.x)
    for begin in range(0, num, size):
        yield record(network, modules, w.detach(), slice(begin, min(begin + size, num)))


@dataclass(frozen=True)
class _ByExamples(Recording):
    """A forward pass whose layers do not tell: the gradients of single examples do, in all their parameters."""

    network: NetworkObjective
    w: Tensor

    def pulled_norms(self, directions: Iterable[Tensor]) -> Iterator[Tensor]:
        if every := list(directions):
            v = torch.stack(every, 1)  # (n, k, M)
            norms = ExampleGradients(pulled_back(self.network, v), self.w, memory=0).squared_norms().values()
            yield from torch.stack(list(norms)).sum(0).reshape(self.num, -1).unbind(1)


def _refuse(network: NetworkObjective, names: set[str], why: str) -> None:
    """Raise TypeError for the first of these parameters, named by all its places."""
    for name in sorted(names):
        parameter = network.model.get_parameter(name)
        places = [place for place, p in network.model.named_parameters(remove_duplicate=False) if p is parameter]
        owner = type(network.model.get_submodule(name.rpartition(".")[0])).__name__
        raise TypeError(f"{' = '.join(places)} of a {owner} {why}; use method=hutchinson")


def _near(w: Tensor) -> Tensor:
    """A place near w where no parameter is zero."""
    return w + 0.1 * (w.abs() + (w.square().mean().sqrt() or 1.0)) * gaussian(w)
