"""How the forward pass of a stranger's network is kept a twice differentiable function of w: kernels, wrappers, criteria."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import checkpoint

from lab.objective.base import full_precision


@contextmanager
def eager() -> Iterator[None]:
    """Compiled parts run as they were before they were compiled, and nothing is put into half precision by itself."""
    with ExitStack() as stack:
        stack.enter_context(full_precision())
        if "torch._dynamo" in sys.modules:  # else nothing was compiled: no need to import it
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


@contextmanager
def plain() -> Iterator[None]:
    """Kernels that can be differentiated twice, at any w: `eager`, attention by matrix products and softmax, and nothing
    checkpointed, for what is computed again in a backward pass would be computed with the weights of the module, not w.
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with eager(), sdpa_kernel(SDPBackend.MATH), _not_checkpointed():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


class _Direct:
    """In place of `torch.utils.checkpoint.CheckpointFunction`: the function itself."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args)


def _nothing_kept(*args: Any, **kwargs: Any) -> Iterator[None]:
    """In place of the hooks of torch around a checkpointed function, which runs at the yield."""
    yield


@contextmanager
def _not_checkpointed() -> Iterator[None]:
    """`torch.utils.checkpoint.checkpoint(f, *args)`, imported by whatever name, is f(*args). Where torch has none of the
    parts that are taken out here, a checkpoint meets saved-tensor hooks that are forbidden, and says so.
    """
    names = ("_checkpoint_without_reentrant_generator_impl", "_checkpoint_without_reentrant_generator")
    parts = {name: _nothing_kept for name in names if hasattr(checkpoint, name)}
    replaced: dict[str, Any] = {**parts, "CheckpointFunction": _Direct}
    kept = {name: getattr(checkpoint, name) for name in replaced}
    with ExitStack() as stack:
        if not parts:
            message = "activation checkpointing recomputes with the weights of the module, not with w: switch it off"
            stack.enter_context(torch.autograd.graph.disable_saved_tensors_hooks(message))
        for name, part in replaced.items():
            setattr(checkpoint, name, part)
        try:
            yield
        finally:
            for name, part in kept.items():
                setattr(checkpoint, name, part)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module itself, without wrappers of `torch.compile`, DataParallel and DistributedDataParallel.

    Raises ValueError, one line, for what has no parameters that can be replaced: scripted, lazy, sharded modules, complex
    weights, embeddings that change their weights or have sparse gradients.
    """
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            break
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{type(model).__name__} is, or holds, a scripted module, whose weights cannot be replaced by w; give the "
                "nn.Module it was made from"
            )
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise ValueError(
                f"{type(model).__name__} holds a {type(module).__name__} inside; put its `.module` in its place"
            )
        if getattr(module, "max_norm", None) is not None and isinstance(module, nn.Embedding | nn.EmbeddingBag):
            raise ValueError("an embedding with max_norm changes its weights when it is evaluated; use max_norm=None")
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            raise ValueError("an embedding with sparse gradients has no gradient as a vector; use sparse=False")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(f"{name} of a lazy module has no shape yet; run one batch through the model first")
        if parameter.is_complex():
            raise ValueError(
                f"{name} is complex: L is a function of real w; hold its real and imaginary parts as two parameters and "
                "join them in forward by torch.complex"
            )
        if hasattr(parameter, "to_local"):
            raise ValueError(f"{name} is sharded over processes; measure the unsharded model, one process at a time")
    return model
