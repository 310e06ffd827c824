"""What a run amounts to when it is over, whoever made its steps: the summary, and the figure over all of it."""

from collections.abc import Iterable, Mapping
from typing import Any

from pytorch_lightning.loggers import Logger

from lab.callbacks.dashboard import show_figure, show_settings
from lab.callbacks.probing import Probing
from lab.probes.attempt import findings
from lab.run import figures
from lab.run.folder import RunFolder


def outcome_of(probes: Probing, *, steps: int, reason: str, others: Iterable[str] = ()) -> dict[str, Any]:
    """The summary of a run of `steps` updates, diverged for `reason` where that is not "". Of sharpness and phase only what
    was measured; `others` are sentences that come after those of the probes.
    """
    latest, phase = dict(probes.latest), probes.summary()
    if phase["quantity"] not in latest:
        phase["quantity"] = None
    return phase | {
        "budget": probes.costs.summary(),
        "findings": [*findings(probes.probes, latest), *others, *probes.failures.sentences(), *probes.notes()],
        "steps": steps,
        "reason": reason,
        "test_loss": latest.get("test/loss"),
        "test_accuracy": latest.get("test/accuracy"),
    }


def show_waterfall(folder: RunFolder, loggers: Iterable[Logger], step: int) -> None:
    """The density of the spectrum through training, on disk and on the dashboard, where it was measured more than once."""
    measurements = folder.all_arrays("spectrum")
    if len(measurements) > 1:
        figure = figures.waterfall_figure(measurements)
        figures.save(figure, folder.figures / "spectrum_waterfall.png")
        for logger in loggers:
            show_figure(logger, "spectrum/waterfall", figure, step)


def show_outcome(
    folder: RunFolder,
    loggers: Iterable[Logger],
    settings: Mapping[str, Any],
    summary: Mapping[str, Any],
    typed: Iterable[str] = (),
) -> None:
    """The figure of the run, on disk and on the dashboard, and the settings beside the final metrics."""
    draw = figures.edge_figure if summary["quantity"] else figures.training_figure
    name, figure = draw.__name__.removesuffix("_figure"), draw(folder.all_series(), summary)
    figures.save(figure, folder.figures / f"{name}.png")
    for logger in loggers:
        show_figure(logger, f"figures/{name}", figure, summary["steps"])
    show_settings(loggers, settings, summary, typed)
