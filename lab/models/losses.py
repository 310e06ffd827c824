"""The losses: outputs f (B, K), labels y (B,) int64 -> a scalar, the MEAN over examples, in the dtype of the outputs.

    cross_entropy   -log softmax(f)_y   (with label smoothing s the target is (1 - s) onehot + s/K)
    mse             1/2 sum_k (f_k - onehot_k)^2

Of sequences, outputs (B, T, K) and labels (B, T), the mean is over all places: classes come last. For real targets (B, ...)
mse is 1/2 sum_k (f_k - y_k)^2 over the numbers of an example, mean over examples; cross_entropy has no meaning.

The mse is that of Cohen et al. (2021), arXiv:2103.00065: summed over classes and halved. `torch.nn.MSELoss` averages
over classes instead and is 2/K times this one; so are its gradients and sharpness, which moves every threshold.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from lab.settings import SettingError, settings

Criterion = Callable[[Tensor, Tensor], Tensor]


@settings()
class CrossEntropy:
    """Cross-entropy of the softmax, in nats, mean over examples."""

    unit: ClassVar[str] = "cross entropy"
    label_smoothing: Annotated[float, Field(ge=0, lt=1, description="share of the target given to all classes")] = 0.0

    def build(self, num_classes: int | None) -> Criterion:
        """The criterion; `num_classes` is K of the data, None for real targets, which raise SettingError.

        >>> CrossEntropy().build(4)(torch.zeros(1, 4), torch.tensor([0]))  # log 4
        tensor(1.3863)
        """
        if num_classes is None:
            raise SettingError(
                "loss=cross_entropy needs class labels, and the targets of the data are real numbers; use loss=mse, or save "
                "labels as whole numbers"
            )
        return CrossEntropyCriterion(self.label_smoothing)


@settings()
class MeanSquaredError:
    """1/2 sum over classes (f - onehot)^2, mean over examples (Cohen et al. 2021); torch.nn.MSELoss is 2/K times this."""

    unit: ClassVar[str] = "half squared error"

    def build(self, num_classes: int | None) -> Criterion:
        """The criterion; `num_classes` is K of the data, None for real targets."""
        return SquaredErrorCriterion() if num_classes is None else MeanSquaredErrorCriterion(num_classes)


@dataclasses.dataclass(frozen=True)
class CrossEntropyCriterion:
    """Mean over examples of the cross-entropy, targets (1 - label_smoothing) onehot + label_smoothing / K."""

    label_smoothing: float

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if labels.dim() > 1:  # torch has the classes second
            outputs, labels = outputs.flatten(0, -2), labels.flatten()
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


@dataclasses.dataclass(frozen=True)
class SquaredErrorCriterion:
    """Mean over examples of 1/2 |f - y|^2, summed over all numbers of an example, for real targets y (B, ...).

    Raises ValueError where an example has other numbers of outputs and targets: nothing is broadcast.

    >>> SquaredErrorCriterion()(torch.tensor([[3.0], [1.0]]), torch.tensor([0.0, 1.0]))  # (3^2 + 0^2) / 2 / 2
    tensor(2.2500)
    """

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        f, y = outputs.reshape(len(targets), -1), targets.reshape(len(targets), -1)
        if f.shape != y.shape:
            raise ValueError(f"{f.shape[1]} outputs of an example against {y.shape[1]} targets")
        return 0.5 * (f - y).square().sum(-1).mean()


def hits(outputs: Tensor, labels: Tensor) -> Tensor | None:
    """How many labels are those of the largest output, a scalar: outputs (B, K) and labels (B,), or (B, T, K) and (B, T).

    None where there are no classes to be right about: real targets, one output (a logit), or outputs of other shapes.

    >>> hits(torch.tensor([[3.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0])), hits(torch.ones(2, 1), torch.tensor([0, 0]))
    (tensor(1), None)
    """
    if labels.is_floating_point() or outputs.shape[:-1] != labels.shape or outputs.dim() < 2 or outputs.shape[-1] < 2:
        return None
    return (outputs.argmax(-1) == labels).sum()
