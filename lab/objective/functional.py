"""A module whose parameters are replaced by pieces of a flat vector w: the base of every loss that a network has.

Its buffers are replaced by copies and its modes by those of `lab.objective.modes`, so that what it computes is
differentiable in w as often as its functions are, and the module is left as found.
"""

from abc import abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn

from lab.objective.base import Objective, at_least_single, require_graph, require_no_inference
from lab.objective.forward import plain, unwrapped
from lab.objective.modes import Modes, states
from lab.objective.singles import Vectorised
from lab.params import layout

if TYPE_CHECKING:
    from lab.objective.audit import Audit


@dataclass(kw_only=True)
class Findings:
    """What was found out about a network and its loss, once, for all its mini-batches."""

    third: bool = False
    warned: bool = False
    walked: set[tuple[bool, ...]] = field(default_factory=set)
    looks: dict[tuple[bool, ...], Any] = field(default_factory=dict)
    vectorised: Vectorised = field(default_factory=Vectorised)
    audit: "Audit | None" = None


class ModuleLoss(Objective):
    """The loss of a module at any w (P,). A subclass says what the module is run on."""

    _known: Findings

    def __init__(self, model: nn.Module, batch_norm: Literal["eval", "train"]):
        if batch_norm not in ("eval", "train"):
            raise ValueError(f'batch_norm={batch_norm!r}: expected "eval" or "train"')
        self.model, self.batch_norm = unwrapped(model), batch_norm
        self.layout = layout(self.model)
        self.num_params = self.layout.size
        self._constant = [name for name, _ in self.model.named_parameters() if name not in self.layout.names]
        self._constant += [name for name, _ in self.model.named_buffers()]
        self.modes = Modes(self.model, batch_norm)
        norms = [m for m in self.modes.modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if batch_norm == "eval" and any(norm.running_mean is None for norm in norms):
            raise ValueError('BatchNorm with track_running_stats=False has no eval mode; use batch_norm="train"')

    @property
    def weights(self) -> Tensor:
        """The model's present parameters as a detached vector w (P,), in float32 at least."""
        return at_least_single(self.layout.flatten(dict(self.model.named_parameters())))

    @property
    def batch_statistics(self) -> bool:
        """Whether a BatchNorm normalises by the examples of a chunk."""
        return self.modes.batch_statistics

    @property
    def vectorised(self) -> Vectorised:
        """Whether vmap can take the network: shared by all who try."""
        return self._known.vectorised

    @abstractmethod
    def _looked(self) -> Any:
        """What forward passes of a few examples, and one or two of many, tell, in the present modes."""

    @property
    def look(self) -> Any:
        """What they tell (`lab.objective.look.Look`, of batches `lab.objective.rows.BatchLook`), once for all parts."""
        flags = self.modes.flags
        if flags not in self._known.looks:
            self._known.looks[flags] = self._looked()
        return self._known.looks[flags]

    @property
    def coupled(self) -> str:
        """How the examples of a batch see each other, or "" where each has a loss of its own."""
        if self.batch_statistics:
            return "train-mode BatchNorm couples the examples of a batch"
        return str(self.look.coupled)

    @abstractmethod
    def few(self, most: int) -> Self:
        """The loss over at most so many examples, in one part."""

    @abstractmethod
    def with_running_statistics(self) -> Self:
        """The same loss with all modules in eval mode where BatchNorm would couple the examples; itself if it does not."""

    @abstractmethod
    def _run_few(self, w: Tensor) -> None:
        """A forward pass of few examples, or of a batch where few will not do; nothing is kept of it."""

    def constants(self, w: Tensor) -> list[Tensor]:
        """Frozen parameters and copies of the buffers, in order, in the dtype of w: what the network is besides w."""
        if not self._constant:
            return []
        frozen = [p.detach() for name, p in self.model.named_parameters() if name not in self.layout.names]
        return [cast(p, w) for p in frozen] + [cast(b, w).clone() for b in self.model.buffers()]

    def find_modes(self, w: Tensor) -> None:
        """Find out what draws random numbers, if that is not known yet: a forward pass would do so by itself."""
        with self.modes.applied(w.device, lambda: self._run_few(w)):
            pass

    def third(self, w: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """As `Objective.third`. The first one is held against a difference of Hessian products on a few examples, for torch
        has layers whose third derivative is silently wrong (LayerNorm in torch 2.15): ValueError where they differ.
        """
        if not self._known.third:
            from lab.objective.laws import require_third

            require_third(self.few(4), w)
            self._known.third = True
        return super().third(w, u, v)

    def slope(self, f: Tensor, leaf: Tensor, along: Tensor | None = None) -> Tensor:
        """As `Objective.slope`. A function of somebody's own that ends the graph is found by walking it, once."""
        g = super().slope(f, leaf, along)
        kind = along is None, leaf.dim() == 1 and len(leaf) == self.num_params
        if kind not in self._known.walked:
            require_graph(g)
            self._known.walked.add(kind)
        return g

    def _run(self, w: Tensor, call: Callable[[], Any]) -> Any:
        """call(), which runs the module on `_tensors`, in its modes and on kernels that can be differentiated twice; once
        more where it drew random numbers that were not known of.
        """
        require_no_inference()
        drawn = states(w.device)
        result = self._run_once(w, call)
        if not self.modes.fixed(w.device, drawn):
            result = self._run_once(w, call)
        return result

    def _run_once(self, w: Tensor, call: Callable[[], Any]) -> Any:
        with ExitStack() as stack:
            if w.requires_grad:
                stack.enter_context(torch.enable_grad())
            stack.enter_context(plain())
            stack.enter_context(self.modes.applied(w.device, lambda: self._run_few(w)))
            return call()

    def _tensors(self, w: Tensor, constants: list[Tensor] | None = None) -> dict[str, Tensor]:
        """Every parameter and buffer of the module, by name: pieces of w, and copies (or `constants`) of the others."""
        held = self.constants(w) if constants is None else constants
        return self.layout.unflatten(w) | dict(zip(self._constant, held, strict=True))

    def _saved_bytes(self, w: Tensor, loss: Callable[[Tensor], Tensor]) -> int:
        """Bytes of the distinct tensors that a graph of the gradient of loss(w) saves."""
        storages: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor.detach()  # the tensor itself would leave a reference cycle

        leaf = w.detach().requires_grad_()
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            value = loss(leaf)
            try:
                graph = torch.autograd.grad(value, leaf, create_graph=True, materialize_grads=True)
                del graph
            except RuntimeError:  # no second derivative: said where one is asked for
                pass
        del value
        return sum(storages.values())


def cast(tensor: Tensor, w: Tensor) -> Tensor:
    """In the dtype of w, unless it holds whole numbers."""
    return tensor.to(w.dtype) if tensor.is_floating_point() else tensor
