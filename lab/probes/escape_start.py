"""Where an escape measurement starts, how its replicas move, and the way out over the nearest saddle."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, optim

from lab.curvature.stability import UpdateRule
from lab.escape.ensemble import EnsembleEscape
from lab.escape.exits import Coordinate, Exit, Growth, LossBarrier, Quench, TopDistance
from lab.escape.langer import Langer
from lab.noise.example_curvature import ExampleCurvature, example_curvature
from lab.objective import BatchesObjective, Decayed, NetworkObjective, Objective
from lab.points.critical import classify
from lab.points.dense import LARGEST, stationary
from lab.points.interpolate import interpolate
from lab.points.quench import quench
from lab.points.string import find_pass
from lab.probes.base import Snapshot
from lab.probes.snapshot import NO_PAIRS
from lab.results import ClassifiedPoint
from lab.settings import SettingError

if TYPE_CHECKING:
    from lab.probes.escape import Escape

ROWS, PRODUCTS = 2000, 5e10
"""Examples times outputs, at most, whose random matrix product is formed; products of weights for their inner products."""
KICK = 0.02
"""Share of |w| by which a saddle is left to see what lies beyond it."""
LOOKED_AT = 16
"""Exits whose ends are quenched for the nearest minimum beyond."""


ExitName = Literal["auto", "saddle", "quench", "linear", "loss_barrier", "top_distance"]


@dataclass(frozen=True)
class Start:
    """Where the replicas start, and what is known there."""

    objective: Objective
    w: Tensor
    critical: ClassifiedPoint
    curvature: ExampleCurvature | None
    rule: UpdateRule

    @property
    def saddle(self) -> bool:
        return self.critical.kind == "saddle"


@dataclass(frozen=True)
class Scene:
    """A snapshot, the settings of the measurement, and where its replicas start; what leaving means there."""

    here: Snapshot
    settings: "Escape"
    start: Start

    @property
    def exit_name(self) -> str:
        return self.settings.exit if self.settings.exit != "auto" else "saddle" if self.start.saddle else "quench"

    def home(self) -> Quench:
        """The basin of the start: where gradient descent from it comes to rest. Once a snapshot."""

        def rest() -> Quench:
            loss, tol, steps = self.start.objective, self.settings.gradient_tol, self.settings.quench_steps
            bottom = quench(loss, self.start.w[None], tol=tol, max_steps=steps)
            return Quench(loss, bottom.w[0], steps=steps, gradient_tolerance=tol)

        return replace(self.here.once(("escape/home", self.settings.examples), rest))

    def exit(self) -> Exit:
        name, w, point = self.exit_name, self.start.w, self.start.critical
        if name == "saddle":
            if not self.start.saddle:
                raise SettingError(
                    f"probe.escape.exit=saddle: the weights are no saddle ({point.kind}); use probe.escape.exit=quench"
                )
            return Coordinate(point.vectors[:, 0].to(w), w, self.radius(), both=True)
        if name == "quench":
            return self.home()
        if name == "loss_barrier":
            return LossBarrier(self.start.objective, point.value + self.settings.barrier)
        if name == "top_distance":
            return TopDistance(point.vectors[:, -self.settings.directions :].to(w), w, self.radius())
        chosen = point.vectors[:, : point.index] if self.start.saddle else point.vectors[:, -self.settings.directions :]
        return Growth(chosen.to(w), w, self.radius())

    def radius(self) -> float:
        """As it was set, else half way to the nearer of the minima on both sides of the saddle."""
        if self.settings.radius is not None:
            return self.settings.radius
        if not self.start.saddle:
            raise SettingError(f"probe.escape.radius: exit={self.exit_name} needs one where there is no saddle")
        u = self.start.critical.vectors[:, 0].to(self.start.w)
        w, tol, steps = self.start.w, self.settings.gradient_tol, self.settings.quench_steps
        kick = KICK * max(1.0, float(w.norm())) * u
        sides = quench(self.start.objective, torch.stack([w + kick, w - kick]), tol=tol, max_steps=steps)
        return float(((sides.w - w) @ u).abs().min()) / 2


def begin(here: Snapshot, settings: "Escape") -> Start:
    """The point, what it is, and the minimum that fits every example beside it, where there is one."""
    loss = here.loss_on(settings.examples)
    if isinstance(loss, BatchesObjective):
        raise SettingError(f"probe=[escape]: {NO_PAIRS}")
    if isinstance(loss, NetworkObjective):
        loss = loss.with_running_statistics()
    rule = here.rule
    if rule is not None and rule.moved is not None:
        raise SettingError(
            f"probe=[escape]: {len(here.w) - len(rule.moved)} of {len(here.w)} weights do not move, replicas "
            "move all of them; freeze those (requires_grad=False)"
        )
    if rule is None:
        raise SettingError(
            "probe=[escape]: no optimiser is known, and replicas need one: optimizer= at a door, in a notebook "
            "lab.Bench(model, loss, (x, y), optimizer).snapshot()"
        )
    if not rule.uniform:
        raise SettingError(
            "probe=[escape]: the weights have no one learning rate, momentum and decay; replicas need one setting"
        )
    decay = float(rule.coupled_decay)
    objective: Objective = Decayed(loss, decay) if decay else loss
    w = here.w.double()
    critical = _classify(here, settings, objective, w)
    if critical.kind == "saddle":
        return Start(objective, w, critical, None, rule)
    curvature = None
    if not decay and isinstance(loss, NetworkObjective) and may_fit(loss, w):
        fit = interpolate(loss, w)
        if fit.converged:
            w, critical = fit.w, _classify(here, settings, loss, fit.w)
            curvature = example_curvature(loss, w)
    return Start(objective, w, critical, curvature, rule)


def _classify(here: Snapshot, settings: "Escape", objective: Objective, w: Tensor) -> ClassifiedPoint:
    tol, most, draws = settings.gradient_tol, settings.max_matvecs, here.stream("escape/critical")
    return classify(objective, w, gradient_tol=tol, max_matvecs=most, generator=draws)


def way_out(start: Start, exit: Quench, ensemble: EnsembleEscape) -> Langer | None:
    """The saddle on the way to the nearest minimum that replicas went to, in networks small enough for whole Hessians; None
    where the two ends are no minima or no saddle is found between them.
    """
    out = ensemble.watched.times.exited.to(start.w.device)
    if start.critical.kind != "minimum" or len(start.w) > LARGEST or not bool(out.any()):
        return None
    ends = exit.ends(ensemble.watched.ends[out][:LOOKED_AT])
    there = ends.w[ends.converged & exit.elsewhere(ends.w)]
    if not len(there):
        return None
    nearest = there[(there - exit.home).norm(dim=1).argmin()]
    between = find_pass(start.objective, exit.home, nearest)
    if between.saddle is None:
        return None
    points = [stationary(start.objective, w) for w in (exit.home, nearest)]
    try:
        return Langer(points[0], between.saddle, points[1])
    except ValueError:
        return None


def at_rest(rule: UpdateRule) -> Callable[[float], Callable[[list[Tensor]], optim.Optimizer]]:
    """SGD as the rule has it, at rest, without decay."""

    def make(lr: float) -> Callable[[list[Tensor]], optim.Optimizer]:
        b, d, nesterov = number(rule.momentum), number(rule.dampening), bool(rule.nesterov)
        return lambda stack: optim.SGD(stack, lr=lr, momentum=b, dampening=d if b else 0.0, nesterov=nesterov)

    return make


def may_fit(loss: NetworkObjective, w: Tensor) -> bool:
    """Whether the network has more weights than outputs of all examples, few enough to form their products."""
    with torch.no_grad():
        rows = loss.outputs(w, loss.x[:1]).numel() * len(loss.x)
    return rows < len(w) and rows <= ROWS and rows**2 * len(w) <= PRODUCTS


def number(coefficient: float | Tensor) -> float:
    if isinstance(coefficient, Tensor):
        raise SettingError("probe=[escape]: the parameter groups of the optimiser differ; replicas need one setting")
    return float(coefficient)
