"""Rhythm batch has its own landscape: the minima of single batches, seen from the weights of the run.

    w_b, w_full     where descent on the loss of a batch, and of all examples, leads from w
    spread          Tr Cov(w_b);   distance = rms |w_b - w_full|;   offset = |mean w_b - w_full|
    travelled       rms |w_b - w|;   moved = |w_full - w|
    gain, price     mean L_b(w_full) - L_b(w_b),   mean L(w_b) - L(w_full)
    leave_one_out   how far w_full moves when one example is left out, by influence

In a network that can fit its batches their minima are valleys, and w_b is where descent from w comes down into one. A
minimum is called reached where at most `SMALL`, a hundredth, of |g| at w is left: of all examples (`reached_full`), and of
the median batch (`reached`); elsewhere the words are of ends of descents only. Through BatchNorm with running statistics.
See `lab.noise.batch_minima` and `lab.noise.clusters`.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import Annotated, ClassVar, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lab.curvature.eigen import lanczos
from lab.curvature.operators import gauss_newton
from lab.noise.batch_minima import BatchLosses, BatchMinima, descend, draw_batches, leave_one_out, one_by_one
from lab.noise.clusters import Cloud, cloud, clusters
from lab.objective import NetworkObjective, Objective
from lab.probes.base import Memory, Plan, Probe, Snapshot, measures, quantities
from lab.probes.batch_landscape_figure import landscape_figure
from lab.probes.knobs import Count, Natural, ProbeSet, Rhythm, Several, knob
from lab.results import Result, finite
from lab.sampling import Sampling
from lab.settings import SettingError
from lab.settings import settings as card

FULL_BATCH = 32
"""Examples in a batch where training uses all of them in each step."""
POINTS = 11
"""Places on a segment where losses are taken."""
FIRST_STEP = 0.1
"""Learning rate of the first step of a descent where that of the run is not one number."""
SMALL = 0.01
"""Share of the gradient at the weights of the run that may be left at a minimum; residual of a solve that may be quoted."""


@card(frozen=False)
class BatchLandscape(Probe):
    """Rhythm batch has its own landscape: minima of single batches around that of all examples, and leave-one-out shifts.

    A batch has as many examples as the probe set only where batches are drawn with replacement: others would all be the
    same. The examples left out (`left_out` counts them) are the first of the probe set in a random order. Cost: steps x
    (batches x batch_size / examples + 1) gradients, 11 forward passes a batch for the segments, and up to max_matvecs
    products for each example left out. Memory: 5 x batches vectors (P,).
    """

    name: ClassVar[str] = "batch_landscape"
    auto: ClassVar[Mapping[str, float]] = {"every": 500}

    every: Annotated[Rhythm, knob("steps between measurements: n | auto: 500, more seldom where probe.budget asks")] = (
        "auto"
    )
    examples: ProbeSet = "auto"
    batches: Annotated[Several, knob("number of batches")] = 24
    batch_size: Annotated[
        Count | Literal["auto"],
        knob("examples in each | auto: as in training (32 where full), at most half of the probe set"),
    ] = "auto"
    steps: Annotated[Count, knob("descent steps on each batch, and on all examples")] = 100
    leave_out: Annotated[Natural, knob("examples left out in turn, where the minimum of all was reached; 0: none")] = 8
    damping: Annotated[float, knob("in top Gauss-Newton eigenvalues; flatter directions are not shifted", ge=0)] = 1e-3
    max_matvecs: Annotated[Count, knob("Gauss-Newton products allowed per example left out (1 to 2 gradients)")] = 100

    def require(self, plan: Plan) -> None:
        """Also where a probe set has no different batches of the size asked for."""
        super().require(plan)
        self.require_batches(plan.examples(self.examples), plan.sampling)

    def require_batches(self, num_examples: int, sampling: Sampling) -> None:
        """The same of a probe set of `num_examples`."""
        if num_examples < 2:
            raise SettingError("probe=[batch_landscape]: one training example has no batches; use two or more")
        most = num_examples if sampling == "with_replacement" else num_examples - 1
        if self.batch_size == "auto" or self.batch_size <= most:
            return
        what = "larger than" if self.batch_size > num_examples else "all of"
        why = "" if self.batch_size > num_examples else ", so that all batches are the same"
        raise SettingError(
            f"probe.batch_landscape.batch_size={self.batch_size} is {what} the probe set of {num_examples} examples{why}; "
            f"use at most {most}"
        )

    def expected_gradients(self, here: Snapshot, loss: Objective) -> float:
        """The descents, those of the batches at some three times the price of their gradients."""
        num = loss.num_examples or 1
        batch = min(here.batch_size or FULL_BATCH, num // 2) if self.batch_size == "auto" else self.batch_size
        return 4.0 * self.steps * (self.batches * batch / num + 1)

    def finding(self, values: dict[str, float]) -> str:
        return _words(quantities(self.name, values), self.batches, self.steps)


@dataclass(frozen=True)
class BatchLandscapeResult(Result):
    """Where the minima of single batches lie, or the ends of their descents, whether they cluster, and what they cost.

    quantities   by name, as above. spread is that of the w_b, which has `dimension` directions; pc1_share, pc2_share of its
                 variance; barrier of the loss of a batch on the way from w_full to w_b; gradient_left, gradient_left_full
                 the shares of |g| at w that are left. Empty where the weights are not finite.
    tensors      by name: minima (R, 2), start_and_full (2, 2) in the first two components, labels (R,) of clusters, shifts;
                 t (T,), along_batch, along_full (R, T) the losses along (1 - t) w_full + t w_b.
    batches, steps   as asked for.
    """

    quantities: Mapping[str, float]
    tensors: Mapping[str, Tensor] = field(repr=False)
    batches: int
    steps: int

    def numbers(self) -> dict[str, float]:
        return dict(self.quantities)

    def sentence(self) -> str:
        why = "descent leads nowhere from these weights" if self.quantities else "the weights are not finite"
        return _words(self.quantities, self.batches, self.steps) or f"Batch landscape: {why}."

    def figure(self, when: str = "") -> Figure:
        """The minima in their first two principal components, the losses along the segments, and how far things lie."""
        batches = f"{self.batches} batches of {self.quantities.get('batch_size', 0):.0f}"
        return landscape_figure(self.tensors, self.quantities, batches + when)

    def figures(self, when: str = "") -> dict[str, Figure]:
        return {"picture": self.figure(when)} if self.quantities else {}

    def arrays(self) -> dict[str, Tensor]:
        return dict(self.tensors)


@measures(BatchLandscape)
def batch_landscape(here: Snapshot, settings: BatchLandscape, memory: Memory) -> BatchLandscapeResult:
    """The minima of single batches of a network around that of all examples; batches of 32 where training has none.

    >>> x, y = torch.ones(4, 1), torch.tensor([[0.0], [2.0], [4.0], [6.0]])
    >>> loss = NetworkObjective(torch.nn.Linear(1, 1, bias=False), torch.nn.MSELoss(), (x, y))  # w_full = 3
    >>> round(batch_landscape(loss, leave_out=4, damping=0.0).numbers()["leave_one_out"], 4)  # 1, 1/3, 1/3, 1
    0.6667
    """
    loss, w = here.network(settings.examples, settings.name), here.w
    if not bool(w.isfinite().all()):
        return BatchLandscapeResult({}, {}, settings.batches, settings.steps)
    loss, num, draw = loss.with_running_statistics(), len(loss.x), here.stream("batch_landscape")
    settings.require_batches(num, here.sampling)
    auto = min(here.batch_size or FULL_BATCH, num // 2)
    batch_size = auto if settings.batch_size == "auto" else settings.batch_size
    losses = BatchLosses(loss, draw_batches(num, batch_size, settings.batches, here.sampling, draw))
    lr = rule.lr if (rule := here.rule) is not None and isinstance(rule.lr, float) and rule.lr > 0 else FIRST_STEP
    whole = descend(partial(one_by_one, repeat(loss)), w[None], steps=settings.steps, lr=lr)
    parts = descend(losses.value_and_grad, w.expand(settings.batches, -1), steps=settings.steps, lr=lr)
    full, points = whole.weights[0], cloud(parts.weights)
    groups = clusters(points, draw)
    tensors = _segments(loss, losses, full, parts.weights)
    numbers = _numbers(w, full, points, parts, tensors) | {
        "silhouette": groups.silhouette,
        "silhouette_null": groups.null,
        "clusters": float(groups.count),
        "gradient_left_full": float(whole.gradient_left),
        "reached_full": float(float(whole.gradient_left) <= SMALL),
        "batch_size": float(batch_size),
        "as_in_training": float(batch_size == here.batch_size),
        "left_out": 0.0,
    }
    if numbers["reached_full"]:
        shifted, shifts = _shifts(loss, w, full, settings, draw)
        numbers, tensors = numbers | shifted, shifts | tensors
    tensors |= {"minima": points.coordinates[:, :2], "labels": torch.tensor(groups.labels)}
    tensors["start_and_full"] = torch.stack([points.project(w), points.project(full)])
    return BatchLandscapeResult(numbers, tensors, settings.batches, settings.steps)


def _segments(loss: NetworkObjective, losses: BatchLosses, full: Tensor, minima: Tensor) -> dict[str, Tensor]:
    """t (T,), and the losses of the batch (R, T) and of all examples (R, T) along (1 - t) w_full + t w_b."""
    t = torch.linspace(0, 1, POINTS, dtype=minima.dtype, device=minima.device)
    places = [full + s * (minima - full) for s in t]
    batch = torch.stack([losses.value(W) for W in places], 1)
    whole = torch.stack([torch.stack([loss.value(w) for w in W]) for W in places], 1)
    return {"t": t.double(), "along_batch": batch.double(), "along_full": whole.double()}


def _numbers(
    w: Tensor, full: Tensor, points: Cloud, parts: BatchMinima, along: Mapping[str, Tensor]
) -> dict[str, float]:
    distances = torch.linalg.vector_norm((parts.weights - full).double(), dim=1)
    batch, whole = along["along_batch"], along["along_full"]
    barrier = batch.amax(1) - torch.maximum(batch[:, 0], batch[:, -1])
    gradient_left = float(parts.gradient_left.median())
    return {f"pc{i}_share": share for i, share in enumerate(points.shares.tolist()[:2], 1)} | {
        "spread": points.spread,
        "distance": float(distances.square().mean().sqrt()),
        "offset": float(torch.linalg.vector_norm((points.mean - full).double())),
        "moved": float(torch.linalg.vector_norm((full - w).double())),
        "travelled": float(torch.linalg.vector_norm((parts.weights - w).double(), dim=1).square().mean().sqrt()),
        "dimension": points.dimension,
        "gain": float((batch[:, 0] - batch[:, -1]).mean()),
        "price": float((whole[:, -1] - whole[:, 0]).mean()),
        "barrier": float(barrier.mean()),
        "gradient_left": gradient_left,
        "reached": float(gradient_left <= SMALL),
    }


def _shifts(
    loss: NetworkObjective, w: Tensor, full: Tensor, settings: BatchLandscape, draw: torch.Generator
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """How far the minimum of all examples moves for each one left out: numbers, and the lengths (n,) float64."""
    chosen = torch.randperm(len(loss.x), generator=draw)[: settings.leave_out].tolist()
    if not chosen:
        return {}, {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a unit for the damping: its first digits do
        top = float(lanczos(gauss_newton(loss, w), tol=0.05, max_matvecs=50, generator=draw).top.values[0])
    damping, most = settings.damping * max(top, 0.0), settings.max_matvecs
    each = [leave_one_out(loss, full, i, damping=damping, max_matvecs=most) for i in chosen]
    shifts = torch.tensor([float(torch.linalg.vector_norm(s.vector.double())) for s in each], dtype=torch.float64)
    return {
        "left_out": float(len(each)),
        "leave_one_out": float(shifts.mean()),
        "error/leave_one_out": float(shifts.std() / math.sqrt(len(shifts))) if len(shifts) > 1 else math.nan,
        "leave_one_out_residual": max(shift.residual for shift in each),
    }, {"shifts": shifts}


def _words(numbers: Mapping[str, float], batches: int, steps: int) -> str:
    """Where the minima lie, or the ends of descents, whether they cluster, what they cost; "" where nothing was measured."""
    numbers = finite(numbers)
    if "spread" not in numbers or not (numbers.get("travelled", 0) > 0 and numbers.get("moved", 0) > 0):
        return ""
    own, at_own = "has its own minimum", "at its own minimum"
    if not numbers["reached"]:
        own, at_own = f"leads elsewhere in {steps} descent steps", "where its own descent ends"
    whole, at_whole = "the minimum of all examples", "at the minimum of all"
    if not numbers["reached_full"]:
        whole, at_whole = f"where {steps} descent steps on all examples end", "where the descent on all ends"
    text = f"Each batch of {numbers['batch_size']:.0f} {own}"
    if not numbers["as_in_training"]:
        text += " (training draws none of this size: they were drawn for the measurement)"
    text += f": the {batches} lie {numbers['distance']:.2g} from {whole} and {numbers['travelled']:.2g} from "
    text += f"the run (root mean square){_shape(numbers)}"
    gain, price = numbers.get("gain", math.nan), numbers.get("price", math.nan)
    if gain > 0:
        text += f". The loss of a batch is {gain:.2g} lower {at_own} than {at_whole}"
    if price > 0:
        there = "at the minimum of a batch" if numbers["reached"] else "where the descent on a batch ends"
        text += f". The loss of all examples is {price:.2g} higher {there} than {at_whole}"
    if numbers["reached_full"] and numbers["left_out"] and numbers.get("leave_one_out_residual", math.inf) <= SMALL:
        text += f". Leaving one example out moves the minimum of all by {numbers['leave_one_out']:.2g}"
        text += f" (mean of {numbers['left_out']:.0f})" if numbers["left_out"] > 1 else ""
    for name, ending in (("a batch", ""), ("all", "_full")):
        if not numbers[f"reached{ending}"] and f"gradient_left{ending}" in numbers:
            text += (
                f". No minimum of {name} was reached: {numbers[f'gradient_left{ending}']:.1g} of its gradient is left"
            )
    return text + "."


def _shape(numbers: dict[str, float]) -> str:
    """How the points are spread, in words."""
    text = ""
    if "dimension" in numbers:
        directions = f"{numbers['dimension']:.0f}"
        text = f", spread over {directions} direction" + ("" if directions == "1" else "s")
    if "silhouette" in numbers:
        count, level, null = (numbers[name] for name in ("clusters", "silhouette", "silhouette_null"))
        shape = "one cloud" if count < 2 else f"{count:.0f} clusters"
        text += f" as {shape} (silhouette {level:.2g}, a Gaussian cloud up to {null:.2g})"
    return text
