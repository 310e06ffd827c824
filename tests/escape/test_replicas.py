"""Replicas moved as one program against single runs by torch's own optimisers."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn, optim

from lab.escape.noises import IsotropicNoise
from lab.escape.replicas import Replicas, draws
from lab.landscapes.quadratic import Quadratic
from lab.objective import NetworkObjective

DOUBLE = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mean_squared(f: Tensor, y: Tensor) -> Tensor:
    return (f - y).square().sum(1).mean() / 2


@pytest.fixture(scope="module")
def network() -> NetworkObjective:
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    for p in model.parameters():
        p.data = torch.randn(p.shape, dtype=DOUBLE, generator=generator(p.numel())) / 2
    x, y = (torch.randn(20, k, dtype=DOUBLE, generator=generator(k)) for k in (4, 2))
    return NetworkObjective(model, mean_squared, (x, y))


OPTIMIZERS = {
    "sgd": partial(optim.SGD, lr=0.1),
    "heavy ball": partial(optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": partial(optim.Adam, lr=0.01),
    "adamw": partial(optim.AdamW, lr=0.01, weight_decay=0.1),
    "rmsprop": partial(optim.RMSprop, lr=0.01, momentum=0.5),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_replica_is_the_run_that_one_optimiser_makes_on_its_batches(name: str, network: NetworkObjective) -> None:
    make, steps = OPTIMIZERS[name], 6
    w = network.weights + 0.1 * torch.randn(2, network.num_params, dtype=DOUBLE, generator=generator())
    replicas = Replicas(network, w, make, batch_size=8, sampling="epoch", generator=generator(5))
    replicas.run(steps)
    batches = draws(20, 8, "epoch", 2, generator(5))
    alone = [w[r].clone() for r in range(2)]
    optimizers = [make([single]) for single in alone]
    for _ in range(steps):
        for single, optimizer, index in zip(alone, optimizers, next(batches), strict=True):
            single.grad = network.restrict(index).grad(single)
            optimizer.step()
    torch.testing.assert_close(replicas.W, torch.stack(alone))
    assert replicas.step == steps


@pytest.mark.parametrize("sampling", ["epoch", "with_replacement", "without_replacement"])
def test_batches_of_replicas_are_independent_and_drawn_as_their_name_says(sampling: str) -> None:
    some = draws(10, 4, sampling, 2000, generator())  # type: ignore[arg-type]
    first, second, third = next(some), next(some), next(some)
    repeated = (first.sort(1)[0].diff(dim=1) == 0).any(1)
    if sampling == "with_replacement":  # P(no repetition) = 10 9 8 7/10^4 = .504; 2000 draws: 4 sigma = .045
        assert abs(float(repeated.double().mean()) - 0.496) < 0.045
    else:
        assert not repeated.any()
    if sampling == "epoch":
        assert third.shape == (2000, 2), "the last batch of an epoch is what is left"
        whole = torch.cat([first, second, third], 1).sort(1)[0]
        assert torch.equal(whole, torch.arange(10).expand(2000, 10))
    # any two replicas share a first example with probability 1/10: 1000 pairs, 4 sigma = .038
    assert abs(float((first[::2, 0] == first[1::2, 0]).double().mean()) - 0.1) < 0.038


def test_a_run_in_two_pieces_is_the_run_in_one(network: NetworkObjective) -> None:
    w = network.weights.expand(3, -1)
    one, two = (
        Replicas(network, w, partial(optim.SGD, lr=0.1), batch_size=3, sampling="epoch", generator=generator())
        for _ in "12"
    )
    one.run(9)
    two.run(4)
    two.run(5)
    assert torch.equal(one.W, two.W)


def test_a_replaced_replica_takes_over_place_and_state(network: NetworkObjective) -> None:
    w = network.weights + 0.1 * torch.randn(3, network.num_params, dtype=DOUBLE, generator=generator())
    replicas = Replicas(network, w, partial(optim.Adam, lr=0.01), generator=generator())
    replicas.run(3)
    replicas.replace(torch.tensor([0]), torch.tensor([2]))
    assert torch.equal(replicas.W[0], replicas.W[2]) and not torch.equal(replicas.W[0], replicas.W[1])
    replicas.run(3)  # full batch: nothing but the state could tell them apart
    assert torch.equal(replicas.W[0], replicas.W[2])


def test_a_batch_of_all_examples_without_repetition_is_the_full_batch(network: NetworkObjective) -> None:
    w, sgd = network.weights.expand(2, -1), partial(optim.SGD, lr=0.1)
    for settings in ({"batch_size": 20, "sampling": "epoch"}, {"batch_size": None}):
        replicas = Replicas(network, w, sgd, **settings, generator=generator())  # type: ignore[arg-type]
        replicas.run(2)
        assert replicas.is_full
        torch.testing.assert_close(replicas.W[0], replicas.W[1])
    assert not Replicas(network, w, sgd, batch_size=20, generator=generator()).is_full


def test_a_batch_larger_than_the_data_counts_every_example_as_often_as_it_was_drawn(network: NetworkObjective) -> None:
    w = network.weights.expand(3, -1)
    replicas = Replicas(network, w, partial(optim.SGD, lr=0.1), batch_size=50, generator=generator(5))
    replicas.run(1)
    index = next(draws(20, 50, "with_replacement", 3, generator(5)))
    expected = torch.stack([w[r] - 0.1 * network.restrict(index[r]).grad(w[r]) for r in range(3)])
    torch.testing.assert_close(replicas.W, expected)


def test_langevin_on_a_quadratic_has_the_variance_of_the_discrete_chain() -> None:
    # x <- (1 - lr h) x + sqrt(2 lr T) xi: variance T / (h (1 - lr h / 2)), exactly.
    h, lr, temperature = torch.tensor([1.0, 3.0], dtype=DOUBLE), 0.2, 0.5
    well = Quadratic(h)
    noise = IsotropicNoise.at_temperature(temperature, lr)
    walkers = Replicas(
        well, torch.zeros(4000, 2, dtype=DOUBLE), partial(optim.SGD, lr=lr), noise=noise, generator=generator()
    )
    walkers.run(100)
    expected = temperature / (h * (1 - lr * h / 2))
    error = (walkers.W.var(0) / expected - 1).abs()
    assert float(error.max()) < 4 * (2 / 4000) ** 0.5


def test_what_cannot_be_is_said_in_a_line(network: NetworkObjective) -> None:
    w, sgd = network.weights[None], partial(optim.SGD, lr=0.1)
    with pytest.raises(ValueError, match="batch_size=21: expected 1 to 20"):
        Replicas(network, w, sgd, batch_size=21, sampling="epoch", generator=generator())
    with pytest.raises(ValueError, match="expected \\(replicas, 23\\)"):
        Replicas(network, w[0], sgd, generator=generator())
    with pytest.raises(TypeError, match="LBFGS would couple the replicas"):
        Replicas(network, w, optim.LBFGS, generator=generator())
    with pytest.raises(TypeError, match="no mini-batches"):
        Replicas(Quadratic(torch.ones(3)), torch.ones(2, 3), sgd, batch_size=2, generator=generator())
