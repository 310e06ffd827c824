"""A network as a function of its flat parameters: its outputs f(x; w), and the criterion against targets.

The parameters of the module are replaced by pieces of w and its buffers by copies, so that f is differentiable in w as often
as its functions are, and the module is left as found.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lab.objective.base import Unsound
from lab.objective.forward import eager
from lab.objective.functional import Findings, ModuleLoss, cast


@dataclass
class Known(Findings):
    """What was found out about a network and its criterion on the data (x, y), once, for all mini-batches of these."""

    x: Tensor
    y: Tensor
    mean: bool = False
    bytes_per_example: dict[torch.dtype, int] = field(default_factory=dict)


class NetworkFunction(ModuleLoss):
    """The outputs of a network at any w (P,), on examples x (n, ...) of the caller's choosing, and the criterion of them."""

    x: Tensor
    y: Tensor
    _known: Known
    _chunk_size: int | None

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Tensor, Tensor], Tensor],
        data: tuple[Tensor, Tensor],
        batch_norm: Literal["eval", "train"],
    ):
        super().__init__(model, batch_norm)
        self.criterion = criterion
        self.x, self.y = data
        self.num_examples = len(self.x)
        self._known = Known(self.x, self.y)

    def loss_of(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The criterion on examples (x, y) of the caller's choosing, a scalar differentiable in w: for vmap and autograd."""
        return self.loss_at(self.outputs(w, x), y=y)

    def outputs(self, w: Tensor, x: Tensor, constants: list[Tensor] | None = None) -> Tensor:
        """f(x; w) on examples x (n, ...), as the network returns it, with copies (or `constants`) in place of the buffers.

        Raises Unsound where that is no tensor or does not depend on w.
        """
        outputs = self._run(w, partial(self._forward, w, x, constants))
        if not isinstance(outputs, Tensor):
            raise Unsound(f"the network returned a {type(outputs).__name__}; expected one tensor: wrap the network")
        if w.requires_grad and not outputs.requires_grad:
            raise Unsound("the outputs of the network do not depend on its parameters; is there a no_grad or detach?")
        look = self._known.looks.get(self.modes.flags)
        if len(x) == 1 and look is not None and outputs.dim() == look.rank - 1:
            return outputs[None]  # a squeeze in the network took the axis of the examples with it
        return outputs

    def _forward(self, w: Tensor, x: Tensor, constants: list[Tensor] | None = None) -> Tensor:
        """What the network returns."""
        return functional_call(self.model, self._tensors(w, constants), (cast(x, w),))

    def _run_few(self, w: Tensor) -> None:
        w, size = w.detach(), min(self._chunk_size or len(self.x), len(self.x))
        for count in (min(8, size), size):
            try:
                self._forward(w, self.x[:count])
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
