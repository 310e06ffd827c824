"""TensorBoard: one chart for sharpness and its threshold, figures, and the hyper-parameters with their final metrics."""

from collections.abc import Iterable, Mapping
from typing import Any

from matplotlib.figure import Figure
from pytorch_lightning.loggers import Logger, TensorBoardLogger

from lab.curvature.phase import Phase

EDGE, SPECTRUM, PRECONDITIONED = "Edge of stability", "Hessian spectrum", "preconditioned lambda_max and its threshold"
NOISE, STOCHASTIC, FISHER, LINEAR = "Gradient noise", "Edge of stochastic stability", "Fisher", "Linear stability"
LAYOUT = {
    EDGE: {
        "lambda_max and its threshold": ["Multiline", ["^sharpness/lambda_max$", "^sharpness/threshold$"]],
        PRECONDITIONED: ["Multiline", ["^sharpness/preconditioned$", "^sharpness/threshold$"]],
        "lambda_max / threshold (the edge is 1)": ["Multiline", ["^sharpness/ratio$"]],
        "top eigenvalues": ["Multiline", ["^sharpness/lambda_"]],
    },
    SPECTRUM: {
        "largest eigenvalues and the threshold": ["Multiline", ["^spectrum/lambda_[0-9]+$", "^sharpness/threshold$"]],
        "smallest eigenvalues": ["Multiline", ["^spectrum/lambda_min_"]],
        "trace: Hessian = Gauss-Newton + residual": ["Multiline", ["^spectrum/(gauss_newton/|residual/)?trace$"]],
        "top eigenspace: share of the gradient, overlap": ["Multiline", ["^spectrum/(gradient_share|overlap)$"]],
        "negative mass": ["Multiline", ["^spectrum/negative_mass$"]],
    },
    STOCHASTIC: {
        "sharpness along batch gradients and the threshold": [
            "Multiline",
            ["^batch_sharpness/ratio_of_means$", "^batch_sharpness/mean_of_ratios$", "^sharpness/threshold$"],
        ],
        "batch sharpness / threshold (the edge is 1)": ["Multiline", ["^batch_sharpness/ratio$", "^sharpness/ratio$"]],
        "generalised, for any optimiser (the edge is 2)": ["Multiline", ["^batch_sharpness/generalised$"]],
    },
    NOISE: {
        "Tr D: of one example, of the batch in use": ["Multiline", ["^noise/trace$", "^noise/trace_batch$"]],
        "noise scale Tr D / |g|^2": ["Multiline", ["^noise/scale$"]],
        "largest eigenvalues of D": ["Multiline", ["^noise/lambda_"]],
        "D against H: cosine, fitted slope": ["Multiline", ["^noise/cosine$", "^noise/slope$"]],
        "tail index of the noise": ["Multiline", ["^noise/tail_index$"]],
    },
    FISHER: {
        "traces": ["Multiline", ["^fisher/trace_"]],
        "cosines with the true Fisher": ["Multiline", ["^fisher/cosine_true_"]],
    },
    LINEAR: {
        "sharpness and non-uniformity": ["Multiline", ["^linear_stability/(sharpness|non_uniformity)$"]],
        "growth a step: second moment, typical run": [
            "Multiline",
            ["^linear_stability/second_moment_radius$", "^linear_stability/lyapunov$"],
        ],
    },
    "Loss": {"train and test": ["Multiline", ["^train/loss$", "^test/loss$"]]},
}
"""The custom-scalars page: TensorBoard cannot otherwise draw two tags in one chart."""
PAGES = {
    EDGE: "sharpness",
    SPECTRUM: "spectrum",
    STOCHASTIC: "batch_sharpness",
    NOISE: "noise",
    FISHER: "fisher",
    LINEAR: "linear_stability",
}
"""The probe that fills a page; one without a probe is always shown."""


def show_layout(loggers: Iterable[Logger], probes: Iterable[str], *, preconditioned: bool) -> None:
    """Lay out the custom-scalars page of every TensorBoard logger, with the charts that these probes fill."""
    unused = {name for name, page in PAGES.items() if page not in set(probes)}
    layout = {name: dict(charts) for name, charts in LAYOUT.items() if name not in unused}
    if not preconditioned and EDGE in layout:
        del layout[EDGE][PRECONDITIONED]
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
