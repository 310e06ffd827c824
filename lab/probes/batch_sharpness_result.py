"""What the measurement of batch sharpness returns, and where a run is, seen from the edge of stochastic stability."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lab.curvature.edge import STOCHASTIC_EXIT
from lab.curvature.phase import FITTED
from lab.noise.ratios import Bootstrapped
from lab.probes.base import Memory
from lab.results import Result
from lab.run.figures import CURVATURE

NEAR = 0.8
"""Mean over several measurements that may be 1, if their scatter allows it."""
GROWS = 1.1
"""Growth from one quarter of the measurements to the next that counts as rising."""
BEYOND = 1.5
"""Mean from which a run is beyond the edge: it does not hover about 1, but diverges or is thrown."""
FULL = {False: "the directional sharpness g'Hg/|g|^2", True: "the curvature s'Hs/-s'g along the step"}
"""What batch sharpness is where the batch is the whole set: plain, generalised."""


@dataclass(frozen=True)
class BatchSharpnessResult(Result):
    """Curvatures of the loss of batches along their steps.

    estimates  ratio_of_means and mean_of_ratios; generalised where the step is known and not -lr g; lambda_max and gni where
               they were measured.
    lr         that of plain SGD, with the edge of ratio_of_means at 2/lr; None for any other optimiser.
    batches    drawn for the first three, pilot included; 0: the whole set, which has no error.
    matvecs    Hessian products of the probe set; None where none was made.
    history    (n, 3): step, ratio or half of generalised, and loss, of this measurement and all before.
    """

    estimates: Mapping[str, Bootstrapped]
    lr: float | None
    batches: int
    matvecs: int | None
    history: Tensor = field(repr=False)
    warned: Memory = field(repr=False)

    def numbers(self) -> dict[str, float]:
        numbers = {name: estimate.value for name, estimate in self.estimates.items()}
        for name, estimate in self.estimates.items() if self.batches else ():
            numbers |= {f"error/{name}": estimate.error, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        return numbers | ({} if self.lr is None else {"ratio": numbers["ratio_of_means"] * self.lr / 2})

    def sentence(self) -> str:
        if text := place(self.history, "generalised" in self.estimates, self.batches > 0):
            return f"{text}."
        mean, what = self.estimates["ratio_of_means"], "Batch sharpness (ratio of means)"
        what += "" if self.batches else f", here {FULL[False]},"
        error = f" +- {mean.error:.1g}" if self.batches else ""
        cure = "measure lab.Bench(model, loss, (x, y), optimizer, batch_size=32).snapshot()"
        return f"{what} is {mean.value:.4g}{error}; no optimiser is known: {cure}."

    def figure(self, when: str = "") -> Figure:
        """The curvatures with their intervals, beside 2/lr where that is their edge."""
        figure = Figure(figsize=(6, 3), layout="constrained")
        axis, names = figure.subplots(), [name for name in self.estimates if name != "generalised"]
        for row, each in enumerate(self.estimates[name] for name in names):
            reach = [[each.value - each.low], [each.high - each.value]]
            axis.errorbar(each.value, row, xerr=reach if self.batches else None, fmt="o", color="C0", capsize=4)
        if self.lr:
            axis.axvline(2 / self.lr, color="tab:red", ls="--", label="2/lr")
            axis.legend(frameon=False)
        axis.set_yticks(range(len(names)), names)
        axis.set(xlabel=f"curvature ({CURVATURE})", title=f"batch sharpness{when}", ylim=(len(names) - 0.5, -0.5))
        return figure

    def costs(self) -> dict[str, float]:
        costs = {"batches": self.batches or None, "matvecs": self.matvecs}
        return {name: float(cost) for name, cost in costs.items() if cost is not None}

    def memory(self) -> Memory:
        return {"history": self.history, **self.warned}


def place(history: Tensor | None, steps: bool, stochastic: bool) -> str:
    """Where a run is, judged by the mean over the last quarter of its measurements of what has its edge at 1; "" if none.

    That is batch_sharpness/ratio, or with `steps` half the generalised form. Beyond the edge: the mean is above 1.5; the run
    diverges, or was just thrown. Edge of stochastic stability: it is at least 0.9, or at least 0.8 and within two standard
    errors (from the scatter of the measurements) of 1. Else interpolated before the edge: the loss is below 1 % of the
    first one, and the mean did not grow by 10 % since the quarter before. Else below the edge, rising where it did.
    """
    rows = [] if history is None else [(ratio, loss) for _, ratio, loss in history.tolist() if math.isfinite(ratio)]
    if not rows:
        return ""
    quarter, ratios = math.ceil(len(rows) / 4), torch.tensor([ratio for ratio, _ in rows])
    late, before = ratios[-quarter:], ratios[-2 * quarter : -quarter]
    level, error = float(late.mean()), float(late.std() / quarter**0.5) if quarter > 1 else 0.0
    if level > BEYOND:
        where = "beyond the edge"
    elif level >= STOCHASTIC_EXIT or (level >= NEAR and level + 2 * error >= 1):
        where = "edge of stochastic stability" if stochastic else "edge of stability"
    elif len(before) and level > GROWS * float(before.mean()):
        where = "below the edge, and rising"
    else:
        where = "interpolated before the edge" if rows[-1][1] < FITTED * rows[0][1] else "below the edge"
    what = "generalised batch sharpness" if steps else "batch sharpness (ratio of means)"
    what += "" if stochastic else f", of the full batch {FULL[steps]},"
    when = f" over the last {quarter} measurements" if quarter > 1 else ""
    return f"{where}: {what} is {rounded(level)} x {'its edge 2' if steps else '2/lr'}{when}"


def rounded(number: float) -> str:
    """To two decimals, or to two significant digits where these would be none or too many."""
    return f"{number:.2f}" if 0.1 <= abs(number) < 100 else f"{number:.2g}"


def beside(values: dict[str, float], steps: bool) -> str:
    """lambda_max against the same edge, where it was measured."""
    if "sharpness/ratio" not in values:
        return ""
    name = "preconditioned lambda_max" if "sharpness/preconditioned" in values else "lambda_max"
    name += " of the weights that move" if "sharpness/moved" in values else ""
    return f", while {name} is {rounded(values['sharpness/ratio'])} x {'its threshold' if steps else '2/lr'}"
