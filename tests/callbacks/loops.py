"""A training loop as people write it, with and without `lab.watch`, and what is true of it by dense linear algebra."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.func import functional_call

import lab
from lab.callbacks.watch import Watch
from lab.probes.sharpness import Sharpness

Loss = nn.functional.cross_entropy
BATCH = 8


def network(*, norm: bool = True) -> nn.Sequential:
    torch.manual_seed(1)
    middle = [nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2)] if norm else [nn.Tanh()]
    return nn.Sequential(nn.Linear(5, 6), *middle, nn.Linear(6, 3))


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 5, generator=generator)
    return x, (x[:, :3] + 0.5 * torch.randn(32, 3, generator=generator)).argmax(1)


def batches(steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Mini-batches by the global generator, as a shuffling loader draws them."""
    x, y = data()
    for _ in range(steps):
        chosen = torch.randperm(len(y))[:BATCH]
        yield x[chosen], y[chosen]


OPTIMIZERS: dict[str, Callable[[nn.Module], optim.Optimizer]] = {
    "momentum": lambda model: optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "adam": lambda model: optim.Adam(model.parameters(), lr=0.01),
}


class Training:
    """Model, optimiser and schedule; `run` makes steps by one of the ways in which a block may stand."""

    def __init__(self, kind: str = "momentum", *, norm: bool = True):
        self.model = network(norm=norm)
        self.optimizer = OPTIMIZERS[kind](self.model)
        self.schedule = optim.lr_scheduler.ExponentialLR(self.optimizer, 0.97)
        self.weights = list[Tensor]()  # before every update
        torch.manual_seed(7)

    def watch(self, every: int = 3, **settings: Any) -> Watch:
        probes = settings.pop("probes", [Sharpness(every=every)])
        return lab.watch(self.model, Loss, data(), self.optimizer, probes=probes, **({"batch_size": BATCH} | settings))

    def run(self, steps: int, watch: Watch | None = None, form: str = "update") -> None:
        for x, y in batches(steps):
            with self._block(watch, form == "body"):
                self.optimizer.zero_grad()
                loss = Loss(self.model(x), y)
                loss.backward()
                if watch is not None and form == "body":
                    watch.log({"train/loss": loss})
                self.weights.append(torch.cat([p.detach().flatten().clone() for p in self.model.parameters()]))
                with self._block(watch, form == "update", loss):
                    self.optimizer.step()
                self.schedule.step()

    def _block(self, watch: Watch | None, here: bool, *loss: Tensor) -> AbstractContextManager[None]:
        return nullcontext() if watch is None or not here else watch.step(*loss)

    def state(self) -> list[Any]:
        """All that training goes on from: weights, buffers, the optimiser's state, random numbers."""
        moments = [tensor for entry in self.optimizer.state.values() for tensor in entry.values()]
        tensors = [*self.model.state_dict().values(), *(m for m in moments if isinstance(m, Tensor))]
        return [*(t.detach().clone() for t in tensors), torch.get_rng_state()]


def same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def dense_sharpness(model: nn.Module, w: Tensor) -> float:
    """lambda_max of the dense float64 Hessian of the loss on all data at w, in the mode that the model has."""
    named = dict(model.named_parameters())
    x, y = data()

    def loss(w: Tensor) -> Tensor:
        pieces = w.split([p.numel() for p in named.values()])
        tensors = {name: piece.view_as(p) for (name, p), piece in zip(named.items(), pieces, strict=True)}
        return Loss(functional_call(model, tensors, (x.double(),)), y)

    return float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, w.double()))[-1])
