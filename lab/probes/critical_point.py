"""Is this a critical point, and of which kind? Gradient first, then index and nullity of the Hessian.

    index     number of negative eigenvalues of H          nullity    of those that are not told from zero

`lab.points.critical` says what counts as critical and as zero, `lab.points.finding` how the nearest critical point is found
from weights that are none, as those of a run are. Index against loss, the figure of Dauphin et al. 2014 (arXiv
1406.2572), comes from several measurements: of one run, or of several checkpoints given to `lab.measure`. Everything is
computed in float64; coupled weight decay c adds c/2 |w|^2 to the loss, as it does in training.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lab import results
from lab.objective import Decayed, Objective
from lab.points.critical import classify
from lab.points.finding import Found, find_critical
from lab.probes.base import Every, Memory, Positive, Probe, ProbeSet, Snapshot, measures, quantities
from lab.results import Result
from lab.settings import settings as card
from lab.streams import stream

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = ("not critical", "minimum", "saddle", "maximum", "degenerate", "undetermined")
"""The classes; critical_point/kind is the place of one in this list."""
ENDS = ("zero", "stuck", "rounding", "unfinished")
"""How a search can end; critical_point/search is the place of one in this list."""
COLORS = ("0.6", "tab:blue", "tab:red", "tab:purple", "tab:orange", "tab:olive")


@dataclass(frozen=True)
class Point:
    """A dot of the figure of index against loss; kind as the tag `kind`, exact 0 where the index is a lower bound."""

    loss: float
    fraction: float
    kind: float
    exact: float


@card(frozen=False)
class CriticalPoint(Probe):
    """Is the point a critical point of the loss, and of which kind? Gradient, index and nullity of the Hessian.

    `kind` is 0 not critical, 1 minimum, 2 saddle, 3 maximum, 4 degenerate, 5 undetermined; `search` 0 found, 1 at a minimum
    of |g| that is no zero, 2 at the round-off of such a place, 3 out of iterations or products. Where the point is not
    critical, index and nullity are those of the Hessian there. Cost: in cost/critical_point/matvecs.
    """

    name: ClassVar[str] = "critical_point"

    every: Every = 500
    examples: ProbeSet = "auto"
    gradient_tol: Annotated[Positive, Field(description="|g| above it: no critical point; a search goes so far")] = 1e-8
    tol: Annotated[
        float, Field(gt=0, lt=1, description="eigenvalues within tol x the largest |eigenvalue| count as zero")
    ] = 1e-4
    dense: Annotated[
        int, Field(ge=0, description="up to so many weights every eigenvalue, at one product a weight; beyond, Lanczos")
    ] = 500
    max_matvecs: Annotated[
        int, Field(ge=2, description="Hessian products for Lanczos; too few: the index is a lower bound")
    ] = 400
    find: Annotated[bool, Field(description="first look for the critical point nearby, by Newton steps")] = False
    max_iterations: Annotated[int, Field(gt=0, description="of that search")] = 100
    search_matvecs: Annotated[int, Field(gt=0, description="Hessian products of that search")] = 5000

    def finding(self, values: dict[str, float]) -> str:
        return _words(quantities(self.name, values), self)


@dataclass(frozen=True)
class CriticalPointResult(Result):
    """The point of the loss, classified, and the search that found it.

    point   None where the weights or the loss there are not finite.
    search  from the weights `moved` away; None where none was asked for.
    past    the points of the run by step, (4,) each: loss, index fraction, place of the kind in KINDS, index exact.
    """

    point: results.CriticalPoint | None
    search: Found | None
    moved: float
    settings: CriticalPoint
    past: Memory = field(repr=False)

    def numbers(self) -> dict[str, float]:
        point, search = self.point, self.search
        if point is None:
            return {}
        low, high = int(point.values.argmin()), int(point.values.argmax())
        searched = dict[str, float]()
        if search is not None:
            reason = float(ENDS.index(search.reason))
            searched = {"search": reason, "moved": self.moved, "search_alignment": search.alignment}
        return searched | {
            "kind": float(KINDS.index(point.kind)),
            "loss": point.value,
            "grad_norm": point.grad_norm,
            "gain": point.gain,
            "index": float(point.index),
            "index_fraction": point.index_fraction,
            "index_exact": float(point.index_exact),
            "nullity": float(point.nullity),
            "nullity_exact": float(point.nullity_exact),
            "lambda_min": float(point.values[low]),
            "lambda_max": float(point.values[high]),
            "error/lambda_min": float(point.errors[low]),
            "error/lambda_max": float(point.errors[high]),
        }

    def sentence(self) -> str:
        return _words(self.numbers(), self.settings)

    def figure(self, when: str = "") -> "Figure":
        """The known eigenvalues in order, with error bars, and the band that is not told from zero."""
        if self.point is None:
            raise ValueError("the weights are not finite: there is no point to draw")
        return eigenvalue_figure(self.point, when.removeprefix(", "))

    def figures(self, when: str = "") -> "dict[str, Figure]":
        if self.point is None:
            return {}
        dots = [Point(*dot.tolist()) for dot in self.past.values()]
        several = {"index_against_loss": index_against_loss(dots, f"{len(dots)} points of the run")}
        return (several if len(dots) > 1 else {}) | {"eigenvalues": self.figure(when)}

    def arrays(self) -> dict[str, Tensor]:
        return {} if self.point is None else {"hessian_eigenvalues": self.point.values}

    def costs(self) -> dict[str, float]:
        if self.point is None:
            return {}
        searched = {} if self.search is None else {"search_matvecs": float(self.search.matvecs)}
        return searched | {"matvecs": float(self.point.matvecs)}

    def memory(self) -> Memory:
        return self.past


@measures(CriticalPoint)
def critical_point(here: Snapshot, settings: CriticalPoint, memory: Memory) -> CriticalPointResult:
    """What the point is where training stands, or the critical point that is found from there.

    >>> from lab.landscapes.saddle import Saddle
    >>> result = critical_point(Saddle(), torch.zeros(2))
    >>> result.point.kind, result.point.index
    ('saddle', 1)
    """
    w, loss, search = here.w.double(), _loss(here, settings), None
    past = {step: dot.cpu() for step, dot in memory.items()}
    try:
        if settings.find:
            search = find_critical(
                loss,
                w,
                tol=settings.gradient_tol,
                max_iterations=settings.max_iterations,
                max_matvecs=settings.search_matvecs,
            )
        point = classify(
            loss,
            w if search is None else search.w,
            gradient_tol=settings.gradient_tol,
            tol=settings.tol,
            dense=settings.dense,
            max_matvecs=settings.max_matvecs,
            generator=stream(here.seed, "critical_point", here.step),
        )
    except ValueError as error:
        if "not finite" not in str(error):
            raise
        return CriticalPointResult(None, None, math.nan, settings, past)  # a diverged run
    moved = math.nan if search is None else float((search.w - w).norm())
    dot = [point.value, point.index_fraction, KINDS.index(point.kind), point.index_exact]
    past[str(here.step)] = torch.tensor(dot, dtype=torch.float64)
    return CriticalPointResult(point, search, moved, settings, past)


def _loss(here: Snapshot, settings: CriticalPoint) -> Objective:
    """What training descends on the probe set: with the weight decay that joins the gradient."""
    loss, rule = here.loss_on(settings.examples), here.rule
    decay = 0.0 if rule is None or isinstance(rule.coupled_decay, Tensor) else rule.coupled_decay
    return Decayed(loss, decay) if decay else loss


def _words(numbers: Mapping[str, float], settings: CriticalPoint) -> str:
    """What the point is, and what the search for it came to."""
    if "kind" not in numbers:
        return ""
    of = numbers
    kind, searched = KINDS[int(of["kind"])], f"{_searched(of, settings)}; " if "search" in of else ""
    size = f"|g| = {of['grad_norm']:.2g}, loss {of['loss']:.6g}"
    if kind == "not critical":
        above = of["grad_norm"] > settings.gradient_tol
        plateau = "a plateau: following the gradient would still change the loss"
        why = f"|g| > {settings.gradient_tol:g}" if above else plateau
        here = f"Critical point: {searched}no critical point there" if searched else "No critical point here"
        text = f"{here} ({size}; {why}). The Hessian has "
    else:
        text = f"Critical point: {searched}the point is {_article(kind)} ({size}), with "
    index = f"{'' if of['index_exact'] else 'at least '}{of['index']:.0f}"
    share = f" ({100 * of['index_fraction']:.2g} % of all)" if of["index"] else ""
    null = f"{'' if of['nullity_exact'] else 'at least '}{of['nullity']:.0f}"
    null = null if of["nullity_exact"] or of["nullity"] else "an unknown number"
    ends = f"they go from {of['lambda_min']:.4g} +- {of['error/lambda_min']:.1g} to {of['lambda_max']:.4g}"
    return f"{text}{index} negative {_eigenvalues(of['index'])}{share} and {null} not told from zero; {ends}."


def _searched(of: Mapping[str, float], settings: CriticalPoint) -> str:
    """How the search ended, in words."""
    far = f"{of['moved']:.2g} away"
    flat = f"|Hg|/(|H||g|) = {of['search_alignment']:.1g}"
    return {
        "zero": f"searched from these weights, found {far}",
        "stuck": f"NONE was found from these weights: the search ended {far} near a minimum of |g| that is no zero, "
        f"where the gradient tends into the null space of the Hessian ({flat})",
        "rounding": f"NONE was found from these weights: {far} |g| falls no more at the precision of float64",
        "unfinished": f"NONE was found from these weights in {settings.max_iterations} iterations and "
        f"{settings.search_matvecs} products; raise probe.critical_point.max_iterations or search_matvecs",
    }[ENDS[int(of["search"])]]


def _eigenvalues(count: float) -> str:
    return "eigenvalue" if count == 1 else "eigenvalues"


def _article(kind: str) -> str:
    words = {
        "degenerate": "degenerate (zero eigenvalues and no opposite signs: the Hessian does not decide)",
        "undetermined": "of undetermined kind (too few products; raise probe.critical_point.max_matvecs)",
    }
    return words.get(kind, f"a {kind}")


def index_against_loss(points: Sequence[Point], title: str) -> "Figure":
    """Share of negative eigenvalues against the loss, a dot for every point; hollow where it is not critical."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axis = figure.subplots()
    for code, (kind, color) in enumerate(zip(KINDS, COLORS, strict=True)):
        for exact, marker, told in ((True, "o", ""), (False, "^", " (at least)")):
            mine = [p for p in points if p.kind == code and p.exact == exact]
            face = color if code else "none"
            if mine:
                places = [p.loss for p in mine], [100 * p.fraction for p in mine]
                axis.plot(*places, marker, color=color, mfc=face, ms=6, alpha=0.8, label=kind + told)
    if all(p.loss > 0 for p in points) and max(p.loss for p in points) > 10 * min(p.loss for p in points):
        axis.set_xscale("log")
    axis.set(xlabel="loss", ylabel="negative eigenvalues (% of all)")
    axis.set_title(f"index against loss, {title}", fontsize=11)
    top = max(100 * p.fraction for p in points) or 1.0
    axis.set_ylim(-0.03 * top, 1.05 * top)
    axis.grid(alpha=0.25)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def eigenvalue_figure(point: results.CriticalPoint, title: str) -> "Figure":
    """The known eigenvalues in order, with error bars, and the band that is not told from zero."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axis, count = figure.subplots(), len(point.values)
    every = count == point.vectors.shape[0]
    _draw_eigenvalues(axis, point, every)
    told = "all" if every else f"the {count} known of {point.vectors.shape[0]}"
    index = f"index {'' if point.index_exact else '>= '}{point.index}"
    null = f"nullity {'' if point.nullity_exact else '>= '}{point.nullity}"
    axis.set(xlabel=f"rank ({told} eigenvalues, ascending)", ylabel="eigenvalue of the Hessian")
    axis.set_title(f"{title}: {point.kind}, {index}, {null}", fontsize=11)
    axis.locator_params(axis="x", integer=True)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def _draw_eigenvalues(axis: "Axes", point: results.CriticalPoint, every: bool) -> None:
    values, ranks = point.values.cpu(), torch.arange(1, len(point.values) + 1)
    groups = (
        ("negative", values < -point.tolerance, "tab:red"),
        ("not told from zero", values.abs() <= point.tolerance, "0.5"),
        ("positive", values > point.tolerance, "tab:blue"),
    )
    for name, mine, color in groups:
        if bool(mine.any()):
            errors = point.errors.cpu()[mine]
            size = 3 if every and len(values) > 60 else 6
            axis.errorbar(ranks[mine], values[mine], errors, color=color, ls="", marker="o", ms=size, label=name)
    if point.tolerance > 0 and math.isfinite(point.tolerance):
        axis.set_yscale("symlog", linthresh=10 * point.tolerance, linscale=1.0)
        axis.axhspan(-point.tolerance, point.tolerance, color="0.5", alpha=0.2, lw=0)
    axis.axhline(0, color="k", lw=0.6)
