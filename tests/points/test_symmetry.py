"""Symmetric images: the nearest against all of them, one by one."""

from itertools import permutations, product

import pytest
import torch
from torch import nn

from lab.data.halves import half_square, halves_loss
from lab.landscapes.double_well import DoubleWell
from lab.objective import NetworkObjective
from lab.objective.decayed import Decayed
from lab.points.symmetry import hidden_neurons, nearest


def images(w: torch.Tensor, places: torch.Tensor, odd: bool) -> list[torch.Tensor]:
    """All of them."""
    found = []
    for order in permutations(range(len(places))):
        for signs in product((1.0, -1.0) if odd else (1.0,), repeat=len(places)):
            image = w.clone()
            for to, (source, sign) in enumerate(zip(order, signs, strict=True)):
                image[places[to]] = sign * w[places[source]]
            found.append(image)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_the_nearest_image_is_the_nearest_of_all_and_the_same_function(seed: int) -> None:
    network = halves_loss(30, 4, 2, 3)
    symmetry = hidden_neurons(Decayed(network, 0.1))
    assert symmetry.odd and symmetry.order == 48 and symmetry.places.shape == (3, 4 + 2 + 1)
    generator = torch.Generator().manual_seed(seed)
    w, reference = torch.randn(2, network.num_params, generator=generator, dtype=torch.float64)
    every = images(w, symmetry.places, symmetry.odd)
    assert len(every) == symmetry.order
    values = network.replica_values(torch.stack(every))
    torch.testing.assert_close(values, values[:1].expand(48), rtol=1e-13, atol=0)
    best = min(float((image - reference).norm()) for image in every)
    image = nearest(w, reference, symmetry)
    assert float((image - reference).norm()) == pytest.approx(best, rel=1e-14)
    assert any(torch.equal(image, other) for other in every)
    torch.testing.assert_close(nearest(every[17], w, symmetry), w, rtol=0, atol=0)


def test_neurons_that_are_not_odd_only_change_places() -> None:
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 1)).double()
    x, y = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double(), torch.zeros(5, 1).double()
    network = NetworkObjective(model, half_square, (x, y))
    symmetry = hidden_neurons(network)
    assert not symmetry.odd and symmetry.order == 2 and symmetry.places.tolist() == [[0, 1, 2, 6], [3, 4, 5, 7]]
    w = torch.arange(1.0, 10.0).double()
    swapped = torch.tensor([4.0, 5, 6, 1, 2, 3, 8, 7, 9]).double()
    assert torch.equal(nearest(swapped, w, symmetry), w)
    assert torch.equal(nearest(-w, w, symmetry).abs().sort().values, w), "no sign was flipped"


def test_other_objectives_have_other_symmetries() -> None:
    with pytest.raises(TypeError, match="one hidden layer"):
        hidden_neurons(DoubleWell())
    deep = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
    with pytest.raises(TypeError, match="one hidden layer"):
        hidden_neurons(NetworkObjective(deep, half_square, (torch.zeros(2, 2), torch.zeros(2, 1))))
    mixing = nn.Sequential(nn.Linear(2, 2), nn.Softmax(dim=1), nn.Linear(2, 1))
    with pytest.raises(TypeError, match="Softmax"):
        hidden_neurons(NetworkObjective(mixing, half_square, (torch.zeros(2, 2), torch.zeros(2, 1))))
    frozen = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
    frozen[0].bias.requires_grad_(False)
    with pytest.raises(TypeError, match="frozen"):
        hidden_neurons(NetworkObjective(frozen, half_square, (torch.zeros(2, 2), torch.zeros(2, 1))))
