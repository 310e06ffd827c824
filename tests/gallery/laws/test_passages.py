"""First passages by simulation beside the exact chain of the steps."""

import math

import pytest
import torch

from lab.escape.survival import exponentiality, of_counts, slope
from lab.gallery.laws.kramers import Domain, on
from lab.gallery.laws.nystrom import Chain
from lab.gallery.laws.passages import escapes, slopes, too_few
from lab.landscapes.double_well import DoubleWell
from lab.streams import stream

LINE = DoubleWell(())
START = torch.tensor([-1.0])


def test_the_settled_rate_is_that_of_the_chain_and_exponential_with_two_thirds_censored() -> None:
    chain = Chain(on(LINE, 0.07), 0.2, Domain(high=1.0), -1.0)
    found = escapes(
        LINE,
        chain,
        START,
        diffusion=0.07,
        walkers=4000,
        budget=0.4,
        burn_in=5.0,
        max_steps=10_000,
        generator=stream(0, "rate"),
    )
    assert abs(found.mean_time.value - found.exact) < 4 * found.mean_time.error
    assert found.rate.exits == pytest.approx(4000 * (1 - math.exp(-0.4)), rel=0.1)
    assert exponentiality(found.settled).p > 1e-3


def test_directions_that_do_not_act_on_each_other_leave_as_the_line_does() -> None:
    chain = Chain(on(LINE, 0.1), 0.1, Domain(high=1.0), -1.0)
    found = escapes(
        DoubleWell((3.0, 0.5)),
        chain,
        torch.tensor([-1.0, 0.0, 0.0]),
        diffusion=1.0,
        scale=torch.tensor([0.1, 0.02, 0.3]),
        walkers=1500,
        budget=1.0,
        burn_in=5.0,
        max_steps=10_000,
        generator=stream(0, "directions"),
    )
    assert abs(found.mean_time.value - found.exact) < 4 * found.mean_time.error


def test_slopes_measured_and_exact_have_the_same_weights() -> None:
    x, found = [14.0, 20.0], []
    for b in x:
        chain = Chain(on(LINE, 1.4 / b), 0.4, Domain(high=1.0), -1.0)
        found.append(
            escapes(
                LINE, chain, START, diffusion=1.4 / b, walkers=500, budget=1.0, burn_in=5.0, max_steps=10_000,
                generator=stream(0, "slopes", int(b)),
            )
        )  # fmt: skip
    measured, exact = slopes(x, found)
    assert measured.error == exact.error
    assert abs(measured.value - exact.value) < 4 * measured.error
    same = slope(x, [of_counts(100, 100 / p.chain.rate) for p in found])
    assert exact.value == pytest.approx(same.value)


def test_cells_in_which_too_few_left_are_counted_in_one_sentence() -> None:
    chain = Chain(on(LINE, 0.1), 0.1, Domain(high=1.0), -1.0)
    few, enough = (
        escapes(
            LINE, chain, START, diffusion=0.1, walkers=walkers, budget=1.0, burn_in=5.0, max_steps=10_000,
            generator=stream(0, "too_few"),
        )
        for walkers in (2, 40)
    )  # fmt: skip
    assert too_few([enough, enough]) == []
    assert too_few([few, enough, few])[0].startswith("in 2 of 3 cells fewer than 5 walkers left")
