"""The flat view of a module's weights: order, ties, frozen parameters, and that it is a copy."""

import pytest
import torch
from torch import nn

from lab.params import flatten, layout, weights


class Tied(nn.Module):
    """Two names of one matrix, and a frozen bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.second.bias.requires_grad_(False)


def test_the_order_is_that_of_named_parameters() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    places = layout(module).slices()
    assert list(places) == [name for name, _ in module.named_parameters()]
    for name, p in module.named_parameters():
        assert torch.equal(weights(module)[places[name]], p.detach().flatten())


def test_tied_parameters_count_once_and_frozen_ones_not_at_all() -> None:
    found = layout(Tied())
    assert found.names == ("first.weight", "first.bias")
    assert found.size == 12 == len(weights(Tied()))


def test_unflatten_and_flatten_are_inverse() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    w = torch.randn(layout(module).size)
    named = layout(module).unflatten(w)
    assert {name: t.shape for name, t in named.items()} == {name: p.shape for name, p in module.named_parameters()}
    assert torch.equal(layout(module).flatten(named), w)
    assert torch.equal(layout(module).flatten(dict(reversed(named.items()))), w)


def test_the_derivative_of_unflatten_is_the_identity() -> None:
    places = layout(nn.Linear(2, 3))
    w = torch.randn(places.size, requires_grad=True)
    named = places.unflatten(w)
    (g,) = torch.autograd.grad(named["weight"].sum() + 2 * named["bias"].sum(), w)
    assert g.tolist() == [1.0] * 6 + [2.0] * 3


def test_a_scalar_parameter_takes_one_place() -> None:
    module = nn.Module()
    module.register_parameter("scale", nn.Parameter(torch.tensor(3.0)))
    assert layout(module).size == 1
    assert layout(module).unflatten(torch.tensor([5.0]))["scale"].shape == torch.Size([])


def test_weights_are_a_copy() -> None:
    module = nn.Linear(2, 1)
    before = weights(module)
    before.add_(1.0)
    assert not torch.equal(before, weights(module))
    single = [torch.ones(2)]
    assert flatten(single).data_ptr() != single[0].data_ptr()


def test_a_module_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no trainable parameter"):
        layout(nn.Linear(2, 2).requires_grad_(False))


def test_a_layer_is_the_weight_and_bias_of_one_module() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Conv1d(1, 2, 3, bias=False), nn.GroupNorm(1, 2)))
    module.register_parameter("scale", nn.Parameter(torch.tensor(3.0)))
    places = layout(module)
    assert places.layers() == {"": slice(0, 1), "0": slice(1, 10), "1.0": slice(10, 16), "1.1": slice(16, 20)}
    assert layout(Tied()).layers() == {"first": slice(0, 12)}


def test_the_layers_cover_w_once() -> None:
    module = nn.TransformerEncoderLayer(4, 2, 4)
    places, seen = layout(module), 0
    for name, place in places.layers().items():
        own = [p.numel() for p in module.get_submodule(name).parameters(recurse=False)]
        assert place == slice(seen, seen + sum(own))
        seen = place.stop
    assert seen == places.size


def test_select_finds_parameters_by_their_names() -> None:
    places = layout(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)))
    assert places.select("0.*").tolist() == list(range(9))
    assert places.select("*.bias").tolist() == [6, 7, 8, 12]
    assert places.select("2.weight").tolist() == [9, 10, 11]
    assert places.select("*").tolist() == list(range(13))


def test_a_name_that_no_parameter_has_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no parameter matches 'first\.\*'; there are weight, bias"):
        layout(nn.Linear(2, 3)).select("first.*")
