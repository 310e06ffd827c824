"""Criteria of outputs and targets: is one the mean over the examples that it is given?"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lab.objective.base import Unsound

if TYPE_CHECKING:
    from lab.objective.function import NetworkFunction
    from lab.objective.network import NetworkObjective

CHECKED = 2**22
"""Numbers the criterion is given, at most, to see whether it is a mean over examples."""


def projection(outputs: Tensor, direction: Tensor) -> Tensor:
    """mean over examples of f_n'v_n, directions v (n, K) in place of targets: the gradient of an example is J_n'v_n.

    >>> projection(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))  # (1 + 4)/2
    tensor(2.5000)
    """
    return (outputs.reshape(len(direction), -1) * direction).sum(1).mean()


def pulled_back(network: "NetworkObjective", directions: Tensor) -> "NetworkObjective":
    """The loss (1/(N k)) sum of v_nj'f_n over directions v (N, k, M) in the space of the M outputs of an example.

    Its example n k + j has the gradient J_n'v_nj, J_n = df_n/dw. Outputs of any shape whose first dimension is the examples.
    Memory: the inputs k times.
    """
    return network.on(network.x.repeat_interleave(directions.shape[1], 0), directions.flatten(0, 1), projection)


def refuse_sums(criterion: Callable[[Tensor, Tensor], Tensor], y: Tensor) -> None:
    """A loss whose chunk values do not average to the whole is refused, never silently wrong."""
    name = type(criterion).__name__
    if getattr(criterion, "reduction", "mean") not in ("mean", "batchmean"):
        raise ValueError(f'{name} has reduction={criterion.reduction!r}; expected "mean" over examples')  # type: ignore[attr-defined]
    if getattr(criterion, "weight", None) is not None:
        raise ValueError(f"{name} has class weights: chunk means do not average to the mean; use an unweighted loss")
    ignored = getattr(criterion, "ignore_index", None)
    if ignored is not None and not y.is_floating_point() and bool((y == ignored).any()):
        raise ValueError(
            f"{name} ignores targets equal to ignore_index={ignored}: leave those examples out of the data"
        )


def require_mean(network: "NetworkFunction", x: Tensor, y: Tensor) -> None:
    """Raise Unsound unless the criterion of all targets y is the mean over uneven parts of them.

    The targets are sorted, so that parts differ in their classes: weighted and ignored targets show. A single ignored one
    makes its part NaN. The outputs are those of five examples, again and again: this costs no pass over the data.
    """
    if len(y) < 2:
        return
    with torch.no_grad():
        w = network.weights
        outputs = network.outputs(w, x[:5])
        count = min(len(y), max(2, CHECKED // max(1, outputs.numel() // len(x[:5]))))
        order = y.reshape(len(y), -1).double().sum(1).argsort()
        y = y[order[torch.linspace(0, len(order) - 1, count, device=order.device).long()]]
        few = outputs.unflatten(0, (len(x[:5]), -1))  # several rows an example, as of a sequence, or one
        f = few[torch.arange(count, device=outputs.device) % len(few)]
        whole = network.loss_at(f.flatten(0, 1), y)
        sizes = [1, (count - 2) // 2, count - 2 - (count - 2) // 2, 1]
        parts = zip(f.split(sizes), y.split(sizes), strict=True)
        losses = [(len(yi) / count, float(network.loss_at(fi.flatten(0, 1), yi))) for fi, yi in parts if len(yi)]
        split = sum(share * loss for share, loss in losses)
    if not whole.isfinite():
        return  # a diverged network tells nothing of the criterion
    size = max(abs(float(whole)), *(abs(loss) for _, loss in losses))
    if not abs(float(whole) - split) <= 1e-5 * size:
        raise Unsound(
            f"the criterion of {count} examples is {float(whole):g}, the mean over its parts {float(split):g}: it is "
            "no mean over examples (a sum, class weights, ignored targets?) and cannot be added up over chunks; use a "
            "mean, or one chunk: chunk_size=number of examples"
        )
