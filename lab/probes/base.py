"""What a measurement is: a function of a `Snapshot` with a frozen result, and the probe that repeats it. No Lightning here.

    @card(frozen=False)
    class Norm(Probe):                                   # the settings, and what they demand
        name: ClassVar[str] = "norm"
        every: Every = 10
        power: Annotated[Positive, knob("power of |g|")] = 2.0

    @measures(Norm)
    def norm(here: Snapshot, settings: Norm, memory: Memory) -> NormResult: ...

One such file in this package and one card in `conf/probe/` are a new measurement: `norm(objective, power=1.0)` in a
notebook, `probe=[norm]` at the doors, `Norm(every=5)` for the callback.
"""

import copy
import inspect
from abc import ABC
from collections.abc import Callable, Mapping
from dataclasses import fields
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Self, TypeVar, Union, get_type_hints

import torch
from pydantic import ValidationError
from torch import Tensor

from lab.curvature.stability import UpdateRule
from lab.objective import Objective, with_gradients
from lab.probes.knobs import Every as Every
from lab.probes.knobs import Positive as Positive
from lab.probes.knobs import ProbeSet as ProbeSet
from lab.probes.knobs import knob as knob
from lab.probes.nested import Nested
from lab.probes.snapshot import Examples as Examples
from lab.probes.snapshot import Plan as Plan
from lab.probes.snapshot import Snapshot as Snapshot
from lab.results import Result
from lab.run.cards import refusal
from lab.settings import SettingError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

R = TypeVar("R", bound=Result)
S = TypeVar("S", bound="Probe")
Value = Union[float, "Figure", Tensor]
"""A number for a curve, a picture for the dashboard, or an array for `arrays/` in the run folder."""
Memory = Mapping[str, Tensor]
"""What a measurement builds on from the one before, by name: warm starts, past weights. Empty at the first."""


class Probe(ABC):
    """A measurement with settings, a rhythm and a memory; subclasses are cards, whose fields are the settings.

    Laws: measuring changes nothing but the probe's own memory; its numbers depend on the snapshot and that memory only;
    tags are `name/quantity`, `error/name/quantity` and `cost/name/quantity` with the name of the probe, so that no two
    probes write one; NaN means "not measured" and is not logged. What `measure` raises is told and ends nothing.
    """

    name: ClassVar[str]
    looks: ClassVar[Callable[..., Result]]
    """The function of (snapshot, settings, memory) that `measures` has bound to the card."""
    speaks: ClassVar[bool] = False
    """Whether the sentence of the last result is said at the end of a run."""
    auto: ClassVar[Mapping[str, float]] = {"every": 100}
    """The numbers that "auto" stands for, by setting, where no budget asks for others (`lab.probes.governor`)."""
    halves: ClassVar[str] = ""
    """What its numbers on a part of the probe set "auto" are of the whole, in words; "": a budget takes no part."""
    loose: ClassVar[Mapping[str, float]] = {}
    """The numbers that a budget asks for in the place of "auto" beside a part of the probe set, by setting."""
    fewest: ClassVar[Mapping[str, float]] = {}
    """Those that it asks for where the smallest part is too dear, too."""
    first: ClassVar[bool] = False
    """Whether it is measured at step 0 whatever that takes; others wait for the end where that alone is beyond a budget."""
    warm_share: ClassVar[float] = 1.0
    """What a measurement takes that builds on the one before, in that of the first."""
    every: int | Literal["auto"]
    ruled: Mapping[str, Any] = {}
    """What a budget asks for in the place of "auto", by setting."""
    _memory: Memory = {}
    _sentence: str = ""

    @property
    def rhythm(self) -> int:
        """Steps between measurements, where no budget makes them more."""
        return int(self.auto["every"]) if self.every == "auto" else self.every

    @property
    def probe_set(self) -> Examples:
        """The examples it is measured on."""
        return getattr(self, "examples", "auto")

    def settled(self) -> Self:
        """The same settings with a number for every "auto", and for examples what a budget asks for."""
        numbers = {name: self.ruled.get(name, number) for name, number in self.auto.items()}
        numbers |= {"every": self.rhythm} | ({"examples": self.ruled["examples"]} if "examples" in self.ruled else {})
        chosen = {name: number for name, number in numbers.items() if getattr(self, name, None) == "auto"}
        if not chosen:
            return self
        other = copy.copy(self)
        for name, number in chosen.items():
            setattr(other, name, number)
        return other

    @property
    def at_end(self) -> bool:
        """Whether it wants a snapshot of the end of training, too; with `at` "end", where a card has that, no other."""
        return self._only_end

    @property
    def remembers(self) -> int:
        """How many steps before a measurement its weights are wanted, too: memory["last/<step>"]."""
        return 0

    def due(self, step: int) -> bool:
        """Whether this probe wants the snapshot of `step`."""
        return not self._only_end and -step % self.rhythm <= self.remembers

    @property
    def _only_end(self) -> bool:
        return getattr(self, "at", "steps") == "end"

    def require(self, plan: Plan) -> None:
        """Raise SettingError, one line, where model, data and settings cannot give this measurement.

        That of the base looks at the probe set; call it first.
        """
        examples = self.probe_set
        setting = f"probe.{self.name}.examples"
        if isinstance(examples, int) and examples > plan.num_train:
            raise SettingError(
                f"{setting}={examples} is larger than the {plan.num_train} training examples; use {setting}=all"
            )
        try:
            plan.loss_on(examples)
        except SettingError as error:
            raise SettingError(str(error).replace("data.examples", setting)) from None

    def expected_matvecs(self, rule: UpdateRule | None) -> int:
        """About how many Hessian products a measurement takes; 0 where that is not known beforehand."""
        return 0

    def expected_gradients(self, here: Snapshot, loss: Objective) -> float:
        """About how many gradients of `loss`, that on its probe set, it takes beside the products."""
        return 1.0

    def measure(self, snapshot: Snapshot) -> dict[str, Value]:
        """The values to log at `snapshot.step`, by tag: numbers, errors, costs, figures and arrays of the result."""
        memory = dict(self._memory)
        if self.remembers:
            kept = [f"last/{step}" for step in range(snapshot.step - self.remembers, snapshot.step)]
            memory = {key: v for key, v in memory.items() if not key.startswith("last/") or key in kept}
            memory[f"last/{snapshot.step}"] = snapshot.w.clone()
            if snapshot.step % self.rhythm and not snapshot.ended:
                self._memory = memory
                return {}
        begin, settings = perf_counter(), self.settled()
        result = type(self).looks(snapshot, settings, memory)
        self._memory = {key: v for key, v in memory.items() if key.startswith("last/")} | dict(result.memory())
        self._sentence = result.sentence()
        when = f", step {snapshot.step}"
        quantities: dict[str, Value] = {**result.numbers(), **result.arrays(), **result.figures(when)}
        values = {_tag(self.name, quantity): value for quantity, value in quantities.items()}
        costs = result.costs() | {"seconds": perf_counter() - begin}
        if isinstance(part := settings.probe_set, Nested):
            costs |= {"examples": float(part.examples)}
        return values | {f"cost/{self.name}/{quantity}": cost for quantity, cost in costs.items()}

    def finding(self, values: dict[str, float]) -> str:
        """What the last values of a run, by tag, say about it, in one plain sentence; "" where there is nothing to say."""
        return self._sentence if self.speaks else ""

    def state_dict(self) -> dict[str, Tensor]:
        """The memory that later measurements build on (warm starts), so that a resumed run measures the same."""
        return dict(self._memory)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take a memory back."""
        self._memory = dict(state)


class Measurement(Generic[S, R]):
    """A measurement as one calls it: of a snapshot, or of an objective by itself (`Snapshot.of`).

    objective  the loss, or a snapshot, where the optimiser and its batches matter (`lab.Bench` makes one).
    w          (P,) the weights; default: the present ones of the objective. A snapshot has its own w, seed and audit.
    seed       of the random streams (default 0); audited: whether the laws of the loss are looked at first (default True).
    memory     result.memory() of the measurement before, for a warm start.
    The other keywords are the settings of the card. Raises SettingError for a setting that cannot be, Unsound for a loss
    that breaks a law.
    """

    def __init__(self, card: type[S], function: Callable[[Snapshot, S, Memory], R]):
        self.card, self.function = card, function
        self.__name__ = self.__qualname__ = function.__name__
        self.__module__, self.__wrapped__ = function.__module__, function
        usual = inspect.signature(Measurement.__call__).parameters
        own = [p for p in usual.values() if p.kind is not p.VAR_KEYWORD and p.name != "self"]
        knobs, types = inspect.signature(card).parameters, get_type_hints(card)
        names = [name for name in settings_of(card) if name != "every"]
        own += [knobs[name].replace(annotation=types[name]) for name in names]
        self.__signature__ = inspect.Signature(own, return_annotation=get_type_hints(function)["return"])
        self.__doc__ = f"{inspect.getdoc(function) or ''}\n\n{inspect.getdoc(card) or ''}".strip()

    @with_gradients
    def __call__(
        self,
        objective: Objective | Snapshot,
        w: Tensor | None = None,
        *,
        seed: int | None = None,
        audited: bool | None = None,
        memory: Memory | None = None,
        **settings: Any,
    ) -> R:
        name = self.__name__
        if "every" in settings:
            raise SettingError(f"{name}.every is the rhythm of a probe, and this is one measurement; leave it out")
        try:
            chosen = self.card(**settings)
        except ValidationError as error:
            raise SettingError(refusal(error, name)) from None
        if isinstance(objective, Snapshot):
            if not (w is seed is audited is None):
                raise SettingError(f"{name}(snapshot, ...): a snapshot has its own w, seed and audit; leave them out")
            objective.require(chosen)
            return self.function(objective, chosen.settled(), memory or {})
        if not isinstance(objective, Objective):
            raise SettingError(
                f"{name}({type(objective).__name__}): expected an objective or a snapshot, e.g. "
                "lab.NetworkObjective(model, loss, (x, y)) or lab.Bench(model, loss, (x, y), optimizer).snapshot()"
            )
        if "examples" in settings:
            raise SettingError(
                f"{name}.examples chooses the probe set of a run, and an objective has its own; leave it out"
            )
        here = Snapshot.of(objective, w, seed=seed or 0, audited=audited is None or audited)
        return self.function(here, chosen.settled(), memory or {})

    def __reduce__(self) -> str:
        return self.__qualname__

    def __repr__(self) -> str:
        return f"<measurement {self.__name__}>"


def measures(card: type[S]) -> Callable[[Callable[[Snapshot, S, Memory], R]], Measurement[S, R]]:
    """Make a function of (snapshot, settings, memory) the measurement of a card."""

    def bind(function: Callable[[Snapshot, S, Memory], R]) -> Measurement[S, R]:
        card.looks = staticmethod(function)
        return Measurement(card, function)

    return bind


def settings_of(card: type[Probe]) -> list[str]:
    """The names of the settings of a card."""
    return [one.name for one in fields(card) if one.init]  # type: ignore[arg-type]


def _tag(name: str, quantity: str) -> str:
    """error/x -> error/name/x; x -> name/x."""
    if quantity.startswith("error/"):
        return f"error/{name}/{quantity.removeprefix('error/')}"
    return f"{name}/{quantity}"


def quantities(name: str, values: Mapping[str, float]) -> dict[str, float]:
    """The numbers of a probe as its result names them, out of values by tag: error/name/x -> error/x, name/x -> x."""
    heads = {f"{name}/": "", f"error/{name}/": "error/"}
    return {
        own + tag.removeprefix(head): value
        for head, own in heads.items()
        for tag, value in values.items()
        if tag.startswith(head)
    }


def continued(history: Tensor | None, row: Tensor) -> Tensor:
    """A history (n, m) with one row (m,) more that begins with its step; rows from this step on are of a run that was cut
    off, and go.
    """
    before = row.new_empty(0, len(row)) if history is None else history
    return torch.cat([before[before[:, 0] < row[0].to(before)].to(row), row[None]])
