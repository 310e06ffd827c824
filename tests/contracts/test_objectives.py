"""The laws that every objective of `lab.landscapes` and `lab.gallery.landscapes` keeps, found by walking the packages.

Each has a card in `conf/landscape/`, from which it is made here; one without fails `test_every_landscape_has_a_card`.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

import lab.gallery.landscapes
import lab.landscapes
from lab.objective import Objective, audit
from lab.run.cards import card, config_dir

DOUBLE = torch.float64

INSTANCES: dict[str, Callable[[], Objective]] = {}


def instance(path: str) -> Callable[[Callable[[], Objective]], Callable[[], Objective]]:
    """Register a small instance of the class at `lab.<path>`."""

    def register(make: Callable[[], Objective]) -> Callable[[], Objective]:
        INSTANCES[path] = make
        return make

    return register


@instance("landscapes.quadratic.Quadratic")
def quadratic() -> Objective:
    from lab.landscapes.quadratic import Quadratic

    return Quadratic(torch.tensor([3.0, -1.0, 0.0, 0.5], dtype=DOUBLE))


def _of_card(file: Path) -> tuple[str, Callable[[], Objective]]:
    """A landscape as its card has it."""
    values = yaml.safe_load(file.read_text())
    return values["_target_"].removeprefix("lab."), lambda: card(values, "landscape")


for _file in sorted(Path(config_dir(), "landscape").glob("*.yaml")):
    _path, _make = _of_card(_file)
    INSTANCES.setdefault(_path, _make)


def landscapes() -> set[str]:
    """Every concrete subclass of Objective defined in a module of the two packages, as package.module.Class."""
    found = set()
    for package in (lab.landscapes, lab.gallery.landscapes):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(info.name)
            for name, kind in inspect.getmembers(module, inspect.isclass):
                if issubclass(kind, Objective) and kind.__module__ == info.name and not inspect.isabstract(kind):
                    found.add(f"{info.name.removeprefix('lab.')}.{name}")
    return found


def test_every_landscape_has_a_card() -> None:
    assert landscapes() == set(INSTANCES), "every landscape needs a card in conf/landscape/"


@pytest.fixture(params=sorted(INSTANCES))
def objective(request: pytest.FixtureRequest) -> Objective:
    return INSTANCES[request.param]()


def points(objective: Objective, count: int = 3) -> Tensor:
    """Random points (count, P) in float64."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, objective.num_params, dtype=DOUBLE, generator=generator)


def test_the_weights_of_the_parts_sum_to_one(objective: Objective) -> None:
    for w in points(objective):
        parts = list(objective.parts(w))
        assert sum(weight for weight, _ in parts) == pytest.approx(1.0, rel=1e-12)
        assert all(loss.dim() == 0 for _, loss in parts)
        mean = sum(weight * float(loss) for weight, loss in parts)
        assert float(objective.value(w)) == pytest.approx(mean, rel=1e-12)


def test_the_gradient_equals_finite_differences(objective: Objective) -> None:
    # Central differences with step 1e-5 in float64: truncation 1e-10 times third derivatives, round-off 1e-16 / 1e-5.
    for w in points(objective):
        directions = torch.eye(objective.num_params, dtype=DOUBLE) * 1e-5
        truth = torch.stack([(objective.value(w + d) - objective.value(w - d)) / 2e-5 for d in directions])
        gradient = objective.grad(w)
        assert (gradient - truth).abs().max() < 1e-7 * max(1.0, float(gradient.abs().max()))
        assert float(objective.value_and_grad(w)[0]) == pytest.approx(float(objective.value(w)), rel=1e-12)


def test_hessian_products_equal_finite_differences_of_the_gradient_and_are_symmetric(objective: Objective) -> None:
    u, v = points(objective, 2)
    for w in points(objective):
        hv = objective.hvp(w, v)
        truth = (objective.grad(w + 1e-5 * v) - objective.grad(w - 1e-5 * v)) / 2e-5
        scale = max(1.0, float(hv.abs().max()))
        assert (hv - truth).abs().max() < 1e-7 * scale
        assert float(u @ hv) == pytest.approx(float(v @ objective.hvp(w, u)), rel=1e-10, abs=1e-12)
        assert (objective.hvp(w, 2 * v - u) - 2 * hv + objective.hvp(w, u)).abs().max() < 1e-10 * scale


def test_third_derivatives_equal_finite_differences_of_hessian_products(objective: Objective) -> None:
    u, v = points(objective, 2)
    for w in points(objective):
        third = objective.third(w, u, v)
        truth = (objective.hvp(w + 1e-5 * u, v) - objective.hvp(w - 1e-5 * u, v)) / 2e-5
        assert (third - truth).abs().max() < 1e-6 * max(1.0, float(third.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_results_are_deterministic_and_have_the_dtype_of_w(objective: Objective, dtype: torch.dtype) -> None:
    w, v = points(objective, 2).to(dtype)
    random, before = torch.get_rng_state(), w.clone()

    def results() -> list[Tensor]:
        return [objective.value(w), objective.grad(w), objective.hvp(w, v), objective.third(w, v, v)]

    for first, second in zip(results(), results(), strict=True):
        assert torch.equal(first, second)
        assert first.dtype == dtype
        assert not first.requires_grad
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(w, before)
    assert not w.requires_grad


@pytest.mark.parametrize("seed", range(5))
def test_the_audit_raises_no_false_alarm(objective: Objective, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(objective.num_params, dtype=DOUBLE, generator=generator)
    assert all(law.held is not False for law in audit(objective, w, seed=seed).laws)
