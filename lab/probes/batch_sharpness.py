"""Batch sharpness against 2/lr: the edge of stability of mini-batch training.

    ratio_of_means   E_B[g_B' H_B g_B] / E_B|g_B|^2
    mean_of_ratios   E_B[g_B' H_B g_B / |g_B|^2]
    ratio            ratio_of_means x lr/2                       the edge is 1, for SGD without momentum
    generalised      E_B[s' H_B s] / -E_B[s' g_B]                s the step on that batch: the edge is 2
    gni              E_B[g_B' H g_B] / |g|^2                     no detector of the edge
    lambda_max       E_B[lambda_max(H_B)]

Only the ratio of means has an exact meaning: to second order E_B[L_B(w - lr g_B) - L_B(w)] = 0 if and only if it is 2/lr;
the generalised form says the same of any step and is lr ratio_of_means for plain SGD. The ratio of means is the mean of
the ratios weighted by |g_B|^2, hence the larger one where batches of large gradient are sharp along it. gni = 2/lr says it
of the loss L of all examples, which is stationary under the noise in any quadratic bowl. Where the batch is the whole set,
all but the generalised form are the directional sharpness g'Hg/|g|^2.

Andreyev and Beneventano 2024 (arXiv 2412.20553): mean_of_ratios in the text, both in their code.
"""

import math
import warnings
from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from lab.curvature.operators import Hessian
from lab.curvature.stability import UpdateRule
from lab.data.batches import different
from lab.noise.batch_curvature import (
    BatchForms,
    along_gradient,
    along_gradients,
    along_step,
    along_steps,
    gradient_noise_interaction,
    top_of_batches,
)
from lab.noise.ratios import FEWEST, PILOT, Bootstrapped, bootstrapped, mean_of_ratios, needed, ratio_of_means
from lab.objective import Objective
from lab.probes.base import Memory, Probe, Snapshot, continued, measures
from lab.probes.batch_sharpness_result import BatchSharpnessResult, beside, place, rounded
from lab.probes.knobs import Natural, ProbeSet, Rhythm, Several, Share, knob
from lab.settings import SettingError
from lab.settings import settings as card

CLOSE = (0.8, 1.25)
"""What counts as near 1 where gni might be taken for a sign of the edge."""
GNI = (
    "batch_sharpness/gni is {} x 2/lr while batch sharpness is {} x 2/lr: no sign of the edge of stability; it says that "
    "the loss of all examples is stationary on average, as it is under noise in any quadratic bowl"
)
TOO_FEW = (
    "batch_sharpness/gni is not measured: batches of {} do not fit in the {} examples of its probe set; raise "
    "probe.batch_sharpness.examples, or set gni_batches=0"
)
INEXACT = (
    "batch sharpness is known to {:.1%} after {} batches, rse={:g} was wanted; raise probe.batch_sharpness.max_batches or "
    "rse"
)


@card(frozen=False)
class BatchSharpness(Probe):
    """Batch sharpness against 2/lr: curvature of the loss of a batch along the step that is made on it.

    Batches of training examples, unaugmented, are drawn as in training (an epoch's like draws without replacement), from a
    stream of their own; those of the pilot take no part in the estimate, which has 16 at least. `rse` is the error of the
    form that has an edge: the ratio of means, or the generalised one. Errors are standard errors over the batches; low and
    high a bootstrap interval meant to hold the truth in 95 % of cases: with the pilot it does in 94 % where |g_B|^2 is
    lognormal of sigma 0.3, in 91 % of 0.5, in 87 % of 1 (`lab.noise.ratios.needed`). A run where `gni` is near 2/lr and
    batch sharpness is not warns once that this is no sign of the edge. Cost: for networks of linear layers one gradient of
    the drawn examples; else a graph and a Hessian product of every batch, 3 to 4 gradients of it on a ResNet; with
    momentum, weight decay or an adaptive optimiser always so, and one more product and a step on copies.
    """

    name: ClassVar[str] = "batch_sharpness"
    auto: ClassVar[Mapping[str, float]] = {"every": 101}

    every: Annotated[Rhythm, knob("steps between measurements: n | auto: 101, more seldom where probe.budget asks")] = (
        "auto"
    )
    rse: Annotated[Share, knob("relative standard error wanted; a pilot of 8 batches decides how many")] = 0.05
    max_batches: Annotated[Several, knob("batches of the estimate at most; up to 16 there is no pilot")] = 400
    batches: Annotated[Several | None, knob("a fixed number of batches instead of rse")] = None
    gni_batches: Annotated[
        Natural, knob("batches for gni, each a Hessian product of the probe set; 0: not measured")
    ] = 20
    lambda_batches: Annotated[
        Natural, knob("batches for lambda_max, at 10 to 25 products of a batch; 0: not measured")
    ] = 0
    examples: ProbeSet = "auto"

    def expected_matvecs(self, rule: UpdateRule | None) -> int:
        return self.gni_batches

    def expected_gradients(self, here: Snapshot, loss: Objective) -> float:
        """Of some 60 batches, at the price of a Hessian product each, and the eigensolves."""
        share = (here.batch_size or 0) / (loss.num_examples or 1)
        batches = self.batches or min(60, self.max_batches)
        return 5.0 + share * (3.5 * batches + 25.0 * self.lambda_batches)

    def finding(self, values: dict[str, float]) -> str:
        """Where the run is (`place`), beside lambda_max where that was measured."""
        steps = "batch_sharpness/generalised" in values
        text = place(self._memory.get("history"), steps, "cost/batch_sharpness/batches" in values)
        return text and text + beside(values, steps)


@measures(BatchSharpness)
def batch_sharpness(here: Snapshot, settings: BatchSharpness, memory: Memory) -> BatchSharpnessResult:
    """Batch sharpness over fresh batches of the size in training; of the whole set the directional sharpness g'Hg/|g|^2.

    >>> from lab.landscapes.quadratic import Quadratic
    >>> result = batch_sharpness(Quadratic(torch.tensor([3.0, 1.0])), torch.ones(2))  # g = (3, 1): (27 + 1)/(9 + 1)
    >>> round(result.estimates["ratio_of_means"].value, 4)
    2.8
    """
    batches = _Batches(here, settings)
    estimates = batches.whole() if here.batch_size is None else batches.drawn()
    ratio = estimates["generalised"].value / 2 if "generalised" in estimates else math.nan
    if (lr := batches.lr) is not None:
        ratio = estimates["ratio_of_means"].value * lr / 2
        interaction = estimates["gni"].value * lr / 2 if "gni" in estimates else math.nan
        if CLOSE[0] <= interaction <= CLOSE[1] and not CLOSE[0] <= ratio <= CLOSE[1]:
            batches.doubts["gni"] = GNI.format(rounded(interaction), rounded(ratio))
    for about, text in batches.doubts.items():
        if f"warned/{about}" not in memory:
            warnings.warn(text, stacklevel=2)
    warned = {key: flag for key, flag in memory.items() if key.startswith("warned/")}
    warned |= {f"warned/{about}": torch.tensor(True) for about in batches.doubts}
    row = torch.tensor((here.step, ratio, batches.loss()), dtype=torch.float64)
    history = continued(memory.get("history"), row)
    return BatchSharpnessResult(estimates, lr, batches.num, batches.matvecs, history, warned)


class _Batches:
    """The batches of one measurement; counts what they cost, and keeps what there is to warn of."""

    def __init__(self, here: Snapshot, settings: BatchSharpness):
        self.here, self.settings = here, settings
        self.lr = float(here.rule.lr) if here.rule is not None and _plain(here.rule) else None
        self.direction = here.direction if self.lr is None else None  # else the generalised form is lr times the other
        self.decay = 0.0 if here.rule is None else here.rule.coupled_decay
        self.num, self.doubts = 0, dict[str, str]()
        self.matvecs: int | None = None

    @property
    def H(self) -> Hessian:
        """That of the probe set."""
        return self.here.hessian(self.settings.examples)

    def whole(self) -> dict[str, Bootstrapped]:
        """One batch, that of all examples: directional sharpness, and the same along the step."""
        H, w, none = self.H, self.here.w, torch.Generator()
        directional = bootstrapped(ratio_of_means, along_gradient(H), none)
        estimates = {"ratio_of_means": directional, "mean_of_ratios": directional}
        if self.direction is not None:
            forms = along_step(H, w, self.direction(H.gradient), decay=self.decay)
            estimates["generalised"] = bootstrapped(ratio_of_means, forms, none)
        self.matvecs = len(estimates) - 1
        return estimates

    def drawn(self) -> dict[str, Bootstrapped]:
        """All estimates over fresh batches; those that decide on the number of batches take no part in them."""
        settings, generator, pilot = self.settings, self.here.stream("batch_sharpness"), 0
        wanted = settings.batches or settings.max_batches
        if not settings.batches and wanted > FEWEST:
            pilot = PILOT
            wanted = needed(ratio_of_means, self._forms(pilot, generator)[-1], settings.rse, settings.max_batches)
        gradients, *steps = self._forms(wanted, generator)
        self.num, resample = pilot + wanted, self.here.stream("batch_sharpness/bootstrap")
        estimates = {
            "ratio_of_means": (decisive := bootstrapped(ratio_of_means, gradients, resample)),
            "mean_of_ratios": bootstrapped(mean_of_ratios, gradients, resample),
        }
        if steps:
            estimates["generalised"] = decisive = bootstrapped(ratio_of_means, steps[0], resample)
        error, size = decisive.error, abs(decisive.value)
        if not settings.batches and wanted == settings.max_batches and error > settings.rse * size:
            self.doubts["max_batches"] = INEXACT.format(error / size, wanted, settings.rse)
        return estimates | self._lambda_max() | self._interaction()

    def _forms(self, count: int, generator: torch.Generator) -> list[BatchForms]:
        """Of fresh batches along their gradients and, where the optimiser is more than -lr g, along its steps."""
        loss, w = self.here.loss_on("all"), self.here.w
        batches = self._draw(loss, count, generator)
        if self.direction is None:
            return [along_gradients(loss, w, batches)]
        return list(along_steps(loss, w, batches, self.direction, decay=self.decay))

    def _lambda_max(self) -> dict[str, Bootstrapped]:
        """The mean over batches of the top eigenvalue of their own Hessian."""
        if not self.settings.lambda_batches:
            return {}
        loss, generator = self.here.loss_on("all"), self.here.stream("batch_sharpness/lambda_max")
        tops = top_of_batches(loss, self.here.w, self._draw(loss, self.settings.lambda_batches, generator), generator)
        return {"lambda_max": bootstrapped(mean_of_ratios, BatchForms(tops, torch.ones_like(tops)), generator)}

    def _interaction(self) -> dict[str, Bootstrapped]:
        """GNI, on the probe set in the place of all examples."""
        if not (count := self.settings.gni_batches):
            return {}
        loss, size = self.here.loss_on(self.settings.examples), self.here.batch_size or 1
        if loss.num_examples is not None and size > loss.num_examples:
            self.doubts["examples"] = TOO_FEW.format(size, loss.num_examples)
            return {}
        generator, self.matvecs = self.here.stream("batch_sharpness/gni"), count
        batches = self._draw(loss, count, generator)
        forms = gradient_noise_interaction(loss, self.H, self.here.w, batches)
        return {"gni": bootstrapped(ratio_of_means, forms, generator)}

    def loss(self) -> float:
        """L(w) of the probe set."""
        if self.settings.gni_batches or self.here.batch_size is None:
            return float(self.H.value)
        return float(self.here.loss_on(self.settings.examples).value(self.here.w))

    def _draw(self, loss: Objective, count: int, generator: torch.Generator) -> Tensor:
        """`count` batches (count, m) out of the examples of `loss`, each drawn as in training."""
        num, size = loss.num_examples, self.here.batch_size
        if num is None or size is None:
            raise SettingError(f"batch_sharpness: {type(loss).__name__} has no examples to draw batches of {size} from")
        if self.here.sampling == "with_replacement":
            return torch.randint(num, (count, size), generator=generator)
        return torch.stack([different(num, min(size, num), generator) for _ in range(count)])


def _plain(rule: UpdateRule) -> bool:
    """Whether the step is -lr g: batch sharpness itself has its edge at 2/lr."""
    none = (rule.momentum, rule.coupled_decay, rule.decoupled_decay)
    return rule.uniform and not any(none) and rule.preconditioner is None
