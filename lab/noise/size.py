"""The size of the gradient noise of one example, Tr D = mean |g_i|^2 - |g|^2, and what round-off leaves of it.

Where |g|^2 is many times Tr D the difference cancels: its round-off is that of mean |g_i|^2, and the gradients of examples
differ by little more than their own. So the gradients are then made in float64, whatever the dtype of w, and beyond that
the differences g_i - g are formed. What round-off is left is told, and zero is the least that is returned.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from lab.curvature.vectors import dots
from lab.layers.chunk import Chunk, Pieces
from lab.layers.examples import ExampleGradients
from lab.objective import Objective

T = TypeVar("T")

SAMPLED = 16
"""Examples whose g_i'g is computed for the standard error of Tr D; |g_i|^2, the larger part, is that of all."""
ROUND_OFF = 10
"""Round-off of mean |g_i|^2 - |g|^2, and of an entry of a centred Gram matrix, in units of eps mean |g_i|^2: it was 5 at
most for MLPs and convolutions, 20 to 3000 examples, float32."""
RELATIVE = 1e-3
"""Relative accuracy of the differences: below it gradients are made in float64."""


@dataclass(frozen=True)
class NoiseTrace:
    """Tr D of one example.

    value         Tr D = mean |g_i|^2 - |g|^2 of these examples, never negative, within `RELATIVE` of it or `round_off`.
    error         standard error as an estimate of (N - 1)/N times the population's, std(|g_i - g|^2) / sqrt(N), with the
                  round-off; NaN for one example.
    round_off     what arithmetic may have made of the value, which alone makes it inexact; a value below is none.
    mean_square   mean |g_i|^2.
    by_parameter  name -> the trace of that diagonal block of D, of the same accuracy; their sum is the value.
    gradient      g (P,).
    matvecs       gradients spent; method "exact", or "float64" where these were made in float64, "centred" where g_i - g
                  were formed as well ("centred, float32" if the model refuses float64).
    """

    value: float
    error: float
    round_off: float
    mean_square: float
    by_parameter: dict[str, float]
    gradient: Tensor
    matvecs: int
    method: str


def trace(objective: Objective, w: Tensor) -> NoiseTrace:
    """Tr D of one example with the gradient, right to `RELATIVE` whatever |g|^2 / Tr D, by parameter too.

    Cost: 1.2 gradients on a 3072-200-200-10 MLP, 1.4 on ResNet-20. The error rests on g_i'g of `SAMPLED` examples. Where the
    difference cancels in the dtype of w (beyond |g|^2 of some 800 Tr D in float32) the same again in float64; where it
    cancels there (10^12), or the model refuses float64, the differences g_i - g are formed, at some 10 gradients: right to
    twice the round-off of the gradients over |g_i - g|. `round_off` says how far, `method` what was done. Raises as
    `covariance`.
    """
    moments, spent = _Moments.of(objective, w), 1
    if moments.cancelled and w.dtype != torch.float64:
        moments, spent = in_double(lambda w: _Moments.of(objective, w), w) or moments, 2
    if not moments.cancelled:
        method = "exact" if spent == 1 else "float64"
        return moments.result(w, moments.differences, moments.spread, moments.round_off, spent, method)
    apart = moments.formed()
    by_parameter = {name: float(each.mean()) for name, each in apart.items()}
    size = round_off_of(math.sqrt(moments.mean_square), moments.examples.w.dtype)  # of a single gradient
    left = size * (2 * math.sqrt(math.fsum(by_parameter.values())) + size)
    spread = float(torch.stack(list(apart.values())).sum(0).std()) if len(moments.squares) > 1 else math.nan
    method = "centred" if moments.examples.w.dtype == torch.float64 else "centred, float32"
    return moments.result(w, by_parameter, spread, left, spent + 1, method)


@dataclass(frozen=True)
class _Moments:
    """One pass: |g_i|^2 by parameter, name -> (N,), g (P,), and the standard deviation of |g_i - g|^2."""

    examples: ExampleGradients
    by_parameter: dict[str, Tensor]
    gradient: Tensor
    spread: float

    @staticmethod
    def of(objective: Objective, w: Tensor) -> "_Moments":
        examples = ExampleGradients(objective, w, memory=0)
        num = examples.num_examples
        sampled = spaced(num, w.device)

        def work(chunk: Chunk) -> tuple[Pieces, Tensor, Chunk, Tensor]:
            norms, mean = chunk.moments(w.new_full((len(chunk.index),), 1 / num))
            some = torch.isin(chunk.index, sampled).nonzero()[:, 0]
            total = torch.stack(list(norms.values())).sum(0)
            return norms, examples.flat(mean), chunk.at(some), total[some]

        chunks = examples.each(work)
        squares = examples.joined([norms for norms, *_ in chunks])
        gradient = torch.stack([part for _, part, *_ in chunks]).sum(0) if len(chunks) > 1 else chunks[0][1]
        pieces = examples.layout.unflatten(gradient)
        along = torch.cat([few.along(pieces) for _, _, few, _ in chunks])
        total = torch.stack(list(squares.values())).sum(0)
        return _Moments(examples, squares, gradient, _spread(total, torch.cat([some for *_, some in chunks]), along))

    @cached_property
    def squares(self) -> Tensor:
        """|g_i|^2 (N,)."""
        return torch.stack(list(self.by_parameter.values())).sum(0)

    @property
    def mean_square(self) -> float:
        return float(self.squares.mean())

    @property
    def round_off(self) -> float:
        return round_off_of(self.mean_square, self.examples.w.dtype)

    @cached_property
    def differences(self) -> dict[str, float]:
        """mean |g_i|^2 - |g|^2 by parameter."""
        pieces = self.examples.layout.unflatten(self.gradient)
        lengths = {name: float(dots(g.reshape(1, -1), g.reshape(1, -1))) for name, g in pieces.items()}
        return {name: float(squares.mean()) - lengths[name] for name, squares in self.by_parameter.items()}

    @cached_property
    def cancelled(self) -> bool:
        """Whether one of the differences is not known to `RELATIVE`."""
        dtype, squares = self.examples.w.dtype, self.by_parameter
        return any(
            RELATIVE * value <= round_off_of(float(squares[name].mean()), dtype) and bool((squares[name] > 0).any())
            for name, value in self.differences.items()
        )

    def formed(self) -> dict[str, Tensor]:
        """|g_i - g|^2 by parameter, name -> (N,)."""
        pieces = self.examples.layout.unflatten(self.gradient)
        return self.examples.joined(self.examples.each(lambda chunk: chunk.squared_norms(pieces)))

    def result(
        self, w: Tensor, by_parameter: dict[str, float], spread: float, round_off: float, spent: int, method: str
    ) -> NoiseTrace:
        error = math.hypot(spread / math.sqrt(len(self.squares)), round_off)
        value, gradient = math.fsum(by_parameter.values()), self.gradient.to(w)
        return NoiseTrace(value, error, round_off, self.mean_square, by_parameter, gradient, spent, method)


def in_double(measure: Callable[[Tensor], T], w: Tensor) -> T | None:
    """`measure` at w in float64; None where the model, or the device, refuses it."""
    try:
        return measure(w.double())
    except (RuntimeError, TypeError, ValueError):  # the same went well in the dtype of w
        return None


def round_off_of(mean_square: float, dtype: torch.dtype) -> float:
    return ROUND_OFF * torch.finfo(dtype).eps * mean_square


def spaced(num: int, device: torch.device) -> Tensor:
    """`SAMPLED` examples at most, evenly spaced."""
    return torch.linspace(0, num - 1, min(num, SAMPLED), device=device).round().long()


def _spread(norms: Tensor, some: Tensor, along: Tensor) -> float:
    """std of |g_i - g|^2 = |g_i|^2 - 2 g_i'g + |g|^2: that of |g_i|^2 times the ratio of the two over sampled examples."""
    if len(norms) < 2:
        return math.nan
    exact, plain = (some - 2 * along).std(), some.std()
    return float(norms.std() * exact / plain if plain > 0 else exact)
