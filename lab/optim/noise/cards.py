"""Which noise and how much: one card each (`lab.optim.noise.base`)."""

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lab.curvature.operators import hessian
from lab.curvature.trace import gauss_newton_trace, hessian_trace
from lab.noise import injection
from lab.optim.noise.base import FromExamples, NoiseCard, Positive, SizedNoise, Trained, refuse_batch_norm
from lab.optim.noise.draw import Batch, Draw, GradientNoise, batch_loss
from lab.optim.optimizers import Sgd
from lab.settings import SettingError, settings

TRACE_TOL = 0.02
"""Wanted error of Tr |H|, relative."""


@settings()
class Isotropic(SizedNoise):
    """The same in every direction: covariance trace/P 1; with equivalent_batch_size trace = Tr D/m, exactly.

    With trace it is Gaussian; else as long as a noise of covariance D/m, in a direction uniform on the sphere.
    """

    name: ClassVar[str] = "isotropic"

    def draw(self, batch: Batch, params: Sequence[Tensor]) -> Draw:
        size = sum(p.numel() for p in params)
        if self.trace is not None:
            n = math.sqrt(self.trace / size) * injection.gaussian(size, params[0].detach(), batch.generator)
            return Draw(params, shape=lambda _: n)

        def shape(n: Tensor | None) -> Tensor:
            assert n is not None
            return injection.isotropic(float(n.double().norm()), size, n, batch.generator)

        return Draw(params, self.sampled(batch, injection.sample_weights), shape)


@settings()
class Diagonal(FromExamples):
    """Covariance diag(D)/m exactly, D the covariance of the gradients of single examples (centred).

    Made of a noise of covariance D/m with random signs.
    """

    name: ClassVar[str] = "diagonal"

    def draw(self, batch: Batch, params: Sequence[Tensor]) -> Draw:
        def shape(n: Tensor | None) -> Tensor:
            assert n is not None
            return injection.signs(n, batch.generator)

        return Draw(params, self.sampled(batch, injection.sample_weights), shape)


@settings()
class Minibatch(FromExamples):
    """g_B - g of a batch of m drawn with replacement: covariance D/m exactly, with the tails of mini-batches."""

    name: ClassVar[str] = "minibatch"

    def draw(self, batch: Batch, params: Sequence[Tensor]) -> Draw:
        return Draw(params, self.sampled(batch, injection.minibatch))


@settings()
class HalfDifference(FromExamples):
    """(g_B - g_B')/sqrt 2 of two batches of m drawn with replacement: covariance D/m exactly, symmetric."""

    name: ClassVar[str] = "half_difference"

    def draw(self, batch: Batch, params: Sequence[Tensor]) -> Draw:
        return Draw(params, self.sampled(batch, injection.half_difference))


@settings()
class SampleWeights(FromExamples):
    """Centred Gaussian weights on the losses of the examples: Gaussian noise of covariance D/m, in one backward pass."""

    name: ClassVar[str] = "sample_weights"

    def draw(self, batch: Batch, params: Sequence[Tensor]) -> Draw:
        return Draw(params, self.sampled(batch, injection.sample_weights))


@settings()
class FisherNoise(SizedNoise):
    """Gradients at labels drawn from the model: covariance F/m exactly, F the true Fisher. With trace: F scaled to it.

    F = (1/N) sum of J_i' S_i J_i is c times the generalised Gauss-Newton matrix, c = 1 for one label an example
    (`lab.noise.information`); it knows nothing of the labels in the data. BatchNorm with the statistics of the batch.
    """

    name: ClassVar[str] = "fisher"

    @property
    def examples_needed(self) -> bool:
        return False

    def require(self, noise: GradientNoise, trained: Trained) -> None:
        super().require(noise, trained)
        if self.trace is not None:
            refuse_batch_norm(trained.model, "noise.trace of optimizer/noise=fisher")
        noise.likelihood()

    def draw(self, batch: Batch, params: Sequence[Tensor]) -> Draw:
        m: float = self.equivalent_batch_size or 0
        if self.trace is not None:
            with batch.unmixed():
                m = batch.likelihood().scale * gauss_newton_trace(batch.loss(), batch.w).value / self.trace
        scale = 1 / math.sqrt(batch.size * m) if m > 0 else 0.0  # F = 0: there is no noise

        def slopes(outputs: Tensor, slope: Tensor, part: slice) -> Tensor:
            f = outputs.reshape(len(outputs), -1).double()
            return (scale * batch.likelihood().sampled_scores(f, batch.generator)).reshape(outputs.shape)

        return Draw(params, slopes)


@settings()
class HessianSqrt(SizedNoise):
    """|H|^1/2 z by Lanczos: covariance |H| scaled to the trace (within about 2 %), or with equivalent_batch_size to Tr D/m.

    H is the Hessian of the batch in use, |lambda| taken along directions of negative curvature; H z would have the
    covariance H^2. Tr|H| takes as many products as the root, for each of 4 to 16 vectors; with no more weights than
    max_matvecs both are exact.
    """

    name: ClassVar[str] = "hessian_sqrt"
    tol: Annotated[float, Field(gt=0, lt=1, description="wanted error of |H|^1/2 z, relative to its norm")] = 0.05
    max_matvecs: Annotated[
        int, Field(gt=0, strict=True, description="Hessian products a step at most for it; Tr|H| takes more")
    ] = 100

    def require(self, noise: GradientNoise, trained: Trained) -> None:
        super().require(noise, trained)
        if any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in trained.model.modules()):
            raise SettingError(
                "optimizer/noise=hessian_sqrt: dropout makes the Hessian another one at every look; turn it off"
            )
        few = trained.data[0][:8], trained.data[1][:8]
        objective = batch_loss(trained.model, trained.criterion, *few)
        hessian(objective, objective.weights)  # says where there is no second derivative

    def draw(self, batch: Batch, params: Sequence[Tensor]) -> Draw:
        z = injection.gaussian(sum(p.numel() for p in params), params[0].detach(), batch.generator)
        sampled = self.sampled(batch, injection.sample_weights) if self.trace is None else None

        def shape(n: Tensor | None) -> Tensor:
            with batch.unmixed():
                root, total = self.root(batch, z)
            length = math.sqrt(self.trace) if self.trace is not None else 0.0
            if n is not None:
                length = float(n.double().norm())
            return root * (length / math.sqrt(total)) if total > 0 else torch.zeros_like(z)

        return Draw(params, sampled, shape)

    def root(self, batch: Batch, z: Tensor) -> tuple[Tensor, float]:
        """|H|^1/2 z and Tr|H|, from vectors of its own: with z the noise would be weak wherever z is large."""
        objective = batch.loss()
        H = hessian(objective, batch.w)
        if H.size <= self.max_matvecs:
            dense = H.dense()
            values, vectors = torch.linalg.eigh((dense + dense.T) / 2)
            return vectors @ (values.abs().sqrt() * (vectors.T @ z)), float(values.abs().sum())
        root = injection.absolute_root(H, z, tol=self.tol, max_matvecs=self.max_matvecs)
        trace = hessian_trace(objective, batch.w, tol=TRACE_TOL, generator=batch.generator).value
        total = injection.absolute_trace(H, trace, batch.generator, tol=TRACE_TOL, max_matvecs=self.max_matvecs)
        return root.vector, total


@settings()
class Sgld(NoiseCard):
    """Langevin dynamics (SGLD): covariance 2T/lr 1, so that plain gradient descent samples exp(-L/T) for small lr.

    Welling and Teh (2011): w <- w - lr g + sqrt(2 lr T) z. L is the loss with its weight decay, and there is no other
    prior. At curvature h the variance is 2T/(h (2 - lr h)), exactly, and not T/h.
    """

    name: ClassVar[str] = "sgld"
    temperature: Annotated[
        Positive | None,
        Field(description="T, in the unit of the loss; 1/(examples) is the posterior, no prior but weight decay"),
    ] = None

    def check(self) -> None:
        if self.temperature is None:
            raise SettingError("optimizer/noise=sgld needs noise.temperature, e.g. 1e-5 (in the unit of the loss)")

    def require(self, noise: GradientNoise, trained: Trained) -> None:
        if not isinstance(trained.optimizer, Sgd) or trained.optimizer.momentum:
            raise SettingError(
                "optimizer/noise=sgld is gradient descent with noise: with momentum or another optimizer the temperature is "
                "not noise.temperature; use optimizer=sgd with optimizer.momentum=0"
            )

    @property
    def described(self) -> str:
        return f"Langevin, temperature {self.temperature:g}"

    def draw(self, batch: Batch, params: Sequence[Tensor]) -> Draw:
        size = sum(p.numel() for p in params)
        assert self.temperature is not None
        scale = math.sqrt(2 * self.temperature / batch.lr) if batch.lr > 0 else 0.0  # a step of length 0 takes no noise
        n = scale * injection.gaussian(size, params[0].detach(), batch.generator)
        return Draw(params, shape=lambda _: n)
