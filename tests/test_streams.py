"""Random streams: a function of (seed, name, step), and nothing to do with the global generator."""

import torch

from lab.streams import stream


def numbers(*args: object) -> list[float]:
    return torch.rand(4, generator=stream(*args)).tolist()  # type: ignore[arg-type]


def test_the_same_key_gives_the_same_numbers() -> None:
    assert numbers(3, "noise", 7) == numbers(3, "noise", 7)


def test_the_numbers_are_those_of_the_first_release() -> None:
    # A stream is part of every stored run: a change of this list silently breaks resuming and comparing.
    assert torch.randint(1000, (5,), generator=stream(0, "batches", 7)).tolist() == [701, 568, 413, 112, 500]


def test_seed_name_and_step_each_give_another_stream() -> None:
    keys = [(seed, name, step) for seed in (0, 1, 2**40) for name in ("a", "b", "a/1") for step in (0, 1, 10**9)]
    assert len({tuple(numbers(*key)) for key in keys}) == len(keys)


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    before = torch.get_rng_state()
    first = numbers(0, "noise")
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        assert numbers(0, "noise") == first


def test_neighbouring_steps_are_uncorrelated() -> None:
    # 1000 streams of 100 normal numbers: the correlation of neighbours has standard error 1/sqrt(99900); 4 of them.
    draws = torch.stack([torch.randn(100, generator=stream(0, "noise", step)) for step in range(1000)])
    correlation = (draws[1:] * draws[:-1]).mean()
    assert abs(float(correlation)) < 4 / 99900**0.5
