"""The generalisation gap of large batches, and how much of it is missing updates.

    gap(B)  = accuracy(B0) - accuracy(B)                on the test set, at the end, B0 the smallest batch size
    missing = gap after as many passes - gap after as many updates        (Hoffer et al. 2017, arXiv 1705.08741)

Of runs with scaling.budget=epochs and =steps at the same batch sizes, at the learning rate as it is and scaled.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from matplotlib.axes import Axes
from pydantic import Field

from lab.compare.base import Compared, RunComparison, new_figure, require_tags
from lab.compare.groups import mean_and_error
from lab.compare.run import Run
from lab.settings import settings

SIZE, BUDGET, RULE = "data.batch_size", "scaling.budget", "scaling.lr"
ACCURACY, TRAINING = "test/accuracy", "train/accuracy"
BUDGETS = {"epochs": "as many epochs", "steps": "as many updates"}
RULES = {"sqrt": "the square root of the batch size", "linear": "the batch size"}
LATE = {TRAINING: 0.25}
"""Share of the run, at its end, that a tag is averaged over; others are their last value."""
MOSTLY = 0.5
"""Share of a gap from which on it is mostly one of missing updates."""
WORDS = {"sharpness/lambda_max": "lambda_max", "noise/trace": "Tr D"}
"""What is said of the ends beside the accuracy, where it was measured."""
Points = Mapping[float, tuple[float, float]]
"""Mean and standard error over seeds, by batch size in ascending order; NaN where all runs diverged."""


@dataclass(frozen=True)
class Gap:
    """The ends of runs by budget, rule and batch size."""

    cells: Sequence[Run]

    def points(self, tag: str, budget: str, rule: str = "none") -> Points:
        """A tag at the end."""
        runs = [run for run in self.cells if _choice(run, BUDGET, "steps") == budget]
        runs = [run for run in runs if _choice(run, RULE, "none") == rule]
        share = LATE.get(tag, 0.0)
        return {
            size: mean_and_error([run.late(tag, share) for run in runs if run.number(SIZE) == size])
            for size in sorted({run.number(SIZE) for run in runs})
        }

    def behind(self, budget: str, rule: str = "none", *, tag: str = ACCURACY) -> dict[float, float]:
        """How far each batch size is behind the smallest one."""
        (_, (first, _)), *others = [*self.points(tag, budget, rule).items()] or [(0.0, (math.nan, 0.0))]
        return {size: first - value for size, (value, _) in others}

    @property
    def rules(self) -> list[str]:
        """Those that the runs have, the learning rate as it is first."""
        known = {_choice(run, RULE, "none") for run in self.cells}
        return [rule for rule in ("none", *RULES) if rule in known]

    @property
    def budgets(self) -> list[str]:
        known = {_choice(run, BUDGET, "steps") for run in self.cells}
        return [budget for budget in BUDGETS if budget in known]

    def parts(self) -> dict[float, tuple[float, float]]:
        """By batch size: what is missing updates, and what is left after as many of them, at the learning rate as it is."""
        epochs, steps = self.behind("epochs"), self.behind("steps")
        return {size: (epochs[size] - steps[size], steps[size]) for size in epochs if size in steps}


def generalization_gap(cells: Sequence[Run]) -> str:
    """How far test accuracy falls from the smallest to the largest batch, by budget and rule, and why."""
    gap, ends = Gap(cells), []
    for budget in gap.budgets:
        for rule in gap.rules:
            if points := gap.points(ACCURACY, budget, rule):
                listed = ", ".join(f"{_number(*at)} at {size:g}" for size, at in points.items())
                ends.append(f"budget={budget}, lr={rule}: {listed}")
    sentences = [f"Test accuracy at the end by batch size: {'; '.join(ends)}.", *_decided(gap)]
    sentences += [_measured(gap, tag, name) for tag, name in WORDS.items()]
    diverged = sum(cell.diverged for cell in cells)
    sentences += [f"{diverged} of {len(cells)} runs diverged."] if diverged else []
    return " ".join(filter(None, sentences))


def _decided(gap: Gap) -> list[str]:
    """What of the gap is missing updates, what a scaled rate leaves, and whether the training set is behind, too."""
    parts = gap.parts()
    missing, rest = parts[max(parts)] if parts else (math.nan, math.nan)
    if not math.isfinite(missing):
        return []
    whole = missing + rest
    text = f"At the same learning rate the largest batch is behind the smallest by {whole:.3f} after as many epochs and by "
    text += f"{rest:.3f} after as many updates"
    if whole > 0 and rest < MOSTLY * whole:
        share = "all" if missing >= whole else f"{missing / whole:.0%}"
        text += f": the gap is mostly one of the number of updates ({share} of it)"
    sentences = [f"{text}."]
    scaled = [_where(gap.behind("epochs", rule).get(max(parts), math.nan), rule) for rule in gap.rules if rule in RULES]
    if whole > 0 and scaled:
        sentences.append(f"After as many epochs it {' and '.join(scaled)}.")
    training = gap.behind("epochs", tag=TRAINING).get(max(parts), math.nan)
    if whole > 0 and training >= MOSTLY * whole:
        sentences.append(f"It is behind on its training set, too, by {training:.3f}: it has not been learnt yet.")
    return sentences


def _where(behind: float, rule: str) -> str:
    """How the largest batch fares with a rule."""
    fares = f"is behind by {behind:.3f}" if math.isfinite(behind) else "diverges"
    return f"{fares} where the rate is scaled with {RULES[rule]}"


def _measured(gap: Gap, tag: str, name: str) -> str:
    """A quantity at the end at the learning rate as it is, by batch size; "" where it was not measured."""
    texts = []
    for budget in gap.budgets:
        if points := {size: at for size, at in gap.points(tag, budget).items() if math.isfinite(at[0])}:
            listed = ", ".join(f"{value:.3g} at {size:g}" for size, (value, _) in points.items())
            texts.append(f"{listed} after {BUDGETS[budget]}")
    return f"{name}: {'; '.join(texts)}." if texts else ""


@settings()
class GeneralizationGap(RunComparison):
    """Test accuracy against the batch size after as many epochs and as many updates, and what of the gap is missing updates.

    Below, other quantities at the end; runs that diverged have no point.
    """

    tags: Annotated[
        tuple[str, ...], Field(description="what is drawn below, at the end; what no run has is left out")
    ] = (
        TRAINING,
        *WORDS,
    )

    def compare(self, cells: Sequence[Run], title: str) -> Compared:
        require_tags([ACCURACY], cells, "compare=gap")
        gap, known = Gap(cells), {tag for cell in cells for tag in cell.series}
        below = [tag for tag in self.tags if tag in known]
        columns = max(len(gap.budgets) + 1, len(below))
        figure = new_figure(4.4 * columns, 7.8 if below else 4.2, title)
        axes = figure.subplots(2 if below else 1, columns, squeeze=False)
        for axis in axes.flat:
            axis.set_visible(False)
        for axis in axes[0, 1 : len(gap.budgets)]:
            axis.sharey(axes[0, 0])  # before anything is drawn: the limits are those of both
        for axis, budget in zip(axes[0], gap.budgets, strict=False):
            for place, rule in enumerate(gap.rules):
                _line(axis, gap.points(ACCURACY, budget, rule), f"lr: {rule}", color=f"C{place}")
            _dress(axis, gap, "test accuracy at the end", f"after {BUDGETS[budget]}")
        _draw_parts(axes[0, len(gap.budgets)], gap)
        for axis, tag in zip(axes[-1], below, strict=False):
            for place, budget in enumerate(gap.budgets):
                _line(axis, gap.points(tag, budget), f"after {BUDGETS[budget]}", color=f"C{3 + place}")
            _dress(axis, gap, tag, "lr: none")
        tags = (ACCURACY, *below)
        ends = {c.path: {t: v for t in tags if (v := c.late(t, LATE.get(t, 0.0))) == v} for c in cells}
        return Compared(figure, generalization_gap(cells), ends)


def _line(axis: Axes, points: Points, label: str, *, color: str) -> None:
    """Means and standard errors over seeds against the batch size."""
    known = {size: at for size, at in points.items() if math.isfinite(at[0])}
    means, errors = [value for value, _ in known.values()], [error for _, error in known.values()]
    axis.errorbar([*known], means, yerr=errors if any(errors) else None, color=color, marker="o", ms=5, label=label)


def _draw_parts(axis: Axes, gap: Gap) -> None:
    """The gap after as many epochs as a bar for each batch size: what is missing updates, and what is left."""
    parts = {size: at for size, at in gap.parts().items() if math.isfinite(at[0])}
    if not parts:
        return
    places, (missing, rest) = range(len(parts)), zip(*parts.values(), strict=True)
    axis.bar(places, missing, width=0.6, color="C3", label="missing updates")
    base = [max(0.0, m) if r > 0 else 0.0 for m, r in zip(missing, rest, strict=True)]
    axis.bar(places, rest, width=0.6, bottom=base, color="C7", label="left after as many updates")
    for place, (m, r) in enumerate(zip(missing, rest, strict=True)):
        share = f"{min(m / (m + r), 1.0):.0%}" if m > 0 and m + r > 0 else ""
        axis.annotate(share, (place, max(0.0, m, m + r)), xytext=(0, 3), textcoords="offset points", ha="center")
    axis.axhline(0, color="black", lw=0.8)
    axis.set_xticks(places, [f"{size:g}" for size in parts])
    axis.set(
        xlabel=SIZE, ylabel="test accuracy behind the smallest batch", title="the gap after as many epochs, lr: none"
    )
    axis.margins(y=0.3)  # room for the legend
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    axis.set_visible(True)


def _dress(axis: Axes, gap: Gap, quantity: str, title: str) -> None:
    """Names, and a tick at every batch size."""
    ticks = sorted({cell.number(SIZE) for cell in gap.cells})
    axis.set(xlabel=SIZE, ylabel=quantity, xscale="log", title=title)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8)
    axis.set_visible(True)


def _choice(run: Run, setting: str, usual: str) -> str:
    """A setting that is carried out before a run records what it has: as it was typed, or as the axis had it."""
    return str(run.overrides.get(setting) or run.get(setting) or usual)


def _number(value: float, error: float = 0.0) -> str:
    if value != value:
        return "diverged"
    return f"{value:.3f} +- {error:.1g}" if error > 0 else f"{value:.3f}"
