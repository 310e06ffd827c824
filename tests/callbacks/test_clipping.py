"""Clipped gradients: the ratio is not held against the threshold of steps that were not made, and training is untouched.

By norm a step is that of the effective rate lr min(1, c/|g|), |g| of the gradient of that very step, over all parameters
of the optimiser. torch divides by |g| + 1e-6: tolerances of 1e-4 beside gradients of 0.1 and more.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from callbacks.strangers import Gradients, Make, Project, fit
from torch import optim

from lab.callbacks.clipping import Clipping
from lab.curvature.stability import UpdateRule

pytestmark = pytest.mark.filterwarnings("ignore")
CLOSE = {"rel": 1e-4}


def norms(seen: Gradients) -> list[float]:
    return [float(g.norm()) for g in seen.gradients]


RULES: dict[str, tuple[Make, float]] = {
    "gradient descent": (lambda m: optim.SGD(m.parameters(), lr=0.1), 20.0),
    "momentum": (lambda m: optim.SGD(m.parameters(), lr=0.1, momentum=0.9), 38.0),
    "momentum, decay": (lambda m: optim.SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=0.5), 37.5),
    "two rates": (
        lambda m: optim.SGD([{"params": m.net.parameters()}, {"params": m.aux.parameters(), "lr": 1.0}], lr=0.1),
        2,
    ),
    "Adam": (lambda m: optim.Adam(m.net.parameters(), lr=0.01), 3800.0),
}


@pytest.mark.parametrize(
    ("name", "c"), [("gradient descent", 0.05), *((name, 0.35) for name in RULES), ("Adam", 0.05), ("two rates", 100.0)]
)
def test_by_norm_the_threshold_is_that_of_the_effective_rate_of_the_step(name: str, c: float) -> None:
    make, threshold = RULES[name]
    project = Project(make)
    seen = Gradients()
    probe = fit(project, seen, gradient_clip_val=c)
    clipped = [norm > c for norm in norms(seen)]
    assert probe.latest["train/clipped"] == pytest.approx(sum(clipped) / 13)
    assert probe.summary()["clipped"] == probe.latest["train/clipped"]
    factor = min(1.0, c / norms(seen)[12])
    assert probe.latest["sharpness/threshold"] == pytest.approx(threshold, rel=1e-6)
    assert probe.latest["sharpness/clipped_threshold"] == pytest.approx(threshold / factor, **CLOSE)
    assert probe.latest["sharpness/clipped_ratio"] == pytest.approx(probe.latest["sharpness/ratio"] * factor, **CLOSE)
    assert probe.tracker.ratio == probe.latest["sharpness/clipped_ratio"]
    assert ("max(1, |g|/c)" in probe.summary()["threshold_formula"]) == any(clipped)


def test_the_decay_that_joins_after_the_clipping_is_not_clipped() -> None:
    # w <- w - lr (f H + c) w: what is claimed against the literal one-dimensional recursion.
    lr, decay, f, clipping = 0.1, 0.5, 0.25, Clipping()
    clipping.steps, clipping.clipped, clipping.factor = 1, 1, f
    threshold = clipping.judged(UpdateRule(lr=lr, coupled_decay=decay), 1.0)[0]["sharpness/clipped_threshold"]
    for curvature, stable in ((threshold * (1 - 1e-6), True), (threshold * (1 + 1e-6), False)):
        assert (abs(1 - lr * (f * curvature + decay)) < 1) == stable


def test_with_decay_and_a_preconditioner_no_effective_threshold_is_claimed() -> None:
    probe = fit(Project(lambda m: optim.Adam(m.net.parameters(), lr=0.01, weight_decay=0.1)), gradient_clip_val=0.05)
    assert probe.latest["train/clipped"] == 1 and "sharpness/ratio" in probe.latest
    assert "sharpness/clipped_ratio" not in probe.latest and math.isnan(probe.tracker.ratio)


@pytest.mark.parametrize("c", [0.01, 0.1, 10.0])
def test_by_value_the_share_is_logged_and_clipped_steps_have_no_phase(c: float) -> None:
    project = Project(lambda m: optim.SGD(m.parameters(), lr=0.1))
    seen = Gradients()
    probe = fit(project, seen, gradient_clip_val=c, gradient_clip_algorithm="value", every=3)
    clipped = [bool((g.abs() > c).any()) for g in seen.gradients]
    assert probe.latest["train/clipped"] == pytest.approx(sum(clipped) / 13)
    assert "sharpness/clipped_threshold" not in probe.latest and "sharpness/ratio" in probe.latest
    judged = [step for step in range(0, 13, 3) if not clipped[step]]
    assert [step for step, _ in probe.tracker.ratios] == judged + [13] * (not clipped[12]), "the end by the last step"
    assert ("of unclipped steps" in probe.summary()["threshold_formula"]) == any(clipped)


def test_where_no_ratio_was_measured_only_the_share_is_spoken_of() -> None:
    clipping = Clipping()
    clipping.steps, clipping.clipped, clipping.factor = 1, 1, 0.5
    assert clipping.judged(None, math.nan)[0] == {"train/clipped": 1.0}
    assert clipping.told == "gradients are clipped: train/clipped is the share of clipped steps"
    assert "sharpness/clipped_ratio" in clipping.judged(UpdateRule(lr=0.1), 1.0)[0]
    assert "sharpness/clipped_threshold" in clipping.told


def test_clipping_is_said_once_and_only_where_a_step_was_clipped() -> None:
    with pytest.warns(UserWarning, match="clipped by norm") as said:
        fit(Project(lambda m: optim.SGD(m.parameters(), lr=0.1)), gradient_clip_val=0.05, every=3)
    assert sum("clipped by norm" in str(one.message) for one in said) == 1
    with pytest.warns(UserWarning, match="by value"):
        fit(
            Project(lambda m: optim.SGD(m.parameters(), lr=0.1)),
            gradient_clip_val=0.01,
            gradient_clip_algorithm="value",
        )
    with pytest.warns() as said:
        fit(Project(lambda m: optim.SGD(m.net.parameters(), lr=0.1)), gradient_clip_val=100.0, every=3)
    assert not any("clipped" in str(one.message) for one in said)


class OfItsOwn(Project):
    """Clips in Lightning's hook for it, half as tightly at odd steps."""

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        c = 0.1 if self.trainer.global_step % 2 else 0.05
        self.clip_gradients(optimizer, gradient_clip_val=c, gradient_clip_algorithm="norm")


class ByHand(Project):
    """Clips where older projects do."""

    def on_before_optimizer_step(self, optimizer: optim.Optimizer) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters(), 0.05)


class ByGroup(Project):
    """Clips every group to a norm of its own: by no one factor."""

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        torch.nn.utils.clip_grad_norm_(self.net[0].parameters(), 0.01)
        torch.nn.utils.clip_grad_norm_(self.net[2].parameters(), 0.05)


class Logs(Project):
    """Uses the hook for something else."""

    def on_before_optimizer_step(self, optimizer: optim.Optimizer) -> None:
        self.norm = self.net[0].weight.norm()


OWN: dict[str, tuple[type[Project], float | None]] = {
    "configure_gradient_clipping": (OfItsOwn, 0.05),
    "on_before_optimizer_step": (ByHand, 0.05),
    "by group": (ByGroup, math.nan),
    "nothing clipped": (Logs, None),
}


@pytest.mark.parametrize(("kind", "c"), OWN.values(), ids=OWN)
def test_clipping_of_ones_own_is_seen(kind: type[Project], c: float | None) -> None:
    project = kind(lambda m: optim.SGD(m.net.parameters(), lr=0.1))
    seen = Gradients()
    probe = fit(project, seen)
    if c is None:
        assert "train/clipped" not in probe.latest and [step for step, _ in probe.tracker.ratios] == [0, 12, 13]
        return
    assert probe.latest["train/clipped"] == 1
    if math.isnan(c):
        assert "sharpness/clipped_ratio" not in probe.latest and not probe.tracker.ratios
    else:
        assert probe.latest["sharpness/clipped_threshold"] == pytest.approx(20 * norms(seen)[12] / c, **CLOSE)


def test_adam_normalises_a_constant_factor_away_and_so_does_the_effective_ratio() -> None:
    # Adam without eps makes the same steps on f g as on g: what is clipped always by the same f is as stable as what is not.
    # The second moments hold f g, so that P^-1 H and with it the ratio are 1/f too large, which the factor takes back.
    class Scaled(Project):
        def configure_gradient_clipping(self, optimizer: optim.Optimizer, *_: Any, **__: Any) -> None:
            for p in self.net.parameters():
                p.grad.mul_(0.125)  # type: ignore[union-attr]

    def make(m: Project) -> optim.Adam:
        return optim.Adam(m.net.parameters(), lr=0.01, eps=0.0)

    scaled, plain = fit(Scaled(make)), fit(Project(make))
    assert scaled.latest["sharpness/ratio"] == pytest.approx(8 * plain.latest["sharpness/ratio"], rel=1e-6)
    assert scaled.latest["sharpness/clipped_ratio"] == pytest.approx(plain.latest["sharpness/ratio"], rel=1e-6)


def by_norm(m: Project) -> optim.Optimizer:
    return optim.SGD(m.parameters(), lr=0.1, momentum=0.9)


@pytest.mark.parametrize(
    "make_project",
    [lambda: Project(by_norm), lambda: OfItsOwn(by_norm), lambda: ByHand(by_norm)],
    ids=["Trainer", "own", "by hand"],
)
def test_training_is_bit_identical_where_gradients_are_watched(make_project: Callable[[], Project]) -> None:
    more: dict[str, Any] = {} if isinstance(make_project(), OfItsOwn | ByHand) else {"gradient_clip_val": 0.05}
    measured, bare = make_project(), make_project()
    fit(measured, every=3, **more)
    fit(bare, every=0, **more)
    for a, b in zip(measured.parameters(), bare.parameters(), strict=True):
        assert torch.equal(a, b)
