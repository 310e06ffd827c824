"""Noise around any optimiser: cards that say which and how much, and what they do to the gradient of a step.

The optimiser is handed g + n in the place of g, with n of mean 0, independent from step to step, of the covariance

    isotropic         trace/P 1                        exact
    diagonal          diag(D)/m                        exact
    minibatch         D/m, as a batch of m has it      exact
    half_difference   D/m                              exact
    sample_weights    D/m, Gaussian                    exact
    fisher            F/m                              exact
    hessian_sqrt      |H| trace/Tr|H|                  shape up to `tol`, trace up to that of Tr|H|, 2 %
    sgld              2 T/lr 1                         exact

D is the noise of one example (`lab.noise.injection`) over the N examples of the batch in use, augmented as they are; F the
true Fisher matrix over the same, of labels drawn from the model; H the Hessian. The size is said by equivalent_batch_size,
the m of D/m and F/m and trace = Tr D/m elsewhere, or by `trace`, that of the covariance in the first seven rows.

What is made of D needs no gradient of a single example: for a loss that is a mean over examples sum_i a_i g_i is the
backward pass in which the output slopes of example i are multiplied by N a_i. Joined with those of the loss itself, noise
and gradient are one backward pass. Numbers come from the stream "noise" of (seed, step).
"""

from lab.optim.noise.base import NoiseCard, Trained
from lab.optim.noise.cards import (
    Diagonal,
    Fisher,
    HalfDifference,
    HessianSqrt,
    Isotropic,
    Minibatch,
    SampleWeights,
    Sgld,
)
from lab.optim.noise.draw import GradientNoise

__all__ = [
    "Diagonal",
    "Fisher",
    "GradientNoise",
    "HalfDifference",
    "HessianSqrt",
    "Isotropic",
    "Minibatch",
    "NoiseCard",
    "SampleWeights",
    "Sgld",
    "Trained",
]
