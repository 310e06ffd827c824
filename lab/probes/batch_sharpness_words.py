"""What batch sharpness says of a run, in words: where it is, seen from the edge of stochastic stability."""

import math

import torch
from torch import Tensor

from lab.curvature.edge import STOCHASTIC_EXIT
from lab.curvature.phase import FITTED

NEAR = 0.8
"""Mean over several measurements that may be 1, if their scatter allows it."""
GROWS = 1.1
"""Growth from one quarter of the measurements to the next that counts as rising."""
BEYOND = 1.5
"""Mean from which a run is beyond the edge: it does not hover about 1, but diverges or is thrown."""
FULL = {False: "the directional sharpness g'Hg/|g|^2", True: "the curvature s'Hs/-s'g along the step"}
"""What batch sharpness is where the batch is the whole set: plain, generalised."""


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
    return f"{where}: {what} is {figures(level)} x {'its edge 2' if steps else '2/lr'}{when}"


def figures(number: float) -> str:
    """To two decimals, or to two significant digits where these would be none or too many."""
    return f"{number:.2f}" if 0.1 <= abs(number) < 100 else f"{number:.2g}"


def beside(values: dict[str, float], steps: bool) -> str:
    """lambda_max against the same edge, where it was measured."""
    if "sharpness/ratio" not in values:
        return ""
    name = "preconditioned lambda_max" if "sharpness/preconditioned" in values else "lambda_max"
    name += " of the weights that move" if "sharpness/moved" in values else ""
    return f", while {name} is {figures(values['sharpness/ratio'])} x {'its threshold' if steps else '2/lr'}"
