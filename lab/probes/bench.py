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

from lab.data.base import class_balanced
from lab.objective import NetworkObjective, at_least_single
from lab.optim.live import Live
from lab.params import flatten, trainable, weights
from lab.probes.attempt import Failure, attempt, joined
from lab.probes.audited import Audited
from lab.probes.base import Examples, Plan, Probe, Snapshot, Value
from lab.probes.nested import Nested, nested
from lab.run.signals import cut_off
from lab.sampling import SAMPLINGS, Sampling
from lab.settings import SettingError
from lab.streams import stream

AUTO_ALL, AUTO_EXAMPLES = 5000, 2000
"""A probe set of size "auto" has all of a training set of up to the first number of examples, else the second number."""


class Bench:
    """A model, its loss and its training data, measured at weights that may change between two snapshots.

    model       maps x to outputs.                criterion   (outputs, targets) -> mean loss.
    data        (x, y), the training examples as tensors; TypeError for anything else, ValueError for unequal lengths.
    optimizers  one, several, or None where the update is not known: sharpness then is held against no threshold.
    batch_norm  "train": every module in the mode it has, dropout off; "eval": all of them in eval mode.
    chunk_size  examples per chunk; None: as many as are fast, or where they see each other, as in train-mode BatchNorm,
                `batch_examples`: there it is part of the definition.
    batch_size  examples in a batch of training (None: all), drawn by `sampling`; seed that of the run.
    audit       whether the loss is held against its laws before its first number (`lab.objective.audit`).
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Tensor, Tensor], Tensor],
        data: tuple[Tensor, Tensor],
        optimizers: optim.Optimizer | Sequence[optim.Optimizer] | None = None,
        *,
        batch_norm: Literal["train", "eval"] = "train",
        chunk_size: int | None = None,
        batch_size: int | None = None,
        sampling: Sampling = "epoch",
        seed: int = 0,
        audit: bool = True,
    ):
        self.model, self.criterion, self.data = model, criterion, _pair(data)
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
        self.objectives: dict[Examples, NetworkObjective] = {}
        self.live, self.audited = Live(), Audited(wanted=audit, seed=seed)

    def place(self, device: torch.device | str, dtype: torch.dtype) -> None:
        """Bring the data to the device, and where they are real numbers to the precision, of the model."""
        x, y = self.data
        x = x.to(device, dtype) if x.is_floating_point() else x.to(device)
        self.data = x, y.to(device)
        self.objectives.clear()

    def objective(self, examples: Examples) -> NetworkObjective:
        """The loss on the fixed, class-balanced probe set of a size; built once. Raises SettingError as `class_balanced`."""
        if examples not in self.objectives:
            if isinstance(examples, Nested):
                self.objectives[examples] = nested(self.objective("auto"), examples, self.seed)
            else:
                self.objectives[examples] = self._loss(probe_set(self.data, examples, self.seed))
        return self.objectives[examples]

    def require(self, probes: Iterable[Probe]) -> None:
        """Raise SettingError, one line, for a measurement that model, data and settings cannot give."""
        for probe in probes:
            if not isinstance(probe, Probe):
                continue  # somebody's own, which demands nothing
            probe.require(Plan(self.model, len(self.data[1]), self.objective, self.sampling))

    def see_together(self, examples: int | None) -> None:
        """Training sees so many examples in one forward pass."""
        self.batch_examples = examples
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
            lambda: None if batch is None else self._of(batch.to(self.data[1].device)),
            self.seed,
            batch_size=self.batch_size,
            sampling=self.sampling,
            num_train=len(self.data[1]),
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

    def _of(self, index: Tensor) -> NetworkObjective:
        return self._loss((self.data[0][index], self.data[1][index]))

    def _loss(self, data: tuple[Tensor, Tensor]) -> NetworkObjective:
        loss = NetworkObjective(
            self.model, self.criterion, data, chunk_size=self.chunk_size, batch_norm=self.batch_norm
        )
        if self.chunk_size is None and self.batch_examples is not None and loss.coupled:
            loss = loss.in_chunks(self.batch_examples)
        return loss


def probe_set(data: tuple[Tensor, Tensor], examples: Examples, seed: int) -> tuple[Tensor, Tensor]:
    """`examples` of the training examples (x, y), chosen by the seed of the run; where all are wanted, all in their order.

    Labels are balanced over the classes; targets that are no labels are drawn uniformly. Raises SettingError as
    `class_balanced` does.
    """
    x, y = data
    count = len(y) if examples == "all" else examples
    if examples == "auto":
        count = len(y) if len(y) <= AUTO_ALL else AUTO_EXAMPLES
    assert isinstance(count, int)
    if count >= len(y):
        return x, y
    labels = y.dim() == 1 and not y.is_floating_point()
    choose = class_balanced if labels else _any_examples
    index = choose(y.cpu(), count, stream(seed, "probe set")).to(y.device)
    return x[index], y[index]


def _any_examples(y: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` different examples of a set without class labels."""
    return torch.randperm(len(y), generator=generator)[:count]


def _pair(data: Any) -> tuple[Tensor, Tensor]:
    """The data, if they are (x, y), tensors of equal length. Raises TypeError or ValueError, one line."""
    parts = list(data) if isinstance(data, tuple | list) else []
    if len(parts) != 2 or not all(isinstance(part, Tensor) for part in parts):
        of = f" of {len(parts)}: {', '.join(type(part).__name__ for part in parts)}" if parts else ""
        raise TypeError(
            f"data is a {type(data).__name__}{of}; expected (x, y), the training examples as two tensors: "
            "dataset.tensors of a TensorDataset, torch.utils.data.default_collate(list(dataset)) of another"
        )
    x, y = parts
    if x.shape[:1] != y.shape[:1] or not x.numel():
        raise ValueError(
            f"data=(x, y) of shapes {tuple(x.shape)} and {tuple(y.shape)}; expected as many targets y as "
            "inputs x, one at least"
        )
    return x, y
