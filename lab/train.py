"""python -m lab.train: train a network and measure its loss landscape while it trains.

Settings come from `conf/` through Hydra; each group is one validated dataclass. Nothing is written before all of them
are known to be sound. The same command again returns at once when the run is finished and resumes a killed one.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import TensorBoardLogger
from torch import nn

from lab.callbacks.dashboard import show_figure, show_settings
from lab.callbacks.metrics import MetricsLogger
from lab.callbacks.probe import ProbeCallback
from lab.callbacks.progress import ProgressCallback
from lab.callbacks.run import RunCallback
from lab.cli import card, config_dir, one_line_errors, quiet, register_resolvers, remove_if_empty
from lab.data.base import Dataset
from lab.data.batches import Batches
from lab.models.losses import MeanSquaredError
from lab.module import SupervisedModule
from lab.params import layout
from lab.probes.base import Probe
from lab.run import checkpoints, figures
from lab.run.agenda import Agenda
from lab.run.folder import RunFolder
from lab.run.provenance import provenance
from lab.run.settings import TrainerSettings
from lab.run.summary import sentence
from lab.settings import SettingError

DEFAULT_STEPS = 1000
PLACE = ("data.root", "trainer.threads")
"""Settings that say where and how, not what: they may change between a run and its resumption."""


@dataclass(frozen=True)
class Settings:
    """All that a run is made of, validated: the cards of `conf/` and the plain numbers of `conf/train.yaml`."""

    data: Any
    model: Any
    loss: Any
    optimizer: Any
    schedule: Any
    trainer: TrainerSettings
    probes: list[Probe]
    steps: int | None
    epochs: int | None
    seed: int

    def total_steps(self, steps_per_epoch: int) -> int:
        """The number of updates."""
        if self.epochs is not None:
            return self.epochs * steps_per_epoch
        return DEFAULT_STEPS if self.steps is None else self.steps


def read_settings(cfg: DictConfig) -> Settings:
    """Every card built and every plain number checked. Raises SettingError in one line."""
    known = {"data", "model", "loss", "optimizer", "schedule", "trainer", "probe", "steps", "epochs", "seed"}
    if unknown := [str(name) for name in cfg if name not in known]:
        raise SettingError(f"unknown setting {unknown[0]}; see python -m lab.train --help")
    for name, least in (("steps", 1), ("epochs", 1), ("seed", 0)):
        value = cfg[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise SettingError(f"{name}={value}: expected a whole number of at least {least}")
    if cfg.seed is None:
        raise SettingError("seed=null: expected a whole number of at least 0")
    if cfg.steps is not None and cfg.epochs is not None:
        raise SettingError(f"steps={cfg.steps} and epochs={cfg.epochs} contradict each other; give one of them")
    cards = {name: card(cfg[name], name) for name in ("data", "model", "loss", "optimizer", "schedule", "trainer")}
    probes = [card(settings, f"probe.{name}") for name, settings in (cfg.probe or {}).items()]
    return Settings(**cards, probes=probes, steps=cfg.steps, epochs=cfg.epochs, seed=cfg.seed)


class Run:
    """One run: put together without touching the disk, then carried out in a folder."""

    def __init__(self, settings: Settings, plain: dict[str, Any], *, title: str):
        trainer, data = settings.trainer, settings.data
        self.settings, self.plain, self.title = settings, plain, title
        self.dataset: Dataset = data.load()
        train = self.dataset.train
        self.batches = Batches(len(train), data.batch_size, data.sampling, settings.seed)
        self.total = settings.total_steps(self.batches.steps_per_epoch)
        self.model: nn.Module = settings.model.build(self.dataset.input_shape, self.dataset.num_classes, settings.seed)
        self.criterion = settings.loss.build(self.dataset.num_classes)
        self.optimizer: torch.optim.Optimizer = settings.optimizer.build(self.model.parameters())
        self.chunk_size = None if trainer.chunk_examples == "all" else trainer.chunk_examples
        self.probes = ProbeCallback(
            settings.probes,
            self.criterion,
            (train.x, train.y),
            model=self.model,
            batch_norm=trainer.batch_norm,
            chunk_size=self._measured_chunk(),
            stochastic=not self.batches.is_full,
            seed=settings.seed,
        )

    def carry_out(self, folder: RunFolder) -> dict[str, Any]:
        """Train from the newest checkpoint (or the start) to the end. Returns the summary, which is on disk too."""
        state = checkpoints.newest(folder.checkpoints)
        begin = state["step"] if state else 0
        folder.open(resume_step=begin)
        module = None
        try:
            folder.write("provenance", provenance(self.plain, data=self.dataset.facts, model=self._model_facts()))
            folder.status("running", step=begin)
            start = perf_counter()
            module, loggers = self._train(folder, begin, state)
            summary = self._summary(module) | {"seconds": perf_counter() - start}
            self._show(folder, summary, loggers)
            folder.write("summary", summary)
            folder.status("diverged" if module.divergence else "finished", step=module.step, reason=module.divergence)
            return summary
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
            reason = "interrupted" if interrupted else f"{type(error).__name__}: {error}"
            folder.status("failed", step=folder.read("status")["step"], reason=reason)
            raise
        finally:
            folder.close()

    def _train(self, folder: RunFolder, begin: int, state: dict[str, Any] | None) -> tuple[SupervisedModule, list]:
        settings = self.settings.trainer
        keeper = RunCallback(
            folder,
            self.probes,
            evaluate_every=settings.evaluate_every,
            checkpoint_every=settings.checkpoint_every,
        )
        agenda = Agenda(begin, self.total, (self.probes.due, keeper.due), settings.log_every)
        module = SupervisedModule(
            self.model,
            self.criterion,
            self.optimizer,
            self.dataset,
            self.batches,
            agenda,
            factor=lambda step: self.settings.schedule.factor(step, self.total),
            augment=getattr(self.settings.data, "augment", False),
            chunk_size=self.chunk_size,
            max_loss=settings.max_loss,
            seed=self.settings.seed,
        )
        if state:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.probes.load_state_dict(state["probes"])
        tensorboard = TensorBoardLogger(
            folder.path, name="tensorboard", version="", default_hp_metric=False, purge_step=begin or None
        )
        trainer = pl.Trainer(
            accelerator=settings.accelerator,
            precision=settings.precision,
            devices=1,
            max_epochs=1,
            logger=[tensorboard, MetricsLogger(folder)],
            callbacks=[keeper, self.probes, ProgressCallback(self.probes, self.total)],
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            default_root_dir=folder.path,
        )
        trainer.fit(module, train_dataloaders=agenda)
        return module, trainer.loggers

    def _summary(self, module: SupervisedModule) -> dict[str, Any]:
        latest = self.probes.latest
        return self.probes.summary() | {
            "steps": module.step,
            "reason": module.divergence,
            "test_loss": latest.get("test/loss"),
            "test_accuracy": latest.get("test/accuracy"),
            "title": self.title,
            "loss_unit": "half squared error" if isinstance(self.settings.loss, MeanSquaredError) else "cross entropy",
        }

    def _show(self, folder: RunFolder, summary: dict[str, Any], loggers: list) -> None:
        """The figure, on disk and on the dashboard, and the settings beside the final metrics."""
        figure = figures.edge_figure(folder.all_series(), summary)
        figures.save(figure, folder.figures / "edge.png")
        for logger in loggers:
            show_figure(logger, "figures/edge", figure, summary["steps"])
        show_settings(loggers, flat(self.plain), summary)
        for logger in loggers:
            logger.finalize("success")

    def _measured_chunk(self) -> int | None:
        """Examples per chunk of the measured loss: in train-mode BatchNorm the batch that training normalises over."""
        batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.model.modules())
        if not (batch_norm and self.settings.trainer.batch_norm == "train"):
            return None
        return min(self.chunk_size or self.batches.batch_size, self.batches.batch_size)

    def _model_facts(self) -> dict[str, Any]:
        return {
            "parameters": layout(self.model).size,
            "measured_batch_norm": self.settings.trainer.batch_norm,
            "measured_chunk": self._measured_chunk(),
        }


def flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {"optimizer.lr": 0.1, ...}."""
    items: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, dict):
            items |= flat(value, f"{prefix}{name}.")
        elif name != "_target_":
            items[prefix + name] = value if isinstance(value, bool | int | float | str) else str(value)
    return items


def plain_settings(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain values, for provenance.json."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items()}


def unchanged(folder: RunFolder, plain: dict[str, Any]) -> None:
    """Raises SettingError when the folder holds a run with other settings."""
    before = folder.read("provenance").get("settings")
    if before is None:
        return
    old, new = ({k: v for k, v in flat(s).items() if k not in PLACE} for s in (before, plain))
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise SettingError(
                f"{folder.path} holds a run with {name}={old.get(name)}, not {new.get(name)}; "
                "choose another hydra.run.dir"
            )


def report(folder: RunFolder, summary: dict[str, Any], *, again: bool = False) -> None:
    """The result in one plain paragraph, and where to look."""
    print("\nThis run was already finished." if again else "")
    print(sentence(summary))
    print(f"\n  figure       {folder.figures / 'edge.png'}\n  run folder   {folder.path}")
    print(f"  dashboard    tensorboard --logdir {folder.path}    (Custom Scalars; set smoothing to 0)\n")


def train(cfg: DictConfig) -> float | None:
    """One run from its configuration. Returns the last training loss, for sweepers."""
    quiet()
    runtime = HydraConfig.get()
    folder = RunFolder(_relative(Path(runtime.runtime.output_dir)))
    try:
        settings = read_settings(cfg)
        plain = plain_settings(cfg)
        unchanged(folder, plain)
        status = folder.read("status").get("status")
        if status in ("finished", "diverged"):
            summary = folder.read("summary")
            report(folder, summary, again=True)
            return summary["last_loss"]
        jobs = runtime.launcher.get("n_jobs", 1) or 1
        torch.set_num_threads(settings.trainer.num_threads(jobs if jobs > 0 else 10**6))
        run = Run(settings, plain, title=_title(runtime))
    except SettingError:
        remove_if_empty(folder.path)
        raise
    with warnings.catch_warnings():
        summary = run.carry_out(folder)
    _keep_hydra(folder, cfg)
    report(folder, summary)
    return summary["last_loss"]


def _relative(path: Path) -> Path:
    """As the user would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _title(runtime: Any) -> str:
    experiment, overrides = runtime.runtime.choices.get("experiment"), runtime.job.override_dirname
    return ": ".join(part for part in (experiment, overrides.replace(",", ", ")) if part) or "default settings"


def _keep_hydra(folder: RunFolder, cfg: DictConfig) -> None:
    """.hydra/ as Hydra would write it, once the run is known to be sound."""
    place = folder.path / ".hydra"
    place.mkdir(exist_ok=True)
    OmegaConf.save(cfg, place / "config.yaml")
    OmegaConf.save(HydraConfig.get().overrides.task, place / "overrides.yaml")


def main() -> None:
    """The command line."""
    register_resolvers()
    with one_line_errors():
        hydra.main(version_base=None, config_path=config_dir(), config_name="train")(train)()


if __name__ == "__main__":
    main()
