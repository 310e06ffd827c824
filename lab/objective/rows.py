"""A look at the loss of a batch: the precision it is computed in, which labels it predicts, and whether it is a mean.

An example has a gradient of its own where the loss of a batch is the weighted mean of those of its rows. No list of layers
and criteria tells, so batches are cut into uneven parts and the losses compared, near the present weights, where zeros of an
initialisation hide nothing.
"""

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lab.objective.base import Unsound, at_least_single
from lab.objective.batch import Batch, num_rows, selected
from lab.objective.look import Precision, moved
from lab.objective.samples import ends_of
from lab.objective.weighing import Weighing, labels_of, relabelled

if TYPE_CHECKING:
    from lab.objective.batch_sum import BatchSum

TOLERANCE = 1e-5
"""Relative difference between the loss of a batch and that of its parts that is taken for round-off in float64."""
TOKENS = (
    "the loss of a batch is the mean over its tokens, of which its examples have different numbers; weighted by examples "
    'the measured loss is the mean of the means of batches, not the mean over tokens: that is weight="tokens"'
)
COUPLED = (
    "the loss of a batch ({:.6g}) is not the mean over its examples {} ({:.6g}): the measured loss is defined by its "
    "batches; where it is a mean over something else, as by a mask, weight=lambda batch: ... may count that"
)
SUM = (
    "the loss of a batch ({:.6g}) is the sum of those of its examples, and sums do not average over batches; use the mean: "
    'reduction="mean", or divide by the number of examples'
)
UNCUT = "a batch cannot be cut into examples ({}): the measured loss is defined by its batches"


@dataclass(frozen=True)
class BatchLook:
    """What a look found.

    w        weights near the present ones, in float64 where the network takes it.
    eps      round-off of the coarsest numbers it computes with, given weights of that dtype.
    shifted  whether the loss leaves out the first label of every row.
    coupled  how the loss of a batch is no mean over its rows, "" where it is one.
    """

    w: Tensor
    eps: float
    shifted: bool = False
    coupled: str = ""

    @property
    def dtype(self) -> torch.dtype:
        """Of weights in which laws are examined."""
        return self.w.dtype


def look_at_batches(loss: "BatchSum") -> BatchLook:
    """A look at the loss near its present weights. Cost: forward passes of few examples, and three of the first batch and
    of the last. Raises Unsound where the network changes its weights, or the loss of a batch is a sum.
    """
    alone = loss.alone(loss.sample)
    try:
        look = _precise(alone, moved(alone, alone.weights.double()))
    except Unsound:
        raise
    except Exception:  # numbers of a fixed precision inside, and whatever a network says then
        look = _precise(alone, moved(alone, at_least_single(alone.weights)))
    if loss.asked.by == "tokens":
        look = replace(look, shifted=shifted(loss, look.w))
    if loss.batch_statistics:
        return look
    for batch in ends_of(loss.source, loss.asked):
        if coupled := not_mean(loss, batch, look, replace(loss.asked, shifted=look.shifted)):
            return replace(look, coupled=coupled)
    return look


def _precise(alone: "BatchSum", w: Tensor) -> BatchLook:
    before = w.clone()
    with torch.no_grad():
        alone.find_modes(w)
        with Precision() as seen:
            alone.value(w)
    if not torch.equal(w.nan_to_num(), before.nan_to_num()):
        raise Unsound(
            "the network changes its weights when it is evaluated (does its first batch initialise them?): run one batch "
            "through it in training mode before it is measured"
        )
    return BatchLook(w, seen.eps)


def shifted(loss: "BatchSum", w: Tensor) -> bool:
    """Whether the first label of every row is no target: the loss stays when these are other labels of the batch.

    Looked at on the first batch where a first label would count and is not the only one there is; False where none is.
    """
    ignored = loss.asked.ignored
    for batch in loss.source:
        labels = labels_of(batch)
        if labels is None or labels.dim() < 2 or labels.shape[1] < 2:
            continue
        first, there = labels[:, 0], labels[labels != ignored]
        if not len(there) or not bool((first != ignored).any()) or there.min() == there.max():
            continue
        other = torch.where(first == there.max(), there.min(), there.max())
        changed = labels.clone()
        changed[:, 0] = torch.where(first != ignored, other, first)
        with torch.no_grad():
            before, after = (loss.loss_of(w, one) for one in (batch, relabelled(batch, changed)))
        if bool(before.isfinite()):
            return bool((before - after).abs() <= TOLERANCE * before.abs())
    return False


def not_mean(loss: "BatchSum", batch: Batch, look: BatchLook, weighing: Weighing) -> str:
    """How the loss of a batch differs from the weighted mean over uneven parts of its rows; "" where it does not, or has
    fewer than two rows that count. Cost: two values of the batch. Raises Unsound for a sum.
    """
    num = num_rows(batch) or 0
    if num < 2:
        return ""
    with torch.no_grad():
        whole = float(loss.loss_of(look.w, batch))
    try:
        weights = weighing.of_rows(batch)
        order = torch.cat([weights.argsort()[i::2] for i in range(2)])  # light rows and heavy ones in either part
        parts = [
            part for part in order.split([1, (num - 1) // 2, num - 1 - (num - 1) // 2]) if float(weights[part].sum())
        ]
        if len(parts) < 2:
            return ""
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of statistics of a single row
            losses = [float(loss.loss_of(look.w, selected(batch, part))) for part in parts]
    except Exception as error:  # whatever a stranger's network says of few rows
        return UNCUT.format(" ".join(str(error).split())[:160])
    allowed = max(TOLERANCE, 30 * look.eps) * max(abs(whole), *map(abs, losses))
    shares = [float(weights[part].sum() / weights.sum()) for part in parts]
    mean = sum(share * one for share, one in zip(shares, losses, strict=True))
    if not abs(whole) < float("inf") or abs(whole - mean) <= allowed:
        return ""
    if abs(whole - sum(losses)) <= allowed:
        raise Unsound(SUM.format(whole))
    if weighing.by == "examples" and _mean_of_tokens(batch, parts, whole, losses, allowed):
        return TOKENS
    return COUPLED.format(whole, weighing, mean)


def _mean_of_tokens(batch: Batch, parts: list[Tensor], whole: float, losses: list[float], allowed: float) -> bool:
    """Whether the loss of the batch is the mean over tokens."""
    if labels_of(batch) is None:
        return False
    for shifted in (False, True):
        tokens = Weighing("tokens", shifted=shifted).tokens(batch).double().cpu()
        mean = sum(float(tokens[part].sum() / tokens.sum()) * one for part, one in zip(parts, losses, strict=True))
        if abs(whole - mean) <= allowed:
            return True
    return False
