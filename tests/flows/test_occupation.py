"""Shares of time in boxes, and their standard errors over independent walkers."""

import math

import pytest
import torch

from lab.flows.langevin import Langevin
from lab.flows.occupation import Boxes, occupation
from lab.gallery.landscapes.crossings import ProductCrossing
from lab.landscapes.gibbs import gibbs, inside
from lab.landscapes.quadratic import Quadratic
from lab.streams import stream


def test_boxes_hold_their_edges_and_may_overlap() -> None:
    where = Boxes(torch.tensor([[0.0, 0.0], [0.5, 0.0]]), 0.5)
    x = torch.tensor([[0.25, 0.5], [1.0, 0.0], [0.0, 0.6]])
    assert where(x).tolist() == [[True, True], [False, True], [False, False]]


def test_the_error_of_a_share_of_time_covers_the_truth_however_correlated_the_places() -> None:
    # Steps of .02 relaxation times: looks are strongly correlated. 60 repetitions; the squares of z have mean 1 +- .18.
    landscape, box = Quadratic((1.0,)), Boxes(torch.zeros(1, 1), 0.5)
    truth = math.erf(0.5 / math.sqrt(2))
    squares = []
    for repetition in range(60):
        generator = stream(repetition, "occupation")
        x = torch.randn(200, 1, generator=generator)
        found = occupation(Langevin(landscape, 1.0, 0.02, "mala"), x, box, steps=60, every=3, generator=generator).of(0)
        squares.append(((found.value - truth) / found.error) ** 2)
    assert sum(squares) / 60 == pytest.approx(1.0, abs=0.65)


def test_points_drawn_from_the_quadrature_are_gibbs() -> None:
    law = gibbs(ProductCrossing(), 1.0, [-1, -1], [1, 1], at=[(0.0,)] * 2, cuts=[(-0.1, 0.1)] * 2)
    x, box = law.draw(200_000, stream(0, "draw")), inside([-0.1, -0.1], [0.1, 0.1])
    truth = law.mean(box)
    assert float(box(x).mean()) == pytest.approx(truth, abs=4 * math.sqrt(truth / 200_000))
    square = law.mean(lambda x: x[:, 0] ** 2)
    error = float((x[:, 0] ** 2).std()) / math.sqrt(200_000)
    assert float((x[:, 0] ** 2).mean()) == pytest.approx(square, abs=4 * error)


def test_looking_counts_the_accepted_steps() -> None:
    x, generator = torch.zeros(300, 2), stream(0, "count")
    seen = occupation(
        Langevin(Quadratic((4.0, 1.0)), 0.5, 0.3, "mala"),
        x,
        Boxes(torch.zeros(1, 2), 9.0),
        steps=40,
        burn_in=10,
        every=4,
        generator=generator,
    )
    assert 0.5 < seen.accepted < 0.98
    assert seen.shares.eq(1).all() and seen.of(0).error == 0
