"""One measurement: the saved weights in their model, on the probe set of the run, before the eyes of the probes."""

import math
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import nn

from lab.curvature.operators import hessian
from lab.doors.parts import Parts
from lab.measure.weights import Saved, load_into
from lab.optim.joint import members_of
from lab.probes.attempt import findings
from lab.probes.base import Examples, Probe, Snapshot
from lab.probes.bench import Bench
from lab.run.progress import MatvecProgress
from lab.settings import SettingError


@dataclass
class CheckpointResult:
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


class LoadedRun:
    """The parts of a run with saved weights in them. Raises SettingError where the two do not belong together."""

    def __init__(self, parts: Parts, saved: Saved, optimizer: OptimizerUse):
        settings, batches = parts.settings, parts.batches
        self.parts, self.saved = parts, saved
        load_into(parts.model, saved)
        device = torch.device(settings.trainer.lightning_accelerator())
        dtype = torch.float64 if settings.trainer.precision == "64-true" else torch.float32
        parts.model.to(device=device, dtype=dtype)
        if isinstance(parts.criterion, nn.Module):
            parts.criterion.to(device=device, dtype=dtype)
        if optimizer.known:
            self._restore(optimizer)
        self.bench = Bench(
            parts.model,
            parts.criterion,
            (parts.dataset.train.x, parts.dataset.train.y),
            members_of(parts.optimizer) if optimizer.known else None,
            batch_norm=settings.trainer.batch_norm,
            chunk_size=parts.measured_chunk,
            batch_size=None if batches.is_full else batches.batch_size,
            sampling=batches.sampling,
            seed=settings.seed,
            audit=settings.audit,
        )
        self.bench.place(device, dtype)
        self.bench.require(settings.probes)

    def carry_out(self, name: str) -> CheckpointResult:
        """All probes, with progress on stderr. Raises SettingError where none of them measures anything."""
        begin, step, probes = perf_counter(), self.saved.step, self.parts.settings.probes
        snapshot = self.bench.snapshot(step, batch=self.parts.batches.index(step))
        result = CheckpointResult(step, snapshot.rule.formula if snapshot.rule else "", snapshot.w.numel())

        def progress(probe: Probe) -> MatvecProgress:
            examples = self.bench.objective(getattr(probe, "examples", "auto")).num_examples or 0
            what = f"{probe.name} of {name} (step {step}, {snapshot.w.numel()} weights, {examples} examples)"
            return self._progress(what, probe, snapshot)

        values, failures = self.bench.measure(probes, snapshot, progress)
        if len(failures) == len(probes):
            first = failures[0]
            raise first.error if first.refusal else SettingError(str(first))
        audit = self.bench.audited.told()
        for tag, value in {**values, **(audit.numbers() if audit else {})}.items():
            if not isinstance(value, float | int):
                result.others[tag] = value
            elif math.isfinite(value):
                result.values[tag] = float(value)
        result.findings = findings(probes, result.values)
        result.findings += [f"The measured loss: {note}." for note in (audit.notes if audit else ())]
        if self._clips and "sharpness/threshold" in result.values:
            result.findings.append(
                f"The threshold is that of steps that are not clipped; the run clipped by {self._clips}"
            )
        result.failures = [str(failure) for failure in failures]
        result.seconds = perf_counter() - begin
        return result

    @property
    def _clips(self) -> str:
        """The setting by which the gradients of the run were clipped; "" for none."""
        trainer = self.parts.settings.trainer
        bounds = {"clip_norm": trainer.clip_norm, "clip_value": trainer.clip_value}
        return ", ".join(f"trainer.{name}={bound:g}" for name, bound in bounds.items() if bound is not None)

    def _restore(self, use: OptimizerUse) -> None:
        """The optimiser as it was saved, else at the learning rate of its schedule; what is typed wins."""
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
                if name in fresh:  # else a name of code, or an argument that is no setting of a group
                    group[name] = fresh[name]

    def _progress(self, what: str, probe: Probe, snapshot: Snapshot) -> MatvecProgress:
        """Watches the products of the Hessian; it is made here, and timed, where the probe will take many."""
        expected, seconds = probe.expected_matvecs(snapshot.rule), 0.0
        if expected:
            examples: Examples = getattr(probe, "examples", "auto")
            begun = perf_counter()
            with suppress(Exception):  # the probe will meet it, and say so
                snapshot.once(("hessian", examples), lambda: hessian(self.bench.objective(examples), snapshot.w))
            seconds = (perf_counter() - begun) * expected
        before = snapshot.matvecs
        return MatvecProgress(what, expected, seconds, lambda: max(0, snapshot.matvecs - before))
