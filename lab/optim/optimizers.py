"""Optimisers as cards: a few checked numbers, and `build(params)` makes the torch optimiser they describe.

    sgd       v <- b v + (1 - dampening) (g + c w),    w <- w - lr v        (Nesterov: w <- w - lr (g + c w + b v))
    adam      m <- b1 m + (1 - b1) g,  nu <- b2 nu + (1 - b2) g^2,    w <- w - lr m^ / (sqrt(nu^) + eps)
    adamw     adam, and the decay taken off the weights: w <- (1 - lr d) w - ...
    rmsprop   nu <- a nu + (1 - a) g^2,  v <- b v + g / (sqrt(nu) + eps),    w <- w - lr v

m^ = m / (1 - b1^t), nu^ = nu / (1 - b2^t). Except in adamw, weight_decay c is coupled: c w joins the gradient, so what
descends is L + c/2 ||w||^2. When each of them becomes unstable: `lab/curvature/stability.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn, optim

from lab.optim.joint import Updater
from lab.settings import SettingError, settings

Rate = Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False)]
Averaging = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Betas = Annotated[
    tuple[Averaging, Averaging],
    Field(description="b1, b2: running means of the gradient and of its square, per update"),
]
Eps = Annotated[NonNegative, Field(description="added to the root mean square of the gradient, in its unit")]
Coupled = Annotated[
    NonNegative, Field(description="c: c w joins the gradient, a penalty c/2 |w|^2 (coupled; adamw has the other)")
]


@settings()
class OptimizerCard(ABC):
    """What every optimiser has: it is made of the weights of a model."""

    def check(self) -> None:  # noqa: B027 (no contradictions is the rule)
        """Raise SettingError, one line, for settings that contradict each other: it needs no data, so it comes first."""

    @abstractmethod
    def build(self, params: Iterable[Tensor]) -> optim.Optimizer:
        """The torch optimiser of `params`. Raises SettingError as `check` does.

        >>> import torch
        >>> w = torch.tensor([1.0], requires_grad=True)
        >>> w.grad = torch.tensor([4.0])
        >>> Sgd(lr=0.25, weight_decay=1.0).build([w]).step()  # 1 - 0.25 (4 + 1)
        >>> w.item()
        -0.25
        """

    def of(self, model: nn.Module) -> Updater:
        """What moves all weights of `model`. Raises SettingError as `build` does."""
        return self.build(model.parameters())


@settings()
class RatedOptimizer(OptimizerCard):
    """An optimiser whose learning rate is a setting of its card."""

    lr: Annotated[Rate, Field(description="learning rate, before the schedule")]


@settings()
class Sgd(RatedOptimizer):
    """Gradient descent; stable while the sharpness is below (2 + 2b)/lr, with Nesterov below (2 + 2b)/((1 + 2b) lr)."""

    lr: Rate = 0.1
    momentum: Annotated[Averaging, Field(description="b: 0 is plain gradient descent, 0.9 is usual")] = 0.0
    nesterov: Annotated[bool, Field(description="Nesterov's momentum; needs momentum > 0 and dampening 0")] = False
    dampening: Annotated[
        float, Field(ge=0, le=1, description="share of the gradient kept out of the momentum; needs momentum > 0")
    ] = 0.0
    weight_decay: Coupled = 0.0

    def check(self) -> None:
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise SettingError(
                "optimizer.nesterov=true needs optimizer.momentum > 0 and optimizer.dampening=0; got "
                f"momentum={self.momentum:g}, dampening={self.dampening:g}"
            )
        if self.dampening and self.momentum == 0:
            raise SettingError(
                f"optimizer.dampening={self.dampening:g} does nothing without momentum; "
                "set optimizer.momentum > 0 or optimizer.dampening=0"
            )

    def build(self, params: Iterable[Tensor]) -> optim.SGD:
        self.check()
        return optim.SGD(params, **asdict(self))


@settings()
class Adam(RatedOptimizer):
    """Adam; stable while the preconditioned sharpness is below (2 + 2 b1)/((1 - b1) lr), which is 38/lr at b1 = 0.9.

    Kingma and Ba (2015).
    """

    lr: Rate = 1e-3
    betas: Betas = (0.9, 0.999)
    eps: Eps = 1e-8
    weight_decay: Coupled = 0.0

    def build(self, params: Iterable[Tensor]) -> optim.Adam:
        return optim.Adam(params, **asdict(self))


@settings()
class AdamW(RatedOptimizer):
    """Adam with decoupled weight decay d; stable while the preconditioned sharpness is below (1 + b1)(2/lr - d)/(1 - b1).

    Loshchilov and Hutter (2019).
    """

    lr: Rate = 1e-3
    betas: Betas = (0.9, 0.999)
    eps: Eps = 1e-8
    weight_decay: Annotated[NonNegative, Field(description="d: each update takes lr d w off w (decoupled)")] = 0.01

    def build(self, params: Iterable[Tensor]) -> optim.AdamW:
        return optim.AdamW(params, **asdict(self))


@settings()
class RMSprop(RatedOptimizer):
    """RMSprop; stable while the preconditioned sharpness is below (2 + 2b)/lr.

    As torch has it: eps outside the root, momentum after the division, no bias correction.
    """

    lr: Rate = 1e-3
    alpha: Annotated[Averaging, Field(description="a: running mean of the squared gradient, per update")] = 0.99
    momentum: Annotated[Averaging, Field(description="b, of the divided gradient")] = 0.0
    eps: Eps = 1e-8
    weight_decay: Coupled = 0.0

    def build(self, params: Iterable[Tensor]) -> optim.RMSprop:
        return optim.RMSprop(params, **asdict(self))
