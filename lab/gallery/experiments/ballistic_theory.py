"""Growth and landing of what leaves a minimum that fits, beside the exponent."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lab.gallery.base import Measured, Verdict, about, exact, shown
from lab.gallery.experiments.ballistic_minimum import (
    CLASSES,
    PIXELS,
    GrowthCell,
    Landing,
    Minimum,
)

if TYPE_CHECKING:
    from lab.gallery.experiments.escape_ballistic import EscapeBallistic
LANDED = 1.05
"""S lr/2 over its critical value above which a run is not where it can stay."""
FULL = 0
"""Stands for the whole set among batch sizes."""


@dataclass(frozen=True)
class Ballistic(Measured):
    """The minimum; growth by learning rate and batch size; where what left has landed, by batch size."""

    card: "EscapeBallistic"
    at: Minimum
    cells: list[GrowthCell]
    landings: list[Landing]

    @property
    def landed(self) -> list[Landing]:
        return [end for end in self.landings if len(end.ends)]

    def rows(self) -> list[Verdict]:
        rows = []
        for cell in self.cells:
            if cell.measured:  # of the full batch the exponent is known in closed form, its growth to round-off
                beside = about if cell.batch_size == FULL else exact
                rows.append(beside(f"growth per step, {cell.name}", cell.exponent.value, cell.against_theory))
        rows += [about(f"runs that left, {cell.name}", 0.0, cell.left) for cell in self.cells if cell.stays]
        return rows + [
            about(f"S lr/2 where it lands, batch {end.name} (theory: at most)", end.critical, end.end)
            for end in self.landed
        ]

    def arrays(self) -> dict[str, object]:
        """Rows of cells: lr, batch size, exponent, log(rho)/2, growth, its error, left; of landings: batch size and "
        "so on."""
        return {
            "cells": [
                (c.lr, c.batch_size, c.exponent.value, c.moments, c.growth.value, c.growth.error, c.left)
                for c in self.cells
            ],
            "edges": [(e.batch_size, e.critical, e.mean_square, e.start) for e in self.landings],
            "ends": [np.pad(e.ends.numpy(), (0, e.lost), constant_values=np.nan) for e in self.landings],
        }

    def values(self) -> dict[str, float]:
        moments = {cell.name: cell.moments for cell in self.cells if cell.batch_size and cell.moments}
        return {
            "sharpness": self.at.curvature.sharpness,
            "non_uniformity": self.at.curvature.non_uniformity,
            "loss_of_the_minimum": self.at.loss,
            **{f"landed_over_critical_batch_{end.name}": end.ratio for end in self.landed},
            **{f"second_moment_growth_{name}": growth for name, growth in moments.items()},
            **{f"runs_lost_landing_batch_{end.name}": float(end.lost) for end in self.landings if end.lost},
        }

    def sentence(self) -> str:
        card = self.card
        sentences = [
            f"A {PIXELS}-{card.hidden}-{CLASSES} tanh network fits {card.examples} digits exactly (loss "
            f"{self.at.loss:.1g}, sharpness S = {self.at.curvature.sharpness:.4g}), so no mini-batch has any noise "
            "there: what leaves does so ballistically, because its linearised steps are unstable."
        ]
        grew = [cell for cell in self.cells if cell.measured and cell.batch_size]
        if grew:
            sentences.append(_on_growth(grew))
        missed = [cell.name for cell in self.cells if not cell.stays and not cell.measured]
        if missed:
            sentences.append(
                f"No growth was measured for {', '.join(missed)}: too few left in {card.stay_steps} steps."
            )
        gap = [cell for cell in self.cells if cell.stays and cell.moments > 0]
        if gap:
            left = sum(cell.left for cell in gap)
            sentences.append(
                f"Where second moments explode and the exponent is negative ({', '.join(cell.name for cell in gap)}), "
                f"{left} of {card.replicas * len(gap)} runs left in {card.stay_steps} steps."
            )
        return " ".join(sentences + ([self._on_landing()] if self.landed else []))

    def _on_landing(self) -> str:
        ratios = ", ".join(f"{end.ratio:.3f} (batch {end.name})" for end in self.landed)
        late = f"have in {self.card.landing_steps} steps not all landed where the sharpness is stable"
        land = late if max(end.ratio for end in self.landed) > LANDED else "land where the sharpness is just stable"
        return (
            f"Runs at {self.card.landing_at:g} times their critical learning rate {land}: S lr/2 over the critical "
            f"value at the minimum they left is {ratios}; theory: at most 1."
        )


def _on_growth(grew: list[GrowthCell]) -> str:
    """The sentence on cells whose growth was measured."""
    ratios = [cell.growth.value / cell.exponent.value for cell in grew]
    worst = max(grew, key=lambda cell: cell.moments / cell.exponent.value)
    example = min(grew, key=lambda cell: abs(cell.growth.value - 0.1))
    over = [cell.moments / cell.exponent.value for cell in grew]
    between = f"between {min(ratios):.2f} and {max(ratios):.2f}" if len(grew) > 1 else f"{ratios[0]:.2f}"
    return (
        f"Growth per step is {between} times the Lyapunov exponent of their random product in {len(grew)} "
        f"combination{'s' * (len(grew) > 1)} of learning rate and batch size ({example.name}: "
        f"{shown(example.against_theory)}, theory {example.exponent.value:.4f}); half the logarithm "
        f"of the second-moment radius is {min(over):.1f} to {max(over):.1f} times the exponent, most at {worst.name}."
    )
