"""What an experiment found, in one plain paragraph out of the numbers of its runs: a function for each experiment."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field

from lab.compare.groups import grouped, mean_and_error
from lab.compare.run import Run

Finding = Literal["random_labels", "generalization_gap", "edge_of_stochastic_stability", "noise_injection"]
Paragraph = Annotated[Finding | None, Field(description="what the paragraph says; null: the numbers that are drawn")]
"""A setting of a comparison."""

QUARTER = 0.25
"""Share of a run, at its end, that is averaged over."""
FITTED = 0.99
"""Training accuracy from which on a set counts as fitted."""
NEAR_CHANCE = 0.05
INJECTED = {"test/accuracy": "test accuracy", "sharpness/lambda_max": "lambda_max", "noise/trace": "Tr D"}
"""What noise in the gradient is judged by."""
NEAR_EDGE = 0.8
"""Share of 2/lr from which on batch sharpness counts as at the edge: its mean over a quarter of a run scatters as much."""


def find(finding: Finding | None, cells: Sequence[Run]) -> str:
    """The paragraph of that name; "" for None."""
    paragraphs: dict[Finding, Callable[[Sequence[Run]], str]] = {
        "random_labels": random_labels,
        "generalization_gap": generalization_gap,
        "edge_of_stochastic_stability": edge_of_stochastic_stability,
        "noise_injection": noise_injection,
    }
    return paragraphs[finding](cells) if finding else ""


def random_labels(cells: Sequence[Run]) -> str:
    """Whether true and permuted labels were fitted, and what of it carried over to the test set."""
    parts, fits, permuted = [], [], []
    for name, group in grouped(cells, ["data.random_labels", "data.batch_size"]).items():
        train, test = (_late(group, f"{split}/accuracy") for split in ("train", "test"))
        fits.append(train >= FITTED)
        if group[0].overrides.get("data.random_labels") in ("1", "1.0"):
            permuted.append(test)
        parts.append(f"{name}: {_number(train)} and {_number(test)}")
    chance = 1 / len(str(cells[0].facts["classes"]).split(", "))
    fitted = "Every run fitted its training set" if all(fits) else "Not every run fitted its training set"
    text = f"Train and test accuracy over the last quarter: {'; '.join(parts)}. {fitted}"
    if permuted:
        at_chance = all(abs(value - chance) <= NEAR_CHANCE for value in permuted)
        text += f"; with all labels permuted test accuracy {'is' if at_chance else 'is not'} at chance ({chance:.2g})"
    return f"{text}."


def generalization_gap(cells: Sequence[Run]) -> str:
    """How far test accuracy falls from the smallest to the largest batch, by budget and learning-rate rule."""
    parts, gaps = [], {}
    for name, group in grouped(cells, ["scaling.budget", "scaling.lr"]).items():
        sizes = sorted({cell.number("data.batch_size") for cell in group})
        ends = [_last([c for c in group if c.number("data.batch_size") == size]) for size in sizes]
        parts.append(
            f"{name}: {', '.join(f'{_number(end)} at {size:g}' for end, size in zip(ends, sizes, strict=True))}"
        )
        gaps[name] = ends[0] - ends[-1]
    text = f"Test accuracy at the end by batch size: {'; '.join(parts)}."
    epochs, steps = (gaps.get(f"budget={budget}, lr=none", math.nan) for budget in ("epochs", "steps"))
    if math.isfinite(epochs - steps):
        text += (
            f" At the same learning rate the largest batch is behind the smallest by {epochs:.3f} after as many epochs "
            f"and by {steps:.3f} after as many updates"
        )
        text += ": the gap is mostly one of the number of updates." if epochs > 0 and steps < epochs / 2 else "."
    diverged = sum(cell.diverged for cell in cells)
    return text + (f" {diverged} of {len(cells)} runs diverged." if diverged else "")


def edge_of_stochastic_stability(cells: Sequence[Run]) -> str:
    """Where lambda_max and the batch sharpness were, in units of the threshold, and in which order."""
    groups = sorted(grouped(cells, ["data.batch_size"]).values(), key=lambda group: group[0].number("data.batch_size"))
    parts, tops, near = [], [], []
    for group in groups:
        top, batch = (_over_threshold(group, tag) for tag in ("sharpness/lambda_max", "batch_sharpness/ratio_of_means"))
        tops.append(top)
        size = f"{group[0].number('data.batch_size'):g}"
        if batch >= NEAR_EDGE:
            near.append(size)
        parts.append(f"batches of {size}: lambda_max {_number(top)}, batch sharpness {_number(batch)}")
    text = f"In units of 2/lr, over the last quarter: {'; '.join(parts)}."
    if len(tops) > 1 and all(math.isfinite(top) for top in tops):
        ordered = all(a < b for a, b in pairwise(tops))
        text += (
            " lambda_max is lower the smaller the batch."
            if ordered
            else " lambda_max is not ordered by the batch size."
        )
    if near:
        text += f" The batch sharpness came to {NEAR_EDGE} x 2/lr or beyond with batches of {' and '.join(near)}."
    else:
        text += f" The batch sharpness stayed below {NEAR_EDGE} x 2/lr."
    return text


def noise_injection(cells: Sequence[Run]) -> str:
    """Where each noise led, and whether noise of the law of the small batch leads where the small batch does."""
    groups = {name.partition("=")[2]: group for name, group in grouped(cells, ["optimizer/noise"]).items()}
    parts, apart = [], []
    for tag, name in INJECTED.items():
        if not any(tag in cell.series for cell in cells):
            continue
        ends = {kind: mean_and_error([cell.late(tag, QUARTER) for cell in group]) for kind, group in groups.items()}
        parts.append(f"{name}: {', '.join(f'{_with_error(*end)} ({kind})' for kind, end in ends.items())}")
        if {"small_batch", "minibatch"} <= {*ends}:
            (one, its), (other, others) = ends["small_batch"], ends["minibatch"]
            if math.hypot(its, others) > 0:
                apart.append(f"{(other - one) / math.hypot(its, others):+.1f} ({name})")
    text = f"Over the last quarter, mean +- standard error over seeds. {'; '.join(parts)}."
    if apart:
        text += f" minibatch, which has the law of small_batch, differs from it by {', '.join(apart)} standard errors."
    return text


def _with_error(mean: float, error: float) -> str:
    return f"{_number(mean)} +- {error:.1g}" if error > 0 else _number(mean)


def _late(group: Sequence[Run], tag: str) -> float:
    """The mean over the last quarter and over seeds; NaN where all diverged."""
    return mean_and_error([cell.late(tag, QUARTER) for cell in group])[0]


def _last(group: Sequence[Run]) -> float:
    """The last test accuracy, averaged over seeds; NaN where all diverged."""
    return mean_and_error([cell.late("test/accuracy", 0) for cell in group])[0]


def _over_threshold(group: Sequence[Run], tag: str) -> float:
    ratios = [cell.late(tag, QUARTER) / cell.late("sharpness/threshold", QUARTER) for cell in group]
    return mean_and_error(ratios)[0]


def _number(value: float) -> str:
    return f"{value:.3f}" if value == value else "diverged"
