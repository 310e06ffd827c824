"""A part of the probe set: nested, balanced, and lambda_max over the whole of it within the error that is stated."""

import itertools

import pytest
import torch
from torch import nn

from lab.curvature.eigen import lanczos
from lab.curvature.operators import hessian
from lab.landscapes.quadratic import Quadratic
from lab.objective import NetworkObjective
from lab.probes.nested import Nested, batch_of, bracketed, nested, sizes
from lab.streams import stream


def regression(seed: int, examples: int = 1024, weights: int = 8) -> NetworkObjective:
    """H = 2 X'X / N, whatever the weights; heavy rows, so that samples differ."""
    draw = stream(seed, "regression")
    x = torch.randn(examples, weights, generator=draw, dtype=torch.float64)
    x *= torch.rand(examples, 1, generator=draw, dtype=torch.float64) ** -0.2
    y = torch.arange(examples, dtype=torch.float64)[:, None] % 4
    return NetworkObjective(nn.Linear(weights, 1, bias=False).double(), nn.MSELoss(), (x, y))


def labelled(examples: int = 1000, *, norm: bool = False) -> NetworkObjective:
    x = torch.arange(examples, dtype=torch.float32)[:, None].expand(-1, 2).contiguous()
    model = nn.Sequential(nn.Linear(2, 4), *([nn.BatchNorm1d(4)] if norm else []), nn.Linear(4, 4))
    return NetworkObjective(model, nn.functional.cross_entropy, (x, torch.arange(examples) % 4), batch_norm="train")


def test_the_parts_are_nested_balanced_and_what_is_left_is_apart() -> None:
    loss = labelled(2000)
    assert sizes(loss) == [2000, 1000, 500, 250]
    inside = [set(nested(loss, Nested(size), 3).x[:, 0].tolist()) for size in sizes(loss)]
    assert all(small < large for large, small in itertools.pairwise(inside))
    assert [len(part) for part in inside] == [2000, 1000, 500, 250]
    for size in (1000, 250):
        rest = nested(loss, Nested(size, rest=True), 3)
        assert len(rest.y) == size and not set(rest.x[:, 0].tolist()) & set(
            nested(loss, Nested(size), 3).x[:, 0].tolist()
        )
        for part in (rest, nested(loss, Nested(size), 3)):
            assert part.y.bincount().max() - part.y.bincount().min() <= 1
    assert not set(nested(loss, Nested(250), 4).x[:, 0].tolist()) <= inside[1], "by the seed"


def test_where_examples_see_each_other_a_part_is_whole_batches() -> None:
    loss = labelled(2000, norm=True).in_chunks(128)
    assert batch_of(loss) == 128 and sizes(loss) == [2000, 1024, 512, 256]
    rest = nested(loss, Nested(256, rest=True), 0)
    assert len(rest.y) == 512, "four batches, for a standard error"
    assert sizes(labelled(2000, norm=True)) == [2000], "one batch of all: there is no smaller one"


def test_a_loss_without_examples_has_no_parts() -> None:
    assert len(sizes(Quadratic(torch.tensor([2.0, 1.0])))) == 1


def test_the_middle_and_its_error_are_those_of_dense_algebra() -> None:
    loss = regression(0)
    part, rest = nested(loss, Nested(256), 0), nested(loss, Nested(256, rest=True), 0)
    w = loss.weights
    top = lanczos(hessian(part, w), top=2, tol=1e-8).top
    found = bracketed(top, rest, w, lambda H: H)
    values = torch.linalg.eigh(2 * part.x.T @ part.x / 256)
    for i in (0, 1):
        v = values.eigenvectors[:, -1 - i]
        each = torch.stack([2 * (x @ v).square().mean() for x in rest.x.split(32)])  # v'Hv of 8 chunks
        assert found.values[i].item() == pytest.approx(float(values.eigenvalues[-1 - i] + each.mean()) / 2, rel=1e-6)
        gap = abs(float(values.eigenvalues[-1 - i] - each.mean())) / 2
        spread = float(each.std()) / 8**0.5 * 1.0772  # Student's t of 7 degrees where a Gaussian has one sigma
        assert found.errors[i].item() == pytest.approx(gap + spread, rel=1e-3)


def test_lambda_max_over_the_whole_set_is_within_the_stated_error() -> None:
    inside = 0
    for seed in range(40):
        loss = regression(seed)
        whole = float(torch.linalg.eigvalsh(2 * loss.x.T @ loss.x / len(loss.x))[-1])
        part, rest = nested(loss, Nested(256), seed), nested(loss, Nested(256, rest=True), seed)
        top = lanczos(hessian(part, loss.weights), tol=1e-6, generator=stream(seed, "start")).top
        found = bracketed(top, rest, loss.weights, lambda H: H)
        inside += abs(float(found.values[0]) - whole) <= float(found.errors[0])
    # An error of one sigma and half of the gap: at least 68 %, which 20 of 40 miss with a probability of 1 in 100.
    assert inside >= 21
