"""Sharpness against the edge of stability: lambda_max of the Hessian and the threshold of the live optimiser.

    ratio = lambda_max(H) / threshold,   the edge is 1

For gradient descent the threshold is 2/lr; for any other optimiser see `lab.curvature.stability`. Where the optimiser
preconditions, the ratio is that of lambda_max(P^-1/2 (H + c) P^-1/2). Where some weights do not move (no optimiser
holds them, or their learning rate is 0), it is that of the block of H of those that do. Cohen et al. 2021 (arXiv
2103.00065) and 2022 (arXiv 2207.14484).
"""

import dataclasses
from dataclasses import field
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from lab.curvature.chain import Chain, Coarse
from lab.curvature.eigen import Extremes
from lab.curvature.operators import LinearOperator, hessian, preconditioned, restricted
from lab.curvature.stability import UpdateRule
from lab.objective import Objective
from lab.objective.sharded import Sharded
from lab.probes.base import Probe, Snapshot, Value
from lab.results import Eigenpairs
from lab.settings import CARD
from lab.streams import stream

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PART, TIMES = 1000, 10
"""coarse=auto: so many examples, where the probe set is so many times as large."""


@dataclass(kw_only=True, config=CARD)
class Sharpness(Probe):
    """lambda_max (and lambda_2..k, lambda_min), its threshold and their ratio, every `every` steps.

    every        steps between measurements, beside that of the end. At the edge the iterates have period 2: take an odd
                 number.
    k            number of top eigenvalues.
    bottom       also lambda_min.
    tol          wanted error relative to the largest |lambda|.
    max_matvecs  Hessian products allowed per solve.
    examples     size of the fixed, class-balanced probe set; all; auto (all up to 5000, else 2000).
    midpoints    also what is held against the threshold at (w_{t-2} + 2 w_{t-1} + w_t)/4, where the period-2 oscillation is
                 averaged out.
    cold         measurements between two that start from random vectors; those in between start from the last vectors,
                 which cannot see an eigenvalue that comes up in a direction of its own. 1: always cold.
    coarse       examples, drawn once, over which these solves search before they look at the whole probe set
                 (`lab.curvature.davidson`), up to 4 million weights and not with `bottom`. auto: 1000 of at least 10,000;
                 0: none. Fewer whole products for many over the part: worth it where those cost next to nothing.
    Cost: one gradient; at the edge, where the top eigenvalues crowd, 20 to 30 products of 1.1 gradients cold and 15 warm,
    or with `coarse` 2 to 4 and 30 to 50 over the part; 2 to 5 below the edge; one more for `directional` = g'Hg/|g|^2. As
    reported in cost/sharpness/matvecs, where a product over the part counts as its share of the examples.
    """

    name: ClassVar[str] = "sharpness"

    every: Annotated[int, Field(gt=0)] = 13
    k: Annotated[int, Field(gt=0)] = 1
    bottom: bool = False
    tol: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    max_matvecs: Annotated[int, Field(gt=0)] = 200
    examples: Annotated[int, Field(gt=0)] | Literal["all", "auto"] = "auto"
    midpoints: bool = False
    cold: Annotated[int, Field(gt=0)] = 20
    coarse: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    _chains: dict[str, Chain] = field(default_factory=dict, init=False, repr=False)
    _last: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    def due(self, step: int) -> bool:
        """Multiples of `every`; with midpoints also the two steps before, whose weights are kept."""
        return step % self.every == 0 or (self.midpoints and -step % self.every <= 2)

    @property
    def at_end(self) -> bool:
        return True

    def measure(self, snapshot: Snapshot) -> dict[str, Value]:
        """The tags sharpness/*, error/sharpness/*, cost/sharpness/*; a figure of the spectrum where k > 1."""
        if self.midpoints:
            self._last = {t: w for t, w in self._last.items() if t >= snapshot.step - 2}
            self._last[snapshot.step] = snapshot.w.clone()
        if snapshot.step % self.every and not snapshot.ended:
            return {}
        begin, values, solves = perf_counter(), dict[str, Value](), list[Eigenpairs]()
        loss = snapshot.loss_on(self.examples)
        part, spent = self._part(loss, snapshot.seed), sum(chain.matvecs for chain in self._chains.values())
        H = snapshot.once(("hessian", self.examples), lambda: hessian(loss, snapshot.w))

        if snapshot.step // self.every % self.cold == 0:
            for chain in self._chains.values():
                chain.forget()
        held = _held(snapshot)
        over_part: Coarse | None = None if part is None else lambda: hessian(part, snapshot.w)
        ends = self._solve("iterate", H, over_part, snapshot)
        solves.append(ends.top)
        values["sharpness/loss"] = float(H.value)
        values["sharpness/lambda_max"] = float(ends.top.values[0])
        values["error/sharpness/lambda_max"] = float(ends.top.errors[0])
        values |= {f"sharpness/lambda_{i}": float(ends.top.values[i - 1]) for i in range(2, self._k(H) + 1)}
        if self.bottom:
            values["sharpness/lambda_min"] = float(ends.bottom.values[0])
            values["error/sharpness/lambda_min"] = float(ends.bottom.errors[0])
        values["sharpness/directional"] = _along(H, held.moved_part(H.gradient))

        compared = ends.top
        if held.name != "lambda_max":
            held_part: Coarse | None = None if part is None else lambda: held.of(hessian(part, snapshot.w))
            compared = self._solve(held.name, held.of(H), held_part, snapshot).top
            solves.append(compared)
            values[f"sharpness/{held.name}"] = float(compared.values[0])
            values[f"error/sharpness/{held.name}"] = float(compared.errors[0])
        if held.rule is not None and _moves(held.rule):
            values["sharpness/threshold"] = held.rule.threshold
            if held.known:
                values["sharpness/ratio"] = float(compared.values[0]) / held.rule.threshold
        if self.midpoints and {snapshot.step - 1, snapshot.step - 2} <= self._last.keys():
            w0, w1, w2 = (self._last[snapshot.step - i] for i in (2, 1, 0))
            middle = (w0 + 2 * w1 + w2) / 4
            part_there: Coarse | None = None if part is None else lambda: held.of(hessian(part, middle))
            solves.append(self._solve("midpoint", held.of(hessian(loss, middle)), part_there, snapshot).top)
            values["sharpness/midpoint"] = float(solves[-1].values[0])
        values["sharpness/converged"] = float(all(solve.converged for solve in solves))
        if self.k > 1:
            what = {"preconditioned": "$P^{-1}(H + c)$", "moved": "H of the weights that move"}.get(held.name, "H")
            values["sharpness/spectrum"] = _stems(compared, what, snapshot.step, values.get("sharpness/threshold"))
        spent = sum(chain.matvecs for chain in self._chains.values()) - spent
        share = 0.0 if part is None or not loss.num_examples else (part.num_examples or 0) / loss.num_examples
        values["cost/sharpness/matvecs"] = sum(solve.matvecs for solve in solves) + 1 + share * spent
        values["cost/sharpness/seconds"] = perf_counter() - begin
        return values

    def _part(self, loss: Objective, seed: int) -> Objective | None:
        """The loss over the same examples throughout a run; None where all of them are to be used."""
        if isinstance(loss, Sharded) or loss.num_examples is None or self.bottom:
            return None
        count = (PART if loss.num_examples >= TIMES * PART else 0) if self.coarse == "auto" else self.coarse
        if not 0 < count < loss.num_examples:
            return None
        order = torch.randperm(loss.num_examples, generator=stream(seed, "sharpness/coarse"))
        return loss.restrict(order[:count])

    def _solve(self, what: str, operator: LinearOperator, coarse: Coarse | None, snapshot: Snapshot) -> Extremes:
        """The next solve of its kind."""
        return self._chains.setdefault(what, Chain()).solve(
            operator,
            coarse=coarse,
            top=self._k(operator),
            bottom=int(self.bottom and what == "iterate"),
            tol=self.tol,
            max_matvecs=self.max_matvecs,
            generator=stream(snapshot.seed, f"sharpness/{what}", snapshot.step),
        )

    def _k(self, operator: LinearOperator) -> int:
        return min(self.k, operator.size)

    def state_dict(self) -> dict[str, Tensor]:
        chains = {f"{what}/{name}": v for what, chain in self._chains.items() for name, v in chain.state_dict().items()}
        return chains | {f"last/{step}": w for step, w in self._last.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._last = {int(key.removeprefix("last/")): w for key, w in state.items() if key.startswith("last/")}
        self._chains = {}
        for what in {key.split("/")[0] for key in state} - {"last"}:
            prefix = f"{what}/"
            chain = self._chains.setdefault(what, Chain())
            chain.load_state_dict({key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)})


@dataclasses.dataclass(frozen=True)
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


def _stems(top: Eigenpairs, what: str, step: int, threshold: Value | None) -> "Figure":
    """The top eigenvalues of what the threshold is about as stems, beside it."""
    from matplotlib.figure import Figure

    from lab.run.figures import EIGENVALUE

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axis = figure.subplots()
    axis.stem(range(1, len(top.values) + 1), top.values.tolist(), basefmt=" ", label=f"eigenvalues of {what}")
    if isinstance(threshold, float):
        axis.axhline(threshold, color="tab:red", ls="--", label="stability threshold")
    axis.set(
        xlabel="index", ylabel=EIGENVALUE if what == "H" else "eigenvalue", title=f"top of the spectrum, step {step}"
    )
    axis.set_xticks(range(1, len(top.values) + 1, max(1, len(top.values) // 10)))
    axis.legend(frameon=False)
    return figure


def _along(operator: LinearOperator, g: Tensor) -> float:
    """g'Hg/|g|^2, NaN at a critical point. Cost: one product. Sums in float64."""
    square = g.double().square().sum()
    if not square > 0:
        return float("nan")
    return float((g.double() * (operator @ g).double()).sum() / square)
