"""What the replicas of an escape measurement do at one learning rate and batch size, and the theory beside it."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, optim

from lab.escape.ensemble import Dynamics, EnsembleEscape
from lab.escape.ensemble import escape as watch
from lab.escape.exits import Coordinate, Exit, Quench
from lab.escape.growth import Descending, descending, thrown
from lab.escape.noises import FrozenNoise, IsotropicNoise, SampleWeightNoise
from lab.escape.replicas import ReplicaNoise
from lab.escape.saddle import Departure, SaddleDescent, noise_std
from lab.escape.warnings import StartingPoint, WayOut, beforehand, examine
from lab.noise.alignment import variances
from lab.noise.example_curvature import ExampleCurvature
from lab.objective import Decayed
from lab.probes.escape_cell import EscapeCell
from lab.probes.escape_start import Scene, Start, at_rest, number, way_out
from lab.sampling import Sampling, batch_factor
from lab.settings import SettingError


def replicate(scene: Scene, lr: float, size: int) -> EscapeCell:
    """What replicas at this learning rate and batch size do. Raises SettingError where there are too few examples."""
    settings, here, total = scene.settings, scene.here, scene.start.objective.num_examples or 0
    if size > total and (settings.sampling or here.sampling) != "with_replacement":
        what = f"probe.escape.batch_sizes: {size} is more than the {total} examples of the probe set"
        raise SettingError(f"{what}; use fewer, or probe.escape.sampling=with_replacement")
    replicas = _Replicas(scene, lr, size)
    if scene.start.saddle:
        return replicas.at_saddle()
    if scene.start.curvature is not None and replicas.rule.preconditioner is None and settings.noise == "minibatch":
        return replicas.at_fit(scene.start.curvature)
    place = replicas.place()
    if place.silent:  # all replicas would do the same
        return replace(replicas.empty, reasons=tuple(beforehand(place)))
    return replicas.at_minimum(place)


class _Replicas:
    """The replicas of one cell, in each of the places where they may start."""

    def __init__(self, scene: Scene, lr: float, size: int):
        self.scene, self.settings, self.start = scene, scene.settings, scene.start
        self.rule, self.dynamics = replace(self.start.rule, lr=lr), _dynamics(scene, lr, size)
        self.empty = EscapeCell(lr, size, self.start.objective.num_examples or 0)
        self.draws = scene.here.stream(f"escape/{lr:.6g}/{size}")

    def at_fit(self, curvature: ExampleCurvature) -> EscapeCell:
        """Thrown out of a minimum that fits every example, or not."""
        out = thrown(
            self.start.objective,
            self.start.w,
            replace(self.dynamics, make=at_rest(self.rule)),
            self.rule,
            curvature,
            replicas=self.settings.replicas,
            steps=self.settings.growth_steps,
            budget=self.settings.budget,
            generator=self.draws,
        )
        return replace(self.empty, thrown=out)

    def at_minimum(self, place: StartingPoint) -> EscapeCell:
        """Exits from the basin, and the way out over the nearest saddle where there is one."""
        exit, lr, noise = self.scene.exit(), self.dynamics.lr, self.dynamics.noise
        home = None if exit.costly or self.scene.exit_name == "linear" else self.scene.home()
        ensemble = self.watched(exit, place, home)
        over = way_out(self.start, exit, ensemble) if isinstance(exit, Quench) else None
        if over is None:
            return replace(self.empty, ensemble=ensemble)
        known = self.place(WayOut(over.saddle.w, over.barrier, over.direction))
        reasons = tuple(dict.fromkeys([*ensemble.reasons, *beforehand(known, exit)]))
        cell = replace(self.empty, ensemble=replace(ensemble, reasons=reasons))
        plain = self.rule.preconditioner is None and not number(self.rule.momentum)
        if plain and isinstance(noise, IsotropicNoise) and not over.refusals(known.temperature):
            cell = replace(cell, rate_theory=lr * over.rate(lr * noise.std**2 / 2))
        return replace(cell, barrier=over.barrier, temperature=known.temperature)

    def at_saddle(self) -> EscapeCell:
        """Growth and exit times against the linear theory, in the directions in which the exit looks; the theory is that of
        SGD and heavy ball, others have none.
        """
        exit, start, settings, rule = self.scene.exit(), self.start, self.settings, self.rule
        point, momentum, one = start.critical, number(rule.momentum), isinstance(exit, Coordinate)
        negative = slice(0, min(point.index, settings.directions))
        vectors, curvatures = point.vectors[:, negative].to(start.w), point.values[negative].double()
        spreads, seen = _spreads(start, self.dynamics, vectors), slice(0, 1) if one else slice(None)
        descent = SaddleDescent(curvatures[seen].tolist(), spreads[seen].tolist(), self.dynamics.lr, momentum=momentum)
        radius = exit.threshold if isinstance(exit, Coordinate) else getattr(exit, "radius", math.nan)
        known = rule.preconditioner is None and not rule.nesterov and not number(rule.dampening)
        theory: Departure | None = descent.time(radius) if known and math.isfinite(radius) else None
        place, grown = self.place(), list[Descending]()
        if known:
            grown = descending(
                start.objective,
                start.w,
                self.dynamics,
                curvatures,
                vectors,
                momentum=momentum,
                radius=radius if math.isfinite(radius) else 1.0,
                replicas=settings.replicas,
                steps=settings.budget,
                generator=self.draws,
            )
        ensemble, directions = self.watched(exit, place), tuple(zip(grown, spreads.tolist(), strict=False))
        return replace(self.empty, ensemble=ensemble, theory=theory, directions=directions)

    def watched(self, exit: Exit, place: StartingPoint, home: Quench | None = None) -> EnsembleEscape:
        """Looked at at every step where a saddle is left, 8 times where looking is a quench, else as relaxation allows."""
        settings, start = self.settings, self.start
        soon = place.relaxation / 10 if math.isfinite(place.relaxation) else math.inf
        every = settings.budget // 8 if exit.costly else max(1, int(min(soon, settings.budget // 50)))
        return watch(
            start.objective,
            start.w,
            self.dynamics,
            exit,
            place,
            replicas=settings.replicas,
            every=1 if start.saddle and not exit.costly else every,
            budget=settings.budget,
            burn_in=0 if start.saddle else settings.burn_in,
            stop=1.0 if start.saddle else 0.9,
            controls=settings.controls and not start.saddle,
            home=home,
            generator=self.draws,
        )

    def place(self, saddle: WayOut | None = None) -> StartingPoint:
        """What is known before anybody moves, with the saddle of the way out where that is known."""
        return examine(
            self.start.objective,
            self.start.w,
            self.dynamics,
            self.start.critical,
            threshold=self.rule.threshold if self.rule.plain else math.inf,
            momentum=number(self.rule.momentum),
            dampening=number(self.rule.dampening),
            saddle=saddle,
            generator=self.draws,
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
