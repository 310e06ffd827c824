"""The settings of a run: read from plain values, checked, and turned into data, model, loss and optimiser.

Nothing here writes to disk or knows of Lightning or Hydra; whatever cannot be right is refused here, in one line.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from lab.data.base import DataCard, Dataset, check_batch_size
from lab.data.batches import Batches
from lab.doors.labels import NAMES
from lab.doors.trial import try_out
from lab.models.losses import Criterion
from lab.optim.escape import EscapeMethod, NegativeCurvature
from lab.optim.joint import Updater
from lab.optim.noise import GradientNoise, NoiseCard, Trained
from lab.optim.optimizers import OptimizerCard
from lab.optim.schedules import Schedule
from lab.params import layout
from lab.probes import Probe
from lab.probes.budget import Budget, budget_of
from lab.run.cards import card, require_whole, typed
from lab.run.length import DEFAULT_STEPS, require_length
from lab.run.settings import TrainerSettings
from lab.settings import SettingError, UnknownSetting, usable_cpus

MAX_SEED = 2**63 - 1
"""What a generator of torch takes."""
SMALL = 2e8
"""Weights times examples of a batch below which a step of an MLP takes some ten milliseconds on one thread."""
CARDS = ("data", "model", "loss", "optimizer", "schedule", "trainer")
BUDGET = "budget"
"""Beside the probes in the group `probe`: what all of them may take (`lab.probes.budget`)."""
NUMBERS = ("steps", "epochs", "seed", "audit")


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
    budget: Budget | None = None

    def build(self) -> "Parts":
        """Load the data and make everything that is trained. Raises SettingError where settings and data disagree."""
        self.trainer.require_accelerator()
        dataset = self.data.load()
        batches = Batches(len(dataset.train), self.data.batch_size, self.data.sampling, self.seed)
        model: nn.Module = self.model.build(dataset.input_shape, dataset.num_outputs, self.seed)
        criterion = self.loss.build(dataset.num_classes)
        cards = {"data": self.data, "model": self.model, "loss": self.loss}
        try_out(cards, model, criterion, dataset, seed=self.seed, audit=self.audit)
        train = dataset.train.x, dataset.train.y
        trained = Trained(model, criterion, train, batches.batch_size, self.optimizer)
        return Parts(
            self,
            dataset,
            batches,
            model,
            criterion,
            self.optimizer.of(model),
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
    optimizer: Updater
    noise: GradientNoise | None
    escape: EscapeMethod | None
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

    def use_threads(self, *, jobs: int, asked: int | None = None) -> None:
        """Set the threads of torch for one of `jobs` parallel runs (-1: as many as there are CPUs); `asked` by the user's
        environment.
        """
        jobs = jobs if jobs > 0 else usable_cpus()
        torch.set_num_threads(self.settings.trainer.num_threads(jobs, small=self.small, asked=asked))


def read_settings(plain: Mapping[str, Any]) -> Settings:
    """Every card built and every plain number checked. Raises SettingError in one line."""
    known = {*CARDS, "from", "noise", "escape", "probe", "scaling", "compare", *NUMBERS, *NAMES}
    if unknown := [name for name in plain if name not in known]:
        raise UnknownSetting(unknown[0], f"unknown setting {unknown[0]}; see python -m lab.train --help")
    numbers = _numbers(plain)
    cards = {name: card(plain.get(name), name) for name in CARDS}
    for made in cards.values():
        getattr(made, "check", lambda: None)()
    if isinstance(examples := getattr(cards["data"], "examples", None), int):
        check_batch_size(getattr(cards["data"], "batch_size", "full"), examples)
    if plain.get("compare") is not None:
        card(plain["compare"], "compare")
    noise = _around("noise", plain, ("equivalent_batch_size", "trace"), "sample_weights")
    if noise is not None:
        noise.check()
    named = dict(plain.get("probe") or {})
    budget = budget_of(named.pop(BUDGET, None), f"probe.{BUDGET}")
    probes = [card(settings, f"probe.{name}") for name, settings in named.items()]
    _require_finite("", dict(plain))
    escape = _around("escape", plain, [field.name for field in fields(NegativeCurvature)], "negative_curvature")
    return Settings(**cards, noise=noise, escape=escape, probes=probes, budget=budget, **numbers)


def _numbers(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Length, seed and audit of a run."""
    numbers: dict[str, Any] = {"audit": True} | {name: plain.get(name) for name in NUMBERS if name in plain}
    require_length(plain)
    numbers = dict.fromkeys(NUMBERS) | numbers
    require_whole("seed", numbers["seed"], 0)
    if not isinstance(numbers["audit"], bool):
        raise SettingError(f"audit={typed(numbers['audit'])}: expected true or false")
    if numbers["seed"] > MAX_SEED:
        raise SettingError(f"seed={numbers['seed']}: expected a whole number of at most {MAX_SEED}")
    return numbers


def _around(group: str, plain: Mapping[str, Any], own: Collection[str], example: str) -> Any:
    """The card around the optimiser in a group; None for `none`, whose card is empty: what an experiment sets of the group's
    `own` settings, for whichever card is chosen, is not for that one.
    """
    named = plain.get(group, {})
    if isinstance(named, dict) and {*named} <= {*own}:
        return None
    if not isinstance(named, dict) or "_target_" not in named:
        raise SettingError(
            f"{group} is not a card with its settings; choose one, e.g. optimizer/{group}={example}, or none"
        )
    return card(named, group)


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
