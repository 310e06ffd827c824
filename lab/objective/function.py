"""A network as a function of its flat parameters: its outputs f(x; w), and the criterion against targets.

The parameters of the module are replaced by pieces of w and its buffers by copies, so that f is differentiable in w as often
as its functions are, and the module is left as found.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lab.objective.base import Objective, Unsound, at_least_single, require_no_inference
from lab.objective.forward import eager, plain, unwrapped
from lab.objective.modes import Modes, states
from lab.objective.singles import Vectorised
from lab.params import layout

if TYPE_CHECKING:
    from lab.objective.audit import Audit
    from lab.objective.look import Look


@dataclass
class Known:
    """What was found out about a network and its criterion on the data (x, y), once, for all mini-batches of these."""

    x: Tensor
    y: Tensor
    mean: bool = False
    third: bool = False
    warned: bool = False
    walked: set[tuple[bool, ...]] = field(default_factory=set)
    bytes_per_example: dict[torch.dtype, int] = field(default_factory=dict)
    looks: "dict[tuple[bool, ...], Look]" = field(default_factory=dict)
    vectorised: Vectorised = field(default_factory=Vectorised)
    audit: "Audit | None" = None


class NetworkFunction(Objective):
    """The outputs of a network at any w (P,), on examples x (n, ...) of the caller's choosing, and the criterion of them."""

    x: Tensor
    y: Tensor
    _chunk_size: int | None

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Tensor, Tensor], Tensor],
        data: tuple[Tensor, Tensor],
        batch_norm: Literal["eval", "train"],
    ):
        self.model, self.criterion, self.batch_norm = unwrapped(model), criterion, batch_norm
        self.x, self.y = data
        self.layout = layout(self.model)
        self.num_params, self.num_examples = self.layout.size, len(self.x)
        self._constant = [name for name, _ in self.model.named_parameters() if name not in self.layout.names]
        self._constant += [name for name, _ in self.model.named_buffers()]
        self.modes = Modes(self.model, batch_norm)
        norms = [m for m in self.modes.modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if batch_norm == "eval" and any(norm.running_mean is None for norm in norms):
            raise ValueError('BatchNorm with track_running_stats=False has no eval mode; use batch_norm="train"')
        self._known = Known(self.x, self.y)

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

    def loss_of(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The criterion on examples (x, y) of the caller's choosing, a scalar differentiable in w: for vmap and autograd."""
        return self.loss_at(self.outputs(w, x), y=y)

    def constants(self, w: Tensor) -> list[Tensor]:
        """Frozen parameters and copies of the buffers, in order, in the dtype of w: what the network is besides w."""
        if not self._constant:
            return []
        frozen = [p.detach() for name, p in self.model.named_parameters() if name not in self.layout.names]
        return [_cast(p, w) for p in frozen] + [_cast(b, w).clone() for b in self.model.buffers()]

    def outputs(self, w: Tensor, x: Tensor, constants: list[Tensor] | None = None) -> Tensor:
        """f(x; w) on examples x (n, ...), as the network returns it, with copies (or `constants`) in place of the buffers.

        Raises Unsound where that is no tensor or does not depend on w.
        """
        require_no_inference()
        drawn = states(w.device)
        outputs = self._forward(w, x, constants)
        if not self.modes.fixed(w.device, drawn):
            outputs = self._forward(w, x, constants)
        if not isinstance(outputs, Tensor):
            raise Unsound(f"the network returned a {type(outputs).__name__}; expected one tensor: wrap the network")
        if w.requires_grad and not outputs.requires_grad:
            raise Unsound("the outputs of the network do not depend on its parameters; is there a no_grad or detach?")
        look = self._known.looks.get(self.modes.flags)
        if len(x) == 1 and look is not None and outputs.dim() == look.rank - 1:
            return outputs[None]  # a squeeze in the network took the axis of the examples with it
        return outputs

    def _forward(self, w: Tensor, x: Tensor, constants: list[Tensor] | None) -> Tensor:
        """What the network returns."""
        held = dict(zip(self._constant, self.constants(w) if constants is None else constants, strict=True))
        with ExitStack() as stack:
            if w.requires_grad:
                stack.enter_context(torch.enable_grad())
            stack.enter_context(plain())
            stack.enter_context(self.modes.applied(w.device, partial(self._run_few, w)))
            return functional_call(self.model, (self.layout.unflatten(w), held), (_cast(x, w),))

    def find_modes(self, w: Tensor) -> None:
        """Find out what draws random numbers, if that is not known yet: `outputs` would do so by itself."""
        with self.modes.applied(w.device, partial(self._run_few, w)):
            pass

    def _run_few(self, w: Tensor) -> None:
        """A forward pass of few examples, or of a chunk where few will not do; nothing is kept of it."""
        w, size = w.detach(), min(self._chunk_size or len(self.x), len(self.x))
        for count in (min(8, size), size):
            held = dict(zip(self._constant, self.constants(w), strict=True))
            try:
                functional_call(self.model, (self.layout.unflatten(w), held), (_cast(self.x[:count], w),))
                return
            except (RuntimeError, ValueError):
                if count == size:
                    raise

    def loss_at(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The criterion of outputs and targets y (n, ...), a scalar; ValueError where it is none."""
        with ExitStack() as stack:
            if outputs.requires_grad:
                stack.enter_context(torch.enable_grad())
            stack.enter_context(eager())
            loss = self.criterion(outputs, y.to(outputs.dtype) if y.is_floating_point() else y)
        if loss.dim() != 0:
            raise ValueError(f"the criterion returned shape {tuple(loss.shape)}; expected the mean, a scalar")
        return loss


def _cast(tensor: Tensor, w: Tensor) -> Tensor:
    """In the dtype of w, unless it holds whole numbers."""
    return tensor.to(w.dtype) if tensor.is_floating_point() else tensor
