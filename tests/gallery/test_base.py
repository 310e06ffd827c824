"""Theory beside measurement: how far apart they are, and how that is told; the progress of parts of a stage."""

import math

import pytest
import torch

from lab.gallery.base import Outcome, Surroundings, Verdict, about, exact, with_error
from lab.results import Estimate


def test_comparisons_say_how_far_apart_they_are() -> None:
    sharp = exact("a", 1.0, Estimate(1.2, 0.1, 0, "walkers"))
    assert sharp.z == pytest.approx(2)
    assert sharp.row() == ("a", "1", "1.20 +- 0.10", "z = +2.0")
    rough = about("b", 2.0, Estimate(2.1, 0.1, 0, "walkers"))
    assert math.isnan(rough.z)
    assert rough.row() == ("b", "~2", "2.10 +- 0.10", "+5 %")
    assert rough.plain()["z"] is None
    loud = Verdict("c", 1.0, 1.5, 0.1)
    outcome = Outcome("", [sharp, rough, loud], {}, {})
    assert outcome.disagreement() == "Theory and measurement DISAGREE: c (+5.0 standard errors)."
    assert Outcome("", [sharp, rough], {}, {}).disagreement() == ""
    assert with_error(0.0, 0.0) == "0"
    assert math.isnan(Verdict("d", 0.9, 1.0, 4e-18).z), "round-off is no standard error"
    assert with_error(1.0, 4e-18) == "1"
    assert with_error(31.659, 9.96) == "31.7 +- 10.0"


def test_parts_of_a_stage_share_its_tick() -> None:
    told = list[float]()
    around = Surroundings(0, torch.device("cpu"), lambda part: told.append)
    for _, tick in around.over("part", ["a", "b"]):
        tick(0.5)
        tick(1.0)
    assert told == [0.25, 0.5, 0.75, 1.0]
