"""The laws of sampling: purity in (seed, step), each example once per epoch, uniform draws."""

import itertools

import pytest
import torch

from lab.data.batches import Batches, different
from lab.settings import SettingError
from lab.streams import stream

SAMPLINGS = ["epoch", "with_replacement", "without_replacement"]


def index(batches: Batches, step: int) -> torch.Tensor:
    found = batches.index(step)
    assert found is not None and found.dtype == torch.int64
    return found


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_batch_is_a_function_of_seed_and_step_whatever_was_asked_before(sampling: str) -> None:
    steps = [0, 1, 2, 7, 8, 23]
    straight = Batches(50, 8, sampling, seed=5)  # type: ignore[arg-type]
    in_order = {step: index(straight, step).clone() for step in range(24)}
    for step in [*steps[::-1], *steps]:
        resumed = Batches(50, 8, sampling, seed=5)  # type: ignore[arg-type]
        assert index(straight, step).equal(in_order[step]) and index(resumed, step).equal(in_order[step])
    assert not index(Batches(50, 8, sampling, seed=6), 0).equal(in_order[0])  # type: ignore[arg-type]
    assert not in_order[0].equal(in_order[7])


@pytest.mark.parametrize(("count", "size"), [(50, 8), (48, 8), (7, 1), (9, 8)])
def test_every_example_comes_exactly_once_per_epoch_with_a_ragged_last_batch(count: int, size: int) -> None:
    batches = Batches(count, size, "epoch", seed=0)
    assert batches.steps_per_epoch == -(-count // size)
    orders = []
    for epoch in range(3):
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        parts = [index(batches, step) for step in steps]
        assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
        assert len(parts[-1]) == count - size * (len(parts) - 1)
        orders.append(torch.cat(parts))
        assert orders[-1].sort().values.equal(torch.arange(count))
    assert not orders[0].equal(orders[1]) and not orders[1].equal(orders[2])


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("size", ["full", 20])
def test_a_full_batch_is_none_except_a_bootstrap_of_the_same_size(sampling: str, size: int | str) -> None:
    batches = Batches(20, size, sampling, seed=0)  # type: ignore[arg-type]
    bootstrap = sampling == "with_replacement" and size == 20
    assert batches.steps_per_epoch == 1
    assert batches.is_full is not bootstrap
    assert (batches.index(3) is not None) is bootstrap


@pytest.mark.parametrize("size", [1, 2, 24, 25, 26, 999])
def test_a_batch_without_replacement_holds_different_examples(size: int) -> None:
    batches = Batches(1000, size, "without_replacement", seed=0)
    for step in range(20):
        batch = index(batches, step)
        assert len(batch) == len(batch.unique()) == size and batch.min() >= 0 and batch.max() < 1000


def test_a_batch_with_replacement_repeats_examples_as_often_as_it_should() -> None:
    batches = Batches(10, 5, "with_replacement", seed=0)
    distinct = torch.tensor([float(len(index(batches, step).unique())) for step in range(2000)])
    # E = N (1 - (1 - 1/N)^b) = 4.0951; five standard errors, false alarm 6e-7.
    assert abs(distinct.mean() - 4.0951) < 5 * distinct.std() / 2000**0.5


def test_draws_from_a_permutation_are_uniform_over_ordered_choices() -> None:
    generator = stream(0, "test")
    choices = [tuple(different(4, 3, generator).tolist()) for _ in range(2400)]
    counts = torch.tensor([choices.count(choice) for choice in itertools.permutations(range(4), 3)])
    assert counts.sum() == 2400
    assert chi_squared_is_plausible(counts)


def test_draws_one_after_another_are_uniform_over_ordered_pairs() -> None:
    generator = stream(0, "test")
    pairs = torch.stack([different(81, 2, generator) for _ in range(8100)])
    assert chi_squared_is_plausible(pairs[:, 0].bincount(minlength=81))
    # Of a uniform ordered pair of different indices the difference mod N is uniform on 1..N-1 and never 0.
    differences = ((pairs[:, 1] - pairs[:, 0]) % 81).bincount(minlength=81)
    assert differences[0] == 0 and chi_squared_is_plausible(differences[1:])


def chi_squared_is_plausible(counts: torch.Tensor) -> bool:
    """Whether chi^2 against equal counts is within five sigma; false alarm below 1e-4 (the right tail is heavy)."""
    expected, degrees = counts.sum() / len(counts), len(counts) - 1
    return bool(((counts - expected) ** 2 / expected).sum() < degrees + 5 * (2 * degrees) ** 0.5)


def test_a_batch_larger_than_the_set_is_refused() -> None:
    with pytest.raises(SettingError, match=r"^data\.batch_size=21 is larger than the 20 training examples; use "):
        Batches(20, 21, "epoch", seed=0)


def test_batches_leave_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    for sampling in SAMPLINGS:
        Batches(50, 8, sampling, seed=0).index(3)  # type: ignore[arg-type]
    assert torch.random.get_rng_state().equal(before)
