"""Sections of any objective: its values on a plane or a line through w-space, and the picture of them.

    f(a, b) = L(origin + a u + b v)

Between the points of a network's training the plane through three of them (Li et al. 2018) shows the basin; on a
landscape in two variables the plane is the whole of it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lab.objective import Objective

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BATCH_BYTES = 2**20
"""Points that are evaluated at once: a whole grid in two variables; of a network more would fall out of the cache."""


@dataclass(frozen=True)
class Section:
    """Values (rows, columns) at origin + a u + b v, for a of `columns` and b of `rows`; u, v (P,)."""

    origin: Tensor
    u: Tensor
    v: Tensor
    columns: Tensor
    rows: Tensor
    values: Tensor

    @classmethod
    def whole(cls, columns: Tensor, rows: Tensor, values: Tensor) -> "Section":
        """Of an objective in two variables, x in columns and y in rows."""
        u, v = torch.eye(2, dtype=torch.float64)
        return cls(torch.zeros(2, dtype=torch.float64), u, v, columns, rows, values)

    def coordinates(self, points: Tensor) -> Tensor:
        """(a, b) of points (..., P), by least squares: their projection on the plane (..., 2)."""
        plane = torch.stack([self.u, self.v], dim=1)
        return (points - self.origin) @ torch.linalg.pinv(plane).T


def section(objective: Objective, origin: Tensor, u: Tensor, v: Tensor, *, columns: Tensor, rows: Tensor) -> Section:
    """L on the grid `columns` x `rows` of the plane through `origin` (P,) along u and v (P,). Cost: a value a grid point, as
    replicas, in batches of at most `BATCH_BYTES`.
    """
    a, b = columns.repeat(len(rows)).to(u), rows.repeat_interleave(len(columns)).to(v)
    points = max(1, BATCH_BYTES // (len(origin) * origin.element_size()))
    values = [
        _values(objective, origin + some_a[:, None] * u + some_b[:, None] * v)
        for some_a, some_b in zip(a.split(points), b.split(points), strict=True)
    ]
    return Section(origin, u, v, columns, rows, torch.cat(values).view(len(rows), len(columns)))


def _values(objective: Objective, points: Tensor) -> Tensor:
    """L at points (n, P): (n,), one by one where train-mode BatchNorm couples the examples."""
    try:
        return objective.replica_values(points)
    except ValueError:
        return Objective.replica_values(objective, points)


def window(objective: Objective, low: Sequence[float], high: Sequence[float], *, points: int = 121) -> Section:
    """The whole of an objective in two variables, on the box from `low` to `high`. Raises ValueError for another number."""
    if objective.num_params != 2 or len(low) != 2 or len(high) != 2:
        raise ValueError(f"an objective in {objective.num_params} variables: a window is for 2; use `section`")
    x, y = (torch.linspace(a, b, points, dtype=torch.float64) for a, b in zip(low, high, strict=True))
    u, v = torch.eye(2, dtype=torch.float64)
    return section(objective, torch.zeros(2, dtype=torch.float64), u, v, columns=x, rows=y)


def draw_contours(
    axis: "Axes",
    shown: Section,
    trajectories: dict[str, Tensor],
    *,
    names: tuple[str, str] = ("x", "y"),
) -> None:
    """Contours of log(1 + (L - min L)/scale) with their color bar, and trajectories {name: (steps, P)} from their dot to
    their star.
    """
    height = shown.values - shown.values.min()
    scale = float(height.median()) / 20 or 1.0
    levels = axis.contourf(shown.columns, shown.rows, torch.log1p(height / scale), levels=24, cmap="Greys_r")
    bar = axis.figure.colorbar(levels, ax=axis, label="loss above its lowest value here")
    bar.ax.set_xlabel("L")
    places = {share: math.log1p(float(height.max()) * share / scale) for share in (0.0, 0.001, 0.01, 0.1, 1.0)}
    apart = [share for share, place in places.items() if not share or place > 0.05 * places[1.0]]
    bar.set_ticks(
        [places[share] for share in apart], labels=[f"{float(f'{height.max() * share:.2g}'):g}" for share in apart]
    )
    for name, path in trajectories.items():
        a, b = shown.coordinates(path.to(shown.u)).unbind(-1)
        (line,) = axis.plot(a, b, lw=1.2, label=name)
        axis.plot(a[0], b[0], "o", ms=6, color=line.get_color(), mec="white")
        axis.plot(a[-1], b[-1], "*", ms=12, color=line.get_color(), mec="white")
    axis.set(
        xlabel=names[0],
        ylabel=names[1],
        xlim=(float(shown.columns[0]), float(shown.columns[-1])),
        ylim=(float(shown.rows[0]), float(shown.rows[-1])),
    )
    axis.legend(loc="upper right", framealpha=0.9)
