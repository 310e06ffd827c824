"""Sharpness against the edge of stability: lambda_max of the Hessian and the threshold of the live optimiser.

    ratio = lambda_max(H) / threshold,   the edge is 1

For gradient descent the threshold is 2/lr; for any other optimiser see `lab.curvature.stability`. Where the optimiser
preconditions, the ratio is that of lambda_max(P^-1/2 (H + c) P^-1/2). Cohen et al. 2021 (arXiv 2103.00065) and 2022
(arXiv 2207.14484).
"""

from dataclasses import field
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from lab.curvature.eigen import Extremes, lanczos, predicted
from lab.curvature.operators import Hessian, LinearOperator, hessian, preconditioned
from lab.curvature.stability import UpdateRule
from lab.probes.base import Probe, Snapshot, Value
from lab.results import Eigenpairs
from lab.settings import CARD
from lab.streams import stream

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(kw_only=True, config=CARD)
class Sharpness(Probe):
    """lambda_max (and lambda_2..k, lambda_min), its threshold and their ratio, every `every` steps.

    every        steps between measurements. At the edge the iterates have period 2: take an odd number.
    k            number of top eigenvalues.
    bottom       also lambda_min.
    tol          wanted error relative to the largest |lambda|.
    max_matvecs  Hessian products allowed per solve.
    examples     size of the fixed, class-balanced probe set; all; auto (all up to 5000, else 2000).
    midpoints    also lambda_max at (w_{t-2} + 2 w_{t-1} + w_t)/4, where the period-2 oscillation is averaged out.
    cold         measurements between two that start from random vectors; those in between start from the last vectors,
                 which cannot see an eigenvalue that comes up in a direction of its own. 1: always cold.
    Cost: one gradient; 2 to 5 products of 1.1 gradients while the surface changes smoothly, 15 to 25 cold and at the edge,
    where the top eigenvalues crowd; one more for `directional` = g'Hg/|g|^2. As reported in cost/sharpness/matvecs.
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
    _starts: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _last: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    def due(self, step: int) -> bool:
        """Multiples of `every`; with midpoints also the two steps before, whose weights are kept."""
        return step % self.every == 0 or (self.midpoints and -step % self.every <= 2)

    def measure(self, snapshot: Snapshot) -> dict[str, Value]:
        """The tags sharpness/*, error/sharpness/*, cost/sharpness/*; a figure of the spectrum where k > 1."""
        if self.midpoints:
            self._last = {t: w for t, w in self._last.items() if t >= snapshot.step - 2}
            self._last[snapshot.step] = snapshot.w.clone()
        if snapshot.step % self.every:
            return {}
        begin, values, solves = perf_counter(), dict[str, Value](), list[Eigenpairs]()
        loss = snapshot.loss_on(self.examples)
        H = snapshot.once(("hessian", self.examples), lambda: hessian(loss, snapshot.w))

        if snapshot.step // self.every % self.cold == 0:
            self._starts.clear()
        ends = self._solve("iterate", H, snapshot)
        solves.append(ends.top)
        values["sharpness/loss"] = float(H.value)
        values["sharpness/lambda_max"] = float(ends.top.values[0])
        values["error/sharpness/lambda_max"] = float(ends.top.errors[0])
        values |= {f"sharpness/lambda_{i}": float(ends.top.values[i - 1]) for i in range(2, self._k(H) + 1)}
        if self.bottom:
            values["sharpness/lambda_min"] = float(ends.bottom.values[0])
            values["error/sharpness/lambda_min"] = float(ends.bottom.errors[0])
        values["sharpness/directional"] = _along(H, H.gradient)

        if snapshot.rule is not None:
            values |= self._against_the_edge(snapshot, snapshot.rule, H, ends.top, solves)
        if self.midpoints and {snapshot.step - 1, snapshot.step - 2} <= self._last.keys():
            w0, w1, w2 = (self._last[snapshot.step - i] for i in (2, 1, 0))
            middle = hessian(loss, (w0 + 2 * w1 + w2) / 4)
            solves.append(self._solve("midpoint", middle, snapshot).top)
            values["sharpness/midpoint"] = float(solves[-1].values[0])
        values["sharpness/converged"] = float(all(solve.converged for solve in solves))
        if self.k > 1:
            values["sharpness/spectrum"] = _stems(ends.top, snapshot.step, values.get("sharpness/threshold"))
        values["cost/sharpness/matvecs"] = float(sum(solve.matvecs for solve in solves) + 1)
        values["cost/sharpness/seconds"] = perf_counter() - begin
        return values

    def _against_the_edge(
        self, snapshot: Snapshot, rule: UpdateRule, H: Hessian, top: Eigenpairs, solves: list[Eigenpairs]
    ) -> dict[str, Value]:
        """Threshold and ratio; the preconditioned eigenvalue where H alone does not decide."""
        values: dict[str, Value] = {"sharpness/threshold": rule.threshold}
        if rule.plain:
            return values | {"sharpness/ratio": float(top.values[0]) / rule.threshold}
        scaling = rule.scaling(snapshot.w)
        if not bool(scaling.isfinite().all()) or not bool((scaling > 0).all()):
            return values  # an adaptive optimiser before its first update: no preconditioner yet
        scaled = preconditioned(H, scaling, shift=rule.coupled_decay)
        pairs = self._solve("preconditioned", scaled, snapshot).top
        solves.append(pairs)
        return values | {
            "sharpness/preconditioned": float(pairs.values[0]),
            "error/sharpness/preconditioned": float(pairs.errors[0]),
            "sharpness/ratio": float(pairs.values[0]) / rule.threshold,
        }

    def _solve(self, what: str, operator: LinearOperator, snapshot: Snapshot) -> Extremes:
        """One eigensolve, warm from the last of its kind, or from where the last two point."""
        start, before = self._starts.get(what), self._starts.get(f"{what}/before")
        if start is not None and before is not None and start.shape == before.shape:
            start = predicted(start, before)
        ends = lanczos(
            operator,
            top=self._k(operator),
            bottom=int(self.bottom and what == "iterate"),
            start=start,
            tol=self.tol,
            max_matvecs=self.max_matvecs,
            generator=stream(snapshot.seed, f"sharpness/{what}", snapshot.step),
        )
        if bool(ends.start.isfinite().all()):
            self._starts |= {f"{what}/before": self._starts[what]} if what in self._starts else {}
            self._starts[what] = ends.start
        return ends

    def _k(self, operator: LinearOperator) -> int:
        return min(self.k, operator.size)

    def state_dict(self) -> dict[str, Tensor]:
        return {f"start/{what}": v for what, v in self._starts.items()} | {
            f"last/{step}": w for step, w in self._last.items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._starts = {key.removeprefix("start/"): v for key, v in state.items() if key.startswith("start/")}
        self._last = {int(key.removeprefix("last/")): w for key, w in state.items() if key.startswith("last/")}


def _stems(top: Eigenpairs, step: int, threshold: Value | None) -> "Figure":
    """The top eigenvalues as stems, beside the threshold."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axis = figure.subplots()
    axis.stem(range(1, len(top.values) + 1), top.values.tolist(), basefmt=" ", label="eigenvalues of H")
    if isinstance(threshold, float):
        axis.axhline(threshold, color="tab:red", ls="--", label="stability threshold")
    axis.set(xlabel="index", ylabel="eigenvalue (1 / learning rate)", title=f"top of the Hessian spectrum, step {step}")
    axis.legend(frameon=False)
    return figure


def _along(operator: LinearOperator, g: Tensor) -> float:
    """g'Hg/|g|^2, NaN at a critical point. Cost: one product. Sums in float64."""
    square = g.double().square().sum()
    if not square > 0:
        return float("nan")
    return float((g.double() * (operator @ g).double()).sum() / square)
