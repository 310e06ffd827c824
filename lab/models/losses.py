"""The losses: outputs f (B, K), labels y (B,) int64 -> a scalar, the MEAN over examples, in the dtype of the outputs.

    cross_entropy   -log softmax(f)_y   (with label smoothing s the target is (1 - s) onehot + s/K)
    mse             1/2 sum_k (f_k - onehot_k)^2

The mse is that of Cohen et al. (2021), arXiv:2103.00065: summed over classes and halved. `torch.nn.MSELoss` averages
over classes instead and is 2/K times this one; so are its gradients and sharpness, which moves every threshold.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from lab.settings import settings

Criterion = Callable[[Tensor, Tensor], Tensor]


@settings()
class CrossEntropy:
    """Cross-entropy of the softmax, in nats, mean over examples."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1, description="share of the target given to all classes")] = 0.0

    def build(self, num_classes: int) -> Criterion:
        """The criterion; `num_classes` is K of the data.

        >>> CrossEntropy().build(4)(torch.zeros(1, 4), torch.tensor([0]))  # log 4
        tensor(1.3863)
        """
        return CrossEntropyCriterion(self.label_smoothing)


@settings()
class MeanSquaredError:
    """1/2 sum over classes (f - onehot)^2, mean over examples (Cohen et al. 2021); torch.nn.MSELoss is 2/K times this."""

    def build(self, num_classes: int) -> Criterion:
        """The criterion; `num_classes` is K of the data."""
        return MeanSquaredErrorCriterion(num_classes)


@dataclasses.dataclass(frozen=True)
class CrossEntropyCriterion:
    """Mean over examples of the cross-entropy, targets (1 - label_smoothing) onehot + label_smoothing / K."""

    label_smoothing: float

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, labels, label_smoothing=self.label_smoothing)


@dataclasses.dataclass(frozen=True)
class MeanSquaredErrorCriterion:
    """Mean over examples of 1/2 ||f - onehot(y)||^2. Raises ValueError when outputs are not (..., num_classes).

    >>> MeanSquaredErrorCriterion(2)(torch.tensor([[3.0, 1.0]]), torch.tensor([0]))  # (2^2 + 1^2) / 2
    tensor(2.5000)
    """

    num_classes: int

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if outputs.shape[-1] != self.num_classes:
            raise ValueError(f"outputs of shape {tuple(outputs.shape)} do not end in the {self.num_classes} classes")
        # Comparing instead of one_hot: no range check that waits for the GPU, and it works under vmap.
        onehot = labels.unsqueeze(-1) == torch.arange(self.num_classes, device=labels.device)
        return 0.5 * (outputs - onehot.to(outputs.dtype)).square().sum(-1).mean()
