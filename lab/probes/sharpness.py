"""Sharpness against the edge of stability: lambda_max of the Hessian and the threshold of the live optimiser.

    ratio = lambda_max(H) / threshold,   the edge is 1

For gradient descent the threshold is 2/lr; for any other optimiser see `lab.curvature.stability`. Where the optimiser
preconditions, the ratio is that of lambda_max(P^-1/2 (H + c) P^-1/2). Where some weights do not move (no optimiser
holds them, or their learning rate is 0), it is that of the block of H of those that do. Cohen et al. 2021 (arXiv
2103.00065) and 2022 (arXiv 2207.14484).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lab.curvature.chain import Chain
from lab.curvature.eigen import Extremes
from lab.curvature.operators import Hessian, LinearOperator, hessian, preconditioned, restricted
from lab.curvature.stability import UpdateRule
from lab.objective import Objective
from lab.objective.sharded import Sharded
from lab.params import layout
from lab.probes.base import Memory, Plan, Probe, ProbeSet, Snapshot, measures
from lab.results import Eigenpairs, Result
from lab.settings import SettingError
from lab.settings import settings as card
from lab.streams import stream

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PART, TIMES = 1000, 10
"""coarse=auto takes PART examples where the probe set has TIMES as many."""
PER_SOLVE = 20
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

    every: Annotated[
        int, Field(gt=0, description="steps between measurements; odd, for at the edge the iterates have period 2")
    ] = 13
    k: Annotated[int, Field(gt=0, description="number of top eigenvalues")] = 1
    bottom: Annotated[bool, Field(description="also the smallest eigenvalue")] = False
    tol: Annotated[float, Field(gt=0, lt=1, description="wanted error of an eigenvalue, relative to the top one")] = (
        1e-3
    )
    max_matvecs: Annotated[
        int, Field(gt=0, description="Hessian products allowed per solve (each about 1.1 gradients)")
    ] = 200
    examples: ProbeSet = "auto"
    midpoints: Annotated[
        bool, Field(description="also at (w[t-2] + 2 w[t-1] + w[t])/4, where the period-2 oscillation is averaged out")
    ] = False
    cold: Annotated[
        int,
        Field(gt=0, description="every so many measurements the solve starts at random, else from the last vectors"),
    ] = 20
    coarse: Annotated[
        Annotated[int, Field(ge=0)] | Literal["auto"],
        Field(
            description="examples over which the others search first: n | 0: none | auto: 1000 of a probe set of 10,000 or "
            "more"
        ),
    ] = "auto"

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
            raise SettingError(
                f"{wanted}: more eigenvalues than the {num_weights} weights of the model; "
                f"use probe.sharpness.k={max(1, num_weights - self.bottom)} or less"
            )
        if self.max_matvecs < fewest:
            raise SettingError(
                f"probe.sharpness.max_matvecs={self.max_matvecs} is too few for {wanted}; "
                f"use probe.sharpness.max_matvecs={fewest} or more"
            )

    def expected_matvecs(self, rule: UpdateRule | None) -> int:
        return PER_SOLVE * (1 + (rule is not None and not rule.plain))


@dataclass(frozen=True)
class SharpnessResult(Result):
    """lambda_max of H and of what is held against the threshold of the optimiser.

    loss         L(w); top, bottom the eigenpairs of H at both ends (bottom None unless asked for).
    directional  g'Hg/|g|^2 along the gradient of the weights that move; NaN at a critical point.
    compared     eigenpairs of what is held against the threshold: those of H (quantity lambda_max), of the block of the
                 weights that move (moved), or of the preconditioned Hessian (preconditioned).
    threshold    beyond which the step is unstable; None without an optimiser whose threshold is known, or where none moves.
    ratio        lambda_max(compared)/threshold; None where it is not known so far, as before the first update of Adam.
    midpoint     eigenpairs of the same at (w[t-2] + 2 w[t-1] + w[t])/4, where these weights are known.
    matvecs      products over the whole probe set, one gradient, and those over a part as its share.
    """

    loss: float
    top: Eigenpairs
    bottom: Eigenpairs | None
    directional: float
    quantity: str
    compared: Eigenpairs
    threshold: float | None
    ratio: float | None
    midpoint: Eigenpairs | None
    matvecs: float
    warm: Memory = field(repr=False)

    @property
    def converged(self) -> bool:
        return all(solve.converged for solve in (self.top, self.compared, self.midpoint) if solve is not None)

    def numbers(self) -> dict[str, float]:
        numbers = {"loss": self.loss} | _extreme("lambda_max", self.top)
        numbers |= {f"lambda_{i}": float(value) for i, value in enumerate(self.top.values[1:], 2)}
        numbers |= {} if self.bottom is None else _extreme("lambda_min", self.bottom)
        numbers |= {"directional": self.directional}
        numbers |= {} if self.quantity == "lambda_max" else _extreme(self.quantity, self.compared)
        optional = {"threshold": self.threshold, "ratio": self.ratio}
        optional["midpoint"] = None if self.midpoint is None else float(self.midpoint.values[0])
        numbers |= {name: value for name, value in optional.items() if value is not None}
        return numbers | {"converged": float(self.converged)}

    def sentence(self) -> str:
        value, error = float(self.top.values[0]), float(self.top.errors[0])
        text = f"lambda_max is {value:.4g} +- {error:.1g}"
        if self.ratio is not None:
            what = "" if self.quantity == "lambda_max" else f"{self.quantity} lambda_max is "
            text += f", {what}{self.ratio:.3g} x the threshold {self.threshold:.4g} of the optimiser"
        return text + ("." if self.converged else "; the eigensolve did not converge.")

    def figure(self, when: str = "") -> "Figure":
        """The top eigenvalues of what the threshold is about as stems, beside it."""
        from matplotlib.figure import Figure

        from lab.run.figures import EIGENVALUE

        what = {"preconditioned": "$P^{-1}(H + c)$", "moved": "H of the weights that move"}.get(self.quantity, "H")
        count = len(self.compared.values)
        figure = Figure(figsize=(5, 3.5), layout="constrained")
        axis = figure.subplots()
        axis.stem(range(1, count + 1), self.compared.values.tolist(), basefmt=" ", label=f"eigenvalues of {what}")
        if self.threshold is not None:
            axis.axhline(self.threshold, color="tab:red", ls="--", label="stability threshold")
        unit = EIGENVALUE if what == "H" else "eigenvalue"
        axis.set(xlabel="index", ylabel=unit, title=f"top of the spectrum{when}")
        axis.set_xticks(range(1, count + 1, max(1, count // 10)))
        axis.legend(frameon=False)
        return figure

    def figures(self, when: str = "") -> "dict[str, Figure]":
        return {"spectrum": self.figure(when)} if len(self.compared.values) > 1 else {}

    def costs(self) -> dict[str, float]:
        return {"matvecs": self.matvecs}

    def memory(self) -> Memory:
        return self.warm


@measures(Sharpness)
def sharpness(here: Snapshot, settings: Sharpness, memory: Memory) -> SharpnessResult:
    """lambda_max of the Hessian and its ratio to the threshold of the optimiser, where the snapshot has one.

    >>> from lab.landscapes.quadratic import Quadratic
    >>> result = sharpness(Quadratic(torch.tensor([9.0, 4.0, 1.0])), torch.ones(3))
    >>> round(float(result.top.values[0]), 3), result.ratio
    (9.0, None)
    """
    loss, solver = here.loss_on(settings.examples), _Solver(here, settings, memory)
    H: Hessian = here.once(("hessian", settings.examples), lambda: hessian(loss, here.w))
    held = _held(here)
    ends = solver.solve("iterate", here.w, lambda operator: operator, H)
    directional = _along(H, held.moved_part(H.gradient))
    compared = ends if held.name == "lambda_max" else solver.solve(held.name, here.w, held.of, H)
    solves, midpoint = [ends] if compared is ends else [ends, compared], None
    past = [memory.get(f"last/{here.step - i}") for i in (2, 1, 0)]
    if settings.midpoints and all(w is not None for w in past):
        w0, w1, w2 = (w for w in past if w is not None)
        midpoint = solver.solve("midpoint", (w0 + 2 * w1 + w2) / 4, held.of)
        solves.append(midpoint)
    moving = held.rule is not None and _moves(held.rule)
    threshold = held.rule.threshold if moving and held.rule is not None else None
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
        for kind in {key.split("/")[0] for key in memory} - {"last"}:
            state = {key.removeprefix(f"{kind}/"): v for key, v in memory.items() if key.startswith(f"{kind}/")}
            self.chains[kind] = Chain()
            self.chains[kind].load_state_dict(state)
            if here.step // settings.every % settings.cold == 0:
                self.chains[kind].forget()
        self._before = self._spent()

    def solve(
        self, kind: str, w: Tensor, of: Callable[[LinearOperator], LinearOperator], H: LinearOperator | None = None
    ) -> Extremes:
        """The ends of of(Hessian at w); H where that is known already."""
        part, settings = self.part, self.settings
        operator = of(hessian(self.loss, w) if H is None else H)
        return self.chains.setdefault(kind, Chain()).solve(
            operator,
            coarse=None if part is None else lambda: of(hessian(part, w)),
            top=min(settings.k, operator.size),
            bottom=int(settings.bottom and kind == "iterate"),
            tol=settings.tol,
            max_matvecs=settings.max_matvecs,
            generator=stream(self.here.seed, f"sharpness/{kind}", self.here.step),
        )

    @property
    def part_matvecs(self) -> float:
        """Products over the part, in those over the whole probe set."""
        if self.part is None or not self.loss.num_examples:
            return 0.0
        return (self.part.num_examples or 0) / self.loss.num_examples * (self._spent() - self._before)

    def memory(self) -> dict[str, Tensor]:
        """The state of every chain, under its kind."""
        return {f"{kind}/{name}": v for kind, chain in self.chains.items() for name, v in chain.state_dict().items()}

    def _spent(self) -> int:
        return sum(chain.matvecs for chain in self.chains.values())


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


def _extreme(name: str, pairs: Eigenpairs) -> dict[str, float]:
    """The first eigenvalue and its error."""
    return {name: float(pairs.values[0]), f"error/{name}": float(pairs.errors[0])}


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
        decay = self.rule.coupled_decay
        return preconditioned(block, self.diagonal, shift=decay)

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
