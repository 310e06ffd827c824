"""What a measurement may look at: the state of a training at one step, and what is known of the run beforehand."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lab.curvature.operators import Hessian, LinearOperator, hessian
from lab.curvature.stability import UpdateRule
from lab.objective import BatchesObjective, NetworkObjective, Objective, at_least_single, audit
from lab.probes.nested import Nested
from lab.sampling import Sampling
from lab.settings import SettingError
from lab.streams import stream

T = TypeVar("T")
Examples = int | Literal["all", "auto"] | Nested

NO_PAIRS = (
    "it goes by the outputs of a network on inputs x and by targets y, and the data are batches; give data=(x, y), or take "
    "sharpness, spectrum, noise, batch_sharpness or critical_point"
)
"""Why a measurement cannot be had of a `BatchesObjective`."""


@dataclass
class Snapshot:
    """The state at step t BEFORE update t: all that a measurement may look at.

    w (P,) are the weights; `loss_on(examples)` the objective over the fixed, class-balanced probe set of that size
    ("all": the training set, "auto": all of it up to 5000 examples, 2000 of a larger one; of data given as batches drawn
    uniformly, as a `BatchesObjective`); batch() the loss over the mini-batch about to be used, unaugmented (None where it is
    the whole set, or nobody knows); rule the next update of w, every weight
    by the optimiser that holds it (None where the threshold is not known; `rule.moving` is that of the weights that
    move); seed that of the run. Training draws batches of `batch_size` (None: the whole set) out of `num_train`
    examples (None: no training is known) by `sampling`. direction(g) is the step (P,) that the optimiser as it is would
    make for the gradient g (P,) (None where there is none); ask for it while the optimiser is at this step. replicate(lr)
    makes the optimiser as it is, at another learning rate, of a stack of weights (R, P) (None where there is none);
    likewise. At the end of training (`ended`) there is no update t. require(probe) raises SettingError where its
    measurement cannot be had here.
    """

    step: int
    w: Tensor
    loss_on: Callable[[Examples], Objective]
    rule: UpdateRule | None = None
    batch: Callable[[], Objective | None] = lambda: None
    seed: int = 0
    batch_size: int | None = None
    sampling: Sampling = "epoch"
    num_train: int | None = None
    direction: Callable[[Tensor], Tensor] | None = None
    replicate: Callable[[float], Callable[[list[Tensor]], Optimizer]] | None = None
    ended: bool = False
    require: Callable[[Any], None] = lambda probe: None
    _shared: dict[Any, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, objective: Objective, w: Tensor | None = None, *, seed: int = 0, audited: bool = True) -> "Snapshot":
        """A loss by itself, over whatever examples it has, at w (default: its present `weights`); no optimiser is known.

        Its laws are looked at first (`lab.objective.audit`, at the price of a few gradients; Unsound where one is broken),
        unless `audited` is False. Raises ValueError where w is not given and the objective has no present weights.
        """
        if w is None:
            if not isinstance(present := getattr(objective, "weights", None), Tensor):
                raise ValueError(f"{type(objective).__name__} has no present weights; give w")
            w = present
        w = at_least_single(w)
        for note in audit(objective, w, seed=seed).notes if audited else ():
            if "could not decide" in note:
                warnings.warn(f"the loss: {note}", stacklevel=4)
        return cls(0, w, lambda examples: objective, seed=seed)

    def once(self, key: Any, compute: Callable[[], T]) -> T:
        """compute(), once per snapshot and key: how probes of the same step share one Hessian or one eigensolve."""
        if key not in self._shared:
            self._shared[key] = compute()
        return self._shared[key]

    def hessian(self, examples: Examples) -> Hessian:
        """That of the loss on the probe set at w, shared by the probes of the step."""
        return self.once(("hessian", examples), lambda: hessian(self.loss_on(examples), self.w))

    def known_loss(self, examples: Examples) -> float | None:
        """The loss on the probe set at w where its `hessian` was asked for, and has met it; None elsewhere."""
        known = self._shared.get(("hessian", examples))
        return None if known is None else float(known.value)

    def stream(self, name: str) -> torch.Generator:
        """The random numbers of this name at this step."""
        return stream(self.seed, name, self.step)

    def network(self, examples: Examples, probe: str) -> NetworkObjective:
        """The loss on the probe set. Raises SettingError for `probe` where it is not the loss of a network."""
        if isinstance(loss := self.loss_on(examples), BatchesObjective):
            raise SettingError(f"probe=[{probe}]: {NO_PAIRS}")
        if not isinstance(loss, NetworkObjective):
            raise SettingError(f"probe=[{probe}]: {type(loss).__name__} has no examples; it measures networks")
        return loss

    @property
    def shared(self) -> list[Any]:
        """What `once` has kept so far."""
        return list(self._shared.values())

    @property
    def matvecs(self) -> int:
        """How many products the operators that probes share have formed."""
        return sum(operator.matvecs for operator in self.shared if isinstance(operator, LinearOperator))

    def forget(self) -> None:
        """Compute anew what `once` has kept."""
        self._shared.clear()


@dataclass(frozen=True)
class Plan:
    """What is known of a run before it begins, for `Probe.require`: its model, `num_train` training examples, how batches
    are drawn; `loss_on` as of a snapshot.
    """

    model: nn.Module
    num_train: int
    loss_on: Callable[[Examples], Objective]
    sampling: Sampling = "epoch"
    rule: UpdateRule | None = None

    def examples(self, wanted: Examples) -> int:
        """The number of examples in the probe set of this size."""
        return self.loss_on(wanted).num_examples or 0
