"""Escape from where training stands: replicas of the run with random numbers of their own, and what makes them leave.

    at a saddle            growth of every negative direction against log(1 + lr |lambda|), exit times against theory
    at a minimum that fits growth against the Lyapunov exponent of the linearised steps, landing against the critical
    every example          sharpness: mini-batches have no noise there, and there is no rate
    elsewhere              exits by quench, rate with exact interval, and the reasons why there is none

for every learning rate and batch size of a sweep. `lab.escape.ensemble` is the estimator, `lab.escape.warnings` judges it;
where no rate exists none is logged, and the sentence says why. Networks run with fixed BatchNorm statistics.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from lab.objective import Objective
from lab.probes.base import Memory, Probe, Snapshot, measures
from lab.probes.escape_cells import replicate
from lab.probes.escape_result import EscapeResult
from lab.probes.escape_start import ExitName, Scene, begin, number
from lab.probes.knobs import Count, Natural, Positive, Rhythm, Several, When, knob
from lab.sampling import Sampling
from lab.settings import settings as card


@card(frozen=False)
class Escape(Probe):
    """Escape: replicas of the run from its weights; rates with intervals, growth against theory, and why there is no rate.

    loss_barrier and top_distance are wrong exits in more than a few dimensions. Rhythm replica is looked at 8 times in the
    budget (quench), or at every step.
    """

    name: ClassVar[str] = "escape"
    auto: ClassVar[Mapping[str, float]] = {"every": 1000}
    speaks: ClassVar[bool] = True

    every: Annotated[
        Rhythm, knob("steps between measurements: n | auto: 1000, more seldom where probe.budget asks")
    ] = "auto"
    at: When = "steps"
    examples: Annotated[
        Several | Literal["all", "auto"],
        knob("probe set of the loss and the batches drawn: n | all | auto (all up to 5000, else 2000)"),
    ] = "auto"
    replicas: Annotated[int, knob("copies of the run with independent batches and noise", ge=2)] = 64
    lrs: Annotated[tuple[Positive, ...], knob("learning rates of the sweep; empty: that of the run")] = ()
    batch_sizes: Annotated[
        tuple[Natural, ...],
        knob("batch sizes of the sweep, 0: the full one; empty: that of the run"),
    ] = ()
    sampling: Annotated[Sampling | None, knob("how batches are drawn; null: as in the run")] = None
    noise: Annotated[
        Literal["minibatch", "sample_weights", "frozen", "isotropic"],
        knob("minibatch | sample_weights | frozen | isotropic: Gaussian on the full gradient, of the size of B"),
    ] = "minibatch"
    exit: Annotated[ExitName, knob("auto: saddle at a saddle, else quench")] = "auto"
    radius: Annotated[
        Positive | None, knob("of saddle, linear, top_distance, in weights; null: half way to the minima beyond")
    ] = None
    barrier: Annotated[Positive, knob("loss above the start, of loss_barrier")] = 0.01
    directions: Annotated[
        Count, knob("of top_distance, of linear at a minimum, and negative ones seen at a saddle")
    ] = 5
    budget: Annotated[int, knob("steps a replica is watched, at most", ge=16)] = 2000
    burn_in: Annotated[
        Natural | None,
        knob("steps before the clock starts; null: 3 relaxation times, at most a quarter of the budget"),
    ] = None
    max_matvecs: Annotated[int, knob("Hessian products, at most, that say what kind of point the start is", ge=2)] = 200
    quench_steps: Annotated[Count, knob("steps of gradient descent that say in which basin a replica is")] = 2000
    gradient_tol: Annotated[Positive, knob("|gradient| at rest, and of a critical point (loss per unit of weight)")] = (
        1e-6
    )
    growth_steps: Annotated[
        int, knob("steps of runs whose growth is measured; of the random product up to 10 times more", ge=20)
    ] = 200
    controls: Annotated[bool, knob("also runs without noise, at lr and lr/10")] = True

    def expected_gradients(self, here: Snapshot, loss: Objective) -> float:
        """Of the walks to the end of their budget alone; what the quenches take nobody knows beforehand."""
        num = loss.num_examples or 1
        sizes = [size or num for size in self.batch_sizes or (here.batch_size or 0,)]
        walked = self.replicas * self.budget * sum(min(size, num) / num for size in sizes) * max(1, len(self.lrs))
        return 2.0 * walked


@measures(Escape)
def escape(here: Snapshot, settings: Escape, memory: Memory) -> EscapeResult:
    """How replicas of the run leave the point where it stands. Raises SettingError where no one step moves all weights."""
    if not bool(here.w.isfinite().all()):
        return EscapeResult(None, (), "")
    scene = Scene(here, settings, begin(here, settings))
    lrs, sizes = settings.lrs or (number(scene.start.rule.lr),), settings.batch_sizes or (here.batch_size or 0,)
    cells = tuple(replicate(scene, lr, size) for lr in lrs for size in sizes)
    return EscapeResult(scene.start, cells, scene.exit_name)
