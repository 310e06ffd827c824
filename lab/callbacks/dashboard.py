"""TensorBoard: what matters comes first, sharpness and threshold share a chart, a row of hyper-parameters ends the run."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.metadata import PLUGIN_DATA_VERSION
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from torch.utils.tensorboard.summary import hparams

from lab.callbacks.charts import layout, logged
from lab.callbacks.hparams import columns, finals, forget_rows
from lab.curvature.phase import Phase
from lab.probes.base import Probe

PLACES = {"train": 1, "sharpness": 2, "test": 3, "final": 10, "cost": 11, "error": 12, "lines": 13}
"""The place of a group among all: TensorBoard sorts groups by name, its first two are open on the page Time Series."""
PROBES, FIGURES, FIGURES_OF_PROBES = 4, 5, 6
"""The places of any other group of scalars, and of figures."""

EDGE, LOG_RATIO = "lines/edge", "lines/log10_ratio"
"""What charts draw beside sharpness / threshold: a line at 1, which keeps the edge in sight whatever the axis leaves out,
and the logarithm, which shows runs far below the edge and far above it in one chart.
"""
RATIOS = {"sharpness/ratio", "batch_sharpness/ratio"}
"""What is drawn beside the line."""
SPARSE = 8
"""Ratios for one point of the line: more than a twentieth of a chart, which TensorBoard cuts off, and so few that they take
no spike of the ratio out of sight.
"""


def shown(tag: str) -> str:
    """A tag, or a regular expression for tags, as the board shows it: the group with the number of its place.

    The table of hyper-parameters sorts tags letter by letter and begins with 10_final; the charts sort by number. Whether
    a solve has converged stands with the errors.

    >>> shown("train/loss"), shown("noise/(trace|scale)"), shown("sharpness/converged")
    ('1_train/loss', '4_noise/(trace|scale)', '12_error/sharpness/converged')
    """
    group = tag.partition("/")[0]
    if tag.endswith("converged"):
        group, tag = "error", f"error/{tag}"
    return f"{PLACES.get(group, PROBES)}_{tag}"


def shown_figure(tag: str) -> str:
    """The tag of a figure as the board shows it: by the name of its file, those of the whole run before those of probes.

    >>> shown_figure("figures/edge"), shown_figure("spectrum/density")
    ('5_figures/edge', '6_figures_of_probes/spectrum_density')
    """
    group, _, name = tag.partition("/")
    return f"{FIGURES}_{tag}" if group == "figures" else f"{FIGURES_OF_PROBES}_figures_of_probes/{group}_{name}"


class Board(TensorBoardLogger):
    """The event files of one run. They lie in the run folder itself, so that TensorBoard calls the run by its folder.

    folder  the run folder.
    begin   the step that is logged next: what an earlier process has logged from there on is taken back, and its row in
            the table of hyper-parameters.
    ratios  how many measurements had one.
    Tags are numbered, see `shown`. The writer stays open over the end of a fit, until what the run amounts to was shown.
    """

    def __init__(self, folder: Path | str, *, begin: int = 0):
        forget_rows(Path(folder))
        super().__init__(folder, name="", version="", default_hp_metric=False, purge_step=begin)
        self.over, self.ratios = False, 0

    @property
    def log_dir(self) -> str:
        """The folder as it was given: nothing in its name is a variable."""
        return self.save_dir

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {shown(tag): value for tag, value in metrics.items() if tag != "epoch"}
        if (ratio := metrics.get("sharpness/ratio", 0.0)) > 0:
            values[shown(LOG_RATIO)] = math.log10(ratio)
        if RATIOS & metrics.keys():
            values |= {shown(EDGE): 1.0} if self.ratios % SPARSE == 0 else {}
            self.ratios += 1
        super().log_metrics(values, step)

    def save(self) -> None:
        """Without the hparams.yaml of Lightning: the settings of a run are in provenance.json."""
        self.experiment.flush()

    def finalize(self, status: str) -> None:
        if status == "success" and not self.over:
            self.experiment.flush()
        elif self._experiment is not None:
            self._experiment.close()


def show_layout(loggers: Iterable[Logger], probes: Sequence[Probe], *, preconditioned: bool, tested: bool) -> None:
    """Lay out the custom-scalars page of every TensorBoard logger, with the charts that are filled: by these probes, by an
    optimiser that is preconditioned or not, by evaluations on test data where there are any.
    """
    known = logged(probes, preconditioned=preconditioned, tested=tested)
    for logger in _boards(loggers):
        logger.experiment.add_custom_scalars(layout(known, shown if isinstance(logger, Board) else str))


def show_figure(logger: Logger, tag: str, figure: Figure, step: int) -> None:
    """A matplotlib figure on the Images page."""
    for board in _boards([logger]):
        board.experiment.add_figure(shown_figure(tag) if isinstance(board, Board) else tag, figure, global_step=step)


def flush(loggers: Iterable[Logger]) -> None:
    """What is logged is on disk: a killed run loses none of its curves up to here."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()
        else:
            logger.save()


def show_settings(
    loggers: Iterable[Logger], settings: Mapping[str, Any], summary: Mapping[str, Any], typed: Iterable[str] = ()
) -> None:
    """The row of the run in the table of hyper-parameters: `columns` of its flat settings, `finals` of its summary.

    typed: the words of the command. Once, at the end: a placeholder would draw a false line. No list of columns is written
    with it: TensorBoard then makes one from all runs that it shows, with the settings that differ between them first.
    """
    row, metrics = columns(settings, summary, typed), finals(summary)
    for logger in _boards(loggers):
        line = {EDGE: 1.0} if isinstance(logger, Board) and logger.ratios else {}
        logger.log_metrics(metrics | line, step=int(summary.get("steps") or 0))
        _, begin, end = hparams(row, metrics)
        if summary.get("phase") == Phase.DIVERGED:
            failed = HParamsPluginData(session_end_info=SessionEndInfo(status=Status.STATUS_FAILURE))
            failed.version = PLUGIN_DATA_VERSION
            end.value[0].metadata.plugin_data.content = failed.SerializeToString()
        for message in (begin, end):
            logger.experiment._get_file_writer().add_summary(message)
        if isinstance(logger, Board):
            logger.over = True


def _boards(loggers: Iterable[Logger]) -> list[TensorBoardLogger]:
    return [logger for logger in loggers if isinstance(logger, TensorBoardLogger)]
