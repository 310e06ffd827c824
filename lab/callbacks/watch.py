"""Any loop: the probes of the lab in a training that is not the lab's, and the run folder that `lab.train` would leave.

    watch = lab.watch(model, loss_fn, (x, y), optimizer, probes=["sharpness"], folder="runs/mine")
    for xb, yb in loader:
        optimizer.zero_grad()
        loss = loss_fn(model(xb), yb)
        loss.backward()
        with watch.step(loss):
            optimizer.step()
    watch.close()

The block measures as it is entered: w is that before the update, wherever the block begins, if every update happens inside
one. Hooks on the optimisers see that it does. The same object is a callback of Lightning, `watch.hugging_face()` one of the
Trainer of Hugging Face.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn, optim
from torch.nn.modules.batchnorm import _BatchNorm

from lab.callbacks.facts import name_of
from lab.callbacks.record import Record
from lab.callbacks.updates import bare
from lab.callbacks.watched_fit import WatchedFit
from lab.objective import BatchSource, Weight
from lab.params import trainable
from lab.probes.base import Probe
from lab.run.cards import card, card_names, choices
from lab.run.underway import reason_of
from lab.sampling import Sampling
from lab.settings import SettingError

BY_BATCH = ("noise", "batch_sharpness", "batch_landscape", "linear_stability", "escape")
"""Probes whose numbers depend on how many examples a step takes."""
COUPLED = (
    "the examples of a batch see each other in BatchNorm, and the batch size of training is not known: the measured loss "
    "takes all examples of the probe set together; give lab.watch(...) batch_size"
)


class Watch(WatchedFit):
    """What `watch` returns: probes and a run folder for a plain loop, Lightning or Hugging Face.

    step(loss)    the block round an update, or round the body of the loop.
    log(values)   numbers of your own at the present step.
    close()       the end; so are that of `with lab.watch(...) as watch:` and that of the program.
    state_dict()  for a checkpoint of your own, between two blocks; load_state_dict(state) goes before the first block.
    latest        the last value of every tag; `summary()` and `tracker` as of `ProbeCallback`.
    """

    @contextmanager
    def step(self, loss: Tensor | float | None = None) -> Iterator[None]:
        """Measure what is due, before the update that is made in the block.

        loss  what backward is called on (before a GradScaler), for train/loss and the phase. A block without an update, as
              where gradients are accumulated, counts no step, and the losses of such blocks add up. Within a block
              `log({"train/loss": loss})` says the same. Without losses train/loss is that of the probe set, where one is
              measured.
        Raises SettingError within another block, and where the watch is closed or has no optimiser.
        """
        if self.closed or self.hooks is None:
            cure = (
                "is closed; lab.watch(...) begins another"
                if self.closed
                else "has no optimiser: give lab.watch(...) one"
            )
            raise SettingError(f"watch.step(): this watch {cure}")
        if not self.begun:
            self._begin_loop()
        self.hooks.begin(trainable(self.bench.model))
        try:
            if loss is not None:
                self._curves.give(loss)
            self.record.going_on()
            self.observe()
            yield
        except BaseException as error:
            self.record.stopped(reason_of(error))
            raise
        finally:
            if self.hooks.end():
                self.stepped(self.hooks.lr)
            else:
                self._curves.rest(trainable(self.bench.model))

    def close(self) -> None:
        """The end of the run: the last weights are measured, and what it amounts to is said, drawn and written."""
        if self.begun and not self.closed and not self.record.failure:
            self.look_back([])
        self.left("")

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self.close()
        else:
            self.left(reason_of(error))

    def hugging_face(self) -> Any:
        """A callback of the Trainer of Hugging Face. Raises SettingError where that is not installed."""
        try:
            from lab.callbacks.hugging_face import HuggingFaceWatch
        except ImportError as error:
            raise SettingError(
                f"watch.hugging_face() needs transformers ({error}): pip install 'edge-lab[transformers]'"
            ) from None
        self.leave_optimizers()
        return HuggingFaceWatch(self)

    def _begin_loop(self) -> None:
        """The first block of a plain loop."""
        model, vague = self.bench.model, self.batch_size is None
        if names := [probe.name for probe in self.probes if vague and probe.name in BY_BATCH]:
            raise SettingError(
                f"the probe {names[0]} depends on how many examples a step takes: give lab.watch(...) batch_size=32, or "
                '"full" for all of them'
            )
        together = vague and not isinstance(self.bench.data, BatchSource)  # batches are as they are
        if together and any(isinstance(module, _BatchNorm) and module.training for module in model.modules()):
            self.say(COUPLED)
        self.begin_counted(self._loaded.get("step", 0))
        self.record.lines = True


def watch(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor] | None,
    data: tuple[Tensor, Tensor] | Iterable[Any],
    optimizer: optim.Optimizer | Sequence[optim.Optimizer] | None = None,
    *,
    probes: Sequence[Probe | str] | Probe | str = ("sharpness",),
    folder: str | Path | None = None,
    steps: int | None = None,
    batch_size: int | Literal["full"] | None = None,
    batch_norm: Literal["train", "eval"] = "train",
    chunk_size: int | None = None,
    sampling: Sampling = "epoch",
    seed: int = 0,
    audit: bool = True,
    budget: float | str | None = "auto",
    forward: Callable[[nn.Module, Any], Any] | None = None,
    weight: Weight = "examples",
) -> Watch:
    """Measure the loss landscape in a training loop of any kind, and leave the run folder that `lab.train` would leave.

    model       what is trained.
    loss, data  the loss whose Hessian is measured, and the training examples: as `criterion` and `data` of `lab.Bench`.
                (outputs, targets) -> mean over the examples (x, y), or (outputs, batch) -> mean over batches of any kind, or
                None: the model computes it.
    optimizer   one, or several; Lightning and Hugging Face bring theirs.
    probes      cards, as Sharpness(every=9), or their names: "sharpness", "noise", "spectrum", ...
    folder      metrics.jsonl, summary.json, status.json, provenance.json, figures/, arrays/ and tensorboard/ go there; no
                checkpoints, for the model is yours. None: nothing is written, the values are in `watch.latest`.
    steps       updates of the whole run, for the time to go and the budget.
    budget      what measurements may take: a share of the training time or 10 s where that is more, "products:500", None;
                "auto" is 0.2 where the length of the run is known (`steps`, or by a trainer).
    batch_size  examples a step takes; "full": all of them, so that rises of the loss tell the phase; None: what the trainer
                says, and not known in a plain loop.
    batch_norm, chunk_size, sampling, seed, audit, forward, weight  as of `lab.Bench`.
    Training is bit-identical with and without it, and goes on whatever a probe raises. In a plain loop an update outside of
    `with watch.step():` raises SettingError before it is made. A folder that holds another run is refused by SettingError at
    the first step; one that stopped half-way is begun anew unless `watch.load_state_dict` brings its state. Two watches may
    look at one loop, each into its own folder. Where gradients are clipped, or changed in another way, between backward and
    the update of a step that is measured, threshold and phase say so (`lab.callbacks.by_hand`; of Lightning
    `lab.callbacks.clipping`).
    Raises SettingError, TypeError or ValueError, one line, for what cannot be watched.
    """
    optimizers = _optimizers(optimizer)
    _require(model, loss, folder, steps=steps, batch_size=batch_size)
    made = Watch(
        model,
        loss,
        data,
        cards_of(probes),
        Record(folder),
        total=steps,
        batch_size=batch_size,
        batch_norm=batch_norm,
        chunk_size=chunk_size,
        sampling=sampling,
        seed=seed,
        audit=audit,
        budget=budget,
        forward=forward,
        weight=weight,
    )
    if trainable(model):
        with suppress(RuntimeError):  # of the model itself: the probes will meet it, and say so
            made.bench.require(made.probes)
    if optimizers:
        made.watch_updates(optimizers)
    return made


def _optimizers(given: Any) -> list[optim.Optimizer]:
    """The torch optimisers, without wrappers. Raises SettingError for anything else."""
    several = [] if given is None else [*given] if isinstance(given, list | tuple) else [given]
    made = [bare(one) for one in several]
    for one in made:
        if not isinstance(one, optim.Optimizer):
            raise SettingError(
                f"optimizer is a {type(one).__name__}; expected a torch.optim.Optimizer, or several in a list"
            )
    return made


def _require(model: Any, loss: Any, folder: Any, *, steps: Any, batch_size: Any) -> None:
    """Raise SettingError for arguments that are of another kind."""
    if not isinstance(model, nn.Module):
        raise SettingError(f"model is a {type(model).__name__}; expected a torch.nn.Module, first of the arguments")
    if not (loss is None or callable(loss)):
        raise SettingError(f"loss is a {type(loss).__name__}; expected a function of (outputs, targets), or None")
    if not isinstance(folder, str | Path | None):
        raise SettingError(f"folder is a {type(folder).__name__}; expected a path, or None")
    if not (steps is None or (type(steps) is int and steps > 0)):
        raise SettingError(f"steps={steps!r}: expected the updates of the whole run, or None")
    if not (batch_size in (None, "full") or (type(batch_size) is int and batch_size > 0)):
        raise SettingError(f'batch_size={batch_size!r}: expected a positive number of examples, or "full"')


def cards_of(probes: Sequence[Probe | str] | Probe | str) -> list[Probe]:
    """Probes, each by its card or by the name of it with the usual settings. Raises SettingError for any other."""
    several = [probes] if isinstance(probes, str | Probe) or not isinstance(probes, Sequence) else [*probes]
    known, made = choices("probe"), list[Probe]()
    targets = {name: target for target, name in card_names().items() if target.startswith("lab.probes.")}
    for one in several:
        if isinstance(one, Probe):
            made.append(one)
            continue
        if isinstance(one, str) and one in known:
            made.append(card({"_target_": targets[one]}, f"probe.{one}"))
            continue
        name = one if isinstance(one, str) else name_of(one)
        near = difflib.get_close_matches(name.lower(), known, n=1)
        cure = f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(known)}"
        raise SettingError(f"probes: {name!r} is no probe{cure}")
    return made
