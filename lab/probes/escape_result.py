"""What the measurement of escape returns, and the words for it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lab.escape.growth import Thrown
from lab.escape.saddle import Departure
from lab.escape.survival import per_epoch, per_time, words
from lab.noise.lyapunov import sign
from lab.probes.escape_cell import EscapeCell, mean
from lab.probes.escape_figure import escape_figure, sweep_slope
from lab.probes.escape_start import Start
from lab.results import ClassifiedPoint, Result


@dataclass(frozen=True)
class EscapeResult(Result):
    """Where the replicas started, and what they did for each learning rate and batch size of the sweep (`cells`); None and
    () where the weights are not finite. exit: the criterion by which they left.
    """

    blank: ClassVar[str] = "the weights are not finite: there is nothing to draw"
    start: Start | None
    cells: tuple[EscapeCell, ...]
    exit: str

    def numbers(self) -> dict[str, float]:
        """Those of the first cell: the run's own, unless a sweep was asked for. NaN where nothing was measured."""
        if self.start is None:
            return {}
        point = self.start.critical
        return {
            "index": float(point.index),
            "index_exact": float(point.index_exact),
            "loss": point.value,
            "grad_norm": point.grad_norm,
        } | self.cells[0].numbers()

    def sentence(self) -> str:
        if self.start is None:
            return ""
        return sentences(self.start.critical, self.cells, fits=self.start.curvature is not None, kind=self.exit)

    def figures(self, when: str = "") -> dict[str, Figure]:
        """Who is still inside, and the sweep beside theory."""
        return {} if self.start is None else {"survival": escape_figure(self.cells, f"escape{when}")}

    def arrays(self) -> dict[str, Tensor]:
        """sweep: a row for every cell, with the columns of `lab.probes.escape_cell.COLUMNS`."""
        if self.start is None:
            return {}
        return {"sweep": torch.tensor([cell.row() for cell in self.cells], dtype=torch.float64)}


def sentences(point: ClassifiedPoint, cells: Sequence[EscapeCell], *, fits: bool, kind: str) -> str:
    """What was found, in plain sentences."""
    text = [_place(point, fits, kind)]
    for cell in cells:
        gone, theory = cell.thrown, cell.theory
        outcome = _thrown(cell, gone) if gone else _left(cell, theory) if theory else _rate(cell)
        text.append(f"{cell.name}: {outcome}.")
    fitted = sweep_slope(cells)
    if fitted is not None:
        curved = f"; a straight line is excluded (p = {fitted.p:.1g})" if fitted.p < 1e-2 else ""
        text.append(
            f"log escape time against B/lr has the slope {fitted.value:.3g} [{fitted.low:.3g}, {fitted.high:.3g}] over "
            f"{fitted.points} points{curved}."
        )
    remarks = dict.fromkeys(warning for cell in cells if cell.ensemble for warning in cell.ensemble.warnings)
    text += [f"Note: {remark}." for remark in remarks]
    return " ".join(text)


def _place(point: ClassifiedPoint, fits: bool, kind: str) -> str:
    where = {"not critical": "no critical point", "undetermined": "a critical point of unknown kind"}.get(
        point.kind, f"a {point.kind}" if point.kind != "degenerate" else "a degenerate critical point"
    )
    text = f"Escape from {where} (loss {point.value:.3g}, |gradient| {point.grad_norm:.2g}"
    text += f", index {'' if point.index_exact else 'at least '}{point.index}" if point.index else ""
    if fits:
        text += "), which fits every example: mini-batches have no noise there and no rate exists; runs stay, or are "
        return text + "thrown out by unstable steps, found by the loss."
    return text + f"), exits by {kind}."


def _thrown(cell: EscapeCell, gone: Thrown) -> str:
    exponent = f"Lyapunov exponent {gone.exponent.value:.3g} +- {gone.exponent.error:.1g} a step"
    exponent += "" if sign(gone.exponent) else ", of undecided sign"
    left, R = int(gone.times.exited.sum()), len(gone.times.exited)
    edge = f"lr is {cell.lr / gone.critical:.3g} x the critical one"
    if not gone.exponent.value > 0:
        return f"{exponent}, {edge}: {left} of {R} left in {float(gone.times.times.max()):.0f} steps"
    text = f"{exponent}, {edge}; the network grew by {gone.growth.value:.3g} +- {gone.growth.error:.1g}"
    average, error = cell.mean_time
    if math.isfinite(average):
        text += f" and left after {average:.4g} +- {error:.1g} steps (the exponent: {gone.expected:.4g})"
    else:
        text += f", {left} of {R} left (the exponent: after {gone.expected:.4g} steps)"
    if len(gone.landed):
        text += f"; after the budget they are at {mean(gone.landed):.3f} of the critical sharpness"
        text += f" ({gone.settled} of {len(gone.landed)} at rest again)"
    return text


def _left(cell: EscapeCell, theory: Departure) -> str:
    average, error = cell.mean_time
    left, R = int(cell.times.exited.sum()), len(cell.times.exited)
    if theory.never and left == 0:
        text = f"never by noise (u'Du = 0): 0 of {R} left in {float(cell.times.times.max()):.0f} steps"
    elif math.isfinite(average):
        ratio = "" if theory.never else f" (theory {theory.mean:.4g}, ratio {average / theory.mean:.3f})"
        text = f"all left, after {average:.4g} +- {error:.1g} steps{ratio}"
    else:
        text = f"{left} of {R} left within {float(cell.times.times.max()):.0f} steps (theory: {theory})"
    for i, (grown, spread) in enumerate(cell.directions[:3]):
        text += f"; direction {i + 1} (curvature {grown.curvature:.3g}, noise {spread:.2g}): growth "
        text += f"{grown.kick.value:.4g} from a kick, {grown.theory:.4g} by theory"
        if math.isfinite(grown.noisy.value) and spread > 0:
            text += f", {grown.noisy.value:.3g} +- {grown.noisy.error:.1g} under noise"
    return text


def _rate(cell: EscapeCell) -> str:
    verdict = cell.ensemble
    if verdict is None:
        return f"no rate: {'; '.join(cell.reasons)}"
    left, R, steps = int(cell.times.exited.sum()), len(cell.times.exited), float(cell.times.times.max())
    way = ""
    if math.isfinite(cell.barrier):
        way = f"; the nearest minimum beyond lies over a barrier of {cell.barrier:.4g}, the noise on the way is "
        way += f"{cell.temperature:.3g}"
    if verdict.rate is None:
        return f"no rate: {'; '.join(verdict.reasons)} ({left} of {R} left in {steps:.0f} steps){way}"
    if math.isfinite(cell.rate_theory):
        way += f", and Langer's rate {cell.rate_theory:.3g} per step"
    text = words(verdict.rate)
    if verdict.rate.exits:
        others = (per_time(verdict.rate, cell.lr), per_epoch(verdict.rate, cell.per_epoch))
        text += "".join(f", {rate.value:.3g} per {rate.unit}" for rate in others)
        text += f"; p = {verdict.shape.p:.2g} for one rate" if math.isfinite(verdict.shape.p) else ""
    return text + way
