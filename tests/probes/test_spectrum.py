"""The spectrum probe on a network small enough for its dense Hessian, in float64."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lab.curvature.operators import gauss_newton, hessian
from lab.curvature.stability import UpdateRule
from lab.landscapes.quadratic import Quadratic
from lab.objective import NetworkObjective
from lab.probes.base import Plan, Snapshot
from lab.probes.spectrum import Spectrum, spectrum
from lab.settings import SettingError

SETTINGS = {"k": 4, "bottom": 3, "tol": 1e-6, "steps": 40}


@pytest.fixture(scope="module")
def loss() -> NetworkObjective:
    """P = 139, as many examples as make the Hessian of full rank; partly trained, of either sign."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = torch.randn(60, 6, dtype=torch.float64)
    objective = NetworkObjective(model, nn.functional.cross_entropy, (x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5)))
    w = objective.weights
    for _ in range(50):
        w = w - 0.5 * objective.grad(w)
    nn.utils.vector_to_parameters(w, model.parameters())
    return objective


@pytest.fixture(scope="module")
def dense(loss: NetworkObjective) -> Tensor:
    return hessian(loss, loss.weights).dense()


def snapshot(loss: NetworkObjective, step: int = 0, shift: float = 0.0, lr: float = 0.1) -> Snapshot:
    return Snapshot(step, loss.weights + shift, lambda _: loss, UpdateRule(lr=lr))


def numbers(probe: Spectrum, loss: NetworkObjective, step: int = 0, shift: float = 0.0) -> dict[str, float]:
    return {tag: v for tag, v in probe.measure(snapshot(loss, step, shift)).items() if isinstance(v, float)}


def test_values_are_those_of_the_dense_hessian(loss: NetworkObjective, dense: Tensor) -> None:
    values = torch.linalg.eigvalsh(dense)
    found = numbers(Spectrum(**SETTINGS, vectors=10), loss)
    for i in range(4):
        assert found[f"spectrum/lambda_{i + 1}"] == pytest.approx(float(values[-1 - i]), rel=1e-5)
    for i in range(3):
        assert found[f"spectrum/lambda_min_{i + 1}"] == pytest.approx(float(values[i]), abs=1e-5 * float(values[-1]))
    truth = {
        "trace": values.sum(),
        "frobenius": values.norm(),
        "effective_rank": values.sum() ** 2 / values.square().sum(),
        "negative_mass": -values.clamp(max=0).sum() / values.abs().sum(),
    }
    for name, value in truth.items():
        assert abs(found[f"spectrum/{name}"] - float(value)) <= 4 * found[f"error/spectrum/{name}"] + 1e-9, name
    assert found["error/spectrum/trace"] < 0.02 * float(values.sum())
    above = int((values > found["spectrum/bulk_edge"]).sum())
    assert abs(found["spectrum/outliers"] - above) <= 4 * found["error/spectrum/outliers"]
    assert found["spectrum/converged"] == 1
    assert found["cost/spectrum/matvecs"] >= 10 * 40


def test_gradient_share_and_overlap_are_those_of_the_dense_eigenvectors(loss: NetworkObjective) -> None:
    probe, w = Spectrum(**SETTINGS), loss.weights
    first, second = numbers(probe, loss), numbers(probe, loss, 130, 0.05)
    assert "spectrum/overlap" not in first, "there is nothing to compare with"
    tops = [torch.linalg.eigh(hessian(loss, at).dense())[1][:, -4:] for at in (w, w + 0.05)]
    for found, V, at in ((first, tops[0], w), (second, tops[1], w + 0.05)):
        g = loss.grad(at)
        assert found["spectrum/gradient_share"] == pytest.approx(float((V.T @ g).norm() / g.norm()) ** 2, rel=1e-3)
    assert second["spectrum/overlap"] == pytest.approx(float((tops[0].T @ tops[1]).square().sum() / 4), rel=1e-3)


@pytest.mark.parametrize("glob", ["2.*", "*.bias", "0.weight"])
def test_a_glob_measures_the_block_of_its_parameters(glob: str, loss: NetworkObjective, dense: Tensor) -> None:
    index = loss.layout.select(glob)
    block = dense[index][:, index]
    values, g = torch.linalg.eigh(block), loss.grad(loss.weights)[index]
    found = numbers(Spectrum(**SETTINGS, parameters=glob, vectors=8), loss)
    assert found["spectrum/lambda_1"] == pytest.approx(float(values[0][-1]), rel=1e-5)
    assert abs(found["spectrum/trace"] - float(block.trace())) <= 4 * found["error/spectrum/trace"] + 1e-9
    share = float((values[1][:, -4:].T @ g).norm() / g.norm()) ** 2
    assert found["spectrum/gradient_share"] == pytest.approx(share, rel=1e-3)


def test_a_glob_that_matches_nothing_is_refused(loss: NetworkObjective) -> None:
    with pytest.raises(SettingError, match=r"probe.spectrum.parameters=9.*: no parameter matches '9\.\*'"):
        Spectrum(parameters="9.*").measure(snapshot(loss))
    plan = Plan(loss.model, 60, lambda _: loss)
    with pytest.raises(SettingError, match=r"probe.spectrum.parameters=9.*: no parameter matches '9\.\*'"):
        Spectrum(parameters="9.*").require(plan)
    Spectrum(parameters="2.*").require(plan)


def test_split_adds_up(loss: NetworkObjective, dense: Tensor) -> None:
    G = gauss_newton(loss, loss.weights).dense()
    R = torch.linalg.eigvalsh(dense - G)
    found = numbers(Spectrum(**SETTINGS, split=True), loss)
    top = torch.linalg.eigvalsh(G).flip(0)
    for i in range(4):
        assert found[f"spectrum/gauss_newton/lambda_{i + 1}"] == pytest.approx(float(top[i]), rel=1e-5)
    assert found["spectrum/gauss_newton/trace"] == pytest.approx(float(G.trace()), rel=1e-9)
    assert found["spectrum/residual/lambda_1"] == pytest.approx(float(R[-1]), rel=1e-5)
    assert found["spectrum/residual/lambda_min_1"] == pytest.approx(float(R[0]), rel=1e-5)
    whole = found["spectrum/gauss_newton/trace"] + found["spectrum/residual/trace"]
    assert whole == pytest.approx(found["spectrum/trace"])


def test_layers_are_diagonal_blocks(loss: NetworkObjective, dense: Tensor) -> None:
    found = numbers(Spectrum(**SETTINGS, layers=True), loss)
    for name, place in loss.layout.layers().items():
        block = dense[place, place]
        top = float(torch.linalg.eigvalsh(block)[-1])
        assert found[f"spectrum/layer/{name}/lambda_1"] == pytest.approx(top, rel=1e-5)
        error = abs(found[f"spectrum/layer/{name}/trace"] - float(block.trace()))
        assert error <= 4 * found[f"error/spectrum/layer/{name}/trace"] + 1e-9
    assert len([tag for tag in found if tag.startswith("spectrum/layer/")]) == 6


def test_pyhessian_measures_the_same(loss: NetworkObjective, dense: Tensor) -> None:
    values = torch.linalg.eigvalsh(dense)
    found = numbers(Spectrum(engine="pyhessian", k=2, tol=1e-4, vectors=8), loss)
    assert found["spectrum/lambda_1"] == pytest.approx(float(values[-1]), rel=0.01)  # it is off by up to 0.8 %
    assert abs(found["spectrum/trace"] - float(values.sum())) <= 4 * found["error/spectrum/trace"]
    assert abs(found["spectrum/frobenius"] - float(values.norm())) <= 4 * found["error/spectrum/frobenius"]
    assert "spectrum/lambda_min_1" not in found


def test_contradicting_settings_are_refused() -> None:
    for wrong in (
        {"engine": "pyhessian", "parameters": "0.*"},
        {"k": 500},
        {"engine": "pyhessian", "k": 10, "max_matvecs": 15},
    ):
        with pytest.raises(ValueError, match=r"use "):
            Spectrum(**wrong)  # type: ignore[arg-type]


def test_the_memory_of_the_top_eigenspace_survives_a_resume(loss: NetworkObjective) -> None:
    first, second = Spectrum(**SETTINGS, split=True, layers=True), Spectrum(**SETTINGS, split=True, layers=True)
    numbers(first, loss)
    second.load_state_dict(first.state_dict())
    one, other = (numbers(probe, loss, 130, 1e-3) for probe in (first, second))
    del one["cost/spectrum/seconds"], other["cost/spectrum/seconds"]
    assert one == other and "spectrum/overlap" in one


def test_arrays_hold_what_the_figure_shows(loss: NetworkObjective) -> None:
    values = Spectrum(**SETTINGS).measure(snapshot(loss, lr=0.5))
    arrays = {tag.removeprefix("spectrum/"): v for tag, v in values.items() if isinstance(v, Tensor)}
    grid, density = arrays["grid"], arrays["values"]
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1, abs=1e-3)
    assert float(arrays["threshold"]) == pytest.approx(2 / 0.5)
    assert arrays["top"].tolist() == [values[f"spectrum/lambda_{i}"] for i in range(1, 5)]
    assert all(array.dtype == torch.float64 for array in arrays.values())
    above, below = values["spectrum/density"].axes  # type: ignore[union-attr]
    assert above.get_yscale() == "log" and below.get_xscale() == below.get_yscale() == "log"
    (line,) = [line for line in above.lines if "threshold" in str(line.get_label())]
    assert np.asarray(line.get_xdata())[0] == pytest.approx(4) or "off to the right" in str(line.get_label())


def test_preconditioned_training_has_no_threshold_for_this_spectrum(loss: NetworkObjective) -> None:
    state = Snapshot(0, loss.weights, lambda _: loss, UpdateRule(lr=0.1, preconditioner=torch.ones(loss.num_params)))
    assert "spectrum/threshold" not in Spectrum(**SETTINGS).measure(state)


def test_spectrum_in_a_notebook(loss: NetworkObjective, dense: Tensor) -> None:
    found = spectrum(loss, k=4, bottom=3, steps=40, vectors=10)
    values = torch.linalg.eigvalsh(dense)
    torch.testing.assert_close(found.top.values, values.flip(0)[:4], rtol=1e-3, atol=0)
    assert abs(found.trace.value - float(values.sum())) <= 4 * found.trace.error + 1e-9
    assert found.numbers()["lambda_1"] == float(found.top.values[0])
    assert found.figure().axes[0].get_title() == "Hessian spectrum"
    assert f"the largest eigenvalue is {float(values[-1]):.4g}" in found.sentence()
    again = spectrum(snapshot(loss, shift=1e-3), k=4, bottom=3, split=True, memory=found.memory())
    assert again.threshold == 2 / 0.1 and 0.99 < (again.overlap or 0) <= 1 + 1e-9
    assert again.numbers()["gauss_newton/lambda_1"] == pytest.approx(float(values[-1]), rel=0.5)


def test_a_landscape_has_a_spectrum_and_no_layers() -> None:
    bowl = Quadratic(torch.tensor([5.0, 2.0, 1.0, -1.0]).double())
    found = spectrum(bowl, torch.ones(4).double(), k=2, bottom=1)
    assert found.top.values.tolist() == pytest.approx([5, 2])
    assert found.trace.value == pytest.approx(7) and found.density.frobenius.value == pytest.approx(math.sqrt(31))
    with pytest.raises(ValueError, match="Quadratic has no present weights; give w"):
        spectrum(bowl)
    with pytest.raises(SettingError, match="Quadratic has no named parameters"):
        spectrum(bowl, torch.ones(4), parameters="0.*")


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_handful_of_weights(size: int) -> None:
    values = torch.tensor([3.0, 1.0, -1.0])[:size].double()
    found = spectrum(Quadratic(values), torch.ones(size).double())
    assert len(found.top.values) + len(found.bottom.values) == size
    assert found.trace.value == pytest.approx(float(values.sum()))


def test_weights_that_are_not_finite_are_not_measured(loss: NetworkObjective) -> None:
    probe = Spectrum(**SETTINGS)
    with pytest.warns(UserWarning, match="not finite"):
        values = probe.measure(snapshot(loss, shift=math.nan))
    assert math.isnan(values["spectrum/lambda_1"]) and math.isnan(values["spectrum/frobenius"])
    assert "spectrum/density" not in values and not probe.state_dict()
    with pytest.warns(UserWarning, match="not finite"), pytest.raises(ValueError, match="no spectrum to draw"):
        spectrum(snapshot(loss, shift=math.nan)).figure()
