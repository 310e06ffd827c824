"""How mini-batches are drawn, and what that makes of the covariance of their gradients.

    D = (1/N) sum_i g_i g_i' - g g'          the noise of one example (1/N, not 1/(N - 1))
    Cov(g_B) = factor * D                    a batch of m examples
    Cov(g_B, g_B') = cross * D               two different batches of the same epoch

Lemma 1 of Smith and Le (2018) and its corrections for draws without replacement; exact for every N, m and every loss.
"""

from typing import Literal, get_args

Sampling = Literal["epoch", "with_replacement", "without_replacement"]
SAMPLINGS: tuple[Sampling, ...] = get_args(Sampling)


def batch_factor(num_examples: int, batch_size: int, sampling: Sampling) -> float:
    """Cov(g_B) / D: 1/m with replacement; (N - m) / (m (N - 1)) without, within an epoch too. Exact.

    >>> batch_factor(6, 3, "with_replacement"), batch_factor(6, 3, "without_replacement"), batch_factor(6, 6, "epoch")
    (0.3333333333333333, 0.2, 0.0)
    """
    if not 1 <= batch_size <= num_examples and sampling != "with_replacement":
        raise ValueError(f"a batch of {batch_size} out of {num_examples} examples; expected 1 to {num_examples}")
    if sampling == "with_replacement":
        return 1 / batch_size
    return (num_examples - batch_size) / (batch_size * max(num_examples - 1, 1))


def cross_factor(num_examples: int, sampling: Sampling) -> float:
    """Cov(g_B, g_B') / D of two different batches: -1/(N - 1) within an epoch, whose batches are disjoint; else 0. Exact."""
    return -1 / (num_examples - 1) if sampling == "epoch" and num_examples > 1 else 0.0
