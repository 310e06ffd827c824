"""One network at many points at once: values and gradients of R replicas as one program over their stacked weights.

    W (R, P), batches x (R, B, ...), y (R, B, ...)  ->  grad of (1/B) sum_j loss(w_r; x_rj, y_rj), all rows in one call

`torch.func.vmap` of the gradient is right at once, but its Python is most of the time of a small network. A program that
is called again and again with tensors of the same shapes is therefore recorded once (`make_fx`, then TorchScript), checked
against the unrecorded one on the numbers at hand, and run without Python from then on. What cannot be recorded runs as it
is. Buffers and frozen parameters go in as arguments: a recorded program does not keep old ones. What else a module holds
(numbers, tensors that are no buffers) is what it was when the program was recorded.
"""

import logging
import warnings
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import grad, vmap

if TYPE_CHECKING:
    from lab.objective.chunks import ChunkedNetwork

RECORD_AFTER = 3
"""Calls with the same shapes before a program is recorded: it costs a tenth of a second."""
MAX_RECORDED = 256
"""Recorded programs kept; beyond, new shapes run as they are."""

Program = Callable[..., Tensor]
log = logging.getLogger(__name__)


class Replicated:
    """The loss of `objective`, or its gradient, at every row of W (R, P). Not differentiable again."""

    def __init__(self, objective: "ChunkedNetwork") -> None:
        self.objective = objective
        self._calls: Counter[tuple[object, ...]] = Counter()
        self._recorded: dict[tuple[object, ...], Program] = {}

    def __getstate__(self) -> dict[str, object]:
        """Without the programs, which are recorded anew."""
        return self.__dict__ | {"_recorded": {}, "_calls": Counter()}

    def values(self, W: Tensor, index: Tensor | None) -> Tensor:
        """(R,) losses on the mini-batches `index` (R, B), or on all examples."""
        return self._over_chunks("value", self._loss, W, index, None)

    def grads(self, W: Tensor, index: Tensor | None, weights: Tensor | None) -> Tensor:
        """(R, P) gradients of the means, or of sum_j weights[r, j] loss_j for weights (R, B)."""
        return self._over_chunks("grad", grad(self._loss), W, index, None if weights is None else weights.to(W))

    def _over_chunks(
        self, name: str, function: Callable[..., Tensor], W: Tensor, index: Tensor | None, weights: Tensor | None
    ) -> Tensor:
        """`function` of rows of W and their batches, added up over chunks of examples, joined over chunks of replicas."""
        network, joined = self.objective, list[Tensor]()
        network.outputs(network.weights.to(W), network.x[:1])  # what is found out once cannot be under vmap
        count = len(network.x) if index is None else index.shape[1]
        columns = min(count, network.chunk_size(W[0]))
        step = network.replicas_at_once(W, columns)
        for begin in range(0, len(W), step):
            some, parts = slice(begin, begin + step), []
            for left in range(0, count, columns):
                those = slice(left, left + columns)
                chosen = None if index is None else index[some, those]
                x, y = (_taken(data, those, chosen) for data in (network.x, network.y))
                a = None if weights is None else weights[some, those]
                part = self._call(function, name, W[some], x, y, a, index is None)
                share = (min(left + columns, count) - left) / count
                parts.append(part if weights is not None or share == 1 else share * part)
            joined.append(sum(parts[1:], parts[0]))
        return joined[0] if len(joined) == 1 else torch.cat(joined)

    def _loss(self, w: Tensor, x: Tensor, y: Tensor, weights: Tensor | None, constants: list[Tensor]) -> Tensor:
        """The mean loss of one replica on one batch, or the weighted sum over its examples."""
        network = self.objective
        outputs = network.outputs(w, x, constants)
        if weights is None:
            return network.loss_at(outputs, y)
        few = outputs.unflatten(0, (len(x), -1))  # several rows an example, as of a sequence, or one
        losses = vmap(lambda f, y: network.loss_at(f, y[None]))(few, y)
        return weights @ losses

    def _call(
        self,
        function: Callable[..., Tensor],
        name: str,
        W: Tensor,
        x: Tensor,
        y: Tensor,
        weights: Tensor | None,
        shared: bool,
    ) -> Tensor:
        constants = self.objective.constants(W)
        of_batch = None if shared else 0

        def program(W: Tensor, x: Tensor, y: Tensor, *rest: Tensor) -> Tensor:
            a = None if weights is None else rest[0]
            others = list(rest if weights is None else rest[1:])
            dims = (0, of_batch, of_batch, None if a is None else 0, None)
            return vmap(function, in_dims=dims)(W, x, y, a, others)

        given = [W.detach(), x, y, *([] if weights is None else [weights]), *constants]
        key = (name, shared, weights is None, *((t.shape, t.dtype, t.device, t.stride()) for t in given))
        with torch.no_grad():
            if key in self._recorded:
                return self._recorded[key](*given)
            result = program(*given)
            self._calls[key] += 1
            if self._calls[key] == RECORD_AFTER and len(self._recorded) < MAX_RECORDED:
                recorded = _record(program, given, result)
                if recorded is not None:
                    self._recorded[key] = recorded
            return result


def _record(program: Program, given: list[Tensor], result: Tensor) -> Program | None:
    """The program without Python, or at least without vmap's, if it can be had and gives the same numbers; else None."""
    from torch.fx.experimental.proxy_tensor import make_fx

    try:
        graph = make_fx(program)(*given)
    except Exception as error:  # whatever a stranger's network does to the tracer: the plain program is right
        log.debug("the program for replicas was not recorded: %s", error)
        return None
    for recorded in (_compiled(graph, given), graph):
        if recorded is not None and _same(recorded(*given), result):
            return recorded
    return None


def _compiled(graph: Program, given: list[Tensor]) -> Program | None:
    """TorchScript: deprecated, and still the fastest executor for small tensors. None where it refuses an operation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.jit.freeze(torch.jit.trace(graph, tuple(given), check_trace=False).eval())
        except RuntimeError as error:
            log.debug("the program for replicas runs through Python: %s", error)
            return None


def _same(result: Tensor, expected: Tensor) -> bool:
    tol = torch.finfo(expected.dtype).eps ** 0.5
    return result.shape == expected.shape and torch.allclose(result, expected, rtol=tol, atol=tol, equal_nan=True)


def _taken(data: Tensor, those: slice, index: Tensor | None) -> Tensor:
    """A slice of the examples, or those of `index` (R, B) as (R, B, ...); several times faster than data[index]."""
    return data[those] if index is None else data.index_select(0, index.reshape(-1)).unflatten(0, index.shape)
