"""Where an escape measurement starts, how its replicas move, and the way out over the nearest saddle."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, optim

from lab.curvature.stability import UpdateRule
from lab.escape.dense import LARGEST, stationary
from lab.escape.ensemble import Escape
from lab.escape.exits import Quench
from lab.escape.langer import Langer
from lab.escape.string import find_pass
from lab.noise.linear_stability import ExampleCurvature
from lab.objective import NetworkObjective, Objective
from lab.results import CriticalPoint
from lab.settings import SettingError

ROWS, PRODUCTS = 2000, 5e10
"""Examples times outputs, at most, whose random matrix product is formed; products of weights for their inner products."""
LOOKED_AT = 16
"""Exits whose ends are quenched for the nearest minimum beyond."""


@dataclass(frozen=True)
class Start:
    """Where the replicas start, and what is known there."""

    objective: Objective
    w: Tensor
    critical: CriticalPoint
    curvature: ExampleCurvature | None
    rule: UpdateRule

    @property
    def saddle(self) -> bool:
        return self.critical.kind == "saddle"


def way_out(start: Start, exit: Quench, found: Escape) -> Langer | None:
    """The saddle on the way to the nearest minimum that replicas went to, in networks small enough for whole Hessians; None
    where the two ends are no minima or no saddle is found between them.
    """
    out = found.watched.times.exited.to(start.w.device)
    if start.critical.kind != "minimum" or len(start.w) > LARGEST or not bool(out.any()):
        return None
    ends = exit.ends(found.watched.ends[out][:LOOKED_AT])
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
        b, d = number(rule.momentum), number(rule.dampening)
        return lambda stack: optim.SGD(
            stack, lr=lr, momentum=b, dampening=d if b else 0.0, nesterov=bool(rule.nesterov)
        )

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
