"""The laws of `lab.probes.base.Probe`, kept by every probe of the package: found by walking it, at its default settings."""

import copy
import importlib
import inspect
import math
import pickle
import pkgutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import lab
import lab.probes
from lab.curvature.stability import UpdateRule
from lab.objective import NetworkObjective
from lab.probes.base import Examples, Probe, Snapshot
from lab.probes.tags import written
from lab.settings import SettingError

MODULES = [importlib.import_module(f"lab.probes.{info.name}") for info in pkgutil.iter_modules(lab.probes.__path__)]
PROBES = sorted(
    {
        found
        for module in MODULES
        for _, found in inspect.getmembers(module, inspect.isclass)
        if issubclass(found, Probe) and found is not Probe
    },
    key=lambda probe: probe.__name__,
)


def snapshot(step: int, model: nn.Module, w: torch.Tensor) -> Snapshot:
    x, y = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3

    def loss_on(examples: Examples) -> NetworkObjective:
        return NetworkObjective(model, nn.functional.cross_entropy, (x, y), batch_norm="train")

    return Snapshot(step, w, loss_on, UpdateRule(lr=0.1))


def mine(tag: str, probe: Probe) -> bool:
    """Whether the tag begins with the name of the probe, so that no other probe writes it."""
    return tag.removeprefix("error/").removeprefix("cost/").startswith(f"{probe.name}/")


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(), nn.Linear(8, 3))


@dataclass(frozen=True)
class Measured:
    """A probe that has measured once, at step 0, and what was there before and after it."""

    probe: Probe
    model: nn.Module
    w: torch.Tensor
    values: Mapping[str, Any]
    before: tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]
    after: tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]


@cache
def measured(kind: type[Probe]) -> Measured:
    model, probe = network(), kind()
    w = torch.cat([p.detach().flatten() for p in model.parameters()])

    def state() -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        return w.clone(), {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()

    before = state()
    assert probe.due(0) is True
    values = probe.measure(snapshot(0, model, w))
    return Measured(probe, model, w, values, before, state())


@pytest.mark.parametrize("kind", PROBES)
def test_a_probe_returns_numbers_figures_or_arrays_under_group_and_quantity(kind: type[Probe]) -> None:
    once = measured(kind)
    for tag, value in once.values.items():
        assert mine(tag, once.probe)
        assert isinstance(value, float | Figure | torch.Tensor)
    assert once.probe.name.replace("_", "") == kind.__name__.lower()


MORE: dict[str, dict[str, Any]] = {
    "sharpness": {"k": 2, "bottom": True, "midpoints": True},
    "batch_sharpness": {"batches": 2, "gni_batches": 2, "lambda_batches": 2},
    "batch_landscape": {"batches": 2, "steps": 2, "leave_out": 1},
    "critical_point": {"find": True, "max_iterations": 2, "dense": 0, "max_matvecs": 8},
    "escape": {"replicas": 2, "budget": 16, "quench_steps": 2, "growth_steps": 20, "controls": False},
    "fisher": {"k": 1, "vectors": 5},
    "linear_stability": {"steps": 4, "replicas": 2},
    "noise": {"hessian": True, "layers": True, "draws": 2, "pairs": 1},
    "spectrum": {"k": 1, "bottom": 1, "split": True, "layers": True, "steps": 4, "vectors": 2},
}
"""Settings with which a probe writes all that it may, at little cost."""


def test_no_two_probes_write_one_tag_whatever_they_are_asked_for() -> None:
    assert {kind.name for kind in PROBES} == MORE.keys(), "a new probe says here how all of its tags come about"
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 3))
    w = torch.cat([p.detach().flatten() for p in model.parameters()])
    writers: dict[str, str] = {}
    for kind in PROBES:
        probe, values = kind(**MORE[kind.name]), dict[str, Any]()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of so few products and batches
            for step in (probe.rhythm - 2, probe.rhythm - 1, probe.rhythm):
                if probe.due(step):
                    whole = snapshot(step, model, w)
                    values |= probe.measure(whole) | probe.measure(replace(whole, batch_size=6))
        tags = {*values}
        assert all(mine(tag, probe) for tag in tags)
        numbers = {tag for tag, value in values.items() if isinstance(value, float)}
        known = [pattern for pattern in written(probe.name) if not pattern.endswith(f"/{probe.name}/*")]
        assert not {tag for tag in numbers if not any(fnmatchcase(tag, pattern) for pattern in known)}, (
            "lab/probes/tags.py"
        )
        assert not tags & writers.keys()
        writers |= dict.fromkeys(tags, probe.name)
    assert {
        "batch_sharpness/gni",
        "critical_point/search",
        "sharpness/midpoint",
        "noise/trace.0.weight",
    } <= writers.keys()


@pytest.mark.parametrize("kind", PROBES)
def test_a_probe_changes_nothing(kind: type[Probe]) -> None:
    once = measured(kind)
    (held, buffers, random), (w, state, then) = once.before, once.after
    assert w.equal(held)
    assert all(v.equal(buffers[k]) for k, v in state.items())
    assert then.equal(random)
    assert all(p.grad is None for p in once.model.parameters())
    assert all(module.training for module in once.model.modules())


@pytest.mark.parametrize("kind", PROBES)
def test_a_probe_whose_memory_is_restored_measures_the_same(kind: type[Probe]) -> None:
    once, second = measured(kind), kind()
    first = copy.deepcopy(once.probe)
    second.load_state_dict(first.state_dict())
    later = [probe.measure(snapshot(probe.rhythm, once.model, once.w + 0.01)) for probe in (first, second)]
    for tag, value in later[0].items():
        if isinstance(value, float) and not tag.endswith("seconds"):
            assert value == later[1][tag] or math.isnan(value)


def test_a_measurement_and_its_result_can_be_stored_and_a_snapshot_has_its_own_weights() -> None:
    x, y = torch.randn(120, 4, generator=torch.Generator().manual_seed(0)), torch.arange(120) % 3
    model = nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    here = lab.Bench(model, nn.functional.cross_entropy, (x, y), optimizer, batch_size=6).snapshot()
    for name in lab.MEASUREMENTS:
        measurement = pickle.loads(pickle.dumps(getattr(lab, name)))
        assert inspect.signature(measurement).parameters["w"].default is None
        with pytest.raises(SettingError, match="a snapshot has its own w"):
            measurement(here, torch.zeros(17))
        with pytest.raises(SettingError, match=rf"{name}\.every is the rhythm"):
            measurement(here, every=2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of so few products and batches
            result = measurement(here, **{key: value for key, value in MORE[name].items() if key != "midpoints"})
        stored = pickle.loads(pickle.dumps(result))
        assert stored.numbers().keys() == result.numbers().keys() and stored.sentence() == result.sentence()
        assert isinstance(result.figure(), Figure)
