"""What a measurement sees and what it must offer: `Snapshot` and `Probe`. No Lightning here.

A probe is one class with plain settings as arguments and one method that computes; a new one is one file in this
package and one card in `conf/probe/`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, Union

from torch import Tensor
from torch.optim import Optimizer

from lab.curvature.stability import UpdateRule
from lab.noise.sampling import Sampling
from lab.objective import Objective

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")
Value = Union[float, "Figure", Tensor]
"""A number for a curve, a picture for the dashboard, or an array for `arrays/` in the run folder."""
Examples = int | Literal["all", "auto"]


@dataclass
class Snapshot:
    """The state at step t BEFORE update t: all that a probe may look at.

    w (P,) are the weights; `loss_on(examples)` the objective over the fixed, class-balanced probe set of that size
    ("all": the training set, "auto": all of it up to 5000 examples, 2000 of a larger one); batch() the loss over the
    mini-batch about to be used, unaugmented (None where it is the whole set); rule the next update of w, every weight
    by the optimiser that holds it (None where the threshold is not known; `rule.moving` is that of the weights that
    move); seed that of the run. Training draws batches of `batch_size` (None: the whole set) out of `num_train`
    examples by `sampling`. direction(g) is the step (P,) that the optimiser as it is would make for the gradient g (P,)
    (None where there is none); ask for it while the optimiser is at this step. replicate(lr) makes the optimiser as it
    is, at another learning rate, of a stack of weights (R, P) (None where there is none); likewise. At the end of
    training (`ended`) there is no update t.
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
    _shared: dict[Any, Any] = field(default_factory=dict, repr=False)

    def once(self, key: Any, compute: Callable[[], T]) -> T:
        """compute(), once per snapshot and key: how probes of the same step share one Hessian or one eigensolve."""
        if key not in self._shared:
            self._shared[key] = compute()
        return self._shared[key]

    def forget(self) -> None:
        """Compute anew what `once` has kept."""
        self._shared.clear()


class Probe(ABC):
    """A measurement with a name, a rhythm and a memory.

    Laws: `measure` changes nothing but the probe's own memory; its numbers depend on the snapshot and that memory only;
    tags are `name/quantity`, `error/name/quantity` and `cost/name/quantity` with the name of the probe, so that no two
    probes write one; NaN means "not measured" and is not logged. What `measure` raises is told and ends nothing.
    """

    name: ClassVar[str]
    every: int

    def due(self, step: int) -> bool:
        """Whether this probe wants the snapshot of `step`."""
        return step % self.every == 0

    @property
    def at_end(self) -> bool:
        """Whether it wants a snapshot of the end of training, too."""
        return False

    @abstractmethod
    def measure(self, snapshot: Snapshot) -> dict[str, Value]:
        """The values to log at `snapshot.step`, by tag."""

    def finding(self, values: dict[str, float]) -> str:
        """What the last values of a run, by tag, say about it, in one plain sentence; "" where there is nothing to say."""
        return ""

    def state_dict(self) -> dict[str, Tensor]:
        """The memory that later measurements build on (warm starts), so that a resumed run measures the same."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:  # noqa: B027 (nothing to take back is the rule)
        """Take a memory back."""
