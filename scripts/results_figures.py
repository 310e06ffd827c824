"""The pictures of docs/results/ out of the folders of the runs, with titles that do not name the folder of the images.

    python scripts/results_figures.py OUTPUTS edge phase forks spectra central_flows

They are those that the commands of the pages draw, but for that of the spectra, which is drawn here.
"""

import runpy
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from results import OPTIMISERS, under

import lab
from lab.compare.branches import Branches
from lab.compare.curves import Curves
from lab.compare.heatmap import phase_diagrams
from lab.compare.run import Run
from lab.run.figures import CURVATURE, blank, edge_figure, save

LARGEST = 20
"""Eigenvalues that are drawn."""
PICTURES = Path(__file__).parents[1] / "docs/pictures.py"


def edge(outputs: Path) -> Figure:
    runs = [next((outputs / "edge").glob(f"{name},*")) for name in OPTIMISERS]
    cells = [Run.read(run, [f"optimiser={words}"]) for run, words in zip(runs, OPTIMISERS.values(), strict=True)]
    curves = Curves(tags=("sharpness/ratio",), level=1.0, ylabel="lambda_max / threshold of the optimiser")
    return curves.compare(cells, "six optimisers, each over its own threshold").figure


def phase(outputs: Path) -> Figure:
    runs = lab.runs(str(outputs / "phase_diagram"))
    quantities = ("sharpness/ratio", "lambda_max over 2/lr"), ("batch_sharpness/ratio", "batch sharpness over 2/lr")
    return phase_diagrams(runs, dict(quantities), title="1000 CIFAR-10 images, after 1000 steps")


def forks(outputs: Path) -> Figure:
    cells = [Run.read(run.path) for run in under(outputs / "train") if run.read("provenance").get("parent")]
    return (
        Branches().compare(cells, "SGD on 500 CIFAR-10 images: learning rate 0.03 or 0.1, batches of 128 or 16").figure
    )


def central_flows(outputs: Path) -> Figure:
    [run] = under(outputs / "peer_central_flows")
    return edge_figure(run.all_series(), run.read("summary") | {"title": "the setting of the central flows"})


def spectra(outputs: Path) -> Figure:
    """The largest eigenvalues of H and of D against the step, and between D and H their cosine and the noise along the top
    eigenvectors of H over their curvature, with what theory says.
    """
    [run] = under(outputs / "noise_spectra")
    figure = blank(12, 4.2)
    hessian, noise, both = figure.subplots(1, 3)
    series = run.all_series()
    tags = [f"spectrum/lambda_{i}" for i in range(1, LARGEST + 1)]
    lines = [series[tag] for tag in tags if tag in series]
    eigenvalues = {step: arrays["eigenvalues"] for step, arrays in run.all_arrays("noise").items()}
    ranked(hessian, lines, "Hessian H", f"eigenvalue ({CURVATURE})")
    lines = [([*eigenvalues], [float(values[i]) for values in eigenvalues.values()]) for i in range(LARGEST)]
    ranked(noise, lines, "noise covariance D of one example", "eigenvalue (gradient$^2$)")
    both.plot(*series["noise/cosine"], color="tab:green", marker=".", label="cosine of D and H")
    both.plot(*series["noise/slope"], color="tab:blue", marker=".", label="u'Du / u'Hu along the top of H")
    both.plot(*series["noise/slope_theory"], color="tab:red", ls="--", label="2L/K, residuals of one size")
    both.set(title="D beside H", yscale="log", ylim=(None, 1.5))
    both.legend(frameon=False, fontsize=9, loc="lower left")
    for axis in (hessian, noise, both):
        axis.set_xlabel("step (updates)")
        axis.grid(alpha=0.25)
    return figure


def ranked(axis: Axes, lines: list[tuple[list[int], list[float]]], title: str, unit: str) -> None:
    """A line for each eigenvalue: the largest nine, as many as classes less one, in color, the others in grey."""
    for i, (steps, values) in reversed([*enumerate(lines)]):
        label = {0: "the largest", 8: "to the ninth", 9: f"to number {len(lines)}"}.get(i)
        axis.plot(steps, values, color="tab:blue" if i < 9 else "0.6", lw=1.5 if i == 0 else 0.9, label=label)
    axis.set(title=title, ylabel=unit, yscale="log")
    axis.legend(frameon=False, fontsize=9)


FIGURES: Mapping[str, Callable[[Path], Figure]] = {
    "edge": edge,
    "phase": phase,
    "forks": forks,
    "spectra": spectra,
    "central_flows": central_flows,
}

if __name__ == "__main__":
    small = runpy.run_path(str(PICTURES))
    for name in sys.argv[2:]:
        with TemporaryDirectory() as folder:
            drawn = Path(folder) / f"{name}.png"
            save(FIGURES[name](Path(sys.argv[1])), drawn)
            small["small"](drawn, small["IMAGES"] / f"results_{name}.png")
