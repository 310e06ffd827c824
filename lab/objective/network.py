"""The loss of a network on tensors in memory, as a function of its flat parameters: `NetworkObjective`."""

import warnings
from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from lab.objective.base import at_least_single, with_gradients
from lab.objective.chunks import ChunkedNetwork
from lab.objective.criterion import refuse_sums
from lab.objective.replicas import Replicated
from lab.objective.singles import example_gradients


class NetworkObjective(ChunkedNetwork):
    """L(w) = mean over examples of criterion(model_w(x), y): the loss of a network on tensors in memory.

    model      any module; its trainable parameters, in order, are w; tied ones count once, frozen ones are constants.
               Wrappers of torch.compile, DataParallel and DistributedDataParallel are taken off, checkpointed parts are run
               plainly. In half precision it is measured in float32, with a warning.
    criterion  (outputs, targets) -> scalar, the MEAN over the examples it is given. Sum-reduced losses, class weights and
               `ignore_index` do not average to the right number over chunks and are refused (ValueError); functions
               that are no mean are refused as soon as the data are cut into chunks or single examples are asked for.
    data       (x, y), first dimension the examples.
    chunk_size examples per part; None: the largest whose graph stays within `CHUNK_BYTES` (all, where the examples of a
               chunk see each other).
    batch_norm "train": every module in the mode it has, as whoever trains it has set it, with the statistics of each chunk
               where BatchNorm is in train mode: the loss that training descends when chunk_size is the batch size; it then
               DEPENDS on chunk_size (ghost batches). "eval": every module in eval mode, BatchNorm by running statistics.
    What draws random numbers (dropout) is off in both: L is the loss of the mean network, a deterministic function of w; a
    network that draws all the same is refused. Attention runs on the plain kernel: the fused ones have no second derivative.
    Buffers, modes, `.grad` and random state of the model are left as found. A float64 w gives a float64 loss, whatever
    the dtype of the model. Works under `torch.no_grad`; `torch.inference_mode` is refused.

    >>> import torch
    >>> x, y = torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0], [2.0]])
    >>> loss = NetworkObjective(nn.Linear(1, 1, bias=False), nn.MSELoss(), (x, y))  # mean of (w x - y)^2
    >>> w = torch.ones(1)
    >>> loss.value(w), loss.grad(w), loss.hvp(w, torch.ones(1)), loss.example_grads(w).T
    (tensor(0.5000), tensor([3.]), tensor([10.]), tensor([[0., 6.]]))
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Tensor, Tensor], Tensor],
        data: tuple[Tensor, Tensor],
        *,
        chunk_size: int | None = None,
        batch_norm: Literal["eval", "train"] = "eval",
    ):
        x, y = data
        if len(x) != len(y) or len(x) == 0:
            raise ValueError(f"data has {len(x)} inputs and {len(y)} targets; expected the same number, at least one")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size={chunk_size}: expected a positive number of examples, or None")
        refuse_sums(criterion, y)
        super().__init__(model, criterion, data, batch_norm)
        self._chunk_size = chunk_size
        self._replicated = Replicated(self)
        warn_half(self.model)

    @with_gradients
    def example_grads(self, w: Tensor, index: Tensor | None = None) -> Tensor:
        """Per-example gradients (b, P), by vmap in chunks, or one by one where it cannot go. Raises ValueError where
        examples see each other, as in train-mode BatchNorm, or the criterion is no mean over examples.
        """
        self.require_single_examples()
        x, y = (self.x, self.y) if index is None else (self.x[index], self.y[index])
        size = self.chunk_size(w)
        return example_gradients(self.loss_of, w.detach(), x, y, chunk_size=size, known=self.vectorised)

    @with_gradients
    def replica_values(self, W: Tensor, index: Tensor | None = None) -> Tensor:
        """As `Objective.replica_values`, as one program where vmap can go. Coupled examples raise ValueError."""
        self._require_replicas(W)
        values = self.vectorised.attempt(lambda: self._replicated.values(W, index))
        return super().replica_values(W, index) if values is None else values

    @with_gradients
    def replica_grads(self, W: Tensor, index: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """As `Objective.replica_grads`, as one program where vmap can go, in chunks of replicas whose graphs fit
        `CHUNK_BYTES`. Coupled examples raise ValueError.
        """
        self._require_replicas(W)
        gradients = self.vectorised.attempt(lambda: self._replicated.grads(W, index, weights))
        return super().replica_grads(W, index, weights) if gradients is None else gradients

    def _require_replicas(self, W: Tensor) -> None:
        """Raise ValueError where there are no replicas, or no single examples."""
        if len(W) == 0:
            raise ValueError(f"W has shape {tuple(W.shape)}: expected at least one replica, a row of weights")
        self.require_single_examples()

    def with_running_statistics(self) -> "NetworkObjective":
        """The same loss with all modules in eval mode where BatchNorm would couple the examples; itself if it does not."""
        if not self.batch_statistics:
            return self
        return NetworkObjective(self.model, self.criterion, (self.x, self.y), batch_norm="eval")


def warn_half(model: nn.Module) -> None:
    """Warn that weights of half precision are measured in float32."""
    half = sorted(
        {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.dtype != at_least_single(p).dtype}
    )
    if half:
        warnings.warn(
            f"{type(model).__name__} has weights in {', '.join(half)}: it is measured in float32", stacklevel=3
        )
