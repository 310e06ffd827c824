"""Every batch has its own landscape: the minima of single batches, seen from the weights of the run.

    w_b, w_full     where descent on the loss of a batch, and of all examples, leads from w
    spread          Tr Cov(w_b);   distance = rms |w_b - w_full|;   offset = |mean w_b - w_full|
    travelled       rms |w_b - w|;   moved = |w_full - w|
    gain, price     mean L_b(w_full) - L_b(w_b),   mean L(w_b) - L(w_full)
    leave_one_out   how far w_full moves when one example is left out, by influence

`lab.noise.batch_landscape`. In a network that can fit its batches their minima are valleys, and w_b is where descent from w
comes down into one. A minimum is called reached where at most `SMALL`, a hundredth, of |g| at w is left: of all examples
(`reached_full`), and of the median batch (`reached`). Elsewhere only ends of descents are spoken of. Through BatchNorm with
running statistics.
"""

import math
import warnings
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as card
from torch import Tensor

from lab.curvature.eigen import lanczos
from lab.curvature.operators import gauss_newton
from lab.curvature.stability import UpdateRule
from lab.noise.batch_landscape import (
    BatchLosses,
    Cloud,
    Clusters,
    Descent,
    Shift,
    WholeLoss,
    cloud,
    clusters,
    descend,
    draw_batches,
    leave_one_out,
)
from lab.objective import NetworkObjective
from lab.probes.base import Probe, Snapshot, Value
from lab.probes.bench import AUTO_ALL, AUTO_EXAMPLES
from lab.sampling import Sampling
from lab.settings import CARD, SettingError
from lab.streams import stream

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FULL_BATCH = 32
"""Examples in a batch where training uses all of them in each step."""
POINTS = 11
"""Places on a segment where losses are taken."""
FIRST_STEP = 0.1
"""Learning rate of the first step of a descent where that of the run is not one number."""


SMALL = 0.01
"""Share of the gradient at the weights of the run that may be left at a minimum; residual of a solve that may be quoted."""


@dataclass(frozen=True)
class _Segments:
    """Losses along (1 - t) w_full + t w_b: t (T,), of the batch (R, T) and of all examples (R, T)."""

    t: Tensor
    batch: Tensor
    full: Tensor


@card(kw_only=True, config=CARD)
class BatchLandscape(Probe):
    """Minima of single batches around that of all examples, every `every` steps.

    every       steps between measurements.
    examples    size of the fixed, class-balanced probe set that batches are drawn from; all; auto (all up to 5000, else
                2000).
    batches     number of batches.
    batch_size  examples in each; auto: as in training, 32 where training uses all, at most half of the probe set. As many
                as the probe set only where batches are drawn with replacement: the others would all be the same.
    steps       descent steps on each batch, and on all examples.
    leave_out   examples left out in turn, the first of the probe set in a random order; 0: none. Every one where the set has
                fewer (`left_out` counts them), none where the minimum of all was not reached (`reached_full` is 0).
    damping     in units of the largest Gauss-Newton eigenvalue at the weights of the run: along directions flatter than
                this nothing is shifted.
    max_matvecs Gauss-Newton products allowed per example left out.
    Cost: steps x (batches x batch_size / examples + 1) gradients, 11 forward passes a batch for the segments, and up to
    max_matvecs products of 1 to 2 gradients for each example left out. Memory: 5 x batches vectors (P,).
    """

    name: ClassVar[str] = "batch_landscape"

    every: Annotated[int, Field(gt=0)] = 500
    examples: Annotated[int, Field(gt=1)] | Literal["all", "auto"] = "auto"
    batches: Annotated[int, Field(gt=1)] = 24
    batch_size: Annotated[int, Field(gt=0)] | Literal["auto"] = "auto"
    steps: Annotated[int, Field(gt=0)] = 100
    leave_out: Annotated[int, Field(ge=0)] = 8
    damping: Annotated[float, Field(ge=0)] = 1e-3
    max_matvecs: Annotated[int, Field(gt=0)] = 100

    def measure(self, snapshot: Snapshot) -> dict[str, Value]:
        """The tags batch_landscape/*, error/batch_landscape/*, cost/batch_landscape/seconds, arrays, and a figure."""
        begin = perf_counter()
        loss = snapshot.loss_on(self.examples)
        if not isinstance(loss, NetworkObjective):
            raise SettingError(f"probe=[batch_landscape]: {type(loss).__name__} has no examples; it measures networks")
        values: dict[str, Value] = {}
        if bool(snapshot.w.isfinite().all()):
            values = self._of(loss.with_running_statistics(), snapshot)
        values["cost/batch_landscape/seconds"] = perf_counter() - begin
        return values

    def _of(self, loss: NetworkObjective, snapshot: Snapshot) -> dict[str, Value]:
        self.require_batches(len(loss.x), snapshot.sampling)
        w, draw = snapshot.w, stream(snapshot.seed, "batch_landscape", snapshot.step)
        batch_size, lr = self._batch_size(len(loss.x), snapshot), _first_step(snapshot.rule)
        index = draw_batches(len(loss.x), batch_size, self.batches, snapshot.sampling, draw)
        losses = BatchLosses(loss, index)
        whole = descend(WholeLoss(loss), w[None], steps=self.steps, lr=lr)
        parts = descend(losses, w.expand(self.batches, -1), steps=self.steps, lr=lr)
        full, points = whole.weights[0], cloud(parts.weights)
        groups = clusters(points, draw)
        along = _segments(loss, losses, full, parts.weights)
        numbers = _numbers(w, full, points, groups, parts, along)
        numbers |= {"gradient_left_full": float(whole.gradient_left), "batch_size": float(batch_size)}
        numbers["as_in_training"] = float(batch_size == snapshot.batch_size)
        numbers["reached"] = float(numbers["gradient_left"] <= SMALL)
        numbers["reached_full"] = float(numbers["gradient_left_full"] <= SMALL)
        found = self._shifts(loss, w, full, draw) if numbers["reached_full"] else []
        shifts = torch.tensor([float(torch.linalg.vector_norm(s.vector.double())) for s in found], dtype=torch.float64)
        numbers["left_out"] = float(len(found))
        values: dict[str, Value] = {}
        if found:
            numbers["leave_one_out"] = float(shifts.mean())
            numbers["leave_one_out_residual"] = max(shift.residual for shift in found)
            values["batch_landscape/shifts"] = shifts
            error = float(shifts.std() / math.sqrt(len(shifts))) if len(shifts) > 1 else math.nan
            values["error/batch_landscape/leave_one_out"] = error
        values |= {f"batch_landscape/{name}": number for name, number in numbers.items()}
        places = torch.stack([points.project(w), points.project(full)])
        arrays = {"minima": points.coordinates[:, :2], "start_and_full": places, "labels": torch.tensor(groups.labels)}
        arrays |= {"t": along.t, "along_batch": along.batch, "along_full": along.full}
        values |= {f"batch_landscape/{name}": array for name, array in arrays.items()}
        title = f"{self.batches} batches of {batch_size}, step {snapshot.step}"
        values["batch_landscape/picture"] = _picture(points, groups, places, along, shifts, numbers, title)
        return values

    def set_size(self, num_train: int) -> int:
        """Examples in the probe set out of `num_train`."""
        if self.examples == "auto":
            return num_train if num_train <= AUTO_ALL else AUTO_EXAMPLES
        return num_train if self.examples == "all" else min(self.examples, num_train)

    def require_batches(self, num_examples: int, sampling: Sampling) -> None:
        """Raise SettingError where a probe set of `num_examples` has no different batches of the size asked for."""
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

    def _batch_size(self, num: int, snapshot: Snapshot) -> int:
        """Examples in a batch out of a probe set of `num`."""
        if self.batch_size == "auto":
            return min(snapshot.batch_size or FULL_BATCH, num // 2)
        return self.batch_size

    def _shifts(self, loss: NetworkObjective, w: Tensor, full: Tensor, draw: torch.Generator) -> list[Shift]:
        """The shift of w_full for each example left out."""
        chosen = torch.randperm(len(loss.x), generator=draw)[: self.leave_out].tolist()
        if not chosen:
            return []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a unit for the damping: its first digits do
            top = float(lanczos(gauss_newton(loss, w), tol=0.05, max_matvecs=50, generator=draw).top.values[0])
        damping = self.damping * max(top, 0.0)
        return [leave_one_out(loss, full, i, damping=damping, max_matvecs=self.max_matvecs) for i in chosen]

    def finding(self, values: dict[str, float]) -> str:
        """Where the minima of single batches lie, or the ends of their descents, whether they cluster, what they cost."""
        of = {tag.removeprefix("batch_landscape/"): v for tag, v in values.items()}
        if "spread" not in of or not (of["travelled"] > 0 and of["moved"] > 0):
            return ""
        own, at_own = "has its own minimum", "at its own minimum"
        if not of["reached"]:
            own, at_own = f"leads elsewhere in {self.steps} descent steps", "where its own descent ends"
        whole, at_whole = "the minimum of all examples", "at the minimum of all"
        if not of["reached_full"]:
            whole, at_whole = f"where {self.steps} descent steps on all examples end", "where the descent on all ends"
        text = f"Each batch of {of['batch_size']:.0f} {own}"
        if not of["as_in_training"]:
            text += " (training draws none of this size: they were drawn for the measurement)"
        text += f": the {self.batches} lie {of['distance']:.2g} from {whole} and {of['travelled']:.2g} from "
        text += f"the run (root mean square){_shape(of)}"
        gain, price = of.get("gain", math.nan), of.get("price", math.nan)
        if gain > 0:
            text += f". The loss of a batch is {gain:.2g} lower {at_own} than {at_whole}"
        if price > 0:
            there = "at the minimum of a batch" if of["reached"] else "where the descent on a batch ends"
            text += f". The loss of all examples is {price:.2g} higher {there} than {at_whole}"
        if of["reached_full"] and of["left_out"] and of.get("leave_one_out_residual", math.inf) <= SMALL:
            text += f". Leaving one example out moves the minimum of all by {of['leave_one_out']:.2g}"
            text += f" (mean of {of['left_out']:.0f})" if of["left_out"] > 1 else ""
        for name, reached, left in (
            ("a batch", "reached", "gradient_left"),
            ("all", "reached_full", "gradient_left_full"),
        ):
            if not of[reached] and left in of:
                text += f". No minimum of {name} was reached: {of[left]:.1g} of its gradient is left"
        return text + "."


def _shape(of: dict[str, float]) -> str:
    """How the points are spread, in words."""
    text = ""
    if "dimension" in of:
        directions = f"{of['dimension']:.0f}"
        text = f", spread over {directions} direction" + ("" if directions == "1" else "s")
    if "silhouette" in of:
        shape = "one cloud" if of["clusters"] < 2 else f"{of['clusters']:.0f} clusters"
        text += f" as {shape} (silhouette {of['silhouette']:.2g}, a Gaussian cloud up to {of['silhouette_null']:.2g})"
    return text


def _first_step(rule: UpdateRule | None) -> float:
    """The learning rate of the run where it is one positive number."""
    return rule.lr if rule is not None and isinstance(rule.lr, float) and rule.lr > 0 else FIRST_STEP


def _segments(loss: NetworkObjective, losses: BatchLosses, full: Tensor, minima: Tensor) -> _Segments:
    """Losses along the segments from w_full to every w_b."""
    t = torch.linspace(0, 1, POINTS, dtype=minima.dtype, device=minima.device)
    places = [full + s * (minima - full) for s in t]
    batch = torch.stack([losses.value(W) for W in places], 1)
    whole = torch.stack([torch.stack([loss.value(w) for w in W]) for W in places], 1)
    return _Segments(t.double(), batch.double(), whole.double())


def _numbers(
    w: Tensor, full: Tensor, points: Cloud, groups: Clusters, parts: Descent, along: _Segments
) -> dict[str, float]:
    distances = torch.linalg.vector_norm((parts.weights - full).double(), dim=1)
    shares = points.shares.tolist()
    numbers = {f"pc{i}_share": share for i, share in enumerate(shares[:2], 1)}
    barrier = along.batch.amax(1) - torch.maximum(along.batch[:, 0], along.batch[:, -1])
    return numbers | {
        "spread": points.spread,
        "distance": float(distances.square().mean().sqrt()),
        "offset": float(torch.linalg.vector_norm((points.mean - full).double())),
        "moved": float(torch.linalg.vector_norm((full - w).double())),
        "travelled": float(torch.linalg.vector_norm((parts.weights - w).double(), dim=1).square().mean().sqrt()),
        "dimension": points.dimension,
        "silhouette": groups.silhouette,
        "silhouette_null": groups.null,
        "clusters": float(groups.count),
        "gain": float((along.batch[:, 0] - along.batch[:, -1]).mean()),
        "price": float((along.full[:, -1] - along.full[:, 0]).mean()),
        "barrier": float(barrier.mean()),
        "gradient_left": float(parts.gradient_left.median()),
    }


def _picture(
    points: Cloud,
    groups: Clusters,
    places: Tensor,
    along: _Segments,
    shifts: Tensor,
    numbers: dict[str, float],
    title: str,
) -> "Figure":
    """The minima in their first two principal components, the losses along the segments, and how far things lie."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    figure.suptitle(title)
    one, ends = ("minimum", "minima") if numbers["reached"] else ("end of descent", "ends of descents")
    end = "minimum" if numbers["reached_full"] else "end of descent"
    left, middle, right = figure.subplots(1, 3, width_ratios=(4, 4, 3))
    xy = torch.nn.functional.pad(points.coordinates[:, :2], (0, max(0, 2 - points.coordinates.shape[1]))).cpu()
    start, full = torch.nn.functional.pad(places, (0, 2 - places.shape[1])).cpu().tolist()
    colours = [f"C{label - 1}" for label in groups.labels] if groups.count > 1 else "C0"
    left.scatter(xy[:, 0], xy[:, 1], c=colours, s=28, label=f"{ends} of batches")
    off = math.sqrt(max(0.0, numbers["offset"] ** 2 - math.hypot(*full) ** 2))
    left.plot(*full, "*", color="tab:red", ms=15, label=f"{end} of all ({off:.2g} off this plane)")
    left.plot(*start, "s", color="0.3", ms=7, label="weights of the run")
    left.plot(0, 0, "+", color="k", ms=12, mew=2, label=f"mean of the {ends}")
    shares = [numbers.get(f"pc{i}_share", math.nan) for i in (1, 2)]
    names = [f"component {i} (weights; {share:.0%} of the variance)" for i, share in enumerate(shares, 1)]
    left.set(xlabel=names[0], ylabel=names[1])
    t, colors = along.t.cpu(), ("tab:blue", "tab:red")
    for losses, color, label in zip((along.batch, along.full), colors, ("its own loss", "loss of all"), strict=True):
        losses = losses.cpu()
        low, high = losses.quantile(0.1, 0), losses.quantile(0.9, 0)
        middle.plot(t, losses.mean(0), color=color, marker=".", label=f"{label}: mean over batches")
        middle.fill_between(t, low, high, color=color, alpha=0.15, lw=0, label="10 to 90 % of them")
    middle.set(xlabel=f"from the {end} of all (0) to the {one} of a batch (1)", ylabel="loss")
    kinds = {
        f"{end} of all,\none example out": shifts.cpu().tolist(),
        f"{end} of all,\nmean of the {ends}": [numbers["offset"]],
        f"{end} of all,\n{one} of a batch": [numbers["distance"]],
        f"{end} of all,\nthe run": [numbers["moved"]],
        f"{one} of a batch,\nthe run": [numbers["travelled"]],
    }
    kinds = {name: [v for v in lengths if v > 0] for name, lengths in kinds.items()}
    kinds = {name: lengths for name, lengths in kinds.items() if lengths}
    for place, lengths in enumerate(kinds.values()):
        right.plot(lengths, [place] * len(lengths), "o", color="C0", alpha=0.7)
    right.set_yticks(range(len(kinds)), list(kinds), fontsize=8)
    right.set(xlabel="distance (weights)", xscale="log", ylim=(len(kinds) - 0.5, -0.5))
    for axis in (left, middle, right):
        axis.grid(alpha=0.25)
    for axis in (left, middle):
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize=8)
    return figure
