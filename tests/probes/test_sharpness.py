"""The sharpness probe where its searches are made on a part of the examples."""

import warnings

import pytest
import torch

from lab.curvature.stability import UpdateRule
from lab.data.digits import Digits
from lab.models.losses import MeanSquaredError
from lab.models.mlp import Mlp
from lab.objective import NetworkObjective
from lab.probes import Sharpness
from lab.probes.base import Snapshot


@pytest.fixture(scope="module")
def loss() -> NetworkObjective:
    """3466 weights, 300 digits."""
    data = Digits(examples=300, batch_size="full").load().train
    model = Mlp(widths=(32, 32)).build(tuple(data.x.shape[1:]), 10, seed=0)
    return NetworkObjective(model, MeanSquaredError().build(10), (data.x, data.y))


@pytest.fixture(scope="module")
def trajectory(loss: NetworkObjective) -> list[torch.Tensor]:
    """Weights every 5 steps of gradient descent."""
    w, points = loss.weights, []
    for step in range(31):
        if step % 5 == 0:
            points.append(w)
        w = w - 0.3 * loss.grad(w)
    return points


def run(
    probe: Sharpness, loss: NetworkObjective, points: list[torch.Tensor], rule: UpdateRule | None = None
) -> list[dict[str, float]]:
    found = [probe.measure(Snapshot(i * probe.rhythm, w, lambda _: loss, rule)) for i, w in enumerate(points)]
    return [{tag: v for tag, v in values.items() if isinstance(v, float)} for values in found]


@pytest.mark.parametrize("adaptive", [False, True])
def test_searches_on_a_part_find_the_same_values(
    loss: NetworkObjective, trajectory: list[torch.Tensor], adaptive: bool
) -> None:
    scaling = torch.linspace(0.5, 2, loss.num_params)
    rule = UpdateRule(lr=0.3, preconditioner=scaling if adaptive else None)
    main = "sharpness/preconditioned" if adaptive else "sharpness/lambda_max"
    truth = run(Sharpness(cold=1, tol=1e-4), loss, trajectory, rule)
    part = run(Sharpness(coarse=60), loss, trajectory, rule)
    whole = run(Sharpness(coarse=0), loss, trajectory, rule)
    for exact, found in zip(truth, part, strict=True):
        assert found["sharpness/converged"] == 1
        assert found[main] == pytest.approx(exact[main], rel=1e-3)
        assert abs(found[main] - exact[main]) <= found[f"error/{main}"] + 1e-4 * exact[main]
        assert found["sharpness/ratio"] == pytest.approx(exact[main] * 0.3 / 2, rel=1e-3)
    # The first solve is the same search of all examples; learning from it takes some products on the part.
    assert 0 < part[0]["cost/sharpness/matvecs"] - whole[0]["cost/sharpness/matvecs"] <= 0.2 * 8 * (1 + adaptive) + 1e-9


def test_a_probe_goes_on_from_its_state_with_the_same_values(
    loss: NetworkObjective, trajectory: list[torch.Tensor]
) -> None:
    whole = run(Sharpness(coarse=60, midpoints=True, every=1), loss, trajectory)
    first, second = (Sharpness(coarse=60, midpoints=True, every=1) for _ in range(2))
    run(first, loss, trajectory[:5])
    second.load_state_dict(first.state_dict())
    for i, w in enumerate(trajectory[5:], start=5):
        found = second.measure(Snapshot(i, w, lambda _: loss))
        assert {tag: v for tag, v in found.items() if not tag.endswith("seconds")} == {
            tag: v for tag, v in whole[i].items() if not tag.endswith("seconds")
        }


@pytest.mark.parametrize("settings", [{"coarse": 60, "bottom": True}, {"coarse": 0}, {"coarse": 300}, {}], ids=str)
def test_no_part_is_used_with_both_ends_or_where_it_would_not_pay(
    loss: NetworkObjective, settings: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NetworkObjective, "restrict", lambda self, index: pytest.fail("a part was drawn"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(Sharpness(**settings), loss, [loss.weights])


def test_what_is_held_against_the_threshold_is_preconditioned_at_midpoints_too(loss: NetworkObjective) -> None:
    # P = 4 divides every eigenvalue by 4, at the iterates, at midpoints, and in the figure.
    probe = Sharpness(midpoints=True, every=1)
    rule = UpdateRule(lr=0.3, preconditioner=torch.full((loss.num_params,), 4.0))
    found = run(probe, loss, [loss.weights] * 3, rule)[-1]
    assert found["sharpness/midpoint"] == pytest.approx(found["sharpness/preconditioned"], rel=2e-3)
    assert found["sharpness/midpoint"] == pytest.approx(found["sharpness/lambda_max"] / 4, rel=2e-3)


def test_the_figure_shows_the_spectrum_that_the_threshold_is_about(loss: NetworkObjective) -> None:
    rule = UpdateRule(lr=0.3, preconditioner=torch.full((loss.num_params,), 4.0))
    values = Sharpness(k=3).measure(Snapshot(0, loss.weights, lambda _: loss, rule))
    axis = values["sharpness/spectrum"].axes[0]
    heights = axis.containers[0].markerline.get_ydata()
    assert heights[0] == pytest.approx(values["sharpness/preconditioned"])
    assert "P^{-1}" in axis.containers[0].get_label()
    assert list(axis.get_xticks()) == [1, 2, 3]
