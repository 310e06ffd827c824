"""What the replicas of an escape measurement do at one learning rate and batch size, and the theory beside it."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, optim

from lab.curvature.stability import UpdateRule
from lab.escape.ensemble import Dynamics
from lab.escape.ensemble import Escape as Verdict
from lab.escape.ensemble import escape as watch
from lab.escape.exits import Coordinate, Exit, Quench
from lab.escape.growth import Descending, descending, thrown
from lab.escape.noises import Frozen, Isotropic, SampleWeights
from lab.escape.replicas import Noise
from lab.escape.saddle import Departure, Descent, noise_std
from lab.escape.warnings import Place, Saddle, beforehand, examine
from lab.noise.alignment import variances
from lab.objective import Decayed
from lab.probes.escape_cell import EscapeCell
from lab.probes.escape_start import Scene, Start, at_rest, number, way_out
from lab.sampling import Sampling, batch_factor
from lab.settings import SettingError


def replicate(scene: Scene, lr: float, size: int) -> EscapeCell:
    """What replicas at this learning rate and batch size do. Raises SettingError where there are too few examples."""
    settings, here, start = scene.settings, scene.here, scene.start
    total = start.objective.num_examples or 0
    if size > total and (settings.sampling or here.sampling) != "with_replacement":
        cure = "use fewer, or probe.escape.sampling=with_replacement"
        raise SettingError(
            f"probe.escape.batch_sizes: {size} is more than the {total} examples of the probe set; {cure}"
        )
    draws = here.stream(f"escape/{lr:.6g}/{size}")
    dynamics, empty = _dynamics(scene, lr, size), EscapeCell(lr, size, total)
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


def _at_minimum(
    scene: Scene, dynamics: Dynamics, empty: EscapeCell, place: Place, draws: torch.Generator
) -> EscapeCell:
    """Exits from the basin, and the way out over the nearest saddle where one is found."""
    start, exit, lr = scene.start, scene.exit(), empty.lr
    rule = replace(start.rule, lr=lr)
    home = None if exit.costly or scene.exit_name == "linear" else scene.home()
    ensemble = _watched(scene, dynamics, exit, place, draws, home)
    over = way_out(start, exit, ensemble) if isinstance(exit, Quench) else None
    if over is None:
        return replace(empty, ensemble=ensemble)
    known = _place(start, dynamics, rule, draws, Saddle(over.saddle.w, over.barrier, over.direction))
    reasons = tuple(dict.fromkeys([*ensemble.reasons, *beforehand(known, exit)]))
    theory, noise = math.nan, dynamics.noise
    plain = rule.preconditioner is None and not number(rule.momentum)
    if plain and isinstance(noise, Isotropic) and not over.refusals(known.temperature):
        theory = lr * over.rate(lr * noise.std**2 / 2)
    ensemble = replace(ensemble, reasons=reasons)
    return replace(empty, ensemble=ensemble, barrier=over.barrier, temperature=known.temperature, rate_theory=theory)


def _at_saddle(scene: Scene, dynamics: Dynamics, empty: EscapeCell, draws: torch.Generator) -> EscapeCell:
    """Growth and exit times against the linear theory, in the directions in which the exit looks; the theory is that of
    SGD and heavy ball, others have none.
    """
    exit, start, settings = scene.exit(), scene.start, scene.settings
    point, rule, momentum = start.critical, start.rule, number(start.rule.momentum)
    negative = slice(0, min(point.index, settings.directions))
    vectors, curvatures = point.vectors[:, negative].to(start.w), point.values[negative].double()
    spreads = _spreads(start, dynamics, vectors)
    seen = slice(0, 1) if isinstance(exit, Coordinate) else slice(None)
    descent = Descent(curvatures[seen].tolist(), spreads[seen].tolist(), dynamics.lr, momentum=momentum)
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
    return replace(empty, ensemble=ensemble, theory=theory, directions=directions)


def _watched(
    scene: Scene,
    dynamics: Dynamics,
    exit: Exit,
    place: Place,
    draws: torch.Generator,
    home: Quench | None = None,
) -> Verdict:
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
    start: Start, dynamics: Dynamics, rule: UpdateRule, draws: torch.Generator, saddle: Saddle | None = None
) -> Place:
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
    if isinstance(dynamics.noise, Isotropic):
        return torch.full((vectors.shape[1],), dynamics.noise.std, dtype=torch.float64)
    objective, total = start.objective, start.objective.num_examples
    size = getattr(dynamics.noise, "batch_size", None) or dynamics.batch_size
    if (size is None and dynamics.noise is None) or total is None:
        return torch.zeros(vectors.shape[1], dtype=torch.float64)
    inner = objective.inner if isinstance(objective, Decayed) else objective
    scale = float(inner.example_grads(start.w).square().sum(1).mean())
    sampling: Sampling = dynamics.sampling if dynamics.noise is None else "with_replacement"
    if isinstance(dynamics.noise, Frozen):
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


def _noise(scene: Scene, size: int) -> Noise:
    """Of batches of so many examples."""
    if scene.settings.noise == "sample_weights":
        return SampleWeights(size)
    frozen = Frozen.at(scene.start.objective, scene.start.w, size)
    if scene.settings.noise == "frozen":
        return frozen
    return Isotropic.of_trace(float(frozen.factor.double().square().sum()), scene.start.objective.num_params)
