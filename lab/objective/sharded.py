"""The loss over the examples of several processes: `Sharded`."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, distributed

from lab.objective.base import Objective
from lab.objective.batches import BatchesObjective
from lab.objective.network import NetworkObjective


class Sharded(Objective):
    """The loss over the examples of all processes of `torch.distributed`, each of which holds its own `local` objective.

        L(w) = sum over processes of n_local / n * L_local(w), n the examples, or the weights of batches

    Every sum over parts is added up over the processes of `group` (default: all), so value, gradient, Hessian and
    Gauss-Newton products are the same number, bit for bit, in every process, and a solver runs in all of them in step.
    Laws of use: every process calls the same methods in the same order with the same w. Per-example gradients and
    mini-batches are those of `local`. Raises TypeError where `local` is no mean over examples, ValueError where its
    criterion is no mean or no process group was set up. Cost: one all-reduce of P numbers per gradient or product.
    """

    def __init__(self, local: Objective, *, group: "distributed.ProcessGroup | None" = None):
        if local.num_examples is None:
            raise TypeError(f"{type(local).__name__} is no mean over examples: there is nothing to share out")
        if not (distributed.is_available() and distributed.is_initialized()):
            raise ValueError("no process group; call torch.distributed.init_process_group first")
        self.local, self.group = local, group
        self.num_params = local.num_params
        device = local.x.device if isinstance(local, NetworkObjective) else torch.device("cpu")
        weight = sum(local.weights_of_batches) if isinstance(local, BatchesObjective) else local.num_examples
        counts = torch.tensor([local.num_examples, weight], dtype=torch.float64, device=device)
        examples, total = self.reduce(counts).tolist()
        self.num_examples, self.share = int(examples), weight / total
        if self.share < 1 and isinstance(local, NetworkObjective):
            local.require_mean()

    def parts(self, w: Tensor) -> Iterator[tuple[float, Tensor]]:
        """The parts of this process, with their weights in the whole: over all processes these sum to 1."""
        for weight, loss in self.local.parts(w):
            yield self.share * weight, loss

    def composition(self, w: Tensor) -> Iterator[tuple[float, Tensor, Callable[[Tensor], Tensor]]]:
        """As `parts`: those of this process."""
        for weight, outputs, loss in self.local.composition(w):
            yield self.share * weight, outputs, loss

    def third(self, w: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """As `Objective.third`; what `local` refuses is refused."""
        return self.reduce(self.share * self.local.third(w, u, v))

    def graph_bytes(self, w: Tensor) -> int:
        return self.local.graph_bytes(w)

    def slope(self, f: Tensor, leaf: Tensor, along: Tensor | None = None) -> Tensor:
        return self.local.slope(f, leaf, along)

    def reduce(self, total: Tensor) -> Tensor:
        total = self.local.reduce(total).contiguous().clone()
        distributed.all_reduce(total, group=self.group)
        return total
