"""The multilayer perceptron against torch's own layers built after torch.manual_seed."""

import pytest
import torch
from torch import nn

from lab.models.mlp import ACTIVATIONS, Mlp


def test_digits_mlp_is_bit_equal_to_the_sequential_built_after_manual_seed() -> None:
    model = Mlp().build((64,), 10, seed=3)
    torch.manual_seed(3)
    expected = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10))
    assert str(model) == str(expected)
    for (name, value), (expected_name, expected_value) in zip(
        model.state_dict().items(), expected.state_dict().items(), strict=True
    ):
        assert name == expected_name and value.equal(expected_value)


def test_images_are_flattened_and_have_the_same_weights() -> None:
    model = Mlp(widths=(7,)).build((3, 4, 5), 10, seed=0)
    vector = Mlp(widths=(7,)).build((60,), 10, seed=0)
    x = torch.randn(6, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert model(x).equal(vector(x.flatten(1)))


def test_init_scale_multiplies_every_weight_and_bias() -> None:
    plain, scaled = Mlp().build((64,), 10, seed=0), Mlp(init_scale=0.3).build((64,), 10, seed=0)
    for value, expected in zip(scaled.parameters(), plain.parameters(), strict=True):
        assert value.equal(expected * 0.3) and value.requires_grad and value.is_leaf


def test_no_hidden_layer_is_a_linear_model() -> None:
    assert [type(module) for module in Mlp(widths=()).build((64,), 10, seed=0).children()] == [nn.Linear]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_can_be_differentiated_twice(activation: str) -> None:
    model = Mlp(widths=(5,), activation=activation).build((4,), 2, seed=0)  # type: ignore[arg-type]
    assert isinstance(model[1], ACTIVATIONS[activation])  # type: ignore[index]
    loss = model(torch.ones(3, 4)).square().sum()
    first = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), list(model.parameters()))  # type: ignore[arg-type]
    assert all(value.isfinite().all() for value in second)


def test_building_depends_on_the_seed_only_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    first, again, other = (Mlp().build((64,), 10, seed=seed) for seed in (0, 0, 1))
    assert torch.random.get_rng_state().equal(before)
    torch.rand(5)
    assert next(first.parameters()).equal(next(again.parameters()))
    assert not next(first.parameters()).equal(next(other.parameters()))


@pytest.mark.parametrize("setting", [{"widths": (32, 0)}, {"activation": "sine"}, {"init_scale": 0.0}, {"depth": 2}])
def test_settings_out_of_range_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        Mlp(**setting)  # type: ignore[arg-type]
