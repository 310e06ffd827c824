"""Somebody's own model, loss or data, tried on two examples before the run begins: what does not fit is one line."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lab.data.base import Dataset
from lab.data.tensors import TensorCard
from lab.models.losses import Criterion
from lab.named import NamedCode, lines_of, raised
from lab.objective import NetworkObjective, Unsound
from lab.params import trainable
from lab.probes.attempt import out_of_memory
from lab.run.cards import card_names
from lab.run.code import named_code
from lab.settings import SettingError
from lab.streams import seeded

TOKENS = "whole numbers are tokens for an embedding; save images and measurements as real numbers, e.g. x/255"


def try_out(
    cards: dict[str, Any], model: nn.Module, criterion: Criterion, dataset: Dataset, *, seed: int, audit: bool
) -> None:
    """Raise SettingError, one line, where outputs or loss of two examples cannot be had, or are not what a run takes: one
    tensor of outputs, some for each example; a scalar loss, finite, that depends on the weights, and where `audit` is
    wanted is a mean over examples. Nothing of this is asked of the lab's own cards on the lab's own data.

    cards: data, model and loss, by group. Model and global generators stay as they are; lazy layers get their weights, from
    the seed of the run. Cost: two examples, and the loss of as many targets as there are.
    """
    if not any(isinstance(card, NamedCode | TensorCard) for card in cards.values()):
        return
    x, y = _two(dataset, next(model.parameters()).dtype)
    with seeded(seed):
        outputs = _outputs(cards, model, x)
        loss = _loss(cards, criterion, outputs, y, dataset.num_classes)
    weights = trainable(model)
    slopes = torch.autograd.grad(loss, weights, allow_unused=True) if loss.requires_grad else [None]
    if all(slope is None for slope in slopes):
        raise SettingError(
            f"{_name(cards, 'loss')} of the outputs of {_name(cards, 'model')} does not depend on the weights; is there a "
            "detach, no_grad, argmax or item()?"
        )
    if not bool(loss.isfinite()):
        raise SettingError(
            f"{_name(cards, 'loss')} of two examples is {float(loss.detach()):g} at the initial weights; expected a number"
        )
    try:
        whole = NetworkObjective(model, criterion, (dataset.train.x, dataset.train.y))
        if audit and isinstance(cards["loss"], NamedCode):
            whole.require_mean()
    except Unsound as error:
        text = str(error).partition("; use a mean")[0]
        raise SettingError(f"{_name(cards, 'loss')}: {text}; use a mean (audit=false trains on it as it is)") from None
    except ValueError as error:
        raise SettingError(f"{_name(cards, 'loss')}: {error}") from None


@contextmanager
def told_of(settings: Mapping[str, Any]) -> Iterator[None]:
    """What code of somebody's own raises in a run, after the trial, is one line too, with the line of its file."""
    try:
        yield
    except SettingError:
        raise
    except Exception as error:
        code = {group: path for group, path in named_code(settings).items() if lines_of(error, path)}
        if code and not out_of_memory(error):
            named = ", ".join(f"{group}.path={path}" for group, path in code.items())
            raise SettingError(f"{named} raised {raised(error, next(iter(code.values())))}") from error
        raise


def _two(dataset: Dataset, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two training examples in the precision of the model: of labels those of the smallest and of the largest one."""
    x, y = dataset.train.x, dataset.train.y
    index = torch.tensor([0, len(y) - 1])
    if not y.is_floating_point():
        rows = y.reshape(len(y), -1)
        index = torch.stack([rows.amin(1).argmin(), rows.amax(1).argmax()])
    x, y = x[index], y[index]
    return (x.to(dtype) if x.is_floating_point() else x), (y.to(dtype) if y.is_floating_point() else y)


def _outputs(cards: dict[str, Any], model: nn.Module, x: Tensor) -> Tensor:
    """What the model makes of two examples. It is called with copies of its buffers, which a forward pass may change."""
    name, kind = _name(cards, "model"), str(x.dtype).removeprefix("torch.")
    where = f"{name}: its forward pass on inputs of shape {tuple(x.shape)}, {kind},"
    try:
        outputs = functional_call(model, {key: buffer.clone() for key, buffer in model.named_buffers()}, (x,))
    except Exception as error:
        path = getattr(cards["model"], "path", ":")
        raise SettingError(f"{where} raised {raised(error, path)}{_cure(x)}") from error
    if not isinstance(outputs, Tensor):
        raise SettingError(
            f"{where} returned a {type(outputs).__name__}; expected one tensor, some outputs for each example: return the "
            "logits alone"
        )
    if not outputs.is_floating_point() or not outputs.dim() or len(outputs) % len(x) or not outputs.numel():
        raise SettingError(
            f"{where} returned shape {tuple(outputs.shape)}, {str(outputs.dtype).removeprefix('torch.')}; expected real "
            f"numbers of shape ({len(x)}, ...), some for each example"
        )
    return outputs


def _loss(cards: dict[str, Any], criterion: Criterion, outputs: Tensor, y: Tensor, classes: int | None) -> Tensor:
    name = _name(cards, "loss")
    where = f"{name} of outputs of shape {tuple(outputs.shape)} and targets of shape {tuple(y.shape)}"
    if isinstance(cards["loss"], NamedCode) and y.is_floating_point() and _broadcast(outputs, y):
        raise SettingError(
            f"{where}: one would be spread over the other, each output against each target; give the outputs the shape of "
            "the targets, or save the targets in that of the outputs"
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Using a target size")  # torch goes on, with each against each
            loss = criterion(outputs, y)
    except Exception as error:
        path = getattr(cards["loss"], "path", ":")
        few = classes is not None and outputs.shape[-1] < classes
        cure = f"; the labels are 0 to {(classes or 1) - 1}: give as many outputs as there are classes" if few else ""
        raise SettingError(f"{where} raised {raised(error, path)}{cure}") from error
    if not isinstance(loss, Tensor) or loss.dim():
        what = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise SettingError(f"{where} returned {what}; expected the mean over examples, a scalar tensor")
    return loss


def _broadcast(outputs: Tensor, y: Tensor) -> bool:
    """Whether shapes differ by an axis of one only: (B, 1) against (B,) gives (B, B)."""
    squeezed = [tuple(size for size in t.shape[1:] if size != 1) for t in (outputs, y)]
    return outputs.shape != y.shape and squeezed[0] == squeezed[1]


def _cure(x: Tensor) -> str:
    return "" if x.is_floating_point() else f"; {TOKENS}"


def _name(cards: dict[str, Any], group: str) -> str:
    """What was typed for a group: model=mlp, or model.path=nets.py:TinyNet."""
    card = cards[group]
    if isinstance(card, NamedCode):
        return card.setting
    target = f"{type(card).__module__}.{type(card).__name__}"
    return f"{group}={card_names().get(target, target)}"
