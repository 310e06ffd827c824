"""Sharpness against the edge of stability: lambda_max of the Hessian and the threshold of the live optimiser.

    ratio = lambda_max(H) / threshold,   the edge is 1

For gradient descent the threshold is 2/lr; for any other optimiser see `lab.curvature.stability`. Where the optimiser
preconditions, the ratio is that of lambda_max(P^-1/2 (H + c) P^-1/2). Where some weights do not move (no optimiser
holds them, or their learning rate is 0), it is that of the block of H of those that do. Cohen et al. 2021 (arXiv
2103.00065) and 2022 (arXiv 2207.14484).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from lab.curvature.chain import Chain
from lab.curvature.eigen import Extremes
from lab.curvature.operators import LinearOperator, hessian, preconditioned, restricted
from lab.curvature.stability import UpdateRule
from lab.objective import Objective
from lab.objective.sharded import Sharded
from lab.params import layout
from lab.probes.base import Memory, Plan, Probe, Snapshot, measures
from lab.probes.knobs import Count, Natural, ProbeSet, Rhythm, Share, When, knob
from lab.probes.nested import Nested, bracketed
from lab.probes.sharpness_result import SharpnessResult
from lab.settings import SettingError
from lab.settings import settings as card
from lab.streams import stream

PART, TIMES = 1000, 10
"""coarse=auto takes PART examples where the probe set has TIMES as many."""
PER_SOLVE = 26
"""Hessian products that a cold solve takes at the edge of stability; they foretell the time only."""


@card(frozen=False)
class Sharpness(Probe):
    """Sharpness of the Hessian against the stability threshold of the live optimiser.

    The end of a run is measured, too. Between cold solves one starts from the last vectors, which cannot see an eigenvalue
    that comes up in a direction of its own. With `coarse` (up to 4 million weights, not with `bottom`) those search over a
    part of the examples, drawn once, before they look at the whole probe set (`lab.curvature.davidson`): fewer products over
    the whole set for many over the part.

    Cost: one gradient; at the edge, where the top eigenvalues crowd, 20 to 30 products of 1.1 gradients cold and 15 warm,
    or with `coarse` 2 to 4 and 30 to 50 over the part; 2 to 5 below the edge; one more for `directional` = g'Hg/|g|^2. As
    reported in cost/sharpness/matvecs, where a product over the part counts as its share of the examples.
    """

    name: ClassVar[str] = "sharpness"
    halves: ClassVar[str] = "the error of lambda_max counts what the others would change"
    loose: ClassVar[Mapping[str, float]] = {"tol": 1e-2}
    first: ClassVar[bool] = True
    warm_share: ClassVar[float] = 0.6
    auto: ClassVar[Mapping[str, float]] = {"every": 13, "tol": 1e-3}

    every: Annotated[
        Rhythm, knob("steps between measurements, odd for iterates of period 2 | auto: 13, more seldom by probe.budget")
    ] = "auto"
    at: When = "steps"
    k: Annotated[Count, knob("number of top eigenvalues")] = 1
    bottom: Annotated[bool, knob("also the smallest eigenvalue")] = False
    tol: Annotated[
        Share | Literal["auto"],
        knob(
            "wanted error of an eigenvalue, relative to the largest | auto: 0.001, up to 0.01 where probe.budget asks"
        ),
    ] = "auto"
    max_matvecs: Annotated[Count, knob("Hessian products allowed per solve (each about 1.1 gradients)")] = 200
    examples: ProbeSet = "auto"
    midpoints: Annotated[bool, knob("also at (w[t-2] + 2 w[t-1] + w[t])/4, where period-2 oscillations cancel")] = False
    cold: Annotated[Count, knob("every so many measurements a solve starts at random, else from the last vectors")] = 20
    coarse: Annotated[
        Natural | Literal["auto"],
        knob("examples over which the others search first: n | 0: none | auto: 1000 of a probe set of 10,000 or more"),
    ] = "auto"

    @model_validator(mode="after")
    def _consistent(self) -> "Sharpness":
        if self.midpoints and self.at == "end":
            raise ValueError(
                "midpoints=true asks for the weights of three steps, and at=end looks at one; use at=steps"
            )
        return self

    @property
    def at_end(self) -> bool:
        return True

    @property
    def remembers(self) -> int:
        return 2 if self.midpoints else 0

    def require(self, plan: Plan) -> None:
        """Also where the eigensolver could not even start on a model of so many weights."""
        super().require(plan)
        num_weights, fewest = layout(plan.model).size, self.k + self.bottom
        wanted = f"probe.sharpness.k={self.k}" + (" and bottom=true" if self.bottom else "")
        if fewest > num_weights:
            cure = f"use probe.sharpness.k={max(1, num_weights - self.bottom)} or less"
            raise SettingError(f"{wanted}: more eigenvalues than the {num_weights} weights of the model; {cure}")
        if self.max_matvecs < fewest:
            few, cure = f"probe.sharpness.max_matvecs={self.max_matvecs}", f"max_matvecs={fewest} or more"
            raise SettingError(f"{few} is too few for {wanted}; use probe.sharpness.{cure}")

    def expected_matvecs(self, rule: UpdateRule | None) -> int:
        solves = 1 + (rule is not None and not rule.plain)
        return PER_SOLVE * (solves + self.midpoints) * (self.k + self.bottom + 1) // 2


@measures(Sharpness)
def sharpness(here: Snapshot, settings: Sharpness, memory: Memory) -> SharpnessResult:
    """lambda_max of the Hessian and its ratio to the threshold of the optimiser, where the snapshot has one.

    >>> from lab.landscapes.quadratic import Quadratic
    >>> result = sharpness(Quadratic(torch.tensor([9.0, 4.0, 1.0])), torch.ones(3))
    >>> round(float(result.top.values[0]), 3), result.ratio
    (9.0, None)
    """
    H, solver, held = here.hessian(settings.examples), _Solver(here, settings, memory), _held(here)
    ends = solver.solve("iterate", here.w, lambda operator: operator, H)
    directional = _along(H, held.moved_part(H.gradient))
    compared = ends if held.name == "lambda_max" else solver.solve(held.name, here.w, held.of, H)
    solves, midpoint = [ends] if compared is ends else [ends, compared], None
    past = [w for i in (2, 1, 0) if (w := memory.get(f"last/{here.step - i}")) is not None]
    if settings.midpoints and len(past) == 3:
        midpoint = solver.solve("midpoint", (past[0] + 2 * past[1] + past[2]) / 4, held.of)
        solves.append(midpoint)
    threshold = held.rule.threshold if held.rule is not None and _moves(held.rule) else None
    return SharpnessResult(
        loss=float(H.value),
        top=ends.top,
        bottom=ends.bottom if settings.bottom else None,
        directional=directional,
        quantity=held.name,
        compared=compared.top,
        threshold=threshold,
        ratio=float(compared.top.values[0]) / threshold if threshold is not None and held.known else None,
        midpoint=None if midpoint is None else midpoint.top,
        matvecs=sum(solve.top.matvecs for solve in solves) + 1 + solver.part_matvecs,
        warm=solver.memory(),
    )


class _Solver:
    """The eigensolves of one measurement: each goes on from the last of its kind in the memory, unless it is cold."""

    def __init__(self, here: Snapshot, settings: Sharpness, memory: Memory):
        self.here, self.settings = here, settings
        self.loss = here.loss_on(settings.examples)
        self.part = _part(self.loss, settings, here.seed)
        self.chains: dict[str, Chain] = {}
        self.count, self.index = _count(here.step // settings.rhythm, memory)
        for kind in {key.split("/")[0] for key in memory} - {"last", "count"}:
            state = {key.removeprefix(f"{kind}/"): v for key, v in memory.items() if key.startswith(f"{kind}/")}
            self.chains[kind] = Chain()
            self.chains[kind].load_state_dict(state)
            if self.count % settings.cold == 0:
                self.chains[kind].forget()
        self._before, self.checked = self._spent(), 0.0

    def solve(
        self, kind: str, w: Tensor, of: Callable[[LinearOperator], LinearOperator], H: LinearOperator | None = None
    ) -> Extremes:
        """The ends of of(Hessian at w); H where that is known already."""
        part, settings = self.part, self.settings
        operator = of(hessian(self.loss, w) if H is None else H)
        ends = self.chains.setdefault(kind, Chain()).solve(
            operator,
            coarse=None if part is None else lambda: of(hessian(part, w)),
            top=min(settings.k, operator.size),
            bottom=int(settings.bottom and kind == "iterate"),
            tol=float(settings.tol),
            max_matvecs=settings.max_matvecs,
            generator=self.here.stream(f"sharpness/{kind}"),
        )
        if not isinstance(examples := settings.examples, Nested):
            return ends
        rest = self.here.loss_on(Nested(examples.examples, rest=True))
        self.checked += (1 + ends.top.values.numel()) * (rest.num_examples or 0) / examples.examples
        bottom = ends.bottom if not settings.bottom else bracketed(ends.bottom, rest, w, of)
        return replace(ends, top=bracketed(ends.top, rest, w, of), bottom=bottom)

    @property
    def part_matvecs(self) -> float:
        """Products over the part, and over the rest, in those over the whole probe set."""
        if self.part is None or not self.loss.num_examples:
            return self.checked
        return self.checked + (self.part.num_examples or 0) / self.loss.num_examples * (self._spent() - self._before)

    def memory(self) -> dict[str, Tensor]:
        """The state of every chain, under its kind."""
        state = {f"{kind}/{name}": v for kind, chain in self.chains.items() for name, v in chain.state_dict().items()}
        return state | {"count": torch.tensor([self.index, self.count])}

    def _spent(self) -> int:
        return sum(chain.matvecs for chain in self.chains.values())


def _count(index: int, memory: Memory) -> tuple[int, int]:
    """How many measurements there were before this one, and its place in the rhythm. Those that a budget has left out do
    not count: a solve starts at random as often in measurements, however seldom these are.
    """
    if "count" not in memory:
        return index, index
    last, count = memory["count"].tolist()
    return count + (index > last), index


def _part(loss: Objective, settings: Sharpness, seed: int) -> Objective | None:
    """The loss over the same examples throughout a run; None where all of them are to be used."""
    if isinstance(loss, Sharded) or loss.num_examples is None or settings.bottom:
        return None
    auto = PART if loss.num_examples >= TIMES * PART else 0
    count = auto if settings.coarse == "auto" else settings.coarse
    if not 0 < count < loss.num_examples:
        return None
    order = torch.randperm(loss.num_examples, generator=stream(seed, "sharpness/coarse"))
    return loss.restrict(order[:count])


@dataclass(frozen=True)
class _Held:
    """What of H is held against the threshold: lambda_max of H, of the block of the weights that move (`moved`), or of that
    block, or of H, `preconditioned`; rule is that of the weights that move, `known` whether it decides so far.
    """

    name: str
    rule: UpdateRule | None
    known: bool
    places: Tensor | None = None
    diagonal: Tensor | None = None

    def of(self, operator: LinearOperator) -> LinearOperator:
        block = operator if self.places is None else restricted(operator, self.places)
        if self.rule is None or self.diagonal is None:
            return block
        return preconditioned(block, self.diagonal, shift=self.rule.coupled_decay)

    def moved_part(self, v: Tensor) -> Tensor:
        """v (P,) with zeros at the weights that do not move."""
        if self.places is None:
            return v
        places = self.places.to(v.device)
        return torch.zeros_like(v).index_copy(0, places, v[places])


def _held(snapshot: Snapshot) -> _Held:
    """Of the live optimiser; before the first update of P nothing of it is known."""
    if snapshot.rule is None:
        return _Held("lambda_max", None, False)
    places, rule = snapshot.rule.moved, snapshot.rule.moving
    name = "lambda_max" if places is None else "moved"
    if rule.plain:
        return _Held(name, rule, True, places)
    diagonal = rule.scaling(snapshot.w if places is None else snapshot.w[places.to(snapshot.w.device)])
    if not bool(diagonal.isfinite().all()) or not bool((diagonal > 0).all()):
        return _Held(name, rule, False, places)
    return _Held("preconditioned", rule, True, places, diagonal)


def _moves(rule: UpdateRule) -> bool:
    """Whether there is a step to be stable: none at learning rate 0, where a schedule may end."""
    return bool(rule.lr.max() > 0) if isinstance(rule.lr, Tensor) else rule.lr > 0


def _along(operator: LinearOperator, g: Tensor) -> float:
    """g'Hg/|g|^2, NaN at a critical point. Cost: one product. Sums in float64."""
    square = g.double().square().sum()
    if not square > 0:
        return math.nan
    return float((g.double() * (operator @ g).double()).sum() / square)
