"""The picture of `lab.probes.batch_landscape`, from its arrays and numbers."""

import math
from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import pad


def landscape_figure(tensors: Mapping[str, Tensor], quantities: Mapping[str, float], title: str) -> Figure:
    """The minima in a plane, the losses on the way to them, and how far things lie; empty where nothing was measured."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    if not quantities:
        return figure
    figure.suptitle(title)
    one, ends = ("minimum", "minima") if quantities["reached"] else ("end of descent", "ends of descents")
    end = "minimum" if quantities["reached_full"] else "end of descent"
    left, middle, right = figure.subplots(1, 3, width_ratios=(4, 4, 3))
    _draw_cloud(left, tensors, quantities, end, ends)
    _draw_losses(middle, tensors)
    middle.set(xlabel=f"from the {end} of all (0) to the {one} of a batch (1)", ylabel="loss")
    _draw_distances(right, tensors, quantities, end, one, ends)
    for axis in (left, middle, right):
        axis.grid(alpha=0.25)
    for axis in (left, middle):
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize=8)
    return figure


def _draw_cloud(
    axis: Axes, tensors: Mapping[str, Tensor], quantities: Mapping[str, float], end: str, ends: str
) -> None:
    """The minima, the run and the minimum of all in the first two components, colored by cluster."""
    xy, places = (pad(tensors[name], (0, 2 - tensors[name].shape[1])).cpu() for name in ("minima", "start_and_full"))
    start, full = places.tolist()
    colors = [f"C{label - 1}" for label in tensors["labels"].tolist()] if quantities["clusters"] > 1 else "C0"
    axis.scatter(xy[:, 0], xy[:, 1], c=colors, s=28, label=f"{ends} of batches")
    off = math.sqrt(max(0.0, quantities["offset"] ** 2 - math.hypot(*full) ** 2))
    axis.plot(*full, "*", color="tab:red", ms=15, label=f"{end} of all ({off:.2g} off this plane)")
    axis.plot(*start, "s", color="0.3", ms=7, label="weights of the run")
    axis.plot(0, 0, "+", color="k", ms=12, mew=2, label=f"mean of the {ends}")
    shares = [quantities.get(f"pc{i}_share", math.nan) for i in (1, 2)]
    names = [f"component {i} (weights; {share:.0%} of the variance)" for i, share in enumerate(shares, 1)]
    axis.set(xlabel=names[0], ylabel=names[1])


def _draw_losses(axis: Axes, tensors: Mapping[str, Tensor]) -> None:
    """The losses along the segments: mean over batches, and where 80 % of them are."""
    t = tensors["t"].cpu()
    for name, color, label in (("along_batch", "tab:blue", "its own loss"), ("along_full", "tab:red", "loss of all")):
        losses = tensors[name].cpu()
        low, high = losses.quantile(0.1, 0), losses.quantile(0.9, 0)
        axis.plot(t, losses.mean(0), color=color, marker=".", label=f"{label}: mean over batches")
        axis.fill_between(t, low, high, color=color, alpha=0.15, lw=0, label="10 to 90 % of them")


def _draw_distances(
    axis: Axes, tensors: Mapping[str, Tensor], quantities: Mapping[str, float], end: str, one: str, ends: str
) -> None:
    """How far things lie from each other, those that lie apart."""
    kinds = {
        f"{end} of all,\none example out": tensors["shifts"].tolist() if "shifts" in tensors else [],
        f"{end} of all,\nmean of the {ends}": [quantities["offset"]],
        f"{end} of all,\n{one} of a batch": [quantities["distance"]],
        f"{end} of all,\nthe run": [quantities["moved"]],
        f"{one} of a batch,\nthe run": [quantities["travelled"]],
    }
    kinds = {name: apart for name, lengths in kinds.items() if (apart := [v for v in lengths if v > 0])}
    for place, lengths in enumerate(kinds.values()):
        axis.plot(lengths, [place] * len(lengths), "o", color="C0", alpha=0.7)
    axis.set_yticks(range(len(kinds)), list(kinds), fontsize=8)
    axis.set(xlabel="distance (weights)", xscale="log", ylim=(len(kinds) - 0.5, -0.5))
