"""The types that users see, checked by mypy in `make check` and never run. A wrong call is marked `type: ignore`, which mypy
reports where the call is right after all.
"""

from typing import assert_type

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lab import (
    BatchesObjective,
    Bench,
    NetworkObjective,
    batch_landscape,
    batch_sharpness,
    critical_point,
    escape,
    fisher,
    linear_stability,
    noise,
    sharpness,
    spectrum,
    watch,
)
from lab.callbacks import ProbeCallback
from lab.callbacks.watch import Watch
from lab.curvature.eigen import Extremes, lanczos
from lab.curvature.operators import Hessian, hessian
from lab.curvature.stability import UpdateRule
from lab.curvature.trace import hessian_trace
from lab.data.base import Dataset, Split
from lab.data.digits import Digits
from lab.landscapes.quadratic import Quadratic
from lab.models.losses import Criterion, CrossEntropy
from lab.models.mlp import Mlp
from lab.optim.optimizers import Sgd
from lab.optim.rules import rule_of
from lab.optim.schedules import Cosine
from lab.probes.batch_landscape import BatchLandscapeResult
from lab.probes.batch_sharpness import BatchSharpnessResult
from lab.probes.critical_point_result import CriticalPointResult
from lab.probes.escape import EscapeResult
from lab.probes.fisher_result import FisherResult
from lab.probes.linear_stability import LinearStabilityResult
from lab.probes.noise_result import NoiseResult
from lab.probes.sharpness_result import SharpnessResult
from lab.probes.spectrum import SpectrumResult
from lab.results import Eigenpairs, Estimate, Result


def cards() -> None:
    """A class of settings is a dataclass to a type checker: its knobs are keywords with their types."""
    digits = Digits(examples=500, classes=(0, 1), batch_size="full")
    assert_type(digits.subset_seed, int)
    assert_type(digits.load(), Dataset)
    assert_type(digits.load().train, Split)
    assert_type(digits.load().test, Split | None)
    assert_type(Mlp(widths=(32, 32), activation="gelu").build((64,), 10, 0), nn.Module)
    assert_type(CrossEntropy().build(10), Criterion)
    assert_type(Sgd(lr=0.1, momentum=0.9).build([]), torch.optim.SGD)
    assert_type(Cosine(final=0.1).factor(3, 100), float)
    Sgd(rate=0.1)  # type: ignore[call-arg]
    Sgd(0.1)  # type: ignore[call-arg]
    Mlp(activation="cosine")  # type: ignore[arg-type]
    Cosine().final = 0.5  # type: ignore[misc]


def measurements(model: nn.Module, criterion: Criterion, x: Tensor, y: Tensor) -> None:
    """From a network to its curvature."""
    objective = NetworkObjective(model, criterion, (x, y))
    assert_type(objective.grad(objective.weights), Tensor)
    H = hessian(objective, objective.weights)
    assert_type(H, Hessian)
    ends = lanczos(H, top=3, generator=torch.Generator())
    assert_type(ends, Extremes)
    assert_type(ends.top, Eigenpairs)
    assert_type(ends.top.values, Tensor)
    assert_type(ends.top.converged, bool)
    assert_type(hessian_trace(objective, objective.weights, generator=torch.Generator()), Estimate)
    assert_type(Quadratic((3.0, 1.0)).value(torch.ones(2)), Tensor)


def results(objective: NetworkObjective, bench: Bench) -> None:
    """Every measurement has a result of its own, of an objective and of a snapshot."""
    assert_type(sharpness(objective, k=3), SharpnessResult)
    assert_type(sharpness(bench.snapshot()), SharpnessResult)
    assert_type(spectrum(objective), SpectrumResult)
    assert_type(noise(objective), NoiseResult)
    assert_type(batch_sharpness(objective), BatchSharpnessResult)
    assert_type(fisher(objective), FisherResult)
    assert_type(linear_stability(objective), LinearStabilityResult)
    assert_type(batch_landscape(objective), BatchLandscapeResult)
    assert_type(critical_point(objective), CriticalPointResult)
    assert_type(escape(bench.snapshot()), EscapeResult)
    result: Result = spectrum(objective)
    assert_type(result.numbers(), dict[str, float])
    assert_type(result.sentence(), str)
    assert_type(result.figure(), Figure)
    assert_type(result.arrays(), dict[str, Tensor])


def training(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """What joins a training of one's own."""
    assert_type(rule_of([optimizer], model.parameters()), UpdateRule)
    ProbeCallback([], nn.CrossEntropyLoss(), (x, y))
    ProbeCallback([], None, [{"x": x, "labels": y}], weight="tokens")
    Bench(model, None, [{"x": x}], optimizer, forward=lambda model, batch: model(batch["x"]))
    assert_type(BatchesObjective(model, None, [{"x": x}]).grad(x), Tensor)
    assert_type(sharpness(BatchesObjective(model, None, [{"x": x}])), SharpnessResult)
    seen = watch(model, nn.CrossEntropyLoss(), (x, y), optimizer, probes=["sharpness"], batch_size="full")
    assert_type(seen, Watch)
    with seen.step(nn.functional.cross_entropy(model(x), y)):
        optimizer.step()
    watch(model, None, [{"x": x}], [optimizer], steps="all")  # type: ignore[arg-type]
