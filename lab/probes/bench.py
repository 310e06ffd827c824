"""The bench: what is measured (model, loss, data), and what the optimisers do to its weights now.

It builds every `Snapshot`: for the callback at each due step, for `lab.measure` of saved weights, and in a notebook:

    bench = Bench(model, criterion, (x, y), optimizer, batch_size=32)
    result = sharpness(bench.snapshot())
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn, optim

from lab.objective import BatchesObjective, BatchSource, NetworkObjective, Weight, at_least_single
from lab.optim.live import Live
from lab.params import flatten, trainable, weights
from lab.probes.attempt import Failure, attempt, joined
from lab.probes.audited import Audited
from lab.probes.base import Examples, Plan, Probe, Snapshot, Value
from lab.probes.probe_set import as_data, batches_set, probe_set
from lab.run.signals import cut_off
from lab.sampling import SAMPLINGS, Sampling
from lab.settings import SettingError


class Bench:
    """A model, its loss and its training data, measured at weights that may change between two snapshots.

    model       maps x to outputs.
    criterion   (outputs, targets) -> mean loss; of batches (outputs, batch) -> mean loss, or None: the model computes it.
    data        (x, y), the training examples as tensors, or batches: a list, a DataLoader, anything that can be gone through
                again and is the same every time, as of `lab.objective.BatchesObjective`, with `forward` (how the model is
                called) and `weight` ("examples", "tokens" or a function of a batch) of it. TypeError for anything else,
                ValueError for unequal lengths, a generator, and what shuffles or augments.
    optimizers  one, several, or None where the update is not known: sharpness then is held against no threshold.
    batch_norm  "train": every module in the mode it has, dropout off; "eval": all of them in eval mode.
    chunk_size  examples per chunk; None: as many as are fast, or where they see each other, as in train-mode BatchNorm,
                `batch_examples`: there it is part of the definition. Batches stay as they are.
    batch_size  examples in a batch of training (None: all), drawn by `sampling`; seed that of the run.
    audit       whether the loss is held against its laws before its first number (`lab.objective.audit`).
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Any, Any], Tensor] | None,
        data: tuple[Tensor, Tensor] | Iterable[Any],
        optimizers: optim.Optimizer | Sequence[optim.Optimizer] | None = None,
        *,
        batch_norm: Literal["train", "eval"] = "train",
        chunk_size: int | None = None,
        batch_size: int | None = None,
        sampling: Sampling = "epoch",
        seed: int = 0,
        audit: bool = True,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        weight: Weight = "examples",
    ):
        self.model, self.criterion, self.forward, self.weight = model, criterion, forward, weight
        self.data = as_data(data, described=forward is not None or weight != "examples")
        self.optimizers = [optimizers] if isinstance(optimizers, optim.Optimizer) else optimizers
        if not all(isinstance(one, optim.Optimizer) for one in self.optimizers or ()):
            raise TypeError(f"optimizers is {optimizers!r}; expected a torch.optim.Optimizer, several, or None")
        if sampling not in SAMPLINGS or (batch_size is not None and batch_size < 1):
            raise ValueError(
                f"batch_size={batch_size}, sampling={sampling!r}: expected a whole number of at least 1, or None, and one "
                f"of {', '.join(SAMPLINGS)}"
            )
        self.batch_norm, self.chunk_size, self.batch_examples = batch_norm, chunk_size, batch_size
        self.batch_size, self.sampling, self.seed = batch_size, sampling, seed
        self.objectives: dict[Examples, NetworkObjective | BatchesObjective] = {}
        self.live, self.audited = Live(), Audited(wanted=audit, seed=seed)

    @property
    def num_train(self) -> int:
        """Training examples; 0 where the batches do not tell."""
        if isinstance(self.data, BatchSource):
            return self.data.num_examples or 0
        return len(self.data[1])

    def place(self, device: torch.device | str, dtype: torch.dtype) -> None:
        """Bring the data to the device, and where they are real numbers to the precision, of the model. Batches are brought
        one at a time, when they are needed.
        """
        if not isinstance(self.data, BatchSource):
            x, y = self.data
            x = x.to(device, dtype) if x.is_floating_point() else x.to(device)
            self.data = x, y.to(device)
        self.objectives.clear()

    def objective(self, examples: Examples) -> NetworkObjective | BatchesObjective:
        """The loss on the fixed, class-balanced probe set of a size; built once. Raises SettingError as `probe_set`, and
        `batches_set`, in which classes are not balanced.
        """
        if examples not in self.objectives:
            if not isinstance(self.data, BatchSource):
                self.objectives[examples] = self._loss(probe_set(self.data, examples, self.seed))
            elif examples == "all":
                self.objectives[examples] = self._of_batches(self.data)
            else:
                whole = self.objective("all")
                assert isinstance(whole, BatchesObjective)
                self.objectives[examples] = batches_set(whole, examples, self.seed)
        return self.objectives[examples]

    def require(self, probes: Iterable[Probe]) -> None:
        """Raise SettingError, one line, for a measurement that model, data and settings cannot give."""
        for probe in probes:
            if not isinstance(probe, Probe):
                continue  # somebody's own, which demands nothing
            probe.require(Plan(self.model, self.num_train, self.objective, self.sampling))

    def see_together(self, examples: int | None) -> None:
        """Training sees so many examples in one forward pass; batches have sizes of their own."""
        self.batch_examples = examples
        if not isinstance(self.data, BatchSource):
            self.objectives.clear()

    def follow(self) -> bool:
        """Look which weights are trained and move now, and forget what is known of others. Whether there are others."""
        if not all(a is b for a, b in itertools.zip_longest(trainable(self.model), self.live.params)):
            self.objectives.clear()

        def gradient() -> Tensor:
            try:
                return self.objective("auto").grad(weights(self.model))
            except Exception:  # the probes will meet it, and say so
                return torch.ones(sum(p.numel() for p in trainable(self.model)))

        return self.live.follow(self.model, self.optimizers, gradient)

    def snapshot(self, step: int = 0, *, batch: Tensor | None = None, ended: bool = False) -> Snapshot:
        """The state before update `step`, at the present weights, whose mini-batch has the examples `batch` (m,)."""
        self.follow()
        if not self.live.params:
            raise SettingError("no weight of the model is trainable (requires_grad): there is nothing to measure")
        return self.still(step, batch=batch, ended=ended)

    def still(self, step: int, *, batch: Tensor | None = None, ended: bool = False) -> Snapshot:
        """`snapshot` of what was followed last."""
        live = self.live
        return Snapshot(
            step,
            at_least_single(flatten(live.params)),
            lambda examples: self.audited(self.objective(examples)),
            live.rule,
            lambda: None if batch is None else self._of(batch),
            self.seed,
            batch_size=self.batch_size,
            sampling=self.sampling,
            num_train=self.num_train or None,
            direction=live.direction,
            replicate=live.replicate,
            ended=ended,
            require=lambda probe: self.require([probe]),
        )

    def measure(
        self,
        probes: Sequence[Probe],
        snapshot: Snapshot,
        around: Callable[[Probe], AbstractContextManager[Any]] = lambda probe: nullcontext(),
    ) -> tuple[dict[str, Value], list[Failure]]:
        """What the probes measure, by tag, each inside around(probe); and those that failed.

        Where SIGTERM cuts it off their memories are those before: the snapshot is measured again.
        """
        memories = [probe.state_dict() for probe in probes]
        values, failures = dict[str, Value](), list[Failure]()
        try:
            with cut_off():
                for probe in probes:
                    with around(probe):
                        one = attempt(probe, snapshot, self)
                    if isinstance(one, Failure):
                        failures.append(one)
                    else:
                        values = joined(values, one, probe.name)
        except BaseException:
            for probe, memory in zip(probes, memories, strict=True):
                probe.load_state_dict(memory)
            raise
        return values, failures

    def _of(self, index: Tensor) -> NetworkObjective | BatchesObjective:
        if isinstance(self.data, BatchSource):
            return self._of_batches(self.data).restrict(index)
        x, y = self.data
        index = index.to(y.device)
        return self._loss((x[index], y[index]))

    def _of_batches(self, source: BatchSource) -> BatchesObjective:
        how = {"forward": self.forward, "weight": self.weight, "batch_norm": self.batch_norm}
        return BatchesObjective(self.model, self.criterion, source, **how)  # type: ignore[arg-type]

    def _loss(self, data: tuple[Tensor, Tensor]) -> NetworkObjective:
        if self.criterion is None:
            raise SettingError("criterion=None is of batches, whose model computes the loss itself; data is (x, y)")
        loss = NetworkObjective(
            self.model, self.criterion, data, chunk_size=self.chunk_size, batch_norm=self.batch_norm
        )
        if self.chunk_size is None and self.batch_examples is not None and loss.coupled:
            loss = loss.in_chunks(self.batch_examples)
        return loss
