"""What every card of a noise has: its demands, held against what is trained before the run begins, and a size."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lab.models.losses import Criterion
from lab.optim.noise.draw import Batch, Draw, GradientNoise, Slopes, batch_loss, has_batch_norm
from lab.optim.optimizers import OptimizerCard
from lab.settings import SettingError, settings

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weigh = Callable[[int, float, torch.Generator, torch.dtype], Tensor]
"""(N, m, generator, dtype) -> weights a (N,) with which sum_i a_i g_i has covariance D/m."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a noise is to be added to: its settings are held against these before the run begins."""

    model: nn.Module
    criterion: Criterion
    data: tuple[Tensor, Tensor]
    batch_size: int
    optimizer: OptimizerCard


@settings()
class NoiseCard(ABC):
    """A covariance; `build` holds it against what is trained."""

    name: ClassVar[str]

    def check(self) -> None:  # noqa: B027 (no contradictions is the rule)
        """Raise SettingError, one line, for settings that contradict each other: it needs no data, so it comes first."""

    @abstractmethod
    def require(self, noise: GradientNoise, trained: Trained) -> None:
        """Raise SettingError, one line, where this noise cannot be had for what is trained."""

    @abstractmethod
    def draw(self, batch: Batch, params: Sequence[Tensor]) -> Draw:
        """The noise of one step."""

    @property
    @abstractmethod
    def described(self) -> str:
        """Which noise of which size, in words."""

    def build(self, trained: Trained, seed: int) -> GradientNoise:
        """The noise of a run. Raises SettingError as `check` and `require`."""
        self.check()
        noise = GradientNoise(self, trained.model, trained.criterion, trained.data, seed)
        try:
            self.require(noise, trained)
        except SettingError:
            raise
        except ValueError as error:
            raise SettingError(f"optimizer/noise={self.name}: {error}") from None
        return noise


@settings()
class SizedNoise(NoiseCard):
    """A noise whose size is chosen in one of two ways."""

    equivalent_batch_size: Annotated[
        Annotated[int, Field(gt=0, strict=True)] | None,
        Field(description="m, 1 to the batch in use: as large as the noise of batches of m, drawn with replacement"),
    ] = None
    trace: Annotated[
        Positive | None,
        Field(description="or (exactly one of the two): trace of its covariance, in the unit of |gradient|^2"),
    ] = None

    def check(self) -> None:
        m, trace = self.equivalent_batch_size, self.trace
        if m is None and trace is None:
            raise SettingError(
                f"optimizer/noise={self.name} needs a size: noise.equivalent_batch_size=32 (as large as that of batches "
                "of 32) or noise.trace=0.1 (trace of its covariance)"
            )
        if m is not None and trace is not None:
            raise SettingError(
                f"noise.equivalent_batch_size={m} and noise.trace={trace:g} contradict each other; set one of them to null"
            )

    def require(self, noise: GradientNoise, trained: Trained) -> None:
        m, few = self.equivalent_batch_size, trained.batch_size
        if m is not None and m > few:
            raise SettingError(
                f"noise.equivalent_batch_size={m} is larger than the {few} examples of the batch that the noise is added "
                f"to; use noise.equivalent_batch_size={few} or less, or a larger data.batch_size"
            )
        if self.examples_needed:
            if few == 1:
                raise SettingError(
                    f"optimizer/noise={self.name}: a batch of one example has no noise to imitate; use a larger "
                    "data.batch_size"
                )
            refuse_batch_norm(
                trained.model, f"optimizer/noise={self.name} of a size that gradients of single examples say"
            )
            batch_loss(trained.model, trained.criterion, *trained.data).require_mean()

    @property
    def examples_needed(self) -> bool:
        """Whether D is used, in shape or in size."""
        return self.equivalent_batch_size is not None

    @property
    def described(self) -> str:
        m = self.equivalent_batch_size
        return f"{self.name}, {f'as large as that of batches of {m}' if m is not None else f'of trace {self.trace:g}'}"

    def sampled(self, batch: Batch, weigh: Weigh) -> Slopes:
        """Slopes of a noise of covariance D/m; for a given trace m is Tr D/trace, a number of examples or a part of one."""
        m: float = self.equivalent_batch_size or 0
        if self.trace is not None:
            m = batch.example_trace() / self.trace
        if not m > 0:  # D = 0: there is no noise
            return lambda outputs, slope, part: torch.zeros_like(slope)
        dtype = torch.promote_types(batch.x.dtype, torch.float32)
        return _weighted(weigh(batch.size, m, batch.generator, dtype))


def _weighted(a: Tensor) -> Slopes:
    """The slopes behind sum_i a_i g_i: those of the mean loss of N examples, times N a_i."""
    factors = a.mul_(len(a))

    def slopes(outputs: Tensor, slope: Tensor, part: slice) -> Tensor:
        return slope * factors[part].reshape(-1, *(1,) * (slope.dim() - 1))

    return slopes


@settings()
class FromExamples(SizedNoise):
    """A noise whose shape is made of D."""

    @property
    def examples_needed(self) -> bool:
        return True


def refuse_batch_norm(model: nn.Module, what: str) -> None:
    if has_batch_norm(model):
        raise SettingError(
            f"{what} cannot be had with BatchNorm, which trains on statistics of the batch: an example has no gradient of "
            "its own; use model.norm=group"
        )
