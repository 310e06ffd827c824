"""The settings of a run: read from the configuration, checked, and turned into data, model, loss and optimiser.

Nothing here writes to disk or knows of Lightning; whatever cannot be right is refused here, in one line.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lab.cli import card, typed
from lab.data.base import DataCard, Dataset
from lab.data.batches import Batches
from lab.models.losses import Criterion
from lab.optim.escape import Escape, NegativeCurvature
from lab.optim.noise import GradientNoise, NoiseCard, Trained
from lab.optim.optimizers import OptimizerCard
from lab.optim.schedules import Schedule
from lab.params import layout
from lab.probes import Probe
from lab.run.settings import TrainerSettings
from lab.settings import SettingError, usable_cpus

DEFAULT_STEPS = 1000
MAX_SEED = 2**63 - 1
"""What a generator of torch takes."""
SMALL = 2e8
"""Weights times examples of a batch below which a step of an MLP takes some ten milliseconds on one thread."""
CARDS = ("data", "model", "loss", "optimizer", "schedule", "trainer")


@dataclass(frozen=True)
class Settings:
    """All that a run is made of, validated: the cards of `conf/` and the plain numbers of `conf/train.yaml`."""

    data: DataCard
    model: Any
    loss: Any
    optimizer: OptimizerCard
    noise: NoiseCard | None
    escape: NegativeCurvature | None
    schedule: Schedule
    trainer: TrainerSettings
    probes: list[Probe]
    steps: int | None
    epochs: int | None
    seed: int
    audit: bool = True

    def build(self) -> "Parts":
        """Load the data and make everything that is trained. Raises SettingError where settings and data disagree."""
        self.trainer.require_accelerator()
        dataset = self.data.load()
        batches = Batches(len(dataset.train), self.data.batch_size, self.data.sampling, self.seed)
        model: nn.Module = self.model.build(dataset.input_shape, dataset.num_classes, self.seed)
        criterion = self.loss.build(dataset.num_classes)
        train = dataset.train.x, dataset.train.y
        trained = Trained(model, criterion, train, batches.batch_size, self.optimizer)
        return Parts(
            self,
            dataset,
            batches,
            model,
            criterion,
            self.optimizer.build(model.parameters()),
            None if self.noise is None else self.noise.build(trained, self.seed),
            None if self.escape is None else self.escape.build(model, criterion, self.seed),
            self.epochs * batches.steps_per_epoch if self.epochs is not None else self.steps or DEFAULT_STEPS,
        )


@dataclass(frozen=True, eq=False)
class Parts:
    """What a run is put together from; `total` is its number of updates."""

    settings: Settings
    dataset: Dataset
    batches: Batches
    model: nn.Module
    criterion: Criterion
    optimizer: torch.optim.Optimizer
    noise: GradientNoise | None
    escape: Escape | None
    total: int

    @property
    def small(self) -> bool:
        """Whether a step is too short to gain from a second thread: no convolution, few weights times examples."""
        convolutions = any(isinstance(module, nn.Conv2d) for module in self.model.modules())
        return not convolutions and layout(self.model).size * self.batches.batch_size < SMALL

    @property
    def chunk_size(self) -> int | None:
        """Examples per forward pass of a training step; None: all."""
        chunk = self.settings.trainer.chunk_examples
        return None if chunk == "all" else chunk

    @property
    def measured_chunk(self) -> int | None:
        """Examples per chunk of the measured loss: in train-mode BatchNorm the batch that training normalises over."""
        batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.model.modules())
        if not (batch_norm and self.settings.trainer.batch_norm == "train"):
            return None
        batch_size = self.batches.batch_size
        return min(self.chunk_size or batch_size, batch_size)

    def use_threads(self, *, jobs: int) -> None:
        """Set the threads of torch for one of `jobs` parallel runs (-1: as many as there are CPUs)."""
        jobs = jobs if jobs > 0 else usable_cpus()
        torch.set_num_threads(self.settings.trainer.num_threads(jobs, small=self.small))


def read_settings(cfg: DictConfig) -> Settings:
    """Every card built and every plain number checked. Raises SettingError in one line."""
    known = {*CARDS, "noise", "escape", "probe", "scaling", "compare", "steps", "epochs", "seed", "audit"}
    if unknown := [str(name) for name in cfg if name not in known]:
        raise SettingError(f"unknown setting {unknown[0]}; see python -m lab.train --help")
    for name, least in (("steps", 1), ("epochs", 1), ("seed", 0)):
        value = cfg.get(name)
        if value is None and name != "seed":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise SettingError(f"{name}={typed(value)}: expected a whole number of at least {least}")
    if not isinstance(audit := cfg.get("audit", True), bool):
        raise SettingError(f"audit={typed(audit)}: expected true or false")
    if cfg.seed > MAX_SEED:
        raise SettingError(f"seed={cfg.seed}: expected a whole number of at most {MAX_SEED}")
    steps, epochs = cfg.get("steps"), cfg.get("epochs")
    if steps is not None and epochs is not None:
        raise SettingError(f"steps={steps} and epochs={epochs} contradict each other; set one of them to null")
    cards = {name: card(cfg.get(name), name) for name in CARDS}
    cards["optimizer"].check()
    if cfg.get("compare") is not None:
        card(cfg.compare, "compare")
    noise = _noise(cfg)
    probes = [card(settings, f"probe.{name}") for name, settings in (cfg.get("probe") or {}).items()]
    _require_finite("", OmegaConf.to_container(cfg, resolve=True))
    numbers = {"steps": steps, "epochs": epochs, "seed": cfg.seed, "audit": audit}
    return Settings(**cards, noise=noise, escape=_escape(cfg), probes=probes, **numbers)


def _require_finite(name: str, value: Any) -> None:
    """Raise SettingError for a number that is not: whatever a card makes of it, JSON cannot hold it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _require_finite(f"{name}.{key}" if name else str(key), inner)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            _require_finite(f"{name}[{i}]", inner)
    elif isinstance(value, float) and not math.isfinite(value):
        raise SettingError(f"{name}={value}: expected a finite number")


def _noise(cfg: DictConfig) -> NoiseCard | None:
    """The noise around the optimiser. The card `none` is empty: a size that an experiment sets for all its noises is not
    for it.
    """
    named = cfg.get("noise", DictConfig({}))
    if isinstance(named, DictConfig) and {*named} <= {"equivalent_batch_size", "trace"}:
        return None
    if not isinstance(named, DictConfig) or "_target_" not in named:
        raise SettingError(
            "noise is not a card with its settings; choose one, e.g. optimizer/noise=sample_weights, or none"
        )
    noise: NoiseCard = card(named, "noise")
    noise.check()
    return noise


def _escape(cfg: DictConfig) -> NegativeCurvature | None:
    """The escape around the optimiser. The card `none` is empty, as that of the noise."""
    named = cfg.get("escape", DictConfig({}))
    if isinstance(named, DictConfig) and {*named} <= {field.name for field in fields(NegativeCurvature)}:
        return None
    if not isinstance(named, DictConfig) or "_target_" not in named:
        raise SettingError(
            "escape is not a card with its settings; choose one, e.g. optimizer/escape=negative_curvature, or none"
        )
    return card(named, "escape")
