"""Spectra of the Hessian through training, run beside run: the density by step, outliers and threshold on it."""

from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Normalize

from lab.compare.arrays import array_files, read_arrays
from lab.compare.base import Compared, new_figure
from lab.compare.groups import differing
from lab.compare.run import Run
from lab.compare.strangers import Unreadable
from lab.run.figures import EIGENVALUE, REACH, THRESHOLD
from lab.settings import SettingError

MOST = 12
"""Runs side by side; of more, the first."""
STEPS = 40
"""Measurements of a run that are drawn, at equal distances."""
COLUMNS = 4
BINS = 600
FLOOR = 0.05
"""What is drawn of a density at least: a share of the peak that one eigenvalue makes."""
Spectra = Mapping[int, Mapping[str, np.ndarray]]
"""By step, the arrays of `probes.spectrum.SpectrumResult.arrays`."""


def spectra_of(run: Run) -> Spectra:
    """The spectra of a run, `STEPS` at most; what is damaged is left out."""
    files = array_files(run.path, "spectrum")
    kept = list(files)[:: -(-len(files) // STEPS) or 1]
    found = {}
    for step in dict.fromkeys([*kept, *list(files)[-1:]]):
        try:
            arrays = read_arrays(run.path, files[step])
        except Unreadable:
            continue
        if _sound(arrays):
            found[step] = arrays
    return found


def side_by_side(runs: Sequence[Run], title: str = "") -> Compared:
    """A panel for each run that measured its spectrum, on common axes and colors.

    Raises SettingError where none of them did.
    """
    every = ((run, spectra) for run in runs if (spectra := spectra_of(run)))
    kept = list(islice(every, MOST))
    if not kept:
        raise SettingError("no run has measured its spectrum; add spectrum to its probes")
    settings = differing([run for run, _ in kept])
    columns = min(COLUMNS, len(kept))
    rows = -(-len(kept) // columns)
    figure = new_figure(1.4 + 3.3 * columns, 0.8 + 2.7 * rows, title or "Hessian spectra through training")
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    left, right = _reach([spectra for _, spectra in kept])
    x = np.linspace(left, right, BINS)
    heights = [_heights(spectra, x) for _, spectra in kept]
    norm = Normalize(min(float(h.min()) for h in heights), max(float(h.max()) for h in heights))
    told: list[str] = []
    for axis, (run, spectra), height in zip(panels, kept, heights, strict=False):
        mesh = _draw(axis, spectra, x, height, norm)
        name = run.label(settings) or run.name
        axis.set_title(name, fontsize=9, parse_math=False)
        told.append(f"{name}: {_words(spectra)}")
    for axis in panels[len(kept) :]:
        axis.remove()
    panels[0].set_xlim(left, right)
    panels[0].set_ylim(bottom=0)
    for place, axis in enumerate(panels[: len(kept)]):
        if place % columns == 0:
            axis.set_ylabel("step (updates)")
        if place + columns >= len(kept):
            axis.set_xlabel(EIGENVALUE)
            axis.tick_params(labelbottom=True)
    figure.colorbar(mesh, ax=panels[: len(kept)], label="log10 of eigenvalues per unit of curvature", pad=0.01)
    handles = {label: h for axis in panels for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    more = f" The first {MOST} runs are shown." if next(every, None) else ""
    values = {run.path: {"spectrum/lambda_1": float(spectra[max(spectra)]["top"].max())} for run, spectra in kept}
    return Compared(figure, f"{'; '.join(told)}.{more}", values)


def _draw(axis: Axes, spectra: Spectra, x: np.ndarray, heights: np.ndarray, norm: Normalize) -> QuadMesh:
    """One run: a strip a measurement, dots for outliers, a line for the threshold."""
    steps = np.array(list(spectra), float)
    if len(steps) == 1:  # a strip needs a width
        steps, heights = np.array([steps[0] - 0.5, steps[0] + 0.5]), np.repeat(heights, 2, axis=0)
    mesh = axis.pcolormesh(x, steps, heights, cmap="viridis", norm=norm, shading="nearest", rasterized=True)
    for i, (step, a) in enumerate(spectra.items()):
        tops = a["top"][a["top"] > a["edge"]]
        label = "outliers" if i == 0 else None
        axis.plot(tops, [step] * len(tops), ls="", marker=".", ms=4, color="tab:orange", label=label)
    if limits := [(float(a["threshold"]), step) for step, a in spectra.items() if "threshold" in a]:
        axis.plot(*zip(*limits, strict=True), color="tab:red", ls="--", lw=1.2, label=THRESHOLD)
        if limits[-1][0] > x[-1]:
            note = f"threshold {limits[-1][0]:.3g}, off to the right"
            axis.annotate(note, (0.98, 0.96), xycoords="axes fraction", ha="right", va="top", color="white", fontsize=8)
    return mesh


def _heights(spectra: Spectra, x: np.ndarray) -> np.ndarray:
    """log10 of eigenvalues per unit of curvature at x, a row for each measurement."""
    rows = [np.interp(x, a["grid"], a["values"], left=0, right=0) * float(a["size"]) for a in spectra.values()]
    lone = min(1 / (np.sqrt(2 * np.pi) * float(a["sigma"])) for a in spectra.values())
    return np.log10(np.clip(np.stack(rows), FLOOR * lone, None))


def _reach(every: Sequence[Spectra]) -> tuple[float, float]:
    """The ends of the common axis: all densities, and thresholds that are near."""
    arrays = [a for spectra in every for a in spectra.values()]
    left, right = min(float(a["grid"].min()) for a in arrays), max(float(a["grid"].max()) for a in arrays)
    limits = [float(a["threshold"]) for a in arrays if "threshold" in a]
    return left, max([right, *(1.05 * limit for limit in limits if limit < REACH * right)])


def _words(spectra: Spectra) -> str:
    """The largest eigenvalue from the first measurement to the last, and the outliers then."""
    first, last = min(spectra), max(spectra)
    low, high = (float(spectra[step]["top"].max()) for step in (first, last))
    a = spectra[last]
    over = f" ({high / float(a['threshold']):.2f} x threshold)" if "threshold" in a else ""
    count = int((a["top"] > a["edge"]).sum())
    return (
        f"largest eigenvalue {low:.3g} at step {first}, {high:.3g}{over} at step {last}, "
        f"{count} of the {a['top'].size} computed are outliers"
    )


def _sound(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether the arrays are those of a spectrum: of the right shapes, finite, with a width and a size."""
    names = ("grid", "values", "sigma", "size", "edge", "top")
    if any(name not in arrays or not np.isfinite(arrays[name]).all() for name in names):
        return False
    grid, values, top = arrays["grid"], arrays["values"], arrays["top"]
    single = all(arrays[name].size == 1 for name in ("sigma", "size", "edge", *({"threshold"} & {*arrays})))
    lines = grid.ndim == values.ndim == top.ndim == 1 and grid.shape == values.shape and grid.size > 1 and top.size > 0
    return bool(single and lines and arrays["sigma"] > 0 and arrays["size"] > 0 and (np.diff(grid) > 0).all())
