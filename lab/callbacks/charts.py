"""The custom-scalars page of TensorBoard: the only one that draws two tags in one chart.

TensorBoard colours a curve by its run and marks it by its tag. So a chart of this page has two or three tags for the eye
to tell apart, and where runs are to be compared one tag, beside a line that all of them share.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Any

SECTIONS = {
    "Edge of stability": ["sharpness", "preconditioned", "eigenvalues"],
    "Loss": ["train", "test"],
    "Edge of stochastic stability": ["batch_sharpness"],
    "Hessian spectrum": ["spectrum"],
    "Gradient noise": ["noise"],
    "Fisher": ["fisher"],
    "Linear stability": ["linear_stability"],
}
"""The sections of the page, and what has to be logged for their charts: what a probe measures, or see `logged`."""
CHARTS = {
    "sharpness": {
        "sharpness / threshold (the edge is 1)": "sharpness/ratio lines/edge",
        "lambda_max and its threshold": "sharpness/(lambda_max|moved) sharpness/threshold",
        "log10 of sharpness / threshold (the edge is 0)": "lines/log10_ratio",
    },
    "preconditioned": {"preconditioned lambda_max and its threshold": "sharpness/preconditioned sharpness/threshold"},
    "eigenvalues": {"eigenvalues: largest, second, smallest": "sharpness/lambda_(max|2|min)"},
    "train": {"train loss": "train/loss", "train accuracy": "train/accuracy"},
    "test": {"test accuracy": "test/accuracy", "train and test loss": "train/loss test/loss"},
    "batch_sharpness": {
        "batch sharpness / threshold (the edge is 1)": "batch_sharpness/ratio lines/edge",
        "batch sharpness and the threshold": "batch_sharpness/ratio_of_means sharpness/threshold",
        "batch sharpness: ratio of means, mean of ratios": "batch_sharpness/(ratio_of_means|mean_of_ratios)",
        "generalised, for any optimiser (the edge is 2)": "batch_sharpness/generalised",
    },
    "spectrum": {
        "two largest eigenvalues and the threshold": "spectrum/lambda_[12] sharpness/threshold",
        "two smallest eigenvalues": "spectrum/lambda_min_[12]",
        "trace: Hessian = Gauss-Newton + residual": "spectrum/(gauss_newton/|residual/)?trace",
        "top eigenspace: share of the gradient, overlap": "spectrum/(gradient_share|overlap)",
        "negative mass": "spectrum/negative_mass",
    },
    "noise": {
        "Tr D: of one example, of the batch in use": "noise/trace noise/trace_batch",
        "noise scale Tr D / |g|^2": "noise/scale",
        "two largest eigenvalues of D": "noise/lambda_(max|2)",
        "D against H: cosine, fitted slope": "noise/cosine noise/slope",
        "tail index of the noise": "noise/tail_index",
    },
    "fisher": {
        "traces: true, empirical, Hessian": "fisher/trace_(true|empirical|hessian)",
        "cosines with the true Fisher": "fisher/cosine_true_(empirical|hessian)",
    },
    "linear_stability": {
        "sharpness and non-uniformity": "linear_stability/(sharpness|non_uniformity)",
        "growth a step: second moment, typical run": "linear_stability/(second_moment_radius|lyapunov)",
    },
}
"""The charts of a section with what each draws: regular expressions that a whole tag has to match."""


def logged(probes: Iterable[Any], *, preconditioned: bool, tested: bool) -> set[str]:
    """What there will be to draw: the names of the probes, and what depends on their settings and on the training."""
    names = {probe.name for probe in probes} | {"train"}
    names |= {"eigenvalues" for probe in probes if probe.name == "sharpness" and (probe.k > 1 or probe.bottom)}
    return (
        names
        | ({"preconditioned"} if preconditioned and "sharpness" in names else set())
        | ({"test"} if tested else set())
    )


def layout(logged: Collection[str], rename: Callable[[str], str]) -> dict[str, Any]:
    """Sections and charts of what is `logged`, as `SummaryWriter.add_custom_scalars` takes them.

    rename: the tag, or expression, as it stands in the event file.
    """
    page = {}
    for section, needed in SECTIONS.items():
        charts = {title: tags for name in needed if name in logged for title, tags in CHARTS[name].items()}
        if charts:
            page[section] = {
                title: ["Multiline", [f"^{rename(tag)}$" for tag in tags.split()]] for title, tags in charts.items()
            }
    return page
