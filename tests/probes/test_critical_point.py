"""The probe of critical points: its numbers are those of the classifier, its words are true, its memory draws the figure."""

import math

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lab.curvature.operators import hessian
from lab.curvature.stability import UpdateRule
from lab.gallery.landscapes.deep_linear import DeepLinear
from lab.landscapes.base import Landscape
from lab.landscapes.factorisation import Factorisation
from lab.landscapes.quadratic import Quadratic
from lab.objective import Decayed, NetworkObjective, Objective
from lab.points.critical import classify
from lab.probes.base import Snapshot
from lab.probes.critical_point import CriticalPoint
from lab.probes.critical_point_figure import KINDS, Point, index_against_loss
from lab.probes.critical_point_result import ENDS

DOUBLE = torch.float64


def at(loss: Objective, w: Tensor, step: int = 0, rule: UpdateRule | None = None) -> Snapshot:
    return Snapshot(step, w, lambda examples: loss, rule)


def numbers(measured: dict) -> dict[str, float]:
    return {tag: value for tag, value in measured.items() if isinstance(value, float)}


def network() -> NetworkObjective:
    g = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=g))
    return NetworkObjective(model, nn.functional.cross_entropy, (torch.randn(20, 5, generator=g), torch.arange(20) % 3))


def test_index_and_nullity_of_a_network_are_those_of_its_hessian() -> None:
    loss = network()
    values = torch.linalg.eigvalsh(hessian(loss, loss.weights.double()).dense())
    edge = 1e-4 * float(values.abs().max())
    for dense in (500, 0):
        found = numbers(CriticalPoint(dense=dense).measure(at(loss, loss.weights)))
        assert found["critical_point/index"] == int((values < -edge).sum()) > 0
        assert found["critical_point/index_fraction"] == found["critical_point/index"] / 39
        assert found["critical_point/lambda_min"] == pytest.approx(float(values[0]), abs=edge)
        assert found["critical_point/lambda_max"] == pytest.approx(float(values[-1]), abs=edge)
        assert found["critical_point/kind"] == KINDS.index("not critical")
        assert found["critical_point/loss"] == pytest.approx(float(loss.value(loss.weights.double())), rel=1e-12)
        assert found["critical_point/grad_norm"] == pytest.approx(
            float(loss.grad(loss.weights.double()).norm()), rel=1e-9
        )
    assert numbers(CriticalPoint().measure(at(loss, loss.weights)))["critical_point/nullity"] == int(
        (values.abs() <= edge).sum()
    )


@pytest.mark.parametrize(
    ("landscape", "w", "words"),
    [
        (
            Factorisation(),
            (0.0, 0.0),
            "the point is a saddle (|g| = 0, loss 0.5), with 1 negative eigenvalue (50 % of all)",
        ),
        (Factorisation(), (2.0, 0.5), "with 0 negative eigenvalues and 1 not told from zero"),
        (Quadratic((2.0, 1.0)), (0.0, 0.0), "the point is a minimum"),
        (Quadratic((-2.0, -1.0)), (0.0, 0.0), "the point is a maximum"),
        (Factorisation(), (1.0, 0.1), "No critical point here (|g| = 0.9, loss 0.405; |g| > 1e-08). The Hessian has "),
    ],
)
def test_the_finding_says_what_the_point_is(landscape: Landscape, w: tuple[float, ...], words: str) -> None:
    probe = CriticalPoint()
    said = probe.finding(numbers(probe.measure(at(landscape, torch.tensor(w)))))
    assert said.startswith(("Critical point: ", "No critical point here ")) and words in said
    assert probe.finding({}) == ""


def test_bounds_are_told_as_bounds() -> None:
    h = torch.cat([-torch.linspace(0.1, 1, 60), torch.zeros(40), torch.linspace(0.1, 9, 300)])
    probe = CriticalPoint(dense=0, max_matvecs=60)
    said = probe.finding(numbers(probe.measure(at(Quadratic(h), torch.zeros(400)))))
    assert "a saddle" in said and "with at least " in said and "and an unknown number not told from zero" in said
    few = CriticalPoint(dense=0, max_matvecs=4)
    told = few.finding(numbers(few.measure(at(Quadratic(h.abs() + 0.01), torch.zeros(400)))))
    assert "of undetermined kind (too few products; raise probe.critical_point.max_matvecs)" in told


def test_a_critical_point_is_found_from_weights_that_are_none() -> None:
    landscape, w = DeepLinear((2.0, 1.0)), torch.randn(8, generator=torch.Generator().manual_seed(3))
    probe = CriticalPoint(find=True)
    measured = numbers(probe.measure(at(landscape, w)))
    assert measured["critical_point/search"] == ENDS.index("zero")
    assert measured["critical_point/grad_norm"] <= 1e-8
    assert measured["critical_point/moved"] > 0.1
    assert KINDS[int(measured["critical_point/kind"])] in ("saddle", "degenerate")
    assert "searched from these weights, found " in probe.finding(measured)
    bare = numbers(CriticalPoint().measure(at(landscape, w)))
    assert bare["critical_point/kind"] == KINDS.index("not critical") and "critical_point/search" not in bare


def test_a_search_that_finds_none_says_so() -> None:
    class Bump(Landscape):
        num_params = 2

        def energy(self, x: Tensor) -> Tensor:
            return x[..., 0] ** 3 / 3 + x[..., 0] + x[..., 1].square() / 2

    probe = CriticalPoint(find=True)
    measured = numbers(probe.measure(at(Bump(), torch.tensor([0.7, 0.5]))))
    assert measured["critical_point/kind"] == KINDS.index("not critical")
    assert "NONE was found from these weights: the search ended " in probe.finding(measured)
    assert "; no critical point there (|g| = " in probe.finding(measured)
    short = CriticalPoint(find=True, max_iterations=1)
    told = short.finding(numbers(short.measure(at(DeepLinear(), torch.ones(18)))))
    assert "NONE was found from these weights in 1 iterations and 5000 products; raise " in told


def test_coupled_weight_decay_belongs_to_the_loss() -> None:
    loss, decay = network(), 0.3
    measured = numbers(CriticalPoint().measure(at(loss, loss.weights, rule=UpdateRule(lr=0.1, coupled_decay=decay))))
    truth = classify(Decayed(loss, decay), loss.weights.double())
    assert measured["critical_point/grad_norm"] == truth.grad_norm
    assert measured["critical_point/lambda_min"] == float(truth.values[0])


def test_the_points_of_a_run_are_a_figure_and_survive_a_resume() -> None:
    loss, probe, again = network(), CriticalPoint(every=5), CriticalPoint(every=5)
    first = probe.measure(at(loss, loss.weights, 0))
    assert "critical_point/index_against_loss" not in first
    again.load_state_dict(probe.state_dict())
    for each in (probe, again):
        figure = each.measure(at(loss, 1.5 * loss.weights, 5))["critical_point/index_against_loss"]
        assert isinstance(figure, Figure)
        [axis] = figure.axes
        places = torch.cat([torch.tensor(line.get_xydata()) for line in axis.lines])
        assert len(places) == 2
        assert sorted(places[:, 0].tolist()) == pytest.approx(sorted(float(p[0]) for p in each.state_dict().values()))
    assert isinstance(first["critical_point/eigenvalues"], Figure)
    assert first["critical_point/hessian_eigenvalues"].shape == (39,)


def test_bounds_and_kinds_are_told_apart_in_the_figure() -> None:
    figure = index_against_loss([Point(1.0, 0.2, 2.0, 1.0), Point(0.1, 0.1, 2.0, 0.0), Point(0.01, 0.0, 0.0, 1.0)], "x")
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert labels == {"saddle", "saddle (at least)", "not critical"}
    assert figure.axes[0].get_xscale() == "log"


def test_weights_that_have_diverged_are_not_measured() -> None:
    measured = CriticalPoint(find=True).measure(at(network(), torch.full((39,), math.nan)))
    assert set(measured) == {"cost/critical_point/seconds"}
