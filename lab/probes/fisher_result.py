"""What the Fisher probe returns: all matrices side by side, by kind of number, and the words for it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lab.curvature.eigen import Extremes
from lab.noise.comparison import Comparison
from lab.probes.fisher_figure import REMEMBERED, matrices_figure, remembered, training_figure
from lab.probes.fisher_matrices import BLIND, MATRICES
from lab.results import Estimate, Result, with_errors

SMALL = 0.1
"""Standard error of the sampled trace over the true one up to which it is a yardstick."""


@dataclass(frozen=True)
class FisherResult(Result):
    """The seven matrices in the order of `MATRICES`; all of it is empty where the network has diverged.

    parts    traces, norms, distances from the true Fisher (7,), cosines (7, 7), all with their errors, share = |R|/|H|, top
             (7, k) and bottom (7,) eigenvalues: float64, NaN where there is none (`side_by_side`).
    ends     the eigenpairs by matrix.
    others   examples, rao_norm, scale, converged, by name.
    matvecs  products of all matrices.
    history  rows of what `training_figure` draws, one a measurement, this one last; None before the first.
    """

    blank: ClassVar[str] = "the network has diverged: there are no matrices to draw"
    parts: Mapping[str, Tensor]
    ends: Mapping[str, Extremes]
    others: Mapping[str, float]
    matvecs: int
    history: Tensor | None

    def numbers(self) -> dict[str, float]:
        pairs: dict[str, tuple[Tensor, Tensor]] = {}
        parts = self.parts
        for i, name in enumerate(MATRICES if parts else ()):
            pairs[f"trace_{name}"] = parts["traces"][i], parts["trace_errors"][i]
            pairs[f"norm_{name}"] = parts["norms"][i], parts["norm_errors"][i]
            if name not in ("true", "residual"):
                pairs[f"distance_{name}"] = parts["distances"][i], parts["distance_errors"][i]
            for j, other in enumerate(MATRICES[i + 1 :], i + 1):
                pairs[f"cosine_{name}_{other}"] = parts["cosines"][i, j], parts["cosine_errors"][i, j]
        for name, end in self.ends.items():
            for rank, pair in enumerate(zip(end.top.values, end.top.errors, strict=True), 1):
                pairs[f"lambda_{rank}_{name}"] = pair
            for pair in zip(end.bottom.values, end.bottom.errors, strict=True):
                pairs[f"lambda_min_{name}"] = pair
        if parts:
            pairs["residual_share"] = parts["share"], parts["share_error"]
        return with_errors(pairs) | dict(self.others)

    def sentence(self) -> str:
        return in_words(self.numbers(), self.history) or "Fisher against Hessian: not measured, for it is not finite."

    def figures(self, when: str = "") -> dict[str, Figure]:
        """The cosines of all pairs as a table, traces and largest eigenvalues beside it; from the second on their course."""
        if not self.parts or self.history is None:
            return {}
        course = {"training": training_figure(self.history)} if len(self.history) > 1 else {}
        return {"matrices": matrices_figure(self.parts, f"Fisher against Hessian{when}")} | course

    def arrays(self) -> dict[str, Tensor]:
        return dict(self.parts)

    def costs(self) -> dict[str, float]:
        return {"matvecs": float(self.matvecs)} if self.parts else {}

    def memory(self) -> dict[str, Tensor]:
        return {} if self.history is None else {"history": self.history}


def in_words(numbers: Mapping[str, float], history: Tensor | None) -> str:
    """How near the Hessian and the empirical Fisher are to the true Fisher, and how that changed in the run.

    The sampled Fisher is the yardstick of the empirical one: what as many labels give where the model holds. It is told
    of only where its trace is known to 10 % of the true one: a network sure of its labels seldom draws those that count.
    """
    parts = ("cosine_true_hessian", "residual_share", "cosine_true_empirical", "cosine_true_sampled")
    traces = ("trace_true", "trace_empirical", "trace_sampled")
    if not all(math.isfinite(numbers.get(name, math.nan)) for name in (*parts, *traces)):
        return ""
    with_hessian, share, with_empirical, with_sampled = (numbers[name] for name in parts)
    true, empirical, sampled = (numbers[name] for name in traces)
    since = ("", "")
    if history is not None and len(history) > 1:
        step, cosines = int(history[0, 0]), remembered(history)["cosines"][0, 0]
        then = (float(cosines[MATRICES.index(name)]) for name in ("hessian", "empirical"))
        since = f" ({next(then):.2f} at step {step})", f" ({next(then):.2f} at step {step})"
    yardstick = ""
    if numbers.get("error/trace_sampled", math.nan) <= SMALL * true:
        yardstick = (
            f"; with labels drawn from the network itself they would be {with_sampled:.2f} and {sampled / true:.2g}"
        )
    return (
        f"The cosine of the Hessian with the true Fisher is {with_hessian:.2f}{since[0]}, |H - Gauss-Newton| is "
        f"{share:.2f} of |H|. That of the empirical Fisher is {with_empirical:.2f}{since[1]}, its trace "
        f"{empirical / true:.2g} of the true one{yardstick}."
    )


def history_row(step: int, parts: Mapping[str, Tensor]) -> Tensor:
    """What `training_figure` draws of this measurement."""
    return torch.cat([torch.tensor([float(step)]), *(parts[name].flatten() for name in REMEMBERED)])


def side_by_side(
    compared: Comparison, units: Tensor, traces: Mapping[str, Estimate], ends: Mapping[str, Extremes], eps: float
) -> dict[str, Tensor]:
    """All numbers by kind, float64, in the order of `MATRICES`; NaN where there is none.

    compared: of the matrices over their `units`. Of two traces that with the smaller error, which is over its labels for the
    sampled Fisher. Cosines with a difference of matrices that is round-off are none.
    """
    arrays = {"traces": units * compared.traces, "trace_errors": units * compared.trace_errors}
    arrays["trace_errors"][MATRICES.index("sampled")] = math.nan
    for i, name in enumerate(MATRICES):
        if name in traces and (name == "sampled" or traces[name].error <= float(arrays["trace_errors"][i])):
            arrays["traces"][i], arrays["trace_errors"][i] = traces[name].value, traces[name].error
    arrays |= {"norms": units * compared.norms, "norm_errors": units * compared.norm_errors}
    arrays |= {"cosines": compared.cosines.clone(), "cosine_errors": compared.cosine_errors.clone()}
    for part, whole in (("residual", "hessian"), ("covariance", "empirical")):
        i = MATRICES.index(part)
        if not float(compared.norms[i]) > BLIND * eps * float(compared.norms[MATRICES.index(whole)]):
            for each in (arrays["cosines"], arrays["cosine_errors"]):
                each[i], each[:, i] = math.nan, math.nan
    true, G, H = (MATRICES.index(name) for name in ("true", "gauss_newton", "hessian"))
    arrays |= {"distances": compared.distances[:, true], "distance_errors": compared.distance_errors[:, true]}
    arrays |= {"share": compared.distances[G, H], "share_error": compared.distance_errors[G, H]}
    num, k = len(MATRICES), max(len(end.top.values) for end in ends.values())
    arrays |= {
        "top": compared.traces.new_full((num, k), math.nan),
        "bottom": compared.traces.new_full((num,), math.nan),
    }
    for name, end in ends.items():
        arrays["top"][MATRICES.index(name), : len(end.top.values)] = end.top.values
        if len(end.bottom.values):
            arrays["bottom"][MATRICES.index(name)] = end.bottom.values[0]
    return {name: array.double() for name, array in arrays.items()}
