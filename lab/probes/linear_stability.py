"""Linear stability of SGD where it stands: the plane of sharpness and non-uniformity, and what typical runs follow.

    in the plane     (1 - lr a)^2 + c lr^2 s^2 <= 1                  Wu, Ma and E (2018); c = (N - B)/(B(N - 1)) or 1/B
    mean square      spectral radius of E[(1 - lr H_B) (x) (1 - lr H_B)] <= 1
    typical runs     top Lyapunov exponent of the product of 1 - lr H_B <= 0: the weakest of the three

All of it of the Gauss-Newton matrices H_i of single examples (`lab.noise.example_curvature`), through BatchNorm with running
statistics. Full-batch training has c = 0: the three agree, and the edge is 2/lr.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.noise.example_curvature import ExampleCurvature, example_curvature
from lab.noise.lyapunov import DECIDED, LinearSteps, critical_lr, lyapunov, sign, uniform_step
from lab.noise.second_moments import in_plane, mean_square_bound, mean_square_lr, plane_lr, second_moment_radius
from lab.objective import Objective
from lab.probes.base import Memory, Probe, Snapshot, measures, quantities
from lab.probes.knobs import Count, Rhythm, Several, knob
from lab.results import Estimate, Result, finite, numbered
from lab.run.figures import CURVATURE
from lab.settings import settings as card

RADIUS_TOL, LR_TOL = 1e-2, 1e-3
"""Wanted error of the second-moment radius, and relative one of its critical learning rate."""
WITHIN = 6
"""Axes are linear where the point lies within so many times of the region's extent in either direction, else logarithmic."""
MARKS = (("critical_lr", "D", "typical runs"), ("critical_lr_mean_square", "s", "second moments"))


@card(frozen=False)
class LinearStability(Probe):
    """Linear stability of SGD: (sharpness, non-uniformity) plane, second-moment radius, Lyapunov exponent of typical runs.

    Batches are drawn with replacement from a probe set smaller than the training set, whatever training does: where it goes
    through epochs, in which the batches make up for one another, the exponent of the run is lower than the one measured. A
    quarter of the steps of the random product, the first, is left out. Momentum, Nesterov and decay join in the exponent;
    plane and radius are those of plain SGD and left out where there is momentum. A preconditioner scales the curvatures
    (`preconditioned` is 1), and so do learning rates that differ; weights that do not move have none (`part_moves` is 1).
    Where no step is known, at learning rate 0 and before the first update of an adaptive optimiser, the curvatures alone
    are measured (`region` is 0). Where they vanish no learning rate is critical: NaN. Cost: (examples x outputs)
    per-example gradients, the eigensolve of as many rows, steps x replicas products with them for the exponent, and some 5
    times that for `critical`.
    """

    name: ClassVar[str] = "linear_stability"
    auto: ClassVar[Mapping[str, float]] = {"every": 500}

    every: Annotated[Rhythm, knob("steps between measurements: n | auto: 500, more seldom where probe.budget asks")] = (
        "auto"
    )
    examples: Annotated[
        Several | Literal["all"],
        knob("probe set: n (class-balanced, fixed; stands for the training set) | all; cost ~ its cube"),
    ] = 100
    directions: Annotated[
        Count, knob("top Gauss-Newton eigenvectors used; fewer than its rank make values too low")
    ] = 300
    steps: Annotated[
        int, knob("steps of the random product; up to 10 times more while its error is above 5 %", gt=3)
    ] = 400
    replicas: Annotated[Several, knob("random vectors it is applied to; error falls as 1/sqrt(replicas steps)")] = 32
    critical: Annotated[bool, knob("also the learning rate where the exponent is zero (5 times the cost)")] = True

    def expected_gradients(self, here: Snapshot, loss: Objective) -> float:
        """Inner products of those of ten outputs of every example, and the random product, which does not grow with the
        network: some 30,000 where that has 5000 weights.
        """
        num, cost = loss.num_examples or 1, self.steps * self.replicas / 12800 * (1 if self.critical else 0.2)
        return 33.0 * num + 30000.0 * cost * (num / 100) ** 2 * min(1.0, 5000 / len(here.w))

    def finding(self, values: dict[str, float]) -> str:
        return _words(quantities(self.name, values))


@dataclass(frozen=True)
class LinearStabilityResult(Result):
    """The point of a run in the plane, and what becomes of small perturbations there.

    quantities   by name: sharpness and non_uniformity (1 / learning rate); where the step is known lyapunov (a step), stable
                 (1, 0, NaN: undecided), critical_lr and ratio = lr / critical_lr; of plain SGD second_moment_radius, bound,
                 in_plane, and the learning rates at which the first and the last are 1. Empty where weights are not finite.
    training     how steps are made; None where that is not known. batch_size: in training; None: the whole set.
    """

    quantities: Mapping[str, float]
    training: LinearSteps | None = None
    batch_size: int | None = None

    def numbers(self) -> dict[str, float]:
        return dict(self.quantities)

    def sentence(self) -> str:
        return _words(self.quantities) or "Linear stability: the weights are not finite."

    def figure(self, when: str = "") -> Figure:
        """The plane with the boundary of (lr, B), that of full batches, the run's point, and the critical points on its ray:
        there all curvatures grow together, which is the same as a growing learning rate.
        """
        figure = Figure(figsize=(7, 5), layout="constrained")
        axis, title = figure.subplots(), f"linear stability{when}"
        a, s = (self.quantities.get(name, math.nan) for name in ("sharpness", "non_uniformity"))
        right, top = 1.5 * a, 1.5 * s
        if self.training is not None:
            title += f": lr {self.training.lr:.3g}, batch size {self.batch_size or 'full'}"
            right, top = _region(axis, self.training, self.quantities, right, top)
        if axis.get_xscale() == "linear" and math.isfinite(right):
            axis.set_xlim(0, right or 1.0)
            axis.set_ylim(0, top or 1.0)
        axis.plot(a, s, "o", color="tab:blue", ms=9, label="this run", zorder=5)
        unit = "preconditioned, 1 / weight" if self.quantities.get("preconditioned") else CURVATURE
        axis.set(xlabel=f"sharpness a ({unit})", ylabel=f"non-uniformity s ({unit})", title=title)
        axis.grid(alpha=0.25)
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
        return figure

    def figures(self, when: str = "") -> dict[str, Figure]:
        return {"plane": self.figure(when)} if self.quantities else {}


@measures(LinearStability)
def linear_stability(here: Snapshot, settings: LinearStability, memory: Memory) -> LinearStabilityResult:
    """The place of a network in the plane of sharpness and non-uniformity; where its step is known, what becomes of runs.

    `lab.Bench(model, loss, (x, y), optimizer, batch_size=32).snapshot()` knows the step. The cost grows as the cube of the
    examples: measure an objective over a hundred of them (`objective.restrict`).

    >>> from lab.objective import NetworkObjective
    >>> x, mse = torch.tensor([[1.0], [3.0]]), torch.nn.MSELoss()  # curvatures 2 and 18
    >>> loss = NetworkObjective(torch.nn.Linear(1, 1, bias=False), mse, (x, x))
    >>> numbers = linear_stability(loss).numbers()
    >>> round(numbers["sharpness"], 4), round(numbers["non_uniformity"], 4)
    (10.0, 8.0)
    """
    loss = here.network(settings.examples, settings.name)
    if not bool(here.w.isfinite().all()):
        return LinearStabilityResult({})
    loss = loss.with_running_statistics()
    rule, scale, preconditioned = (None, None, False) if here.rule is None else uniform_step(here.rule, here.w)
    p = None if here.rule is None else here.rule.preconditioner
    num = len(loss.x)
    training = None if rule is None else LinearSteps.of(rule, here.batch_size, here.sampling, here.num_train, num)
    replaced = training is not None and here.sampling == "epoch" and training.sampling == "with_replacement"
    curvature = example_curvature(loss, here.w, scale=scale)
    numbers = {
        "region": float(training is not None),
        "preconditioned": float(preconditioned),
        "before_first_update": float(p is not None and bool(p.isnan().any())),
        "epochs_replaced": float(replaced),
        "part_moves": float(here.rule is not None and here.rule.moved is not None),
        "sharpness": curvature.sharpness,
        "non_uniformity": curvature.non_uniformity,
    }
    if training is not None:
        draws = partial(here.stream, "linear_stability")
        numbers |= _stability(curvature, training, settings, draws)
    return LinearStabilityResult(numbers, training, here.batch_size)


def _stability(
    curvature: ExampleCurvature, training: LinearSteps, settings: LinearStability, draws: Callable[[], torch.Generator]
) -> dict[str, float]:
    """Whether steps of this training are stable; `draws` gives every exponent the same random numbers."""
    a, s, seen = curvature.sharpness, curvature.non_uniformity, curvature.top(settings.directions)
    if not a > 0:  # no learning rate is critical
        return dict.fromkeys(("critical_lr", "critical_lr_mean_square", "critical_lr_plane", "ratio"), math.nan)
    lr, factor, decay = training.lr, training.factor, training.decay

    def exponent(lr: float, tol: float = 0.05) -> Estimate:
        batches = {"batch_size": training.batch_size, "sampling": training.sampling}
        size = {"steps": settings.steps, "replicas": settings.replicas}
        return lyapunov(seen, replace(training.rule, lr=lr), generator=draws(), tol=tol, **batches, **size)  # type: ignore[arg-type]

    typical = exponent(lr)
    stable = {-1: 1.0, 0: math.nan, 1: 0.0}[sign(typical)]  # NaN: undecided
    numbers = numbered({"lyapunov": typical}) | {"stable": stable}
    full = low = lr * training.rule.threshold / a
    if training.plain:
        radius = second_moment_radius(seen, lr=lr, factor=factor, decay=decay, tol=RADIUS_TOL)
        low = mean_square_lr(seen, factor=factor, decay=decay, tol=LR_TOL).value
        numbers |= numbered({"second_moment_radius": radius}) | {
            "stable_mean_square": float(lr <= low),
            "critical_lr_mean_square": low,
            "bound": mean_square_bound(curvature, lr=lr, factor=factor, decay=decay),
            "in_plane": in_plane(a, s, lr=lr, factor=factor, decay=decay),
            "critical_lr_plane": plane_lr(a + decay, s, factor=factor),
        }
    if settings.critical:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # near its zero the exponent is not known any better than to `FLOOR`
            edge = critical_lr(lambda at: exponent(at, DECIDED).value, low, 1.05 * full)
        numbers |= {"critical_lr": edge, "ratio": lr / edge}
    return numbers


def _words(numbers: Mapping[str, float]) -> str:
    """What typical runs do, and what the stricter conditions say of them; "" where nothing was measured."""
    numbers = finite(numbers)
    if "sharpness" not in numbers:
        return ""
    if not numbers["sharpness"] > 0:
        return "Linear stability: the loss has no curvature at these weights, so no learning rate is critical."
    kind = "preconditioned " if numbers["preconditioned"] else ""
    block = ", both of the weights that move" if numbers.get("part_moves") else ""
    where = f"{kind}sharpness {numbers['sharpness']:.3g}, {kind}non-uniformity {numbers['non_uniformity']:.3g}{block}"
    if numbers["before_first_update"] or not numbers["region"]:
        why = "no linear update rule is known for this optimiser"
        why = "there is no preconditioner before the first update" if numbers["before_first_update"] else why
        return f"Linear stability: {where}; {why}, hence no region."
    stable = numbers.get("stable", math.nan)
    verdict = "of undecided stability" if math.isnan(stable) else "stable" if stable else "unstable"
    text = f"Linear stability ({where}): typical runs are {verdict} here"
    if "lyapunov" in numbers:
        text += f", Lyapunov exponent {numbers['lyapunov']:.2g} +- {numbers.get('error/lyapunov', math.nan):.1g} a step"
    if numbers["epochs_replaced"]:
        text += " for batches drawn with replacement from the probe set (that of epochs is lower)"
    if "ratio" in numbers:
        text += f", lr = {numbers['ratio']:.3g} x the critical {numbers['critical_lr']:.3g}"
    if "second_moment_radius" in numbers:
        fate, side = (
            "stay bounded" if numbers["stable_mean_square"] else "explode",
            "in" if numbers["in_plane"] <= 1 else "out",
        )
        text += f"; their second moments {fate} (radius {numbers['second_moment_radius']:.4g})"
        text += f", and the point lies {side}side the region of Wu, Ma and E"
    return text + "."


def _region(
    axis: Axes, training: LinearSteps, quantities: Mapping[str, float], right: float, top: float
) -> tuple[float, float]:
    """Draw where steps are stable, and the edges on the ray of the run; the reach of the axes, at least (right, top)."""
    a, s = quantities["sharpness"], quantities["non_uniformity"]
    lr, edge = training.lr, training.rule.threshold
    right = max(right, 1.2 * edge)
    axis.axvline(edge, color="tab:red", ls="--", lw=1.3, label=f"full batch: sharpness = {edge:.3g}")
    if training.plain and training.factor > 0:
        height = 1 / (lr * training.factor**0.5)
        top = max(top, 1.2 * height)
        angle = torch.linspace(0, math.pi, 400)
        across, up = (1 + angle.cos()) / lr - training.decay, height * angle.sin()
        axis.fill_between(across, up, color="tab:green", alpha=0.15, lw=0)
        axis.plot(across, up, color="tab:green", lw=1.5, label="boundary of Wu, Ma and E")
    far = a < edge / WITHIN or (training.plain and s < top / WITHIN) or a > WITHIN * edge
    if far and s > 0:
        axis.set(xscale="log", yscale="log")
        axis.set_xlim(min(a, edge) / 10, right * 2)
        axis.set_ylim(s / 10, top * 2)
    for name, marker, label in MARKS:
        if math.isfinite(critical := quantities.get(name, math.nan)):
            grown = critical / lr
            axis.plot(a * grown, s * grown, marker, color="tab:orange", ms=7, mfc="none", label=f"{label}: edge")
            right, top = max(right, 1.2 * a * grown), max(top, 1.2 * s * grown)
    if not far:
        axis.axline((0, 0), (a, s), color="0.6", lw=0.8, ls=":")
    return right, top
