"""Is this a critical point, and of which kind? Gradient first, then index and nullity of the Hessian.

    index     number of negative eigenvalues of H          nullity    of those that are not told from zero

`lab.points.critical` says what counts as critical and as zero, `lab.points.finding` how the nearest critical point is found
from weights that are none, as those of a run are. Index against loss, the figure of Dauphin et al. 2014 (arXiv
1406.2572), comes from several measurements: of one run, or of several checkpoints given to `lab.measure`. Everything is
computed in float64; coupled weight decay c adds c/2 |w|^2 to the loss, as it does in training.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as card
from torch import Tensor

from lab import results
from lab.objective import Decayed, Objective
from lab.points.critical import classify
from lab.points.finding import find_critical
from lab.probes.base import Probe, Snapshot, Value
from lab.settings import CARD
from lab.streams import stream

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = ("not critical", "minimum", "saddle", "maximum", "degenerate", "undetermined")
"""The classes; critical_point/kind is the place of one in this list."""
ENDS = ("zero", "stuck", "rounding", "unfinished")
"""How a search can end; critical_point/search is the place of one in this list."""
COLORS = ("0.6", "tab:blue", "tab:red", "tab:purple", "tab:orange", "tab:olive")
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Point:
    """A dot of the figure of index against loss; kind as the tag `kind`, exact 0 where the index is a lower bound."""

    loss: float
    fraction: float
    kind: float
    exact: float


@card(kw_only=True, config=CARD)
class CriticalPoint(Probe):
    """Kind, index and nullity of the point where training stands, or of the critical point found from there.

    every           steps between measurements.
    examples        size of the fixed, class-balanced probe set; all; auto (all up to 5000, else 2000).
    gradient_tol    |g| above it: no critical point. Also what a search goes down to.
    tol             eigenvalues within tol x the largest |eigenvalue| of zero count as zero.
    dense           up to so many weights every eigenvalue is computed, at one Hessian product a weight; beyond, Lanczos.
    max_matvecs     Hessian products for Lanczos; where they do not suffice the index is a lower bound.
    find            first look for the critical point nearby, by regularised Newton steps on |g|^2.
    max_iterations  of that search.
    search_matvecs  Hessian products of that search.
    `kind` is 0 not critical, 1 minimum, 2 saddle, 3 maximum, 4 degenerate, 5 undetermined; `search` 0 found, 1 at a minimum
    of |g| that is no zero, 2 at the round-off of such a place, 3 out of iterations or products. Where the point is not
    critical, index and nullity are those of the Hessian there. Cost: in cost/critical_point/matvecs.
    """

    name: ClassVar[str] = "critical_point"

    every: Annotated[int, Field(gt=0)] = 500
    examples: Annotated[int, Field(gt=0)] | Literal["all", "auto"] = "auto"
    gradient_tol: Positive = 1e-8
    tol: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    dense: Annotated[int, Field(ge=0)] = 500
    max_matvecs: Annotated[int, Field(ge=2)] = 400
    find: bool = False
    max_iterations: Annotated[int, Field(gt=0)] = 100
    search_matvecs: Annotated[int, Field(gt=0)] = 5000
    _points: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    def measure(self, snapshot: Snapshot) -> dict[str, Value]:
        """The tags critical_point/*, error/critical_point/*, cost/critical_point/*, the eigenvalues and figures."""
        begin, values = perf_counter(), dict[str, Value]()
        w, loss = snapshot.w.double(), self._loss(snapshot)
        try:
            if self.find:
                search = find_critical(
                    loss,
                    w,
                    tol=self.gradient_tol,
                    max_iterations=self.max_iterations,
                    max_matvecs=self.search_matvecs,
                )
                values |= {
                    "critical_point/search": float(ENDS.index(search.reason)),
                    "critical_point/moved": float((search.w - w).norm()),
                    "critical_point/search_alignment": search.alignment,
                    "cost/critical_point/search_matvecs": float(search.matvecs),
                }
                w = search.w
            point = classify(
                loss,
                w,
                gradient_tol=self.gradient_tol,
                tol=self.tol,
                dense=self.dense,
                max_matvecs=self.max_matvecs,
                generator=stream(snapshot.seed, "critical_point", snapshot.step),
            )
        except ValueError as error:
            if "not finite" not in str(error):
                raise
            return {"cost/critical_point/seconds": perf_counter() - begin}  # a diverged run
        values |= self._of(point)
        dot = [point.value, point.index_fraction, KINDS.index(point.kind), point.index_exact]
        self._points[snapshot.step] = torch.tensor(dot, dtype=torch.float64)
        if len(self._points) > 1:
            dots = [Point(*p.tolist()) for p in self._points.values()]
            values["critical_point/index_against_loss"] = index_against_loss(dots, f"{len(dots)} points of the run")
        values["critical_point/eigenvalues"] = eigenvalue_figure(point, f"step {snapshot.step}")
        values["critical_point/hessian_eigenvalues"] = point.values
        values["cost/critical_point/matvecs"] = float(point.matvecs)
        values["cost/critical_point/seconds"] = perf_counter() - begin
        return values

    def _loss(self, snapshot: Snapshot) -> Objective:
        """What training descends on the probe set: with the weight decay that joins the gradient."""
        loss, rule = snapshot.loss_on(self.examples), snapshot.rule
        decay = 0.0 if rule is None or isinstance(rule.coupled_decay, Tensor) else rule.coupled_decay
        return Decayed(loss, decay) if decay else loss

    def _of(self, point: results.CriticalPoint) -> dict[str, Value]:
        low, high = int(point.values.argmin()), int(point.values.argmax())
        return {
            "critical_point/kind": float(KINDS.index(point.kind)),
            "critical_point/loss": point.value,
            "critical_point/grad_norm": point.gradient_norm,
            "critical_point/gain": point.gain,
            "critical_point/index": float(point.index),
            "critical_point/index_fraction": point.index_fraction,
            "critical_point/index_exact": float(point.index_exact),
            "critical_point/nullity": float(point.nullity),
            "critical_point/nullity_exact": float(point.nullity_exact),
            "critical_point/lambda_min": float(point.values[low]),
            "critical_point/lambda_max": float(point.values[high]),
            "error/critical_point/lambda_min": float(point.errors[low]),
            "error/critical_point/lambda_max": float(point.errors[high]),
        }

    def finding(self, values: dict[str, float]) -> str:
        """What the point is, and what the search for it came to."""
        of = {tag.removeprefix("critical_point/"): v for tag, v in values.items()}
        if "kind" not in of:
            return ""
        kind, searched = KINDS[int(of["kind"])], f"{self._searched(of)}; " if "search" in of else ""
        size = f"|g| = {of['grad_norm']:.2g}, loss {of['loss']:.6g}"
        if kind == "not critical":
            why = (
                f"|g| > {self.gradient_tol:g}"
                if of["grad_norm"] > self.gradient_tol
                else "a plateau: following the gradient would still change the loss"
            )
            here = f"Critical point: {searched}no critical point there" if searched else "No critical point here"
            text = f"{here} ({size}; {why}). The Hessian has "
        else:
            text = f"Critical point: {searched}the point is {_article(kind)} ({size}), with "
        index = f"{'' if of['index_exact'] else 'at least '}{of['index']:.0f}"
        share = f" ({100 * of['index_fraction']:.2g} % of all)" if of["index"] else ""
        null = f"{'' if of['nullity_exact'] else 'at least '}{of['nullity']:.0f}"
        null = null if of["nullity_exact"] or of["nullity"] else "an unknown number"
        error = of["error/critical_point/lambda_min"]
        ends = f"they go from {of['lambda_min']:.4g} +- {error:.1g} to {of['lambda_max']:.4g}"
        return f"{text}{index} negative {_eigenvalues(of['index'])}{share} and {null} not told from zero; {ends}."

    def _searched(self, of: dict[str, float]) -> str:
        """How the search ended, in words."""
        far = f"{of['moved']:.2g} away"
        flat = f"|Hg|/(|H||g|) = {of['search_alignment']:.1g}"
        return {
            "zero": f"searched from these weights, found {far}",
            "stuck": f"NONE was found from these weights: the search ended {far} near a minimum of |g| that is no zero, "
            f"where the gradient tends into the null space of the Hessian ({flat})",
            "rounding": f"NONE was found from these weights: {far} |g| falls no more at the precision of float64",
            "unfinished": f"NONE was found from these weights in {self.max_iterations} iterations and {self.search_matvecs} "
            "products; raise probe.critical_point.max_iterations or search_matvecs",
        }[ENDS[int(of["search"])]]

    def state_dict(self) -> dict[str, Tensor]:
        return {str(step): dot for step, dot in self._points.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._points = {int(step): dot.cpu() for step, dot in state.items()}


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
