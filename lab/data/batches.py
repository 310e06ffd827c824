"""Which examples make the batch of step t: a pure function of (seed, t), so a run resumed at t goes on unchanged.

epoch                 a fresh permutation each epoch, cut into disjoint batches; the ragged last batch is kept, so
                      every example is seen exactly once per epoch
with_replacement      each batch is b independent uniform draws (noise covariance C / b)
without_replacement   each batch is a fresh draw of b different examples (C / b * (N - b) / (N - 1))
"""

import torch
from torch import Tensor

from lab.data.base import BatchSize, check_batch_size
from lab.sampling import Sampling
from lab.streams import stream


class Batches:
    """The batches of a training set of `num_examples`, numbered by the step they belong to.

    `batch_size` "full" means gradient descent, the whole set in its own order, whatever the sampling; so does a size equal
    to `num_examples`, except with replacement, where that many draws are still random. Raises SettingError when a batch is
    larger than the set.

    >>> batches = Batches(10, 4, "epoch", seed=0)
    >>> epoch = [batches.index(step) for step in range(batches.steps_per_epoch)]
    >>> [len(index) for index in epoch], sorted(torch.cat(epoch).tolist()) == list(range(10))
    ([4, 4, 2], True)
    """

    def __init__(self, num_examples: int, batch_size: BatchSize, sampling: Sampling, seed: int) -> None:
        check_batch_size(batch_size, num_examples)
        self.num_examples = num_examples
        self.batch_size = num_examples if batch_size == "full" else batch_size
        self.sampling = sampling
        self.seed = seed
        self.is_full = batch_size == "full" or (self.batch_size == num_examples and sampling != "with_replacement")
        self._epoch = -1
        self._epoch_batches: tuple[Tensor, ...] = ()

    @property
    def steps_per_epoch(self) -> int:
        """ceil(N / b), also where sampling knows no epochs."""
        return -(-self.num_examples // self.batch_size)

    def index(self, step: int) -> Tensor | None:
        """Indices (b,) int64 of the batch of `step` >= 0; None for the full batch in its fixed order.

        The last batch of an epoch has N - b (steps_per_epoch - 1) examples. The tensor may be shared: do not write.
        Cost: a lookup for epochs (one permutation per epoch); otherwise 10 microseconds of stream and a draw, O(b) for
        small b.
        """
        if self.is_full:
            return None
        if self.sampling == "epoch":
            epoch, place = divmod(step, self.steps_per_epoch)
            if epoch != self._epoch:
                order = torch.randperm(self.num_examples, generator=stream(self.seed, "batches", epoch))
                self._epoch, self._epoch_batches = epoch, order.split(self.batch_size)
            return self._epoch_batches[place]
        generator = stream(self.seed, "batches", step)
        if self.sampling == "with_replacement":
            return torch.randint(self.num_examples, (self.batch_size,), generator=generator)
        return different(self.num_examples, self.batch_size, generator)


def different(num_examples: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` different indices below `num_examples`, uniform over ordered choices.

    Draws one index after another and passes over those already seen, which is exact and O(count). An index costs 40
    times its share of a permutation, so larger choices are the head of a permutation, O(num_examples).
    """
    if 40 * count > num_examples:
        return torch.randperm(num_examples, generator=generator)[:count]
    seen: dict[int, None] = {}  # a dict keeps the order of first appearance
    while len(seen) < count:
        drawn = torch.randint(num_examples, (count - len(seen),), generator=generator)
        seen.update(dict.fromkeys(drawn.tolist()))
    return torch.tensor(list(seen))
