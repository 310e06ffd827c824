"""How a model is called on a batch, and how the loss of the batch is read off what it returns.

dict            model(**those keys that forward names), or model(batch) where it names none
tuple, list     model(*all but the last); with loss=None model(*all)
a tensor        model(batch)
forward         forward(model, batch), whatever the batch is

loss given      loss(outputs, batch); of a tuple or list loss(outputs, last), unless its second parameter is called batch
loss=None       outputs.loss, outputs["loss"], the first of a tuple, or outputs that are a scalar
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lab.objective.base import Unsound
from lab.objective.batch import Batch, in_words

Loss = Callable[[Any, Any], Tensor]
Forward = Callable[[nn.Module, Batch], Any]


class Calling(nn.Module):
    """A network as a function of one batch: its outputs, and their loss."""

    def __init__(self, network: nn.Module, loss: Loss | None, forward: Forward | None):
        super().__init__()
        self.network, self._loss, self._forward = network, loss, forward
        self._named, self._any = _parameters(network)
        self._whole = loss is not None and _second(loss) == "batch"

    def forward(self, batch: Batch, outputs_only: bool = False) -> Any:
        """The loss of the batch, or what the network returns."""
        outputs = self._outputs(batch)
        return outputs if outputs_only else self.loss_of(outputs, batch)

    def loss_of(self, outputs: Any, batch: Batch) -> Tensor:
        """The loss of a batch, a scalar. Raises Unsound where there is none, ValueError where it is no scalar."""
        if self._loss is None:
            loss = _inside(outputs, batch)
        else:
            try:
                loss = self._loss(outputs, batch if self._whole else _targets(batch))
            except (TypeError, AttributeError, KeyError) as error:
                raise Unsound(_failed("the loss cannot take", outputs, batch, error)) from error
        if not isinstance(loss, Tensor):
            raise ValueError(f"the loss is a {type(loss).__name__}; expected a tensor, the mean, a scalar")
        if loss.dim() != 0:
            raise ValueError(f"the loss has shape {tuple(loss.shape)}; expected the mean, a scalar")
        return loss

    def _outputs(self, batch: Batch) -> Any:
        try:
            if self._forward is not None:
                return self._forward(self.network, batch)
            if isinstance(batch, Mapping):
                if chosen := {key: value for key, value in batch.items() if key in self._named}:
                    return self.network(**chosen)
                return self.network(**batch) if self._any else self.network(batch)
            if isinstance(batch, tuple | list) and not isinstance(batch, PackedSequence):
                return self.network(*(batch[:-1] if len(batch) > 1 and self._loss is not None else batch))
            return self.network(batch)
        except (TypeError, KeyError) as error:
            raise Unsound(_failed("the network cannot be called on", None, batch, error)) from error


def _parameters(network: nn.Module) -> tuple[set[str], bool]:
    """The names that forward can be given, and whether it takes any name and no position."""
    parameters = inspect.signature(network.forward).parameters.values()
    kinds = {p.kind for p in parameters}
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return named, not named and inspect.Parameter.VAR_KEYWORD in kinds


def _second(loss: Loss) -> str:
    """The name of the second parameter of a loss."""
    try:
        names = list(inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters)
    except (TypeError, ValueError):  # a built-in
        return ""
    return names[1] if len(names) > 1 else ""


def _targets(batch: Batch) -> Any:
    """What the loss is given beside the outputs."""
    whole = not isinstance(batch, tuple | list) or isinstance(batch, PackedSequence) or hasattr(batch, "_fields")
    return batch if whole else batch[-1]


def _inside(outputs: Any, batch: Batch) -> Any:
    """The loss that a model has computed itself."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    if (
        isinstance(outputs, tuple)
        and loss is None
        and outputs
        and isinstance(outputs[0], Tensor)
        and not outputs[0].dim()
    ):
        loss = outputs[0]
    if isinstance(outputs, Tensor) and outputs.dim() == 0:
        loss = outputs
    if loss is None:
        raise Unsound(
            f"loss=None, but what the network returns for {in_words(batch)}, a {type(outputs).__name__}, has no .loss, or "
            "it is None: put labels into the batch, or give loss=lambda outputs, batch: ..."
        )
    return loss


def _failed(what: str, outputs: Any, batch: Batch, error: Exception) -> str:
    given = in_words(batch) if outputs is None else f"outputs {in_words(outputs)} of {in_words(batch)}"
    cure = "forward=lambda model, batch: ..." if outputs is None else "a loss(outputs, batch) that does"
    text = " ".join(str(error).split())
    return f"{what} {given}: {type(error).__name__}: {text[:200]}; give {cure}"
