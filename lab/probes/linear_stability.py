"""Linear stability of SGD where it stands: the plane of sharpness and non-uniformity, and what typical runs follow.

    in the plane     (1 - lr a)^2 + c lr^2 s^2 <= 1                  Wu, Ma and E (2018); c = (N - B)/(B(N - 1)) or 1/B
    mean square      spectral radius of E[(1 - lr H_B) (x) (1 - lr H_B)] <= 1
    typical runs     top Lyapunov exponent of the product of 1 - lr H_B <= 0: the weakest of the three

All of it of the Gauss-Newton matrices H_i of single examples, `lab.noise.linear_stability`, through BatchNorm with running
statistics. Full-batch training has c = 0: the three agree, and the edge is 2/lr.
"""

import math
import warnings
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as card

from lab.curvature.stability import UpdateRule
from lab.noise.linear_stability import (
    DECIDED,
    ExampleCurvature,
    coefficients,
    critical_lr,
    example_curvature,
    in_plane,
    lyapunov,
    mean_square_bound,
    mean_square_lr,
    plane_lr,
    second_moment_radius,
    sign,
)
from lab.objective import NetworkObjective
from lab.probes.base import Probe, Snapshot, Value
from lab.results import Estimate
from lab.sampling import Sampling, batch_factor
from lab.settings import CARD, SettingError
from lab.streams import stream

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RADIUS_TOL, LR_TOL = 1e-2, 1e-3
"""Wanted error of the second-moment radius, and relative one of its critical learning rate."""
WITHIN = 6
"""Axes are linear where the point lies within so many times of the region's extent in either direction, else logarithmic."""


@dataclass(frozen=True)
class _Training:
    """How training steps: the rule, the batches as drawn from the probe set, and c of the whole training set."""

    rule: UpdateRule
    batch_size: int
    sampling: Sampling
    factor: float

    @property
    def lr(self) -> float:
        return coefficients(self.rule)[0]

    @property
    def decay(self) -> float:
        return sum(coefficients(self.rule)[3:])

    @property
    def plain(self) -> bool:
        """Whether a step is w - lr (g + decay w), which is what the second moments are about."""
        return coefficients(self.rule)[1] == 0


@card(kw_only=True, config=CARD)
class LinearStability(Probe):
    """Sharpness, non-uniformity, second-moment radius and Lyapunov exponent, every `every` steps.

    every       steps between measurements.
    examples    size of the fixed, class-balanced probe set, or all. A set smaller than the training set stands for it:
                batches are drawn from it with replacement, whatever training does. Where training goes through epochs,
                in which the batches make up for one another, the exponent of the run is lower than the one found.
    directions  top eigenvectors of the Gauss-Newton matrix in which radius and exponent are computed; fewer than its rank
                give values that are too low, the radius a lower bound.
    steps       steps of the random product, of which the first quarter is left out; more, up to 10 times as many, where the
                error of the exponent is above 5 % of it and 0.002.
    replicas    random vectors it is applied to; the error falls as 1/sqrt(replicas steps).
    critical    also the learning rate at which the exponent passes through zero.
    Momentum, Nesterov and decay join in the exponent; plane and radius are those of plain SGD and left out where there is
    momentum. A preconditioner scales the curvatures (`preconditioned` is 1), and so do learning rates that differ; weights
    that do not move have none (`part_moves` is 1). Where no step is known, at learning rate 0 and before the first update
    of an adaptive optimiser, the curvatures alone are measured (`region` is 0). Where they vanish
    no learning rate is critical: NaN. Cost: (examples x outputs) per-example gradients, the eigensolve of as many rows,
    steps x replicas products with them for the exponent, and some 5 times that for `critical`.
    """

    name: ClassVar[str] = "linear_stability"

    every: Annotated[int, Field(gt=0)] = 500
    examples: Annotated[int, Field(gt=1)] | Literal["all"] = 100
    directions: Annotated[int, Field(gt=0)] = 300
    steps: Annotated[int, Field(gt=3)] = 400
    replicas: Annotated[int, Field(gt=1)] = 32
    critical: bool = True

    def measure(self, snapshot: Snapshot) -> dict[str, Value]:
        """The tags linear_stability/*, error/linear_stability/*, cost/linear_stability/seconds, and the plane."""
        begin = perf_counter()
        loss = snapshot.loss_on(self.examples)
        if not isinstance(loss, NetworkObjective):
            raise SettingError(f"probe=[linear_stability]: {type(loss).__name__} has no examples; it measures networks")
        values: dict[str, Value] = {}
        if bool(snapshot.w.isfinite().all()):
            loss = loss.with_running_statistics()
            rule, scale, preconditioned = _linear(snapshot)
            training = None if rule is None else self._training(snapshot, loss, rule)
            curvature = example_curvature(loss, snapshot.w, scale=scale)
            drawn = training is not None and snapshot.sampling == "epoch" and training.sampling == "with_replacement"
            flags = {
                "region": training is not None,
                "preconditioned": preconditioned,
                "before_first_update": _before_first_update(snapshot.rule),
                "epochs_replaced": drawn,
                "part_moves": snapshot.rule is not None and snapshot.rule.moved is not None,
            }
            values = _tagged({flag: float(said) for flag, said in flags.items()})
            values |= self._of(curvature, training, snapshot, values)
        values["cost/linear_stability/seconds"] = perf_counter() - begin
        return values

    def _training(self, snapshot: Snapshot, loss: NetworkObjective, rule: UpdateRule) -> _Training:
        """How training steps by `rule` on batches drawn from this loss."""
        assert loss.num_examples is not None
        total = snapshot.num_train or loss.num_examples
        batch_size = snapshot.batch_size or total
        sampling: Sampling = snapshot.sampling if snapshot.batch_size else "without_replacement"
        factor = batch_factor(total, batch_size, sampling)
        if batch_size == total and sampling != "with_replacement":
            batch_size = loss.num_examples
        elif loss.num_examples < total:
            sampling = "with_replacement"
        return _Training(rule, batch_size, sampling, factor)

    def _of(
        self, curvature: ExampleCurvature, training: _Training | None, snapshot: Snapshot, flags: dict[str, Value]
    ) -> dict[str, Value]:
        a, s, seen = curvature.sharpness, curvature.non_uniformity, curvature.top(self.directions)
        values = flags | _tagged({"sharpness": a, "non_uniformity": s})
        if training is None:
            return values | {"linear_stability/plane": _plane(values, None, snapshot)}
        if not a > 0:  # no learning rate is critical
            edges = dict.fromkeys(("critical_lr", "critical_lr_mean_square", "critical_lr_plane", "ratio"), math.nan)
            return values | _tagged(edges) | {"linear_stability/plane": _plane(values, training, snapshot)}
        lr, factor, decay = training.lr, training.factor, training.decay

        def exponent(lr: float, tol: float = 0.05) -> Estimate:
            draws = stream(snapshot.seed, "linear_stability", snapshot.step)
            rule = replace(training.rule, lr=lr)
            size, sampling = training.batch_size, training.sampling
            return lyapunov(
                seen,
                rule,
                batch_size=size,
                sampling=sampling,
                steps=self.steps,
                replicas=self.replicas,
                generator=draws,
                tol=tol,
            )

        typical = exponent(lr)
        stable = {-1: 1.0, 0: math.nan, 1: 0.0}[sign(typical)]  # NaN: undecided
        values |= _tagged({"lyapunov": typical.value, "stable": stable})
        values["error/linear_stability/lyapunov"] = typical.error
        full = low = lr * training.rule.threshold / a
        if training.plain:
            found = second_moment_radius(seen, lr=lr, factor=factor, decay=decay, tol=RADIUS_TOL)
            low = mean_square_lr(seen, factor=factor, decay=decay, tol=LR_TOL).value
            numbers = {
                "second_moment_radius": found.value,
                "stable_mean_square": float(lr <= low),
                "critical_lr_mean_square": low,
                "bound": mean_square_bound(curvature, lr=lr, factor=factor, decay=decay),
                "in_plane": in_plane(a, s, lr=lr, factor=factor, decay=decay),
                "critical_lr_plane": plane_lr(a + decay, s, factor=factor),
            }
            values |= _tagged(numbers) | {"error/linear_stability/second_moment_radius": found.error}
        if self.critical:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # near its zero the exponent is not known any better than to `FLOOR`
                edge = critical_lr(lambda at: exponent(at, DECIDED).value, low, 1.05 * full)
            values |= _tagged({"critical_lr": edge, "ratio": lr / edge})
        return values | {"linear_stability/plane": _plane(values, training, snapshot)}

    def finding(self, values: dict[str, float]) -> str:
        """What typical runs do, and what the stricter conditions say of them."""
        of = {tag.removeprefix("linear_stability/"): v for tag, v in values.items()}
        if "sharpness" not in of:
            return ""
        if not of["sharpness"] > 0:
            return "Linear stability: the loss has no curvature at these weights, so no learning rate is critical."
        of_what = "preconditioned " if of["preconditioned"] else ""
        block = ", both of the weights that move" if of.get("part_moves") else ""
        where = f"{of_what}sharpness {of['sharpness']:.3g}, {of_what}non-uniformity {of['non_uniformity']:.3g}{block}"
        if of["before_first_update"]:
            return f"Linear stability: {where}; there is no preconditioner before the first update, hence no region."
        if not of["region"]:
            return f"Linear stability: {where}; no linear update rule is known for this optimiser, hence no region."
        error = of.get("error/linear_stability/lyapunov", math.nan)
        stable = of.get("stable", math.nan)
        verdict = "of undecided stability" if math.isnan(stable) else "stable" if stable else "unstable"
        text = f"Linear stability ({where}): typical runs are {verdict} here"
        if "lyapunov" in of:
            text += f", Lyapunov exponent {of['lyapunov']:.2g} +- {error:.1g} a step"
        if of["epochs_replaced"]:
            text += " for batches drawn with replacement from the probe set (that of epochs is lower)"
        if math.isfinite(of.get("ratio", math.nan)):
            text += f", lr = {of['ratio']:.3g} x the critical {of['critical_lr']:.3g}"
        if "second_moment_radius" in of:
            explode = "stay bounded" if of["stable_mean_square"] else "explode"
            text += f"; their second moments {explode} (radius {of['second_moment_radius']:.4g})"
            inside = "inside" if of["in_plane"] <= 1 else "outside"
            text += f", and the point lies {inside} the region of Wu, Ma and E"
        return text + "."


def _linear(snapshot: Snapshot) -> tuple[UpdateRule | None, torch.Tensor | None, bool]:
    """The step as one of uniform coefficients on weights in their own units: its rule, None where there is none; the scale
    (P,) of the columns of J that goes with it, 0 for weights that do not move; and whether that preconditions.

    Without decay, learning rates that differ are a preconditioner: lr_i / p_i = lr / (p_i lr / lr_i), lr the largest.
    """
    if snapshot.rule is None:
        return None, None, False
    places, rule, w = snapshot.rule.moved, snapshot.rule.moving, snapshot.w
    p, decay = rule.preconditioner, rule.coupled_decay + rule.decoupled_decay
    if isinstance(rule.lr, torch.Tensor) and not isinstance(decay, torch.Tensor) and not decay:
        lr = float(rule.lr.max())
        p = (lr / rule.lr).to(w) * (1.0 if p is None else p.to(w))
        rule = replace(rule, lr=lr)
    known = p is None or (bool(p.isfinite().all()) and bool((p > 0).all()))
    linear = rule.uniform and known and (p is None or not rule.coupled_decay)
    scale = None if p is None or not linear else p.to(w).rsqrt()
    preconditioned = scale is not None
    if places is not None:
        block = torch.ones_like(w[: len(places)]) if scale is None else scale
        scale = torch.zeros_like(w).index_copy(0, places.to(w.device), block)
    rule = replace(rule, preconditioner=None)
    return rule if linear and coefficients(rule)[0] > 0 else None, scale, preconditioned


def _before_first_update(rule: UpdateRule | None) -> bool:
    """Whether an adaptive optimiser has no preconditioner yet: NaN for a parameter without an update."""
    return rule is not None and rule.preconditioner is not None and bool(rule.preconditioner.isnan().any())


def _tagged(numbers: dict[str, float]) -> dict[str, Value]:
    return {f"linear_stability/{name}": value for name, value in numbers.items()}


def _plane(values: dict[str, Value], training: _Training | None, snapshot: Snapshot) -> "Figure":
    """The plane with the boundary of (lr, B), that of full batches, the run's point, and the critical points on its ray.

    On the ray through the point all curvatures grow together, which is the same as a growing learning rate.
    """
    from matplotlib.figure import Figure

    from lab.run.figures import CURVATURE

    figure = Figure(figsize=(7, 5), layout="constrained")
    axis = figure.subplots()
    a, s = (float(values[f"linear_stability/{name}"]) for name in ("sharpness", "non_uniformity"))  # type: ignore[arg-type]
    right, top, title = 1.5 * a, 1.5 * s, f"linear stability, step {snapshot.step}"
    if training is not None:
        lr, edge = training.lr, training.rule.threshold
        title += f": lr {lr:.3g}, batch size {snapshot.batch_size or 'full'}"
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
        marks = (("critical_lr", "D", "typical runs"), ("critical_lr_mean_square", "s", "second moments"))
        for name, marker, label in marks:
            critical = values.get(f"linear_stability/{name}", math.nan)
            if isinstance(critical, float) and math.isfinite(critical):
                grown = critical / lr
                axis.plot(a * grown, s * grown, marker, color="tab:orange", ms=7, mfc="none", label=f"{label}: edge")
                right, top = max(right, 1.2 * a * grown), max(top, 1.2 * s * grown)
        axis.axline((0, 0), (a, s), color="0.6", lw=0.8, ls=":") if not far else None
    if axis.get_xscale() == "linear":
        axis.set_xlim(0, right or 1.0)
        axis.set_ylim(0, top or 1.0)
    axis.plot(a, s, "o", color="tab:blue", ms=9, label="this run", zorder=5)
    unit = "preconditioned, 1 / weight" if values.get("linear_stability/preconditioned") else CURVATURE
    axis.set(xlabel=f"sharpness a ({unit})", ylabel=f"non-uniformity s ({unit})", title=title)
    axis.grid(alpha=0.25)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure
