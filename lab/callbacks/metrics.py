"""The run folder as a Lightning logger: what goes to TensorBoard goes there too, and arrays besides."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from pytorch_lightning.loggers import Logger
from torch import Tensor

from lab.run.figures import save
from lab.run.folder import RunFolder


class MetricsLogger(Logger):
    """Scalars to `folder`/metrics.jsonl, arrays to arrays/, the latest figure of every tag to figures/."""

    def __init__(self, folder: RunFolder):
        super().__init__()
        self.folder = folder

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.folder.log(step or 0, {tag: value for tag, value in metrics.items() if tag != "epoch"})

    def log_others(self, arrays: Mapping[str, Tensor], figures: Mapping[str, Figure], step: int) -> None:
        """What is no number, by tag: arrays as `RunFolder.log_arrays` does, figures as figures/<tag>.png, the latest of
        each (from the arrays all of them can be drawn again).
        """
        self.folder.log_arrays(step, {tag: array.detach().cpu().numpy() for tag, array in arrays.items()})
        for tag, figure in figures.items():
            save(figure, self.folder.figures / f"{tag.replace('/', '_')}.png")

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The settings of a run are in provenance.json."""
