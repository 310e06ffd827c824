"""What the provenance of a loop of somebody's own says of it: command, model, loss, optimisers, probes and data."""

import dataclasses
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn, optim

from lab.objective import BatchSource
from lab.params import layout, trainable
from lab.probes.base import Probe
from lab.probes.bench import Bench
from lab.run.provenance import provenance


def name_of(thing: Any) -> str:
    """The name of a function, or that of the class of anything else."""
    return getattr(thing, "__name__", None) or type(thing).__name__


def loss_name(bench: Bench) -> str:
    """What the measured loss is called."""
    return "loss of the model" if bench.criterion is None else name_of(bench.criterion)


def bare_model(model: nn.Module) -> nn.Module:
    """The model within the wrappers of torch.compile and of parallel training."""
    for wrapper in ("_orig_mod", "module"):
        model = getattr(model, wrapper) if isinstance(getattr(model, wrapper, None), nn.Module) else model
    return model


def facts_of(
    bench: Bench, probes: Sequence[Probe], *, steps: int | None, batch_size: int | str | None
) -> dict[str, Any]:
    """The provenance of a run: who asks for it again has his own program, which the command names."""
    model, optimizers = bare_model(bench.model), bench.optimizers or []
    settings: dict[str, Any] = {"model": type(model).__name__, "loss": loss_name(bench)}
    for i, optimizer in enumerate(optimizers):
        settings[f"optimizer{'_' + str(i) if i else ''}"] = _optimizer(optimizer)
    settings |= {"data": {"batch_size": batch_size}, "seed": bench.seed, "steps": steps}
    settings["probe"] = {probe.name: _card(probe) for probe in probes}
    data: dict[str, Any] = {"train": bench.num_train}
    if not isinstance(bench.data, BatchSource):
        data["input_shape"] = str(tuple(bench.data[0].shape[1:]))
    size = layout(bench.model).size if trainable(bench.model) else 0
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    facts = {"class": kind, "parameters": size, "measured_batch_norm": bench.batch_norm}
    return provenance(shlex.join(sys.orig_argv), settings, data=data, model=facts)


def _optimizer(optimizer: optim.Optimizer) -> dict[str, Any]:
    """Its class and the settings of its first group."""
    group = optimizer.param_groups[0] if optimizer.param_groups else optimizer.defaults
    rest = {name: _plain(value) for name, value in group.items() if name != "params"}
    return {"_target_": type(optimizer).__name__, **rest}


def _card(probe: Probe) -> dict[str, Any]:
    if not dataclasses.is_dataclass(probe):
        return {"_target_": type(probe).__name__}
    return {one.name: _plain(getattr(probe, one.name)) for one in dataclasses.fields(probe) if one.init}


def _plain(value: Any) -> Any:
    """A value of JSON."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    try:
        return float(value)
    except (TypeError, ValueError):
        return name_of(value) if isinstance(value, Callable) else str(value)  # type: ignore[arg-type]
