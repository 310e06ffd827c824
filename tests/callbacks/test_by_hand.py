"""What a plain loop does to its gradients between backward and the update is seen, and changes nothing but what is said."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from callbacks.loops import Loss, batches, data, network, same
from torch import Tensor, nn, optim

import lab
from lab.callbacks.by_hand import BY_NORM, CHANGED, SCALED, UNDECIDED, HandClipping
from lab.probes.sharpness import Sharpness

STEPS, EVERY, BOUND, PARTS = 30, 3, 0.4, 3
Change = Callable[[list[nn.Parameter]], Any]
norm: Change = lambda params: nn.utils.clip_grad_norm_(params, BOUND)  # noqa: E731
value: Change = lambda params: nn.utils.clip_grad_value_(params, 0.02)  # noqa: E731


@dataclass
class Run:
    """A loop: its watch, |g| before every update, the ratio of unclipped steps by measured step, and all it goes on from."""

    watch: Any
    norms: list[float] = field(default_factory=list)
    plain: dict[int, float] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    state: list[Tensor] = field(default_factory=list)


def loop(
    change: Change,
    form: str = "update",
    *,
    scaler: bool = False,
    parts: int = 1,
    watched: bool = True,
    steps: int = STEPS,
) -> Run:
    model = network(norm=False)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    amp = torch.amp.GradScaler("cpu", enabled=scaler, init_scale=512.0)
    run = Run(lab.watch(model, Loss, data(), optimizer, probes=[Sharpness(every=EVERY)]) if watched else None)
    params = [*model.parameters()]
    if watched:
        run.watch.say = lambda text: run.said.append(text) if text and text not in run.said else None
    torch.manual_seed(7)
    for step, (x, y) in enumerate(batches(steps)):
        with run.watch.step() if watched and form == "body" else nullcontext():
            optimizer.zero_grad()
            for some in torch.arange(len(y)).chunk(parts):
                amp.scale(Loss(model(x[some]), y[some])).backward()
            with run.watch.step() if watched and form == "update" else nullcontext():
                amp.unscale_(optimizer)
                run.norms.append(float(torch.cat([p.grad.flatten() for p in params if p.grad is not None]).norm()))
                change(params)
                amp.step(optimizer)
                amp.update()
        if watched and step % EVERY == 0:
            run.plain[step] = run.watch.latest["sharpness/ratio"]
        elif watched and form == "body" and (step + 1) % EVERY:
            assert not any(p._post_accumulate_grad_hooks for p in params), "only what is measured is looked at"
    if watched:
        run.watch.close()
        assert not any(p._post_accumulate_grad_hooks for p in params)
    moments = [m for s in optimizer.state.values() for m in s.values() if isinstance(m, Tensor)]
    run.state = [*(p.detach() for p in params), *moments, torch.get_rng_state()]
    return run


MEASURED = [*range(0, STEPS, EVERY)]


@pytest.mark.parametrize(("form", "scaler"), [("update", False), ("body", False), ("update", True)])
def test_clipping_by_norm_gives_the_effective_threshold_and_training_is_bit_identical(form: str, scaler: bool) -> None:
    run, bare = loop(norm, form, scaler=scaler), loop(norm, form, scaler=scaler, watched=False)
    assert run.norms == bare.norms and same(run.state, bare.state)
    clipped = [step for step in MEASURED if run.norms[step] > BOUND]
    assert 3 < len(clipped) < len(MEASURED), "both kinds of step are in the run"
    ratios = dict(run.watch.tracker.ratios)
    assert clipped[0] not in ratios, "the first is decided on by the second"
    assert STEPS not in ratios, "no step follows the end"
    for step in MEASURED:
        if step > clipped[0]:
            factor = min(1.0, BOUND / (run.norms[step] + 1e-6))
            assert ratios[step] == pytest.approx(run.plain[step] * factor, rel=1e-5)
    assert run.watch.latest["train/clipped"] == pytest.approx(len(clipped) / len(MEASURED))
    assert run.said[-1] == BY_NORM and run.watch.summary()["threshold_formula"].endswith("x max(1, |g|/c)")


@pytest.mark.parametrize("change", [value, lambda params: params[0].grad.mul_(1.5)], ids=["by value", "one of them"])
def test_where_no_one_factor_changed_the_gradient_no_phase_is_judged(change: Change) -> None:
    run = loop(change)
    assert CHANGED in run.said and run.watch.tracker.ratios == [] and len(run.plain) == len(MEASURED)


def test_a_mean_over_accumulated_batches_is_a_scale_and_not_clipped() -> None:
    run = loop(lambda params: [p.grad.div_(PARTS) for p in params if p.grad is not None], parts=PARTS)
    first, *later = MEASURED
    assert dict(run.watch.tracker.ratios).items() >= {step: run.plain[step] for step in later}.items()
    assert first not in dict(run.watch.tracker.ratios) and "train/clipped" not in run.watch.latest
    assert run.said == [UNDECIDED.format(1 / PARTS), SCALED.format(1 / PARTS)]


@pytest.mark.parametrize("scaler", [False, True])
def test_nothing_is_said_where_nothing_is_changed(scaler: bool) -> None:
    run = loop(lambda params: None, "body", scaler=scaler)
    assert run.said == [] and dict(run.watch.tracker.ratios).items() >= run.plain.items()


def test_what_is_known_of_clipping_is_in_the_state_of_the_watch() -> None:
    whole, saved = loop(norm), loop(norm, steps=EVERY + 1)
    again = HandClipping()
    again.load_state_dict(saved.watch.clipping.state_dict())
    assert again.state_dict() == saved.watch.clipping.state_dict()
    assert whole.watch.clipping.state_dict()["steps"] == len(MEASURED)
