"""One measurement: the saved weights in their model, on the probe set of the run, before the eyes of the probes."""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from lab.curvature.operators import LinearOperator, hessian
from lab.curvature.stability import UpdateRule
from lab.measure.progress import Progress
from lab.measure.weights import Saved, load_into
from lab.objective import NetworkObjective
from lab.optim.direction import direction_of
from lab.optim.rules import rule_of
from lab.optim.stacked import stacked
from lab.params import trainable, weights
from lab.probes import Sharpness, Spectrum
from lab.probes.attempt import Failure, attempt, findings, joined
from lab.probes.audited import Audited
from lab.probes.base import Examples, Probe, Snapshot
from lab.probes.sets import probe_set, require_probe_sets
from lab.settings import SettingError
from lab.train.settings import Parts

PER_SOLVE = 20
"""Hessian products that a cold solve takes at the edge of stability: for the expected time only."""


@dataclass
class Result:
    """What was measured at `step`: numbers by tag, whatever else by tag, and what the numbers are held against.

    divergence: how the run ended that left these weights, where it diverged. failures: a line for every probe that failed.
    """

    step: int
    formula: str
    num_weights: int
    values: dict[str, float] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    divergence: str = ""


@dataclass(frozen=True)
class OptimizerUse:
    """Whether the sharpness is held against an optimiser (`known`), whether that is the one whose state was `saved`,
    and which of its settings were typed and win over the state."""

    known: bool
    saved: bool
    typed: frozenset[str]


class Measurement:
    """The parts of a run with saved weights in them. Raises SettingError where the two do not belong together."""

    def __init__(self, parts: Parts, saved: Saved, optimizer: OptimizerUse):
        settings = parts.settings
        self.parts, self.saved = parts, saved
        load_into(parts.model, saved)
        device = torch.device(settings.trainer.lightning_accelerator())
        dtype = torch.float64 if settings.trainer.precision == "64-true" else torch.float32
        parts.model.to(device=device, dtype=dtype)
        train = parts.dataset.train
        self.data = train.x.to(device=device, dtype=dtype), train.y.to(device)
        self.rule = self._rule(optimizer) if optimizer.known else None
        self.objectives: dict[Examples, NetworkObjective] = {}
        self.chunk_size = parts.measured_chunk
        self.audited = Audited(wanted=settings.audit, seed=settings.seed)
        require_probe_sets(settings.probes, len(train), self.objective)

    def carry_out(self, name: str) -> Result:
        """All probes, with progress on stderr. Raises SettingError where none of them measures anything."""
        w, begin = weights(self.parts.model), perf_counter()
        step, seed = self.saved.step, self.parts.settings.seed
        batches = self.parts.batches
        snapshot = Watched(
            step,
            w,
            lambda examples: self.audited(self.objective(examples)),
            self.rule,
            self._batch,
            seed,
            batch_size=None if batches.is_full else batches.batch_size,
            sampling=batches.sampling,
            num_train=len(self.data[1]),
            direction=self._direction(),
            replicate=None if self.rule is None else stacked([self.parts.optimizer], trainable(self.parts.model)),
        )
        result = Result(step, self.rule.formula if self.rule else "", w.numel())
        found, failures = dict[str, Any](), list[Failure]()
        for probe in self.parts.settings.probes:
            what = f"{probe.name} of {name} (step {step}, {w.numel()} weights, {self._examples(probe)} examples)"
            with self._progress(what, probe, snapshot):
                measured = attempt(probe, snapshot, self)
            if isinstance(measured, Failure):
                failures.append(measured)
            else:
                found = joined(found, measured, probe.name)
        if len(failures) == len(self.parts.settings.probes):
            first = failures[0]
            raise first.error if first.refusal else SettingError(str(first))
        audit = self.audited.told()
        for tag, value in {**found, **(audit.numbers() if audit else {})}.items():
            if not isinstance(value, float | int):
                result.others[tag] = value
            elif math.isfinite(value):
                result.values[tag] = float(value)
        result.findings = findings(self.parts.settings.probes, result.values)
        result.findings += [f"The measured loss: {note}." for note in (audit.notes if audit else ())]
        result.failures = [str(failure) for failure in failures]
        result.seconds = perf_counter() - begin
        return result

    def objective(self, examples: Examples) -> NetworkObjective:
        """The loss on the probe set of a size: the set that a run with this seed and these data looks at."""
        if examples not in self.objectives:
            self.objectives[examples] = self._loss(probe_set(self.data, examples, self.parts.settings.seed))
        return self.objectives[examples]

    def _loss(self, data: tuple[torch.Tensor, torch.Tensor]) -> NetworkObjective:
        parts = self.parts
        return NetworkObjective(
            parts.model,
            parts.criterion,
            data,
            chunk_size=self.chunk_size,
            batch_norm=parts.settings.trainer.batch_norm,
        )

    def _batch(self) -> NetworkObjective | None:
        """The loss on the mini-batch of the step; None for the full batch."""
        index = self.parts.batches.index(self.saved.step)
        if index is None:
            return None
        index = index.to(self.data[1].device)
        return self._loss((self.data[0][index], self.data[1][index]))

    def _rule(self, use: OptimizerUse) -> UpdateRule:
        """The next update: the optimiser as it was saved, else at the learning rate of its schedule; what is typed wins."""
        optimizer, settings = self.parts.optimizer, self.parts.settings
        built = [dict(group) for group in optimizer.param_groups]
        if use.saved and self.saved.optimizer is not None:
            try:
                optimizer.load_state_dict(self.saved.optimizer)
            except (ValueError, KeyError) as error:
                text = f"{self.saved.file}: the optimiser in it is another one ({error}); choose optimizer="
                raise SettingError(text) from None
        else:
            for group in optimizer.param_groups:
                group["lr"] *= settings.schedule.factor(self.saved.step, self.parts.total)
        for name in use.typed:
            for group, fresh in zip(optimizer.param_groups, built, strict=True):
                group[name] = fresh[name]
        return rule_of([optimizer], trainable(self.parts.model))

    def _direction(self) -> Callable[[Tensor], Tensor] | None:
        """The step of the optimiser whose rule is known."""
        if self.rule is None:
            return None
        return direction_of([self.parts.optimizer], trainable(self.parts.model))

    def _progress(self, what: str, probe: Probe, snapshot: "Watched") -> Progress:
        """Watches the products of the Hessian; it is made here, and timed, where the probe will take many."""
        before, expected, seconds = snapshot.matvecs, self._products(probe), 0.0
        if expected:
            examples: Examples = getattr(probe, "examples", "auto")
            begun = perf_counter()
            with suppress(Exception):  # the probe will meet it, and say so
                snapshot.once(("hessian", examples), lambda: hessian(self.objective(examples), snapshot.w))
            seconds = (perf_counter() - begun) * expected
        return Progress(what, expected, seconds, lambda: max(0, snapshot.matvecs - before))

    def _examples(self, probe: Probe) -> int:
        return self.objective(getattr(probe, "examples", "auto")).num_examples or 0

    def _products(self, probe: Probe) -> int:
        """About how many Hessian products a probe will take; 0 where that is not known beforehand."""
        if not isinstance(probe, Sharpness | Spectrum):
            return 0
        solves = 1 + (self.rule is not None and not self.rule.plain)
        return PER_SOLVE * solves + getattr(probe, "vectors", 0) * getattr(probe, "steps", 0)


class Watched(Snapshot):
    """A snapshot that tells how many products its operators have formed."""

    @property
    def matvecs(self) -> int:
        return sum(shared.matvecs for shared in list(self._shared.values()) if isinstance(shared, LinearOperator))
