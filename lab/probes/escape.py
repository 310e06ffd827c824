"""Escape from where training stands: replicas of the run with random numbers of their own, and what makes them leave.

    at a saddle            growth of every negative direction against log(1 + lr |lambda|), exit times against `Descent`
    at a minimum that fits growth against the Lyapunov exponent of the linearised steps, landing against the critical
    every example          sharpness: mini-batches have no noise there, and there is no rate
    elsewhere              exits by quench, rate with exact interval, and the reasons why there is none

for every learning rate and batch size of a sweep. `lab.escape.ensemble` is the estimator, `lab.escape.warnings` judges it;
where no rate exists none is logged, and `finding` says why. Networks run with fixed BatchNorm statistics.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as card
from torch import Tensor, optim

from lab.curvature.stability import UpdateRule
from lab.escape.ensemble import Dynamics, escape
from lab.escape.ensemble import Escape as Verdict
from lab.escape.exits import Coordinate, Exit, Growth, LossBarrier, Quench, TopDistance
from lab.escape.growth import Descending, descending, thrown
from lab.escape.noises import Frozen, Isotropic, SampleWeights
from lab.escape.replicas import Noise
from lab.escape.saddle import Departure, Descent, noise_std
from lab.escape.warnings import Place, Saddle, beforehand, examine
from lab.noise.alignment import variances
from lab.noise.example_curvature import example_curvature
from lab.objective import Decayed, NetworkObjective, Objective
from lab.points.critical import classify
from lab.points.interpolate import interpolate
from lab.points.quench import quench
from lab.probes.base import Probe, Snapshot, Value
from lab.probes.escape_start import Start, at_rest, may_fit, number, way_out
from lab.probes.escape_words import Cell, figure, told
from lab.results import CriticalPoint
from lab.sampling import Sampling, batch_factor
from lab.settings import CARD, SettingError
from lab.streams import stream

KICK = 0.02
"""Share of |w| by which a saddle is left to see what lies beyond it."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
ExitName = Literal["auto", "saddle", "quench", "linear", "loss_barrier", "top_distance"]


@card(kw_only=True, config=CARD)
class Escape(Probe):
    """Replicas from the weights as they are, for each learning rate and batch size.

    every, at      steps between measurements, or once at the end of training (at=end).
    examples       the loss is that of this probe set, and the batches are drawn from it.
    replicas       copies of the run with independent batches and noise.
    lrs, batch_sizes   the sweep; empty: those of the run. 0 stands for the full batch.
    sampling       null: as the run draws.
    noise          minibatch | sample_weights, frozen, isotropic: Gaussian noise on the full gradient, of covariance D/B that
                   follows the replica, is kept from the start, or is a multiple of 1 with the same trace.
    exit           auto: saddle where the weights are a saddle, else quench | saddle | quench | linear | loss_barrier |
                   top_distance; the last two are wrong in more than a few dimensions.
    radius         of saddle, linear and top_distance; null: half way to the minima beyond the saddle.
    barrier        loss above the start, of loss_barrier.
    directions     of top_distance and linear at a minimum.
    budget         steps a replica is watched; every replica is looked at 8 times in it (quench), or at every step.
    burn_in        steps; null: 3 relaxation times, at most a quarter of the budget.
    max_matvecs    Hessian products, at most, that say what kind of point the start is.
    quench_steps   of gradient descent, at most; gradient_tol: |gradient| at rest, and of a critical point.
    growth_steps   of the runs whose growth is measured, and of the random product: up to 10 times as many where the error
                   of the exponent is above 5 % of it and 0.002.
    controls       runs without noise, at lr and lr/10.
    """

    name: ClassVar[str] = "escape"

    every: Annotated[int, Field(gt=0)] = 1000
    at: Literal["steps", "end"] = "steps"
    examples: Annotated[int, Field(gt=1)] | Literal["all", "auto"] = "auto"
    replicas: Annotated[int, Field(ge=2)] = 64
    lrs: tuple[Positive, ...] = ()
    batch_sizes: tuple[Annotated[int, Field(ge=0)], ...] = ()
    sampling: Sampling | None = None
    noise: Literal["minibatch", "sample_weights", "frozen", "isotropic"] = "minibatch"
    exit: ExitName = "auto"
    radius: Positive | None = None
    barrier: Positive = 0.01
    directions: Annotated[int, Field(gt=0)] = 5
    budget: Annotated[int, Field(ge=16)] = 2000
    burn_in: Annotated[int, Field(ge=0)] | None = None
    max_matvecs: Annotated[int, Field(ge=2)] = 200
    quench_steps: Annotated[int, Field(gt=0)] = 2000
    gradient_tol: Positive = 1e-6
    growth_steps: Annotated[int, Field(ge=20)] = 200
    controls: bool = True

    def __post_init__(self) -> None:
        self._told = ""

    def due(self, step: int) -> bool:
        return self.at == "steps" and step % self.every == 0

    @property
    def at_end(self) -> bool:
        return self.at == "end"

    def measure(self, snapshot: Snapshot) -> dict[str, Value]:
        """The tags escape/*, error/escape/*, cost/escape/seconds, the survival curves and their arrays."""
        begin, values = perf_counter(), dict[str, Value]()
        self._told = ""
        if bool(snapshot.w.isfinite().all()):
            start = self._start(snapshot)
            cells = [
                self._cell(snapshot, start, lr, size)
                for lr in self.lrs or (number(start.rule.lr),)
                for size in self.batch_sizes or (snapshot.batch_size or 0,)
            ]
            values |= _values(start, cells)
            self._told = told(start.critical, cells, fits=start.curvature is not None, kind=self._exit_name(start))
            values["escape/survival"] = figure(cells, f"escape, step {snapshot.step}")
        values["cost/escape/seconds"] = perf_counter() - begin
        return values

    def finding(self, values: dict[str, float]) -> str:
        return self._told

    # --- the start ----------

    def _start(self, snapshot: Snapshot) -> Start:
        """The point, what it is, and the minimum that fits every example beside it, where there is one."""
        loss = snapshot.loss_on(self.examples)
        if isinstance(loss, NetworkObjective):
            loss = loss.with_running_statistics()
        rule = snapshot.rule
        if rule is not None and rule.moved is not None:
            raise SettingError(
                f"probe=[escape]: {len(snapshot.w) - len(rule.moved)} of {len(snapshot.w)} weights do not move, replicas "
                "move all of them; freeze those (requires_grad=False)"
            )
        if rule is None or not rule.uniform:
            raise SettingError(
                "probe=[escape]: the weights have no one learning rate, momentum and decay; replicas need one setting"
            )
        decay = float(rule.coupled_decay)
        objective: Objective = Decayed(loss, decay) if decay else loss
        w = snapshot.w.double()
        critical = self._classify(snapshot, objective, w)
        if critical.kind == "saddle":
            return Start(objective, w, critical, None, rule)
        curvature = None
        if not decay and isinstance(loss, NetworkObjective) and may_fit(loss, w):
            fit = interpolate(loss, w)
            if fit.converged:
                w, critical = fit.w, self._classify(snapshot, loss, fit.w)
                curvature = example_curvature(loss, w)
        return Start(objective, w, critical, curvature, rule)

    def _home(self, snapshot: Snapshot, start: Start) -> Quench:
        """The basin of the start: where gradient descent from it comes to rest. Once a snapshot."""

        def rest() -> Quench:
            found = quench(start.objective, start.w[None], tol=self.gradient_tol, max_steps=self.quench_steps)
            return Quench(start.objective, found.w[0], steps=self.quench_steps, gradient_tolerance=self.gradient_tol)

        return replace(snapshot.once(("escape/home", self.examples), rest))

    def _classify(self, snapshot: Snapshot, objective: Objective, w: Tensor) -> CriticalPoint:
        draws = stream(snapshot.seed, "escape/critical", snapshot.step)
        return classify(objective, w, gradient_tol=self.gradient_tol, max_matvecs=self.max_matvecs, generator=draws)

    def _exit_name(self, start: Start) -> str:
        return self.exit if self.exit != "auto" else "saddle" if start.saddle else "quench"

    def _exit(self, snapshot: Snapshot, start: Start) -> Exit:
        name, w, point = self._exit_name(start), start.w, start.critical
        if name == "saddle":
            if not start.saddle:
                raise SettingError(
                    f"probe.escape.exit=saddle: the weights are no saddle ({point.kind}); use probe.escape.exit=quench"
                )
            return Coordinate(point.vectors[:, 0].to(w), w, self._radius(start), both=True)
        if name == "quench":
            return self._home(snapshot, start)
        if name == "loss_barrier":
            return LossBarrier(start.objective, point.value + self.barrier)
        if name == "top_distance":
            return TopDistance(point.vectors[:, -self.directions :].to(w), w, self._radius(start))
        chosen = point.vectors[:, : point.index] if start.saddle else point.vectors[:, -self.directions :]
        return Growth(chosen.to(w), w, self._radius(start))

    def _radius(self, start: Start) -> float:
        """As it was set, else half way to the nearer of the minima on both sides of the saddle."""
        if self.radius is not None:
            return self.radius
        if not start.saddle:
            raise SettingError(f"probe.escape.radius: exit={self._exit_name(start)} needs one where there is no saddle")
        u = start.critical.vectors[:, 0].to(start.w)
        kick = KICK * max(1.0, float(start.w.norm())) * u
        sides = quench(
            start.objective,
            torch.stack([start.w + kick, start.w - kick]),
            tol=self.gradient_tol,
            max_steps=self.quench_steps,
        )
        return float(((sides.w - start.w) @ u).abs().min()) / 2

    # --- one learning rate and batch size ----------

    def _cell(self, snapshot: Snapshot, start: Start, lr: float, size: int) -> Cell:
        total = start.objective.num_examples or 0
        if size > total and (self.sampling or snapshot.sampling) != "with_replacement":
            raise SettingError(
                f"probe.escape.batch_sizes: {size} is more than the {total} examples of the probe set; use fewer, or "
                "probe.escape.sampling=with_replacement"
            )
        draws = stream(snapshot.seed, f"escape/{lr:.6g}/{size}", snapshot.step)
        dynamics = self._dynamics(snapshot, start, lr, size)
        if start.saddle:
            return self._at_saddle(snapshot, start, dynamics, size, draws)
        rule = replace(start.rule, lr=lr)
        thrown_out = None
        if start.curvature is not None and rule.preconditioner is None and self.noise == "minibatch":
            thrown_out = thrown(
                start.objective,
                start.w,
                replace(dynamics, make=at_rest(rule)),
                rule,
                start.curvature,
                replicas=self.replicas,
                steps=self.growth_steps,
                budget=self.budget,
                generator=draws,
            )
            return Cell(lr, size, total, None, thrown_out, None, (), ())
        place = self._place(start, dynamics, rule, draws)
        if place.silent:  # all replicas would do the same
            return Cell(lr, size, total, None, None, None, (), tuple(beforehand(place)))
        exit = self._exit(snapshot, start)
        home = None if exit.costly or self._exit_name(start) == "linear" else self._home(snapshot, start)
        found = self._watched(start, dynamics, exit, place, draws, home)
        over = way_out(start, exit, found) if isinstance(exit, Quench) else None
        if over is None:
            return Cell(lr, size, total, found, None, None, (), ())
        saddle = Saddle(over.saddle.w, over.barrier, over.direction)
        known = self._place(start, dynamics, rule, draws, saddle)
        found = replace(found, reasons=tuple(dict.fromkeys([*found.reasons, *beforehand(known, exit)])))
        theory = math.nan
        noise, plain = dynamics.noise, rule.preconditioner is None and not number(rule.momentum)
        if plain and isinstance(noise, Isotropic) and not over.refusals(known.temperature):
            theory = lr * over.rate(lr * noise.std**2 / 2)
        return Cell(lr, size, total, found, None, None, (), (), over.barrier, known.temperature, theory)

    def _watched(
        self,
        start: Start,
        dynamics: Dynamics,
        exit: Exit,
        place: Place,
        draws: torch.Generator,
        home: Quench | None = None,
    ) -> Verdict:
        """Looked at at every step where a saddle is left, 8 times where looking is a quench, else as relaxation allows."""
        soon = place.relaxation / 10 if math.isfinite(place.relaxation) else math.inf
        every = self.budget // 8 if exit.costly else max(1, int(min(soon, self.budget // 50)))
        if start.saddle and not exit.costly:
            every = 1
        return escape(
            start.objective,
            start.w,
            dynamics,
            exit,
            place,
            replicas=self.replicas,
            every=every,
            budget=self.budget,
            burn_in=0 if start.saddle else self.burn_in,
            stop=1.0 if start.saddle else 0.9,
            controls=self.controls and not start.saddle,
            home=home,
            generator=draws,
        )

    def _place(
        self,
        start: Start,
        dynamics: Dynamics,
        rule: UpdateRule,
        draws: torch.Generator,
        saddle: Saddle | None = None,
    ) -> Place:
        threshold = rule.threshold if rule.plain else math.inf
        return examine(
            start.objective,
            start.w,
            dynamics,
            start.critical,
            threshold=threshold,
            momentum=number(rule.momentum),
            dampening=number(rule.dampening),
            saddle=saddle,
            generator=draws,
        )

    def _at_saddle(
        self, snapshot: Snapshot, start: Start, dynamics: Dynamics, size: int, draws: torch.Generator
    ) -> Cell:
        """Growth and exit times against the linear theory, in the directions in which the exit looks; the theory is that of
        SGD and heavy ball, others have none.
        """
        exit, point = self._exit(snapshot, start), start.critical
        negative = slice(0, min(point.index, self.directions))
        vectors, curvatures = point.vectors[:, negative].to(start.w), point.values[negative].double()
        momentum, lr = number(start.rule.momentum), dynamics.lr
        spreads = self._spreads(start, dynamics, vectors)
        seen = slice(0, 1) if isinstance(exit, Coordinate) else slice(None)
        descent = Descent(curvatures[seen].tolist(), spreads[seen].tolist(), lr, momentum=momentum)
        radius = exit.threshold if isinstance(exit, Coordinate) else getattr(exit, "radius", math.nan)
        known = start.rule.preconditioner is None and not start.rule.nesterov and not number(start.rule.dampening)
        theory: Departure | None = descent.time(radius) if known and math.isfinite(radius) else None
        place = self._place(start, dynamics, replace(start.rule, lr=lr), draws)
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
                replicas=self.replicas,
                steps=self.budget,
                generator=draws,
            )
        found = self._watched(start, dynamics, exit, place, draws)
        directions = tuple(zip(grown, spreads.tolist(), strict=False))
        return Cell(lr, size, start.objective.num_examples or 0, found, None, theory, directions, ())

    def _spreads(self, start: Start, dynamics: Dynamics, vectors: Tensor) -> Tensor:
        """Standard deviation of the gradient of one step along the vectors."""
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
        return noise_std(
            variances(inner, start.w, vectors), factor=batch_factor(total, int(size), sampling), scale=scale
        )

    def _dynamics(self, snapshot: Snapshot, start: Start, lr: float, size: int) -> Dynamics:
        """The optimiser of the run, with its state; weight decay that joins the gradient is in the objective."""
        sampling = self.sampling or snapshot.sampling
        rule, live = start.rule, snapshot.replicate

        def make(at: float) -> Callable[[list[Tensor]], optim.Optimizer]:
            if live is None:
                return at_rest(rule)(at)

            def build(stack: list[Tensor]) -> optim.Optimizer:
                optimizer = live(at)(stack)
                if number(rule.coupled_decay):
                    optimizer.param_groups[0]["weight_decay"] = 0.0
                return optimizer

            return build

        batch = size or None
        if self.noise == "minibatch" or batch is None:
            return Dynamics(make, lr, batch, sampling)
        return Dynamics(make, lr, None, sampling, self._noise(start, batch))

    def _noise(self, start: Start, size: int) -> Noise:
        if self.noise == "sample_weights":
            return SampleWeights(size)
        frozen = Frozen.at(start.objective, start.w, size)
        if self.noise == "frozen":
            return frozen
        return Isotropic.of_trace(float(frozen.factor.double().square().sum()), start.objective.num_params)


def _values(start: Start, cells: list[Cell]) -> dict[str, Value]:
    """Numbers of the first cell (the run's own, unless a sweep was asked for), and arrays of all."""
    values: dict[str, Value] = {
        "escape/index": float(start.critical.index),
        "escape/index_exact": float(start.critical.index_exact),
        "escape/loss": start.critical.value,
        "escape/grad_norm": start.critical.gradient_norm,
    }
    return (
        values
        | cells[0].numbers()
        | {"escape/sweep": torch.tensor([cell.row() for cell in cells], dtype=torch.float64)}
    )
