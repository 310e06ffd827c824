"""TensorBoard: one chart for sharpness and its threshold, figures, and the hyper-parameters with their final metrics."""

from collections.abc import Iterable, Mapping
from typing import Any

from matplotlib.figure import Figure
from pytorch_lightning.loggers import Logger, TensorBoardLogger

from lab.curvature.phase import Phase

PRECONDITIONED = "preconditioned lambda_max and its threshold"
PAGES = {
    "sharpness": "Edge of stability",
    "spectrum": "Hessian spectrum",
    "batch_sharpness": "Edge of stochastic stability",
    "noise": "Gradient noise",
    "fisher": "Fisher",
    "linear_stability": "Linear stability",
    "": "Loss",
}
"""The section of the custom-scalars page that a probe fills; that of no probe is always shown."""
CHARTS = {
    "sharpness": {
        "lambda_max and its threshold": "^sharpness/lambda_max$ ^sharpness/threshold$",
        PRECONDITIONED: "^sharpness/preconditioned$ ^sharpness/threshold$",
        "lambda_max / threshold (the edge is 1)": "^sharpness/ratio$",
        "top eigenvalues": "^sharpness/lambda_",
    },
    "spectrum": {
        "largest eigenvalues and the threshold": "^spectrum/lambda_[0-9]+$ ^sharpness/threshold$",
        "smallest eigenvalues": "^spectrum/lambda_min_",
        "trace: Hessian = Gauss-Newton + residual": "^spectrum/(gauss_newton/|residual/)?trace$",
        "top eigenspace: share of the gradient, overlap": "^spectrum/(gradient_share|overlap)$",
        "negative mass": "^spectrum/negative_mass$",
    },
    "batch_sharpness": {
        "sharpness along batch gradients and the threshold": (
            "^batch_sharpness/ratio_of_means$ ^batch_sharpness/mean_of_ratios$ ^sharpness/threshold$"
        ),
        "batch sharpness / threshold (the edge is 1)": "^batch_sharpness/ratio$ ^sharpness/ratio$",
        "generalised, for any optimiser (the edge is 2)": "^batch_sharpness/generalised$",
    },
    "noise": {
        "Tr D: of one example, of the batch in use": "^noise/trace$ ^noise/trace_batch$",
        "noise scale Tr D / |g|^2": "^noise/scale$",
        "largest eigenvalues of D": "^noise/lambda_",
        "D against H: cosine, fitted slope": "^noise/cosine$ ^noise/slope$",
        "tail index of the noise": "^noise/tail_index$",
    },
    "fisher": {"traces": "^fisher/trace_", "cosines with the true Fisher": "^fisher/cosine_true_"},
    "linear_stability": {
        "sharpness and non-uniformity": "^linear_stability/(sharpness|non_uniformity)$",
        "growth a step: second moment, typical run": (
            "^linear_stability/second_moment_radius$ ^linear_stability/lyapunov$"
        ),
    },
    "": {"train and test": "^train/loss$ ^test/loss$"},
}
"""The charts of a section with the tags that each draws, regular expressions: TensorBoard has no other page that draws two
tags in one chart.
"""


def show_layout(loggers: Iterable[Logger], probes: Iterable[str], *, preconditioned: bool) -> None:
    """Lay out the custom-scalars page of every TensorBoard logger, with the charts that these probes fill."""
    filled, left_out = {"", *probes}, "" if preconditioned else PRECONDITIONED
    layout = {
        PAGES[probe]: {name: ["Multiline", tags.split()] for name, tags in charts.items() if name != left_out}
        for probe, charts in CHARTS.items()
        if probe in filled
    }
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_custom_scalars(layout)


def show_figure(logger: Logger, tag: str, figure: Figure, step: int) -> None:
    """A matplotlib figure on the Images page."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_figure(tag, figure, global_step=step)


def flush(loggers: Iterable[Logger]) -> None:
    """What is logged is on disk: a killed run loses none of its curves up to here."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()
        else:
            logger.save()


def show_settings(loggers: Iterable[Logger], settings: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """Hyper-parameters with the final metrics, the phase as the number of `sharpness/phase` among them; once, at the end: a
    placeholder would draw a false line.
    """
    numbers = {f"final/{name}": float(value) for name, value in metrics.items() if isinstance(value, int | float)}
    if (phase := metrics.get("phase")) is not None:
        numbers["final/phase"] = float(Phase(phase).code)
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(dict(settings), numbers)
