"""Batch sharpness against 2/lr: the edge of stability of mini-batch training.

    batch_sharpness/ratio_of_means  E_B[g_B' H_B g_B] / E_B|g_B|^2
    batch_sharpness/mean_of_ratios  E_B[g_B' H_B g_B / |g_B|^2]
    batch_sharpness/ratio           ratio_of_means x lr/2               the edge is 1, for SGD without momentum
    batch_sharpness/generalised     E_B[s' H_B s] / -E_B[s' g_B]        s the step on that batch: the edge is 2
    batch_sharpness/gni             E_B[g_B' H g_B] / |g|^2             no detector of the edge
    batch_sharpness/lambda_max      E_B[lambda_max(H_B)]

See `lab.noise.batch_sharpness`. Andreyev and Beneventano 2024 (arXiv 2412.20553).
"""

import math
import warnings
from dataclasses import field
from time import perf_counter
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from lab.curvature.edge import STOCHASTIC_EXIT
from lab.curvature.operators import Hessian, hessian
from lab.curvature.phase import FITTED
from lab.curvature.stability import UpdateRule
from lab.data.batches import different
from lab.noise.batch_curvature import Direction, Forms, along_gradient, along_gradients, along_step, along_steps
from lab.noise.batch_sharpness import (
    FEWEST,
    PILOT,
    Interval,
    gradient_noise_interaction,
    interval,
    mean_of_ratios,
    needed,
    ratio_of_means,
    top_of_batches,
)
from lab.objective import Objective
from lab.probes.base import Probe, Snapshot, Value
from lab.settings import CARD
from lab.streams import stream

NEAR = 0.8
"""Mean over several measurements that may be 1, if their scatter allows it."""
GROWS = 1.1
"""Growth from one quarter of the measurements to the next that counts as rising."""
BEYOND = 1.5
"""Mean from which a run is beyond the edge: it does not hover about 1, but diverges or is thrown."""
CLOSE = (0.8, 1.25)
"""What counts as near 1 where batch_sharpness/gni might be taken for a sign of the edge."""
GNI = (
    "batch_sharpness/gni is {} x 2/lr while batch sharpness is {} x 2/lr: no sign of the edge of stability; it says that "
    "the loss of all examples is stationary on average, as it is under noise in any quadratic bowl"
)

TOO_FEW = (
    "batch_sharpness/gni is not measured: batches of {} do not fit in the {} examples of its probe set; raise "
    "probe.batch_sharpness.examples, or set gni_batches=0"
)
FULL = {False: "the directional sharpness g'Hg/|g|^2", True: "the curvature s'Hs/-s'g along the step"}
"""What batch sharpness is where the batch is the whole set: plain, generalised."""


@dataclass(kw_only=True, config=CARD)
class BatchSharpness(Probe):
    """Curvature of the loss of a batch along the step made on it, over fresh batches of the size in training.

    every           steps between measurements.
    rse             wanted standard error of the ratio of means (of the generalised form, where that is the one that has
                    an edge) relative to its value: a pilot of 8 batches, which the estimate does not use, decides how many
                    it takes, 16 at least. The error comes out near rse, and is reported as it came out.
    max_batches     batches of the estimate at most; up to 16 there is no pilot.
    batches         a fixed number of batches instead; null: by rse.
    gni_batches     batches for `gni`, each at the price of one Hessian product of the probe set; 0: not measured.
    lambda_batches  batches for `lambda_max`, each at 10 to 25 Hessian products of a batch; 0: not measured.
    examples        size of the fixed, class-balanced probe set that stands for all examples in `gni` (its batches are drawn
                    from it) and, where training takes the full batch, in the others; all; auto (all up to 5000, else 2000).

    Batches of training examples, unaugmented, are drawn as in training (an epoch's like draws without replacement),
    from a stream of their own. Cost: for networks of linear layers one gradient of the drawn examples; else a graph and
    a Hessian product of every batch, 3 to 4 gradients of it on a ResNet; with momentum, weight decay or an adaptive
    optimiser always so, and one more product and a step on copies, for the generalised form. Errors are standard errors
    over the batches; low and high a bootstrap interval meant to hold the truth in 95 % of cases: measured with the
    pilot, 94 % where |g_B|^2 is lognormal of sigma 0.3, 91 % of 0.5, 87 % of 1 (`lab.noise.batch_sharpness.needed`).
    `gni` near 2/lr is no sign of the edge; a run where it is while batch sharpness is not says so once. Where training
    takes the full batch, batch sharpness is the directional sharpness g'Hg/|g|^2, without error.
    """

    name: ClassVar[str] = "batch_sharpness"

    every: Annotated[int, Field(gt=0)] = 101
    rse: Annotated[float, Field(gt=0, lt=1)] = 0.05
    max_batches: Annotated[int, Field(gt=1)] = 400
    batches: Annotated[int, Field(gt=1)] | None = None
    gni_batches: Annotated[int, Field(ge=0)] = 20
    lambda_batches: Annotated[int, Field(ge=0)] = 0
    examples: Annotated[int, Field(gt=0)] | Literal["all", "auto"] = "auto"
    _history: list[tuple[float, float, float]] = field(default_factory=list, init=False, repr=False)
    _warned: set[str] = field(default_factory=set, init=False, repr=False)

    def measure(self, snapshot: Snapshot) -> dict[str, Value]:
        """The tags batch_sharpness/*, error/batch_sharpness/* and cost/batch_sharpness/*."""
        begin, values = perf_counter(), dict[str, float]()
        if snapshot.batch_size is None:
            self._full_batch(snapshot, values)
        else:
            self._mini_batches(snapshot, values)
            if self.lambda_batches:
                self._lambda_max(snapshot, values)
            if self.gni_batches:
                self._interaction(snapshot, values)
        ratio = values.get("batch_sharpness/generalised", math.nan) / 2
        if snapshot.rule is not None and _plain(snapshot.rule):
            ratio = values["batch_sharpness/ratio"] = (
                values["batch_sharpness/ratio_of_means"] * float(snapshot.rule.lr) / 2
            )
            interaction = values.get("batch_sharpness/gni", math.nan) * float(snapshot.rule.lr) / 2
            if CLOSE[0] <= interaction <= CLOSE[1] and not CLOSE[0] <= ratio <= CLOSE[1]:
                self._warn_once("gni", GNI.format(_figures(interaction), _figures(ratio)))
        self._history = [past for past in self._history if past[0] < snapshot.step]
        self._history.append((snapshot.step, ratio, self._loss(snapshot)))
        values["cost/batch_sharpness/seconds"] = perf_counter() - begin
        return dict[str, Value](values)

    def _full_batch(self, snapshot: Snapshot, values: dict[str, float]) -> None:
        """One batch, that of all examples: directional sharpness, and the same along the step."""
        H = self._hessian(snapshot)
        directional = _ratio(along_gradient(H))
        values |= {"batch_sharpness/ratio_of_means": directional, "batch_sharpness/mean_of_ratios": directional}
        if direction := _direction(snapshot):
            forms = along_step(H, snapshot.w, direction(H.gradient), decay=_decay(snapshot))
            values["batch_sharpness/generalised"] = _ratio(forms)
        values["cost/batch_sharpness/matvecs"] = 2.0 if direction else 1.0

    def _mini_batches(self, snapshot: Snapshot, values: dict[str, float]) -> None:
        """Both estimators, and the generalised form where the optimiser is more than -lr g; batches that decided on the
        number of batches take no part in them."""
        generator, pilot = stream(snapshot.seed, "batch_sharpness", snapshot.step), 0
        wanted = self.batches or self.max_batches
        if not self.batches and wanted > FEWEST:
            pilot = PILOT
            wanted = needed(ratio_of_means, self._forms(snapshot, pilot, generator)[-1], self.rse, self.max_batches)
        forms, *steps = self._forms(snapshot, wanted, generator)
        resample = stream(snapshot.seed, "batch_sharpness/bootstrap", snapshot.step)
        found = decisive = interval(ratio_of_means, forms, resample)
        values |= _tagged("ratio_of_means", found)
        values |= _tagged("mean_of_ratios", interval(mean_of_ratios, forms, resample))
        if steps:
            decisive = interval(ratio_of_means, steps[0], resample)
            values |= _tagged("generalised", decisive)
        if not self.batches and wanted == self.max_batches and decisive.error > self.rse * abs(decisive.value):
            self._warn_once(
                "max_batches",
                f"batch sharpness is known to {decisive.error / abs(decisive.value):.1%} after {wanted} batches, rse="
                f"{self.rse:g} was wanted; raise probe.batch_sharpness.max_batches or rse",
            )
        values["cost/batch_sharpness/batches"] = float(pilot + wanted)

    def _forms(self, snapshot: Snapshot, count: int, generator: torch.Generator) -> list[Forms]:
        """Of fresh batches along their gradients and, where the optimiser is more than -lr g, along its steps."""
        loss, direction = snapshot.loss_on("all"), _direction(snapshot)
        batches = _draw(snapshot, loss, count, generator)
        if direction is None:
            return [along_gradients(loss, snapshot.w, batches)]
        return list(along_steps(loss, snapshot.w, batches, direction, decay=_decay(snapshot)))

    def _lambda_max(self, snapshot: Snapshot, values: dict[str, float]) -> None:
        """The mean over batches of the top eigenvalue of their own Hessian."""
        loss, generator = snapshot.loss_on("all"), stream(snapshot.seed, "batch_sharpness/lambda_max", snapshot.step)
        batches = _draw(snapshot, loss, self.lambda_batches, generator)
        tops = top_of_batches(loss, snapshot.w, batches, generator)
        values |= _tagged("lambda_max", interval(mean_of_ratios, Forms(tops, torch.ones_like(tops)), generator))

    def _interaction(self, snapshot: Snapshot, values: dict[str, float]) -> None:
        """GNI, on the probe set in the place of all examples."""
        loss, generator = snapshot.loss_on(self.examples), stream(snapshot.seed, "batch_sharpness/gni", snapshot.step)
        assert loss.num_examples is not None and snapshot.batch_size is not None
        if snapshot.batch_size > loss.num_examples:
            self._warn_once("examples", TOO_FEW.format(snapshot.batch_size, loss.num_examples))
            return
        batches = _draw(snapshot, loss, self.gni_batches, generator)
        forms = gradient_noise_interaction(loss, self._hessian(snapshot), snapshot.w, batches)
        values |= _tagged("gni", interval(ratio_of_means, forms, generator))
        values["cost/batch_sharpness/matvecs"] = float(self.gni_batches)

    def _hessian(self, snapshot: Snapshot) -> Hessian:
        """That of the probe set, shared with the other probes of the step."""
        return snapshot.once(("hessian", self.examples), lambda: hessian(snapshot.loss_on(self.examples), snapshot.w))

    def _loss(self, snapshot: Snapshot) -> float:
        if self.gni_batches or snapshot.batch_size is None:
            return float(self._hessian(snapshot).value)
        return float(snapshot.loss_on(self.examples).value(snapshot.w))

    def finding(self, values: dict[str, float]) -> str:
        """Where the run is, judged by the mean over the last quarter of the measurements of what has its edge at 1:
        batch_ratio, or half the generalised form.

        Beyond the edge: the mean is above 1.5; the run diverges, or was just thrown. Edge of stochastic stability: it
        is at least 0.9, or at least 0.8 and within two standard errors (from the scatter of the measurements) of 1.
        Else interpolated before the edge: the loss is below 1 % of the first one, and the mean did not grow by 10 %
        since the quarter before. Else below the edge, rising where it did grow by that.
        """
        history = [(ratio, loss) for _, ratio, loss in self._history if math.isfinite(ratio)]
        if not history:
            return ""
        quarter = math.ceil(len(history) / 4)
        late, before = (
            torch.tensor([ratio for ratio, _ in part])
            for part in (history[-quarter:], history[-2 * quarter : -quarter])
        )
        level, error = float(late.mean()), float(late.std() / quarter**0.5) if quarter > 1 else 0.0
        stochastic = "cost/batch_sharpness/batches" in values
        if level > BEYOND:
            place = "beyond the edge"
        elif level >= STOCHASTIC_EXIT or (level >= NEAR and level + 2 * error >= 1):
            place = "edge of stochastic stability" if stochastic else "edge of stability"
        elif len(before) and level > GROWS * float(before.mean()):
            place = "below the edge, and rising"
        else:
            place = "interpolated before the edge" if history[-1][1] < FITTED * history[0][1] else "below the edge"
        steps = "batch_sharpness/generalised" in values
        what = "generalised batch sharpness" if steps else "batch sharpness (ratio of means)"
        if not stochastic:
            what += f", of the full batch {FULL[steps]},"
        when = f" over the last {quarter} measurements" if quarter > 1 else ""
        text = f"{place}: {what} is {_figures(level)} x {'its edge 2' if steps else '2/lr'}{when}"
        return text + _beside(values, steps)

    def _warn_once(self, about: str, text: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            warnings.warn(text, stacklevel=3)

    def state_dict(self) -> dict[str, Tensor]:
        return {"history": torch.tensor(self._history, dtype=torch.float64).reshape(-1, 3)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._history = [(step, ratio, loss) for step, ratio, loss in state.get("history", torch.empty(0, 3)).tolist()]


def _draw(snapshot: Snapshot, loss: Objective, count: int, generator: torch.Generator) -> Tensor:
    """`count` batches (count, m) out of the examples of `loss`, each drawn as in training."""
    num, size = loss.num_examples, snapshot.batch_size
    assert num is not None and size is not None
    if snapshot.sampling == "with_replacement":
        return torch.randint(num, (count, size), generator=generator)
    return torch.stack([different(num, min(size, num), generator) for _ in range(count)])


def _plain(rule: UpdateRule) -> bool:
    """Whether the step is -lr g: batch sharpness itself has its edge at 2/lr."""
    none = (rule.momentum, rule.coupled_decay, rule.decoupled_decay)
    return rule.uniform and not any(none) and rule.preconditioner is None


def _direction(snapshot: Snapshot) -> Direction | None:
    """The steps along which the generalised form is measured; None where it would be lr times batch sharpness."""
    return None if snapshot.rule is not None and _plain(snapshot.rule) else snapshot.direction


def _decay(snapshot: Snapshot) -> float | Tensor:
    return 0.0 if snapshot.rule is None else snapshot.rule.coupled_decay


def _ratio(forms: Forms) -> float:
    return float(ratio_of_means(forms.curvature, forms.slope)[0])


def _tagged(name: str, found: Interval) -> dict[str, float]:
    """A number under batch_sharpness/, its standard error, and its interval."""
    tag = f"batch_sharpness/{name}"
    return {tag: found.value, f"error/{tag}": found.error, f"{tag}_low": found.low, f"{tag}_high": found.high}


def _figures(number: float) -> str:
    """To two decimals, or to two significant digits where these would be none or too many."""
    return f"{number:.2f}" if 0.1 <= abs(number) < 100 else f"{number:.2g}"


def _beside(values: dict[str, float], steps: bool) -> str:
    """lambda_max against the same edge, where it was measured."""
    if "sharpness/ratio" not in values:
        return ""
    name = "preconditioned lambda_max" if "sharpness/preconditioned" in values else "lambda_max"
    name += " of the weights that move" if "sharpness/moved" in values else ""
    return f", while {name} is {_figures(values['sharpness/ratio'])} x {'its threshold' if steps else '2/lr'}"
