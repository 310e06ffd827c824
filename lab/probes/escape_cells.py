"""One learning rate and batch size of an escape measurement: what its replicas do, and the theory beside it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, optim

from lab.curvature.stability import UpdateRule
from lab.escape.ensemble import Dynamics, EnsembleEscape
from lab.escape.ensemble import escape as watch
from lab.escape.exits import Coordinate, Exit, Quench
from lab.escape.growth import Descending, Thrown, descending, thrown
from lab.escape.noises import FrozenNoise, IsotropicNoise, SampleWeightNoise
from lab.escape.replicas import ReplicaNoise
from lab.escape.saddle import Departure, SaddleDescent, noise_std
from lab.escape.survival import per_epoch, per_time
from lab.escape.warnings import Pass, StartingPoint, beforehand, examine
from lab.noise.alignment import variances
from lab.objective import Decayed
from lab.probes.escape_start import Scene, Start, at_rest, number, way_out
from lab.results import EscapeTimes, Rate
from lab.sampling import Sampling, batch_factor
from lab.settings import SettingError
from lab.streams import stream

COLUMNS = (
    *("lr", "batch_size", "replicas", "exits", "rate", "rate_low", "rate_high", "mean_time", "mean_time_error"),
    *("time_theory", "lyapunov", "lyapunov_error", "growth", "growth_error", "critical_lr", "landed"),
)
"""Of the array escape/sweep; times in steps, rates per step, NaN where there is none."""


@dataclass(frozen=True)
class Cell:
    """One learning rate and batch size (0: all of `total` examples). found: the ensemble; thrown: at a minimum that fits;
    theory: of the exit from a saddle; directions: growth there, and the spread of the gradient of a step. reasons: why
    there is no rate, where nobody was watched because that was known before. barrier, temperature: height of the saddle to
    the nearest minimum beyond, and the noise on the way to it; rate_theory: Langer's, per step, under isotropic noise.
    """

    lr: float
    batch_size: int
    total: int
    found: EnsembleEscape | None = None
    thrown: Thrown | None = None
    theory: Departure | None = None
    directions: tuple[tuple[Descending, float], ...] = ()
    reasons: tuple[str, ...] = ()
    barrier: float = math.nan
    temperature: float = math.nan
    rate_theory: float = math.nan

    @property
    def name(self) -> str:
        return f"lr {self.lr:.3g}, batch {self.batch_size or 'full'}"

    @property
    def rate(self) -> Rate | None:
        """Per step; None where there is none."""
        return self.found.rate if self.found else None

    @property
    def watched(self) -> bool:
        """Whether any replicas were; not where it was known before that all would do the same."""
        return self.found is not None or self.thrown is not None

    @property
    def times(self) -> EscapeTimes:
        """When replicas left, from the end of the burn-in; from the kick at a minimum that fits."""
        if self.thrown is not None:
            return self.thrown.times
        if self.found is not None:
            return self.found.watched.times
        nobody = torch.zeros(2, dtype=torch.bool)
        return EscapeTimes(nobody.double(), nobody, nobody)

    @property
    def mean_time(self) -> tuple[float, float]:
        """Mean and standard error where all left, else NaN: the mean of those that did is no mean."""
        out = self.times.exited
        if not bool(out.all()) or len(out) < 2:
            return math.nan, math.nan
        return float(self.times.times.mean()), float(self.times.times.std()) / math.sqrt(len(out))

    @property
    def per_epoch(self) -> float:
        """Steps in a pass through the data."""
        return self.total / self.batch_size if self.batch_size else 1.0

    def numbers(self) -> dict[str, float]:
        """By quantity; NaN where nothing was measured."""
        values = dict[str, float]()
        if self.watched:
            values |= {"exits": float(self.times.exited.sum())}
            values |= {"failures": float(self.times.failed.sum())}
        rate, (average, error) = self.rate, self.mean_time
        if rate is not None:
            units = {"": rate, "_per_time": per_time(rate, self.lr), "_per_epoch": per_epoch(rate, self.per_epoch)}
            for unit, in_it in units.items():
                named = {"rate": in_it.value, "rate_low": in_it.low, "rate_high": in_it.high}
                values |= {f"{name}{unit}": number for name, number in named.items()}
        if math.isfinite(self.barrier):
            values |= {"barrier": self.barrier, "rate_theory": self.rate_theory}
        if self.theory is not None or self.thrown is not None:
            values |= {"time": average, "error/time": error}
        if self.theory is not None and not self.theory.never:
            values |= {"time_theory": self.theory.mean}
        if self.directions:
            first, spread = self.directions[0]
            values |= {
                "growth": first.noisy.value,
                "error/growth": first.noisy.error,
                "growth_kick": first.kick.value,
                "growth_theory": first.theory,
                "noise_along": spread,
            }
        if self.thrown is not None:
            values |= {
                "growth": self.thrown.growth.value,
                "error/growth": self.thrown.growth.error,
                "growth_theory": self.thrown.exponent.value,
                "critical_lr": self.thrown.critical,
                "landed": mean(self.thrown.landed),
            }
        return values

    def row(self) -> list[float]:
        """In the order of `COLUMNS`."""
        rate, gone = self.rate, self.thrown
        return [
            *(self.lr, self.batch_size),
            *((len(self.times.times), float(self.times.exited.sum())) if self.watched else (0, math.nan)),
            *((rate.value, rate.low, rate.high) if rate else (math.nan,) * 3),
            *self.mean_time,
            self.theory.mean if self.theory else gone.expected if gone else math.nan,
            *(
                (gone.exponent.value, gone.exponent.error, gone.growth.value, gone.growth.error)
                if gone
                else (math.nan,) * 4
            ),
            *((gone.critical, mean(gone.landed)) if gone else (math.nan,) * 2),
        ]


def mean(x: Tensor) -> float:
    """NaN of nothing."""
    return float(x.mean()) if len(x) else math.nan


def cell(scene: Scene, lr: float, size: int) -> Cell:
    """What replicas at this learning rate and batch size do. Raises SettingError where there are too few examples."""
    settings, here, start = scene.settings, scene.here, scene.start
    total = start.objective.num_examples or 0
    if size > total and (settings.sampling or here.sampling) != "with_replacement":
        raise SettingError(
            f"probe.escape.batch_sizes: {size} is more than the {total} examples of the probe set; use fewer, or "
            "probe.escape.sampling=with_replacement"
        )
    draws = stream(here.seed, f"escape/{lr:.6g}/{size}", here.step)
    dynamics, empty = _dynamics(scene, lr, size), Cell(lr, size, total)
    if start.saddle:
        return _at_saddle(scene, dynamics, empty, draws)
    rule = replace(start.rule, lr=lr)
    if start.curvature is not None and rule.preconditioner is None and settings.noise == "minibatch":
        out = thrown(
            start.objective,
            start.w,
            replace(dynamics, make=at_rest(rule)),
            rule,
            start.curvature,
            replicas=settings.replicas,
            steps=settings.growth_steps,
            budget=settings.budget,
            generator=draws,
        )
        return replace(empty, thrown=out)
    place = _place(start, dynamics, rule, draws)
    if place.silent:  # all replicas would do the same
        return replace(empty, reasons=tuple(beforehand(place)))
    return _at_minimum(scene, dynamics, empty, place, draws)


def _at_minimum(scene: Scene, dynamics: Dynamics, empty: Cell, place: StartingPoint, draws: torch.Generator) -> Cell:
    """Exits from the basin, and the way out over the nearest saddle where one is found."""
    start, exit, lr = scene.start, scene.exit(), empty.lr
    rule = replace(start.rule, lr=lr)
    home = None if exit.costly or scene.exit_name == "linear" else scene.home()
    ensemble = _watched(scene, dynamics, exit, place, draws, home)
    over = way_out(start, exit, ensemble) if isinstance(exit, Quench) else None
    if over is None:
        return replace(empty, found=ensemble)
    known = _place(start, dynamics, rule, draws, Pass(over.saddle.w, over.barrier, over.direction))
    reasons = tuple(dict.fromkeys([*ensemble.reasons, *beforehand(known, exit)]))
    theory, noise = math.nan, dynamics.noise
    plain = rule.preconditioner is None and not number(rule.momentum)
    if plain and isinstance(noise, IsotropicNoise) and not over.refusals(known.temperature):
        theory = lr * over.rate(lr * noise.std**2 / 2)
    ensemble = replace(ensemble, reasons=reasons)
    return replace(empty, found=ensemble, barrier=over.barrier, temperature=known.temperature, rate_theory=theory)


def _at_saddle(scene: Scene, dynamics: Dynamics, empty: Cell, draws: torch.Generator) -> Cell:
    """Growth and exit times against the linear theory, in the directions in which the exit looks; the theory is that of
    SGD and heavy ball, others have none.
    """
    exit, start, settings = scene.exit(), scene.start, scene.settings
    point, rule, momentum = start.critical, start.rule, number(start.rule.momentum)
    negative = slice(0, min(point.index, settings.directions))
    vectors, curvatures = point.vectors[:, negative].to(start.w), point.values[negative].double()
    spreads = _spreads(start, dynamics, vectors)
    seen = slice(0, 1) if isinstance(exit, Coordinate) else slice(None)
    descent = SaddleDescent(curvatures[seen].tolist(), spreads[seen].tolist(), dynamics.lr, momentum=momentum)
    radius = exit.threshold if isinstance(exit, Coordinate) else getattr(exit, "radius", math.nan)
    known = rule.preconditioner is None and not rule.nesterov and not number(rule.dampening)
    theory: Departure | None = descent.time(radius) if known and math.isfinite(radius) else None
    place = _place(start, dynamics, replace(rule, lr=dynamics.lr), draws)
    grown: list[Descending] = []
    if known:
        grown = descending(
            start.objective,
            start.w,
            dynamics,
            curvatures,
            vectors,
            momentum=momentum,
            radius=radius if math.isfinite(radius) else 1.0,
            replicas=settings.replicas,
            steps=settings.budget,
            generator=draws,
        )
    ensemble = _watched(scene, dynamics, exit, place, draws)
    directions = tuple(zip(grown, spreads.tolist(), strict=False))
    return replace(empty, found=ensemble, theory=theory, directions=directions)


def _watched(
    scene: Scene,
    dynamics: Dynamics,
    exit: Exit,
    place: StartingPoint,
    draws: torch.Generator,
    home: Quench | None = None,
) -> EnsembleEscape:
    """Looked at at every step where a saddle is left, 8 times where looking is a quench, else as relaxation allows."""
    settings, start = scene.settings, scene.start
    soon = place.relaxation / 10 if math.isfinite(place.relaxation) else math.inf
    every = settings.budget // 8 if exit.costly else max(1, int(min(soon, settings.budget // 50)))
    if start.saddle and not exit.costly:
        every = 1
    return watch(
        start.objective,
        start.w,
        dynamics,
        exit,
        place,
        replicas=settings.replicas,
        every=every,
        budget=settings.budget,
        burn_in=0 if start.saddle else settings.burn_in,
        stop=1.0 if start.saddle else 0.9,
        controls=settings.controls and not start.saddle,
        home=home,
        generator=draws,
    )


def _place(
    start: Start, dynamics: Dynamics, rule: UpdateRule, draws: torch.Generator, saddle: Pass | None = None
) -> StartingPoint:
    return examine(
        start.objective,
        start.w,
        dynamics,
        start.critical,
        threshold=rule.threshold if rule.plain else math.inf,
        momentum=number(rule.momentum),
        dampening=number(rule.dampening),
        saddle=saddle,
        generator=draws,
    )


def _spreads(start: Start, dynamics: Dynamics, vectors: Tensor) -> Tensor:
    """Standard deviation of the gradient of one step along the vectors (P, k): (k,) float64."""
    if isinstance(dynamics.noise, IsotropicNoise):
        return torch.full((vectors.shape[1],), dynamics.noise.std, dtype=torch.float64)
    objective, total = start.objective, start.objective.num_examples
    size = getattr(dynamics.noise, "batch_size", None) or dynamics.batch_size
    if (size is None and dynamics.noise is None) or total is None:
        return torch.zeros(vectors.shape[1], dtype=torch.float64)
    inner = objective.inner if isinstance(objective, Decayed) else objective
    scale = float(inner.example_grads(start.w).square().sum(1).mean())
    sampling: Sampling = dynamics.sampling if dynamics.noise is None else "with_replacement"
    if isinstance(dynamics.noise, FrozenNoise):
        return noise_std((dynamics.noise.factor.T @ vectors).square().sum(0), factor=1.0, scale=scale)
    assert size is not None
    factor = batch_factor(total, int(size), sampling)
    return noise_std(variances(inner, start.w, vectors), factor=factor, scale=scale)


def _dynamics(scene: Scene, lr: float, size: int) -> Dynamics:
    """The optimiser of the run, with its state; weight decay that joins the gradient is in the objective."""
    rule, live = scene.start.rule, scene.here.replicate
    sampling = scene.settings.sampling or scene.here.sampling

    def make(at: float) -> Callable[[list[Tensor]], optim.Optimizer]:
        if live is None:
            return at_rest(rule)(at)

        def build(stack: list[Tensor]) -> optim.Optimizer:
            optimizer = live(at)(stack)
            if number(rule.coupled_decay):
                optimizer.param_groups[0]["weight_decay"] = 0.0
            return optimizer

        return build

    if scene.settings.noise == "minibatch" or not size:
        return Dynamics(make, lr, size or None, sampling)
    return Dynamics(make, lr, None, sampling, _noise(scene, size))


def _noise(scene: Scene, size: int) -> ReplicaNoise:
    """Of batches of so many examples."""
    if scene.settings.noise == "sample_weights":
        return SampleWeightNoise(size)
    frozen = FrozenNoise.at(scene.start.objective, scene.start.w, size)
    if scene.settings.noise == "frozen":
        return frozen
    return IsotropicNoise.of_trace(float(frozen.factor.double().square().sum()), scene.start.objective.num_params)
