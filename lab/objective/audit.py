"""An audit of a loss before its first number: what autograd, vmap and chunks say of it must belong to one function of w.

A stranger's network may be anything: a backward pass that keeps intermediates, a batch that is sorted, a criterion that
sums, a state that remembers. No list of known bad layers is complete, so the laws themselves are looked at, on a few
examples:

    value              L(w), then other examples, then L(w) again
    derivatives        `lab.objective.laws`: gradient, Hessian products, symmetry
    single examples    those that are formed at once against plain backward passes; their mean against the gradient
    chunks             one chunk against two uneven ones

A broken law is refused in one line, `Unsound`. That examples see each other, or that a criterion is no mean over them, is
none: the loss of a chunk is still a function of w. Then only what needs single examples is refused, by whom it is asked for.
"""

from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from lab.objective.base import Objective, Unsound
from lab.objective.batch_laws import laws_of_batches
from lab.objective.batches import BatchesObjective
from lab.objective.held import derivatives, held, same_value, silenced, undecided
from lab.objective.laws import VALUE, Law, Place, derivative_laws
from lab.objective.look import EXAMPLES, MANY
from lab.objective.network import NetworkObjective

FEW = 6
"""Examples that the laws are looked at with."""


@dataclass(frozen=True)
class Audit:
    """What an audit found: the laws, all held or undecided; notes on the loss that are no faults; and its cost.

    gradients   what was evaluated, in gradients of the whole loss (a value is a third of one, a Hessian product 2.2);
    seconds     of the whole audit.
    """

    laws: tuple[Law, ...]
    notes: tuple[str, ...]
    gradients: float
    seconds: float

    def sentence(self) -> str:
        """What was found, in a line."""
        held = [law.name for law in self.laws if law.held]
        open_ = [law.name for law in self.laws if law.held is None]
        text = f"audit of the loss: {len(held)} laws hold" + (f", {len(open_)} undecided" if open_ else "")
        text += f"; cost {self.gradients:.2g} gradients"
        return "; ".join([text, *self.notes])

    def numbers(self) -> dict[str, float]:
        """The cost, by tag."""
        return {"cost/audit/gradients": self.gradients, "cost/audit/seconds": self.seconds}


def audit(objective: Objective, w: Tensor | None = None, *, seed: int = 0) -> Audit:
    """Look whether `objective` keeps the laws, near w (default: its present weights), on `FEW` of its examples.

    In float64 where the network takes it. Random directions are drawn from `seed`; nothing else is random, and nothing of
    the caller's is changed. Cost: about 10 gradients of `FEW` examples, 3 where N is 20 times as many. Of one network it
    is made once: later calls, also for its mini-batches, return the first result. Raises Unsound, one line, where a law is
    broken; ValueError where the loss cannot be evaluated or differentiated.

    >>> from lab.landscapes.quadratic import Quadratic
    >>> audit(Quadratic(torch.tensor([2.0, 5.0])), torch.zeros(2)).sentence()
    'audit of the loss: 4 laws hold; cost 11 gradients'
    """
    network = _network(objective)
    if network is not None and network._known.audit is not None:
        return network._known.audit
    begin = perf_counter()
    generator = torch.Generator().manual_seed(seed)
    try:
        outcome = _outcome(objective if network is None else network, w, generator)
    except RuntimeError as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Unsound(
            f"the loss cannot be evaluated or differentiated at weights other than the module's own: {cause[:160]}; write "
            "it in operations of torch on what forward is given, or leave the audit out (audit=false)"
        ) from error
    audited = Audit(outcome.laws, outcome.notes, outcome.gradients, perf_counter() - begin)
    if network is not None:
        network._known.audit = audited
    return audited


def _network(objective: Objective) -> NetworkObjective | BatchesObjective | None:
    """The network inside an objective, if there is one."""
    while not isinstance(objective, NetworkObjective | BatchesObjective):
        inner = getattr(objective, "inner", None) or getattr(objective, "local", None)
        if not isinstance(inner, Objective):
            return None
        objective = inner
    return objective


def _outcome(objective: Objective, w: Tensor | None, generator: torch.Generator) -> Audit:
    """What an audit of a kind of loss finds."""
    if isinstance(objective, NetworkObjective):
        return _of_network(objective, w, generator)
    if isinstance(objective, BatchesObjective):
        laws, notes, spent = laws_of_batches(objective, w, generator, FEW)
        return Audit(tuple(laws), tuple(notes), spent, 0.0)
    return _of_function(objective, w, generator)


def _of_function(objective: Objective, w: Tensor | None, generator: torch.Generator) -> Audit:
    """The laws of a loss that is no network."""
    if w is None:
        raise ValueError(f"{type(objective).__name__} has no weights of its own: give w")
    place = Place.near(objective, w.detach().double(), generator)
    if not bool(objective.value(place.w).isfinite()):
        return Audit((), ("the loss is not finite here: nothing could be looked at",), 1 / 3, 0.0)
    laws = [held(same_value(objective, objective, place))]
    laws += [held(law) for law in derivative_laws(objective, place)]
    return Audit(tuple(laws), (), sum(law.spent for law in laws), 0.0)


def _of_network(network: NetworkObjective, w: Tensor | None, generator: torch.Generator) -> Audit:
    """The laws of a network's loss, on a few of its examples."""
    few, notes, share = network.few(FEW), [], FEW / max(FEW, len(network.x))
    look = network.look
    w = (network.weights if w is None else w).detach().to(look.dtype)
    place = Place.near(few, w, generator, look.eps)
    if not bool(few.value(place.w).isfinite()):
        return Audit((), ("the loss is not finite here: nothing could be looked at",), share, 0.0)
    with network.modes.unrestored():
        laws = [held(same_value(few, _others(network), place))]
    fewer = network.few(1) if len(few.x) > 1 and not network.coupled else None
    laws += derivatives(few, fewer, place)
    notes += undecided(laws)
    notes += silenced(network)
    if network.coupled:
        if not network.batch_statistics:  # else it is the known way of BatchNorm
            size = network.chunk_size(network.weights)
            notes.append(f"{network.coupled}: it is defined by its chunks of {size} examples")
    elif reason := _no_mean(network):
        notes.append(reason)
    elif len(few.x) > 1:
        laws += [held(law) for law in _of_examples(few, place)]
    # The look at the network, and at what draws random numbers: some passes of few examples, one of many.
    looked = VALUE * (min(MANY, len(network.x)) + 4 * EXAMPLES) / len(network.x)
    return Audit(tuple(laws), tuple(notes), looked + share * sum(law.spent for law in laws), 0.0)


def _others(network: NetworkObjective) -> NetworkObjective:
    """Another number of other examples, in one chunk: one example that is left over has no batch statistics."""
    count = max(min(2, len(network.x)), min(FEW, len(network.x)) - 1)
    return network.restrict(torch.arange(count, device=network.y.device)).in_chunks(count)


def _no_mean(network: NetworkObjective) -> str:
    try:
        network.require_mean()
    except ValueError as error:
        return str(error)
    return ""


def _of_examples(few: NetworkObjective, place: Place) -> list[Law]:
    """Single examples, their mean, and two chunkings."""
    w, num = place.w, len(few.x)
    every = torch.arange(num, device=few.y.device)
    single = torch.stack([few.restrict(every[i : i + 1]).grad(w) for i in range(num)]).double()
    value, gradient = few.value_and_grad(w)
    fast, mean = few.example_grads(w).double(), single.mean(0)
    size, allowed = float(single.norm(dim=1).max()), max(1e-6, 10 * place.eps**0.5)
    off = float((fast - single).norm(dim=1).max()) / size if size > 0 else 0.0
    laws = [Law("single examples", off, allowed, off <= allowed, spent=2.0)]
    off = float((mean - gradient.double()).norm()) / size if size > 0 else 0.0
    laws.append(Law("mean of single examples", off, allowed, off <= allowed, spent=1.0))
    parts = [few.restrict(every[: num // 3 + 1]), few.restrict(every[num // 3 + 1 :])]
    chunked = sum(len(part.x) / num * float(part.value(w)) for part in parts if len(part.x))
    off = abs(chunked - float(value)) / max(abs(float(value)), 1e-30)
    return [*laws, Law("chunks", off, allowed, off <= allowed, spent=VALUE)]
