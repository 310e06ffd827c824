"""How the forward pass of a stranger's network is kept a fixed function of w: modes, kernels, random draws, criteria."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def modes(model: nn.Module, *, train_batch_norm: bool) -> Iterator[None]:
    """Every module in eval mode, BatchNorm in train mode if asked; the flags are put back afterwards."""
    before = [(module, module.training) for module in model.modules()]
    for module, _ in before:
        module.training = train_batch_norm and isinstance(module, nn.modules.batchnorm._BatchNorm)
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention by matrix products and softmax: the fused kernels have no second derivative."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def no_draws(device: torch.device) -> Iterator[None]:
    """Raise ValueError where random numbers are drawn; the generators are put back."""

    def states() -> list[Tensor]:
        return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]

    before = states()
    yield
    if all(map(torch.equal, before, states())):
        return
    torch.set_rng_state(before[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(before[1], device)
    raise ValueError(
        "the network draws random numbers though dropout is off (functional.dropout without training=self.training?): "
        "its loss is no function of w"
    )


def refuse_sums(criterion: Callable[[Tensor, Tensor], Tensor], y: Tensor) -> None:
    """A loss whose chunk values do not average to the whole is refused, never silently wrong."""
    name = type(criterion).__name__
    if getattr(criterion, "reduction", "mean") not in ("mean", "batchmean"):
        raise ValueError(f'{name} has reduction={criterion.reduction!r}; expected "mean" over examples')  # type: ignore[attr-defined]
    if getattr(criterion, "weight", None) is not None:
        raise ValueError(f"{name} has class weights: chunk means do not average to the mean; use an unweighted loss")
    ignored = getattr(criterion, "ignore_index", None)
    if ignored is not None and not y.is_floating_point() and bool((y == ignored).any()):
        raise ValueError(
            f"{name} ignores targets equal to ignore_index={ignored}: leave those examples out of the data"
        )
