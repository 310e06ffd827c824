"""A training that others carry out, with a run folder of its own: what a plain loop, Lightning and Hugging Face share.

Whoever drives it says when the run begins, when an update is about to be made, that it was made on which loss, and when the
run is over.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from pytorch_lightning.loggers import Logger
from torch import nn

from lab.callbacks.adapter import Counted
from lab.callbacks.costs import Costs, in_lines
from lab.callbacks.facts import bare_model, facts_of, loss_name, name_of
from lab.callbacks.outcome import outcome_of
from lab.callbacks.probe import ProbeCallback, lay_out
from lab.callbacks.record import Record
from lab.callbacks.updates import LossCurves, Update, finite
from lab.params import weights
from lab.probes.base import Probe
from lab.probes.bench import Bench
from lab.run.summary import decimals
from lab.settings import SettingError

USUAL = 0.2
"""The usual share of the training time that probes may take."""
FLUSH = 50
"""Updates whose losses are kept on the device at most."""
LATE = (
    "the model was in another mode (train, eval) as watch.step() was entered than at the update that followed: what was "
    "measured is the loss in the mode at the entry; call model.train() before the block"
)


class Watching(ProbeCallback, ABC):
    """Probes, curves and the record of a run whose steps somebody else makes.

    ends        the first and the last loss. total: updates of the whole run, where that is known.
    losses_told whether losses come without being given for every update: none are taken from the probe set then.
    batch_size  examples in a batch of training; "full": all; None: not known.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Any,
        data: Any,
        probes: Sequence[Probe],
        record: Record,
        *,
        total: int | None,
        batch_size: int | str | None,
        budget: float | str | None,
        **settings: Any,
    ):
        size = batch_size if isinstance(batch_size, int) else None
        settings |= {"stochastic": batch_size != "full", "budget": USUAL if budget == "auto" else budget}
        super().__init__(probes, criterion, data, model=model, batch_size=size, **settings)
        self._usual_budget, self.costs.working = budget == "auto", in_lines
        self.record, self.total, self.batch_size = record, total, batch_size
        self.begun = self.closed = self.losses_told = False
        self._curves = LossCurves()
        self._run = self._count = Counted()
        self._loaded: dict[str, Any] = {}
        self._next_loss: int | None = None
        self.ends, self._lost = list[float](), ""
        self._seen: float | None = None
        self._modes: list[bool] | None = None

    @abstractmethod
    def stopped(self, reason: str) -> None:
        """As `lab.run.underway.Underway.stopped`."""

    @abstractmethod
    def left(self, reason: str) -> None:
        """As `lab.run.underway.Underway.left`."""

    def begin(self, step: int) -> None:
        """The run begins at `step`; its optimisers are known. Raises SettingError as `Record.begin`."""
        first = max(step, self._loaded.get("measured", -1) + 1)
        facts = partial(facts_of, self.bench, self.probes, steps=self.total, batch_size=self.batch_size)
        self.record.begin(self, first, facts, resumed=bool(self._loaded))
        self.begun, self.closed = True, False
        lay_out(self, self.record.loggers)

    def settle_budget(self, total: int | None) -> None:
        """The usual budget is a share of a run whose length is known; of another there is none."""
        if total is None and self.total is None and self._usual_budget:
            self.costs = self._parts["costs"] = Costs(self.bench)
            self.costs.working = in_lines

    def observe(self, loggers: Sequence[Logger] = ()) -> None:
        """The update of the present step is about to be made: measure what is due."""
        measured, self._seen, self._modes, self.known_loss = self._measured, None, None, None
        self.costs.step_ends(self._run.step)  # since the last block: also what stands outside of them
        self.look(loggers)
        if self._measured != measured:
            told = self.losses_told or self._curves.any_given
            self._seen = None if told else loss_now(self.bench, self.say, self.known_loss)
            self._modes = [module.training for module in self.bench.model.modules()]
        self.costs.step_begins(self._run.step)

    def updated(self, lr: float) -> None:
        """It was made."""
        step = self._run.step
        self._curves.updated(step, lr, self._seen)
        if self._modes is not None and self._modes != [module.training for module in self.bench.model.modules()]:
            self.say(LATE)
        self._count.made, self._modes = step + 1, None
        self.reached()

    def reached(self) -> None:
        """So many updates are made."""
        if len(self._curves) >= FLUSH:
            self.flush()
        self.record.reached(self._run.step, lambda: standing(self), self.total)

    def measure(self, loggers: Sequence[Logger], step: int, *args: Any, **kwargs: Any) -> None:
        """As `Probing.measure`, unless the weights are no longer finite."""
        self.flush()
        if finite(self.bench.model):
            super().measure(loggers, step, *args, **kwargs)
        else:
            self._lost = self._lost or f"a weight is no longer finite before step {step}"

    def flush(self) -> None:
        """The curves of the updates made so far."""
        for update in self._curves.take():
            self.curve(update)

    def curve(self, update: Update) -> None:
        """The point of an update on the curves; the phase hears of losses that were given."""
        values = {"train/lr": update.lr} if math.isfinite(update.lr) else {}
        if (loss := update.loss) is not None and math.isfinite(loss):
            values["train/loss"], self._lost = loss, ""
            self.ends = [*self.ends[:1], loss]
            if update.given:
                for missing in range(update.step if self._next_loss is None else self._next_loss, update.step):
                    self.tracker.add_loss(missing, math.nan)
                self.tracker.add_loss(update.step, loss)
                self._next_loss = update.step + 1
        elif loss is not None:
            self._lost = self._lost or f"the training loss became {loss:g}"
        self.note(values)
        self.record.log(update.step, values)

    def finish(self) -> None:
        """The run is over: what it amounts to is drawn, written and said."""
        if not self.begun or self.closed:
            return
        self.closed, step = True, self._run.step
        self.flush()
        lost = "" if finite(self.bench.model) else self._lost or "a weight is no longer finite"
        if lost:
            self.tracker.diverged(step)
        losses = self.tracker.losses
        summary = outcome_of(self, steps=step, reason=lost) | {
            "edge_lr": None,
            "rate": "learning rate",
            "loss_unit": loss_name(self.bench),
            "title": title(self),
            "first_loss": self.ends[0] if self.ends else None,
            "last_loss": self.ends[-1] if self.ends else None,
        }
        if any(map(math.isnan, losses)):
            summary["loss_rises"] = None
        self.record.close(summary)

    def state_dict(self) -> dict[str, Any]:
        """As `ProbeCallback.state_dict`, and how far the run is."""
        self.flush()
        own = {"step": self._run.step, "measured": self._measured, "ends": self.ends}
        return own | {"next_loss": self._next_loss, "any_given": self._curves.any_given} | super().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back, before the run begins."""
        if self.begun and not self.closed:
            raise SettingError("watch.load_state_dict after the first step: load the state before the loop")
        super().load_state_dict(state)
        self._loaded, self.ends = dict(state), list(state.get("ends", []))
        self._next_loss, self._curves.any_given = state.get("next_loss"), state.get("any_given", False)

    def _log(self, loggers: Sequence[Logger], step: int, values: Mapping[str, Any]) -> None:
        super()._log([*loggers, *self.record.loggers], step, values)


def loss_now(bench: Bench, say: Callable[[str], object], known: float | None = None) -> float | None:
    """The loss on the probe set, which may be `known` from a measurement; None, and a line, where it cannot be had: training
    goes on whatever it raises.
    """
    if known is not None:
        return known
    devices = [p.device for p in bench.model.parameters() if p.device.type == "cuda"][:1]
    try:
        with torch.random.fork_rng(devices):
            return float(bench.objective("auto").value(weights(bench.model)))
    except Exception as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        say(f"train/loss is not known, for none is given and that on the probe set cannot be had ({cause})")
        return None


def standing(watching: Watching) -> str:
    """Loss, lambda / threshold and phase, as far as they are known."""
    watching.flush()
    tracker, ends = watching.tracker, watching.ends
    loss = f"loss {ends[-1]:.4g}" if ends else ""
    ratio = f"lambda/threshold {decimals(tracker.ratio, 3)}" if tracker.ratios else ""
    return "  ".join(filter(None, (loss, ratio, str(tracker.phase or ""))))


def title(watching: Watching) -> str:
    """What the run is called in its figure."""
    folder, bench = watching.record.folder, watching.bench
    made = [name_of(bare_model(bench.model)), *(name_of(one) for one in bench.optimizers or [])]
    return ", ".join([*([] if folder is None else [folder.path.name]), *made])
