"""A Lightning project as people write them, with any optimisers, and what is true of it by dense float64 linear algebra."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn, optim
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from lab.callbacks import ProbeCallback
from lab.probes import Sharpness

Loss = nn.functional.cross_entropy
Make = Callable[["Project"], optim.Optimizer | Sequence[optim.Optimizer]]


class Project(pl.LightningModule):
    """A net and an auxiliary head that the loss does not use; manual optimisation where there are several optimisers."""

    def __init__(self, make: Make, *, manual: bool = False):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
        self.aux = nn.Linear(7, 2).double()
        self.make, self.automatic_optimization = make, not manual

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor | None:
        loss = Loss(self(batch[0]), batch[1])
        if self.automatic_optimization:
            return loss
        optimizers: Any = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss + self.aux.weight.square().mean())
        for optimizer in optimizers:
            optimizer.step()
        return None

    def configure_optimizers(self) -> Any:
        return self.make(self)


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 5, generator=generator, dtype=torch.float64)
    return x, (x @ torch.randn(5, 3, generator=generator, dtype=torch.float64)).argmax(1)


EVERY = 12
"""The rhythm of `fit`: a dense Hessian at the other steps would be held against nothing."""


class Truth(pl.Callback):
    """What the ratio is before updates that `fit` measures at, and at the end: p_i edge_i of a weight's holder, dense H."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.ratios = module, dict[int, float]()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step % EVERY == 0:
            self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with torch.enable_grad():
            self.ratios[trainer.global_step] = ratio(self.module, trainer.optimizers)


class Gradients(pl.Callback):
    """The gradient of every step, before it is clipped."""

    def __init__(self) -> None:
        self.gradients = list[Tensor]()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: optim.Optimizer) -> None:
        params = (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None)
        self.gradients.append(torch.cat([p.grad.flatten().clone() for p in params]))  # type: ignore[union-attr]


def ratio(module: nn.Module, optimizers: Sequence[optim.Optimizer]) -> float:
    """lambda_max(S^-1/2 H S^-1/2) over the weights that move, S = p edge; NaN before the first update of an adaptive one."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    scale = torch.cat([_scale(p, optimizers) for p in named.values()])
    w, sizes = torch.cat([p.detach().flatten() for p in named.values()]), [p.numel() for p in named.values()]

    def loss(w: Tensor) -> Tensor:
        tensors = {name: piece.view_as(named[name]) for name, piece in zip(named, w.split(sizes), strict=True)}
        return Loss(functional_call(module, tensors, (data()[0],)), data()[1])

    leaf = w.requires_grad_()
    (g,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    H = torch.stack([torch.autograd.grad(entry, leaf, retain_graph=True)[0] for entry in g])
    if bool((scale.isnan() & (g != 0)).any()):
        return math.nan
    moves = scale < torch.inf
    S = scale[moves].rsqrt()
    return float(torch.linalg.eigvalsh(S[:, None] * H[moves][:, moves] * S)[-1])


def _scale(p: Tensor, optimizers: Sequence[optim.Optimizer]) -> Tensor:
    """p_i edge_i of the weights of one parameter: from the formulas in README, infinite where they do not move."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if any(p is q for q in group["params"]) and group["lr"] > 0:
                state, lr = optimizer.state.get(p, {}), group["lr"]
                if isinstance(optimizer, optim.SGD):
                    b = group["momentum"]
                    gain = 1 + 2 * b if group["nesterov"] else 1 - (group["dampening"] if b else 0)
                    return torch.full_like(p, (2 + 2 * b) / (gain * lr)).detach().flatten()
                if not state:
                    return torch.full_like(p, math.nan).detach().flatten()
                if isinstance(optimizer, optim.RMSprop):
                    P = state["square_avg"].sqrt() + group["eps"]
                    return (P * (2 + 2 * group["momentum"]) / lr).flatten()
                (b1, b2), t = group["betas"], float(state["step"])
                P = (1 - b1**t) * ((state["exp_avg_sq"] / (1 - b2**t)).sqrt() + group["eps"])
                decay = group["weight_decay"] if isinstance(optimizer, optim.AdamW) else 0.0
                return (P * (1 + b1) / (1 - b1) * (2 / lr - decay)).flatten()
    return torch.full_like(p, torch.inf).detach().flatten()


def fit(
    project: Project,
    *callbacks: pl.Callback,
    steps: int = 13,
    every: int = EVERY,
    model: nn.Module | None = None,
    midpoints: bool = False,
    resume: str | None = None,
    save: str | None = None,
    **trainer: Any,
) -> ProbeCallback:
    """A run of full batches, an epoch a step; every=0: without the callback."""
    (x, y), sharpness = data(), Sharpness(every=every or 1, tol=1e-8, midpoints=midpoints)
    probe = ProbeCallback([sharpness], Loss, data=(x, y), model=model)
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": -1}
    settings |= {
        "enable_model_summary": False,
        "accelerator": "cpu",
        "max_steps": steps,
        "callbacks": [*callbacks, *([probe] if every else [])],
    }
    run = pl.Trainer(**(settings | trainer))
    run.fit(project, DataLoader(TensorDataset(x, y), batch_size=len(y)), ckpt_path=resume)
    if save is not None:
        run.save_checkpoint(save)
    return probe
