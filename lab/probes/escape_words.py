"""What an escape measurement found, in sentences."""

import math
from collections.abc import Sequence

from lab.escape.growth import Thrown
from lab.escape.saddle import Departure
from lab.escape.survival import Slope, per_epoch, per_time, slope, words
from lab.noise.lyapunov import sign
from lab.probes.escape_cells import Cell, mean
from lab.results import CriticalPoint


def sweep_slope(cells: Sequence[Cell]) -> Slope | None:
    """log of the mean escape time in units of lr * step against B/lr; None where fewer than two points have a rate."""
    kept = [
        (cell.batch_size / cell.lr, per_time(cell.rate, cell.lr)) for cell in cells if cell.rate and cell.rate.exits
    ]
    if len({x for x, _ in kept}) < 2:
        return None
    return slope([x for x, _ in kept], [rate for _, rate in kept])


def sentences(point: CriticalPoint, cells: Sequence[Cell], *, fits: bool, kind: str) -> str:
    """What was found, in plain sentences."""
    said = [_place(point, cells, fits, kind)]
    for cell in cells:
        if cell.thrown is not None:
            said.append(f"{cell.name}: {_thrown(cell, cell.thrown)}.")
        elif cell.theory is not None:
            said.append(f"{cell.name}: {_left(cell, cell.theory)}.")
        else:
            said.append(f"{cell.name}: {_rate(cell)}.")
    fitted = sweep_slope(cells)
    if fitted is not None:
        curved = f"; a straight line is excluded (p = {fitted.p:.1g})" if fitted.p < 1e-2 else ""
        said.append(
            f"log escape time against B/lr has the slope {fitted.value:.3g} [{fitted.low:.3g}, {fitted.high:.3g}] over "
            f"{fitted.points} points{curved}."
        )
    remarks = dict.fromkeys(warning for cell in cells if cell.found for warning in cell.found.warnings)
    said += [f"Note: {remark}." for remark in remarks]
    return " ".join(said)


def _place(point: CriticalPoint, cells: Sequence[Cell], fits: bool, kind: str) -> str:
    where = {"not critical": "no critical point", "undetermined": "a critical point of unknown kind"}.get(
        point.kind, f"a {point.kind}" if point.kind != "degenerate" else "a degenerate critical point"
    )
    text = f"Escape from {where} (loss {point.value:.3g}, |gradient| {point.grad_norm:.2g}"
    text += f", index {'' if point.index_exact else 'at least '}{point.index}" if point.index else ""
    if fits:
        text += "), which fits every example: mini-batches have no noise there and no rate exists; runs stay, or are "
        return text + "thrown out by unstable steps, found by the loss."
    return text + f"), exits by {kind}."


def _thrown(cell: Cell, gone: Thrown) -> str:
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


def _left(cell: Cell, theory: Departure) -> str:
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


def _rate(cell: Cell) -> str:
    found = cell.found
    if found is None:
        return f"no rate: {'; '.join(cell.reasons)}"
    left, R = int(cell.times.exited.sum()), len(cell.times.exited)
    way = ""
    if math.isfinite(cell.barrier):
        way = f"; the nearest minimum beyond lies over a barrier of {cell.barrier:.4g}, the noise on the way is "
        way += f"{cell.temperature:.3g}"
    if found.rate is None:
        return f"no rate: {'; '.join(found.reasons)} ({left} of {R} left in {float(cell.times.times.max()):.0f} steps){way}"
    if math.isfinite(cell.rate_theory):
        way += f", and Langer's rate {cell.rate_theory:.3g} per step"
    text = words(found.rate)
    if found.rate.exits:
        others = (per_time(found.rate, cell.lr), per_epoch(found.rate, cell.per_epoch))
        text += "".join(f", {rate.value:.3g} per {rate.unit}" for rate in others)
        text += f"; p = {found.shape.p:.2g} for one rate" if math.isfinite(found.shape.p) else ""
    return text + way
