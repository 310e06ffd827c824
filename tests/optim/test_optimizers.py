"""The optimiser cards: ranges, contradictions, and that every number reaches torch."""

import dataclasses

import pytest
import torch
from pydantic import ValidationError
from torch import nn, optim

from lab.optim.optimizers import Adam, AdamW, OptimizerCard, RMSprop, Sgd
from lab.settings import SettingError


@pytest.mark.parametrize(
    ("card", "kind"),
    [
        (Sgd(lr=0.2, momentum=0.8, dampening=0.3, weight_decay=0.1), optim.SGD),
        (Sgd(lr=0.2, momentum=0.8, nesterov=True), optim.SGD),
        (Adam(lr=0.2, betas=(0.5, 0.6), eps=1e-3, weight_decay=0.1), optim.Adam),
        (AdamW(lr=0.2, betas=(0.5, 0.6), eps=1e-3, weight_decay=0.1), optim.AdamW),
        (RMSprop(lr=0.2, alpha=0.5, momentum=0.3, eps=1e-3, weight_decay=0.1), optim.RMSprop),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_setting_of_a_card_reaches_the_torch_optimiser(card: OptimizerCard, kind: type) -> None:
    optimizer = card.build([nn.Parameter(torch.ones(2))])
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert {name: group[name] for name in dataclasses.asdict(card)} == dataclasses.asdict(card)


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0.0},
        {"lr": -0.1},
        {"lr": float("inf")},
        {"lr": float("nan")},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"momentum": float("nan")},
        {"dampening": 1.1},
        {"dampening": -0.1},
        {"weight_decay": -1e-4},
        {"weight_decay": float("inf")},
        {"learning_rate": 0.1},
    ],
    ids=str,
)
def test_sgd_refuses_what_is_out_of_range_or_unknown_and_names_it(settings: dict) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        Sgd(**settings)


@pytest.mark.parametrize("kind", [Adam, AdamW])
@pytest.mark.parametrize("settings", [{"betas": (0.9, 1.0)}, {"betas": (-0.1, 0.9)}, {"betas": (0.9,)}, {"eps": -1.0}])
def test_adam_refuses_what_is_out_of_range(kind: type, settings: dict) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        kind(**settings)


@pytest.mark.parametrize("settings", [{"alpha": 1.0}, {"alpha": -0.1}, {"momentum": 1.0}, {"eps": -1.0}])
def test_rmsprop_refuses_what_is_out_of_range(settings: dict) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        RMSprop(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nesterov": True}, "optimizer.nesterov=true needs .* got momentum=0, dampening=0"),
        ({"nesterov": True, "momentum": 0.9, "dampening": 0.5}, "got momentum=0.9, dampening=0.5"),
        ({"dampening": 0.5}, "optimizer.dampening=0.5 does nothing without momentum"),
    ],
)
def test_contradicting_settings_are_refused_in_one_line(settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message) as refusal:
        Sgd(**settings).build([nn.Parameter(torch.ones(2))])
    assert "\n" not in str(refusal.value)
    with pytest.raises(SettingError, match=message):
        Sgd(**settings).check()


def test_cards_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sgd().lr = 1.0  # type: ignore[misc]
