"""Escape from saddles as an option of any optimiser: a step along the most negative curvature where the gradient is small.

Every `every` steps the gradient of the loss that training descends is computed: over all training examples, coupled weight
decay included. Where its norm is below `gradient_tol`, Lanczos finds the most negative eigenpair (warm, where the last look
ended without a step), and if it is below -`curvature_tol` the weights move along it, `lab.points.negative_curvature`, before
the ordinary update of the step, which begins there. The optimiser's momentum and averages stay as they are. Predicted and
actual drop of the loss are logged with the step. All of this is a function of (seed, step), the weights and the last
eigenvector, which is saved with a checkpoint: a resumed run goes on bit for bit.
"""

from dataclasses import dataclass as plain
from typing import Annotated, Any, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn, optim

from lab.curvature.vectors import norm
from lab.data.base import Split
from lab.models.losses import Criterion
from lab.objective import Decayed, NetworkObjective, Objective
from lab.optim.joint import Joint, Updater
from lab.optim.noise.draw import has_batch_norm
from lab.optim.rules import rule_of
from lab.params import layout, trainable, weights
from lab.points.negative_curvature import FIRST, line_search, way_down
from lab.settings import SettingError, settings
from lab.streams import stream

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
COUPLED = (optim.SGD, optim.RMSprop, optim.Adam)
"""Optimisers whose weight decay joins the gradient and hence belongs to the loss."""


class EscapeMethod(Protocol):
    """What a run asks before every update."""

    def look(self, step: int, model: nn.Module, data: Split, optimizer: Updater) -> dict[str, float]:
        """Move the weights of `model` if it is time and they stand at a saddle. What was done, by tag; {} for nothing."""

    def state_dict(self) -> dict[str, Tensor]:
        """What later steps depend on."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take it back."""


@settings()
class NegativeCurvature:
    """A step along the most negative eigenvector of the Hessian where the gradient is small: off saddles without noise."""

    gradient_tol: Annotated[
        Positive,
        Field(description="look for it where the norm of the gradient over all training examples is below this"),
    ] = 1e-2
    every: Annotated[int, Field(gt=0, description="steps between looks at that gradient")] = 10
    curvature_tol: Annotated[
        Positive, Field(description="step where the eigenvalue is below minus this (loss per unit of weight squared)")
    ] = 1e-3
    length: Annotated[
        Positive | None, Field(description="of the step, in weights; null: doubled as long as the loss falls further")
    ] = None
    tol: Annotated[float, Field(gt=0, lt=1, description="wanted error of the eigenvalue over the largest")] = 0.05
    max_matvecs: Annotated[int, Field(gt=0, description="Hessian products at most, each time")] = 50

    def build(self, model: nn.Module, criterion: Criterion, seed: int) -> "CurvatureEscape":
        """The escape of a run. Raises SettingError for a model that has no loss over all examples."""
        if has_batch_norm(model):
            raise SettingError(
                "optimizer/escape=negative_curvature cannot be had with BatchNorm, which trains on statistics of the batch: "
                "there is no one loss over all examples to escape from; use model.norm=group"
            )
        return CurvatureEscape(self, criterion, seed)


@plain
class CurvatureEscape:
    """`NegativeCurvature` in a run."""

    card: NegativeCurvature
    criterion: Criterion
    seed: int
    start: Tensor | None = None

    def look(self, step: int, model: nn.Module, data: Split, optimizer: Updater) -> dict[str, float]:
        """As `EscapeMethod.look`: negative_curvature/curvature, with a step also length, predicted_drop, actual_drop."""
        if step % self.card.every:
            return {}
        with torch.autocast(data.x.device.type, enabled=False):
            loss, w = self.loss(model, data, optimizer), weights(model)
            if not norm(loss.grad(w)) < self.card.gradient_tol:
                return {}
            return self._leave(step, model, loss, w.double())  # drops at a saddle are below the round-off of float32

    def loss(self, model: nn.Module, data: Split, optimizer: Updater) -> Objective:
        """The mean over all training examples, and the decay that joins its gradient. Raises SettingError where that differs
        between groups of parameters: it is no multiple of |w|^2 then.
        """
        loss = NetworkObjective(model, self.criterion, (data.x, data.y))
        if isinstance(optimizer, Joint) or type(optimizer) not in COUPLED:
            return loss
        decay = rule_of([optimizer], trainable(model)).coupled_decay
        if isinstance(decay, Tensor):
            told = ", ".join(f"{number:g}" for number in decay.unique().tolist())
            raise SettingError(
                f"optimizer/escape=negative_curvature: weight decays {told} in one optimiser; expected one for all"
            )
        return Decayed(loss, decay) if decay else loss

    def _leave(self, step: int, model: nn.Module, loss: Objective, w: Tensor) -> dict[str, float]:
        generator = stream(self.seed, "escape", step)
        limit = {"tol": self.card.tol, "max_matvecs": min(self.card.max_matvecs, len(w))}
        start = None
        if self.start is not None:  # and a random vector, for what has come up elsewhere
            fresh = torch.randn(len(w), 1, generator=stream(self.seed, "escape/fresh", step), dtype=w.dtype)
            start = torch.cat([self.start, fresh.to(w)], dim=1)
        down = way_down(loss, w, start=start, generator=generator, **limit)  # type: ignore[arg-type]
        self.start = down.direction[:, None]
        told = {"negative_curvature/curvature": down.curvature, "cost/negative_curvature/matvecs": float(down.matvecs)}
        if not down.curvature + down.error < -self.card.curvature_tol:
            return told
        self.start = None  # where the step leads another direction is the most negative one
        if self.card.length is None:
            length, drop, _ = line_search(loss, w, down, first=FIRST)
        else:
            length = self.card.length
            drop = down.value - float(loss.value(w + length * down.direction))
        pieces = layout(model).unflatten(w + length * down.direction)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in pieces:
                    parameter.copy_(pieces[name])
        return told | {
            "negative_curvature/length": length,
            "negative_curvature/predicted_drop": down.drop(length),
            "negative_curvature/actual_drop": drop,
        }

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.start is None else {"start": self.start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start = state.get("start")
