"""logger=[tensorboard,csv,wandb,mlflow]: where a run is logged beside metrics.jsonl, which is always written and stays the
truth.

    csv      metrics.csv, a row a step and a column a tag, written from metrics.jsonl: also right after a resume
    wandb    the WandbLogger of Lightning, offline unless WANDB_MODE says otherwise, in the run folder
    mlflow   the MLFlowLogger of Lightning, into mlflow.db in the run folder unless MLFLOW_TRACKING_URI says otherwise

loggers.json in the run folder keeps the ids of the last two: a run that is resumed goes on under them.
"""

import csv
import io
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic, time
from typing import Any
from uuid import uuid4

from pytorch_lightning.loggers import Logger, MLFlowLogger, WandbLogger

from lab.callbacks.dashboard import Board
from lab.doors.labels import NAMES, Labels
from lab.run.folder import RunFolder, replace
from lab.run.identity import PLACE, flat
from lab.run.length import LENGTH
from lab.run.stopping import Stopping
from lab.settings import SettingError

AT_ONCE = 1000
"""Values that MLflow takes in one batch, at most: a commit of each step's takes 5 ms."""
SHARE = 50
"""metrics.csv is written again after so many times as long as it took, at the earliest: 2 % of the run."""
LONGEST_TITLE = 128
"""Characters of a title that wandb takes."""
LONGEST_PARAM = 500
"""Characters of a setting that MLflow takes."""


@dataclass(frozen=True)
class Entry:
    """What a run is called among others: its project, its title there, its tags and its settings."""

    project: str
    title: str
    tags: tuple[str, ...]
    settings: Mapping[str, Any]


class CsvLogger(Logger):
    """metrics.csv in the run folder, out of metrics.jsonl."""

    def __init__(self, folder: RunFolder):
        super().__init__()
        self.folder, self._due = folder, 0.0

    name, version = "csv", ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """They are in metrics.jsonl."""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """They are in provenance.json."""

    def save(self) -> None:
        """Write the file, where the last time is long enough ago."""
        if (begin := monotonic()) >= self._due:
            self.write()
            self._due = monotonic() + SHARE * (monotonic() - begin)

    def write(self) -> None:
        """Write the file: a row a step, empty where a tag was not measured at it."""
        series = {tag: dict(zip(*both, strict=True)) for tag, both in sorted(self.folder.all_series().items())}
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["step", *series])
        for step in sorted({step for values in series.values() for step in values}):
            rows.writerow([step, *(values.get(step, "") for values in series.values())])
        replace(self.folder.path / "metrics.csv", text.getvalue().encode())


class BatchedMlflowLogger(MLFlowLogger):
    """That of Lightning, which hands on many values at once; characters in tags that MLflow refuses become `-`."""

    waiting: list[Any]

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        from mlflow.entities import Metric

        now = int(time() * 1000)
        self.waiting += [Metric(allowed(tag), float(value), now, step or 0) for tag, value in metrics.items()]
        if len(self.waiting) >= AT_ONCE:
            self.save()

    def save(self) -> None:
        """Hand on what is waiting."""
        for i in range(0, len(self.waiting), AT_ONCE):
            self.experiment.log_batch(run_id=self.run_id, metrics=self.waiting[i : i + AT_ONCE])
        self.waiting = []


class StopLogger(Logger):
    """Shows the conditions of `stopping` what is logged before the end, step `total`."""

    def __init__(self, stopping: Stopping, total: int):
        super().__init__()
        self.stopping, self.total = stopping, total

    name, version = "stop", ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if (step or 0) >= self.total:
            return
        self.stopping.see(step or 0, metrics)
        if not step:
            self.stopping.require_measured(metrics)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """They are no measurements."""


@contextmanager
def opened(labels: Labels, folder: RunFolder, entry: Entry, begin: int) -> Iterator[list[Logger]]:
    """The loggers that are asked for, within a run that begins at step `begin`; closed after it, however it ends.

    Raises SettingError, one line, where one of them refuses.
    """
    made = list[Logger]()
    state = "FAILED"
    try:
        for name in labels.loggers:
            try:
                made.append(_opened(name, folder, entry, begin))
            except Exception as error:
                text = " ".join(str(error).split())
                raise SettingError(f"logger=[{name}] cannot begin: {type(error).__name__}: {text}") from None
        yield made
        state = "FINISHED"
    finally:
        for logger in made:
            _close(logger, state)


def tell(loggers: Iterable[Logger], summary: Mapping[str, Any], sentence: str) -> None:
    """The summary of a run that is over: its numbers as final/..., its sentence."""
    numbers = {f"final/{name}": float(value) for name, value in summary.items() if isinstance(value, int | float)}
    for logger in loggers:
        if isinstance(logger, BatchedMlflowLogger):
            logger.log_metrics(numbers, step=summary["steps"])
            logger.experiment.set_tag(logger.run_id, "mlflow.note.content", sentence)
        elif isinstance(logger, WandbLogger):
            logger.experiment.summary.update({**numbers, "sentence": sentence, "phase": summary.get("phase")})


def allowed(tag: str) -> str:
    """A tag in the characters that MLflow allows.

    >>> allowed("spectrum/layer/0.weight/trace"), allowed("noise/mean|x|")
    ('spectrum/layer/0.weight/trace', 'noise/mean-x-')
    """
    return re.sub(r"[^\w/. -]", "-", tag, flags=re.ASCII)


def _opened(name: str, folder: RunFolder, entry: Entry, begin: int) -> Logger:
    if name == "tensorboard":
        return Board(folder.path, begin=begin)
    if name == "csv":
        return CsvLogger(folder)
    return _wandb(folder, entry) if name == "wandb" else _mlflow(folder, entry)


def _wandb(folder: RunFolder, entry: Entry) -> Logger:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    key = _known(folder).get("wandb") or uuid4().hex[:8]
    _keep(folder, "wandb", key)  # first: a run that is killed meanwhile begins under it again
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", entry.project),
        name=entry.title,
        tags=entry.tags,
        config=dict(entry.settings),
        id=key,
        resume="allow",
        dir=str(folder.path),
        mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
        reinit="create_new",
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
    )
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(experiment=run)


def _mlflow(folder: RunFolder, entry: Entry) -> Logger:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.loggers.mlflow").setLevel(logging.ERROR)  # it warns of a new experiment
    elsewhere = os.environ.get("MLFLOW_TRACKING_URI")
    place = folder.path.absolute()
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # its import has set another
    logger = BatchedMlflowLogger(
        experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", entry.project),
        run_name=entry.title,
        tracking_uri=elsewhere or f"sqlite:///{place / 'mlflow.db'}",
        artifact_location=None if elsewhere else (place / "mlflow").as_uri(),
        run_id=_known(folder).get("mlflow"),
    )
    logger.waiting = []
    with _others_speaking():
        client, run_id = logger.experiment, logger.run_id
    assert run_id is not None
    if elsewhere is None:  # MLflow has noted it there, where the next run of this process would look
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    client.update_run(run_id, status="RUNNING", name=entry.title)
    if entry.tags:
        client.set_tag(run_id, "tags", ",".join(entry.tags))
    _keep(folder, "mlflow", run_id)
    settings = {allowed(key): str(value)[:LONGEST_PARAM] for key, value in entry.settings.items()}
    for key in settings.keys() & {*PLACE, *LENGTH}:  # may change between a run and what goes on with it, as tags may
        client.set_tag(run_id, key, settings.pop(key))
    params = [mlflow.entities.Param(key, value) for key, value in settings.items()]
    known = client.get_run(run_id).data.params  # they cannot be changed
    for i in range(0, len(params), 100):
        client.log_batch(run_id, params=[param for param in params[i : i + 100] if param.key not in known])
    return logger


@contextmanager
def _others_speaking() -> Iterator[None]:
    """What makes the tables of a new file (alembic) switches off the loggers of all other packages in this process."""
    heard = [
        one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger) and not one.disabled
    ]
    yield
    for one in heard:
        one.disabled = False


def _close(logger: Logger, state: str) -> None:
    """Lightning has finalized it after the fit; what came since is written, and what is open closed."""
    with suppress(Exception):  # what is lost is lost in a copy
        if isinstance(logger, CsvLogger):
            logger.write()
        elif isinstance(logger, BatchedMlflowLogger):
            logger.save()
            logger.experiment.set_terminated(logger.run_id, state)
        elif isinstance(logger, WandbLogger):
            logger.experiment.finish(exit_code=0 if state == "FINISHED" else 1)
        else:
            logger.finalize("success")


def _known(folder: RunFolder) -> dict[str, Any]:
    return folder.read("loggers")


def _keep(folder: RunFolder, name: str, key: str) -> None:
    folder.write("loggers", _known(folder) | {name: key})


def entry(plain: Mapping[str, Any], labels: Labels, folder: RunFolder) -> Entry:
    """That of the run with the settings `plain` in a folder: its project is the folder around that, and the runs of a grid
    that has a name are called as their folders.
    """
    settings = {name: value for name, value in flat(dict(plain)).items() if name not in NAMES}
    path = folder.path.absolute()
    title = labels.name if labels.name and labels.name != path.parent.name else path.name
    return Entry(path.parent.name, title[:LONGEST_TITLE], labels.tags, settings)
