"""metrics.jsonl as a Lightning logger: what goes to TensorBoard goes to the run folder too."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from pytorch_lightning.loggers import Logger

from lab.run.folder import RunFolder


class MetricsLogger(Logger):
    """Appends every scalar to `folder`/metrics.jsonl."""

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

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The settings of a run are in provenance.json."""
