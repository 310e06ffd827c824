"""A part of the probe set of a run, where the whole of it is too dear, and the examples that are left for a second look.

The parts of one run are nested: the half, the quarter ... of the set "auto", each drawn out of the one before, balanced over
the classes, by the seed of the run. The loss over a part is another loss. What its lambda_max says of that of the whole is
bracketed with a top eigenvector v of the part A and other examples B of the set:

    v'H_B v,  the mean over B of  v'H v <= lambda_max(H),       lambda_max(H) <= E lambda_max(H_A)

for v does not depend on B, and lambda_max is convex. The value is the middle of the two, the error half of the distance and
the standard error of v'H_B v over chunks of B, wider by Student's t where these are few.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from scipy.stats import t as student
from torch import Tensor

from lab.curvature.operators import LinearOperator, hessian
from lab.data.base import class_balanced
from lab.objective import NetworkObjective, Objective
from lab.results import Eigenpairs
from lab.settings import SettingError
from lab.streams import stream

LEAST = 250
"""Examples in a part at least; where they see each other a batch of training at least."""
CHUNKS = 8
"""Chunks of the examples that are left, over which the standard error is taken; where they see each other FEWEST batches."""
FEWEST = 4


@dataclass(frozen=True)
class Nested:
    """The part of so many examples of the set "auto", or what is looked at of the `rest`."""

    examples: int
    rest: bool = False


def sizes(loss: Objective) -> list[int]:
    """The sizes that the probe set may have, the whole first; that alone where it has no parts."""
    whole = loss.num_examples or 0
    if not isinstance(loss, NetworkObjective):
        return [whole]
    batch, parts, half = batch_of(loss), [whole], whole / 2
    while (part := round(half / batch) * batch) >= max(LEAST, batch) and part < parts[-1]:
        parts.append(part)
        half /= 2
    return parts


def nested(loss: NetworkObjective, part: Nested, seed: int) -> NetworkObjective:
    """The loss over a part of the examples of `loss`, or over others of them."""
    inside = torch.arange(len(loss.y))
    for size in sizes(loss):
        if size < len(loss.y):
            inside = inside[_drawn(loss.y[inside.to(loss.y.device)], size, seed)]
        if size <= part.examples:
            break
    if part.rest:
        left = torch.ones(len(loss.y), dtype=torch.bool).index_fill(0, inside, False).nonzero().squeeze(1)
        count = min(len(left), max(len(inside), FEWEST * batch_of(loss)))
        inside = left[_drawn(loss.y[left.to(loss.y.device)], count, seed)]
    return loss.restrict(inside.to(loss.y.device))


def bracketed(
    pairs: Eigenpairs, rest: Objective, w: Tensor, of: Callable[[LinearOperator], LinearOperator]
) -> Eigenpairs:
    """The pairs of of(Hessian) over a part as estimates of those over the whole set, with the errors of that (head of this
    file). Cost: a gradient and as many products as pairs, over the examples of `rest`.
    """
    if not pairs.values.numel() or not bool(pairs.values.isfinite().all()):
        return pairs
    count = rest.num_examples or 0
    batch = batch_of(rest) if isinstance(rest, NetworkObjective) else 1
    chunks = torch.arange(count).split(batch if batch > 1 else math.ceil(count / CHUNKS))
    forms, weights = [], []
    for chunk in chunks:
        operator = of(hessian(rest.restrict(chunk), w))
        forms.append((pairs.vectors.double() * (operator @ pairs.vectors).double()).sum(0).cpu())  # (k,) v'Hv
        weights.append(len(chunk) / count)
    q, share = torch.stack(forms), torch.tensor(weights, dtype=torch.float64)[:, None]  # (chunks, k), (chunks, 1)
    mean = (share * q).sum(0)  # (k,)
    spread = math.nan
    if (n := len(chunks)) > 1:
        spread = float(student.ppf(0.8413, n - 1)) / math.sqrt(n - 1)  # one standard deviation of a Gaussian
    error = (share * (q - mean).square()).sum(0).sqrt() * spread
    values = pairs.values.cpu()
    return replace(
        pairs,
        values=((values + mean) / 2).to(pairs.values),
        errors=(pairs.errors.cpu() + (values - mean).abs() / 2 + error).to(pairs.errors),
    )


def batch_of(loss: NetworkObjective) -> int:
    """Examples that see each other; 1 where they do not."""
    return (loss.chunk_size(loss.weights) if loss.coupled else 1) or 1


def _drawn(y: Tensor, count: int, seed: int) -> Tensor:
    """`count` different places in y, balanced where these are labels of enough classes."""
    generator, y = stream(seed, f"probe set/{count} of {len(y)}"), y.cpu()
    if y.dim() == 1 and not y.is_floating_point():
        try:
            return class_balanced(y, count, generator)
        except SettingError:
            pass
    return torch.randperm(len(y), generator=generator)[:count]
