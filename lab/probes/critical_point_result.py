"""What the measurement of a critical point returns, and the words for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from matplotlib.figure import Figure
from torch import Tensor

from lab import results
from lab.points.finding import Found
from lab.probes.base import Memory
from lab.probes.critical_point_figure import KINDS, Point, eigenvalue_figure, index_against_loss
from lab.results import Result, with_errors

if TYPE_CHECKING:
    from lab.probes.critical_point import CriticalPoint

ENDS = ("zero", "stuck", "rounding", "unfinished")
"""How a search can end; critical_point/search is the place of one in this list."""


@dataclass(frozen=True)
class CriticalPointResult(Result):
    """The point of the loss, classified, and the search that found it.

    point   None where the weights or the loss there are not finite.
    search  from the weights `moved` away; None where none was asked for.
    past    the points of the run by step, (4,) each: loss, index fraction, place of the kind in KINDS, index exact.
    """

    blank: ClassVar[str] = "the weights are not finite: there is no point to draw"
    point: results.ClassifiedPoint | None
    search: Found | None
    moved: float
    settings: "CriticalPoint"
    past: Memory = field(repr=False)

    def numbers(self) -> dict[str, float]:
        point, search = self.point, self.search
        if point is None:
            return {}
        ends = {"lambda_min": int(point.values.argmin()), "lambda_max": int(point.values.argmax())}
        searched = dict[str, float]()
        if search is not None:
            reason = float(ENDS.index(search.reason))
            searched = {"search": reason, "moved": self.moved, "search_alignment": search.alignment}
        return (
            searched
            | {
                "kind": float(KINDS.index(point.kind)),
                "loss": point.value,
                "grad_norm": point.grad_norm,
                "gain": point.gain,
                "index": float(point.index),
                "index_fraction": point.index_fraction,
                "index_exact": float(point.index_exact),
                "nullity": float(point.nullity),
                "nullity_exact": float(point.nullity_exact),
            }
            | with_errors({name: (point.values[i], point.errors[i]) for name, i in ends.items()})
        )

    def sentence(self) -> str:
        return in_words(self.numbers(), self.settings)

    def figures(self, when: str = "") -> dict[str, Figure]:
        """The known eigenvalues in order; index against loss of the points so far."""
        if self.point is None:
            return {}
        dots = [Point(*dot.tolist()) for dot in self.past.values()]
        several = {"index_against_loss": index_against_loss(dots, f"{len(dots)} points of the run")}
        return {"eigenvalues": eigenvalue_figure(self.point, when.removeprefix(", "))} | (
            several if len(dots) > 1 else {}
        )

    def arrays(self) -> dict[str, Tensor]:
        return {} if self.point is None else {"hessian_eigenvalues": self.point.values}

    def costs(self) -> dict[str, float]:
        if self.point is None:
            return {}
        searched = {} if self.search is None else {"search_matvecs": float(self.search.matvecs)}
        return searched | {"matvecs": float(self.point.matvecs)}

    def memory(self) -> Memory:
        return self.past


def in_words(numbers: Mapping[str, float], settings: "CriticalPoint") -> str:
    """What the point is, and what the search for it came to."""
    if "kind" not in numbers:
        return ""
    kind, searched = KINDS[int(numbers["kind"])], f"{_searched(numbers, settings)}; " if "search" in numbers else ""
    size = f"|g| = {numbers['grad_norm']:.2g}, loss {numbers['loss']:.6g}"
    if kind == "not critical":
        above = numbers["grad_norm"] > settings.gradient_tol
        plateau = "a plateau: following the gradient would still change the loss"
        why = f"|g| > {settings.gradient_tol:g}" if above else plateau
        here = f"Critical point: {searched}no critical point there" if searched else "No critical point here"
        text = f"{here} ({size}; {why}). The Hessian has "
    else:
        text = f"Critical point: {searched}the point is {_article(kind)} ({size}), with "
    index = f"{'' if numbers['index_exact'] else 'at least '}{numbers['index']:.0f}"
    share = f" ({100 * numbers['index_fraction']:.2g} % of all)" if numbers["index"] else ""
    null = f"{'' if numbers['nullity_exact'] else 'at least '}{numbers['nullity']:.0f}"
    null = null if numbers["nullity_exact"] or numbers["nullity"] else "an unknown number"
    ends = (
        f"they go from {numbers['lambda_min']:.4g} +- {numbers['error/lambda_min']:.1g} to {numbers['lambda_max']:.4g}"
    )
    noun = "eigenvalue" if numbers["index"] == 1 else "eigenvalues"
    return f"{text}{index} negative {noun}{share} and {null} not told from zero; {ends}."


def _searched(numbers: Mapping[str, float], settings: "CriticalPoint") -> str:
    """How the search ended, in words."""
    far = f"{numbers['moved']:.2g} away"
    flat = f"|Hg|/(|H||g|) = {numbers['search_alignment']:.1g}"
    return {
        "zero": f"searched from these weights, found {far}",
        "stuck": f"NONE was found from these weights: the search ended {far} near a minimum of |g| that is no zero, "
        f"where the gradient tends into the null space of the Hessian ({flat})",
        "rounding": f"NONE was found from these weights: {far} |g| falls no more at the precision of float64",
        "unfinished": f"NONE was found from these weights in {settings.max_iterations} iterations and "
        f"{settings.search_matvecs} products; raise probe.critical_point.max_iterations or search_matvecs",
    }[ENDS[int(numbers["search"])]]


def _article(kind: str) -> str:
    words = {
        "degenerate": "degenerate (zero eigenvalues and no opposite signs: the Hessian does not decide)",
        "undetermined": "of undetermined kind (too few products; raise probe.critical_point.max_matvecs)",
    }
    return words.get(kind, f"a {kind}")
