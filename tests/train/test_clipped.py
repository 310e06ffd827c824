"""Clipped gradients in a run of the lab: the plain loop of torch bit for bit, and the edge of the steps that were made."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from lab.doors.parts import read_settings
from lab.doors.request import Request, cards_at_hand, composed
from lab.run.folder import RunFolder

Train = Callable[..., RunFolder]
Refused = Callable[..., str]
Read = Callable[[RunFolder], Any]
SMALL = ("trainer.threads=1", "data.examples=60", "model.widths=[8]", "data.batch_size=20", "steps=12", "probe=[]")
MOMENTUM = ("optimizer.lr=0.5", "optimizer.momentum=0.9")


def loop(clip: Callable[[list[torch.nn.Parameter]], Any], *overrides: str) -> tuple[list[torch.Tensor], list[float]]:
    """The weights after a plain loop, and the norm of every gradient before it is clipped."""
    with cards_at_hand():
        parts = read_settings(Request.of(composed("train", overrides)).values).build()
    x, y, norms = parts.dataset.train.x, parts.dataset.train.y, []
    params = list(parts.model.parameters())
    for step in range(parts.total):
        index = parts.batches.index(step)
        parts.optimizer.zero_grad()
        parts.criterion(parts.model(x[index]), y[index]).backward()
        norms.append(float(torch.cat([p.grad.flatten().double() for p in params]).norm()))  # type: ignore[union-attr]
        clip(params)
        parts.optimizer.step()
    return [p.detach() for p in params], norms


@pytest.mark.parametrize(
    ("setting", "clip"),
    [
        ("trainer.clip_norm=0.3", lambda params: clip_grad_norm_(params, 0.3)),
        ("trainer.clip_value=0.01", lambda params: clip_grad_value_(params, 0.01)),
    ],
)
def test_a_clipped_run_is_the_plain_loop_bit_for_bit(setting: str, clip: Any, train: Train, weights: Read) -> None:
    meant, norms = loop(clip, *SMALL, *MOMENTUM)
    run = train("run", *SMALL, *MOMENTUM, setting)
    assert all(torch.equal(a, b) for a, b in zip(weights(run).values(), meant, strict=True))
    assert run.series("train/grad_norm")[1] == pytest.approx(norms, rel=1e-12), "that before it is clipped"
    unclipped = train("unclipped", *SMALL, *MOMENTUM)
    assert not all(torch.equal(a, b) for a, b in zip(weights(unclipped).values(), meant, strict=True))


def test_the_edge_is_that_of_the_effective_rate_of_every_measured_step(
    train: Train, metrics: Read, resumed: Callable[..., tuple[RunFolder, RunFolder]]
) -> None:
    probe = ("probe=[sharpness]", "probe.sharpness.every=5", "trainer.clip_norm=0.5", "trainer.checkpoint_every=5")
    run, broken = resumed(*SMALL, *probe)
    norms = dict(zip(*run.series("train/grad_norm"), strict=True))
    ratios, thresholds = (
        dict(zip(*run.series(f"sharpness/{tag}"), strict=True)) for tag in ("ratio", "clipped_threshold")
    )
    effective = dict(zip(*run.series("sharpness/clipped_ratio"), strict=True))
    assert [*effective] == [0, 5, 10, 12]
    for step in (0, 5, 10):  # torch divides by |g| + 1e-6
        factor = min(1.0, 0.5 / norms[step])
        assert effective[step] == pytest.approx(ratios[step] * factor, rel=1e-5)
        assert thresholds[step] == pytest.approx(20 / factor, rel=1e-5)
    assert run.read("summary")["clipped"] == sum(norm > 0.5 for norm in norms.values()) / 12
    assert "max(1, |g|/c)" in run.read("summary")["threshold_formula"] and run.read("summary")["edge_lr"] is None
    assert metrics(broken) == metrics(run)


def test_by_value_no_phase_is_judged_by_a_clipped_step(train: Train) -> None:
    run = train("run", *SMALL, "probe=[sharpness]", "probe.sharpness.every=3", "trainer.clip_value=1e-4")
    assert "sharpness/clipped_ratio" not in run.all_series() and "sharpness/phase" not in run.all_series()
    assert run.series("train/clipped")[1][-1] == 1 and run.series("sharpness/ratio")[1]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["trainer.clip_norm=0"], "trainer.clip_norm=0: expected a number greater than 0"),
        (["trainer.clip_value=-1"], "trainer.clip_value=-1: expected a number greater than 0"),
        (["trainer.clip_norm=inf"], "trainer.clip_norm=inf: expected a finite number"),
        (
            ["trainer.clip_norm=1", "trainer.clip_value=2"],
            "trainer.clip_value=2 contradict each other",
        ),
    ],
)
def test_what_cannot_be_clipped_to_is_refused(settings: list[str], line: str, refused: Refused) -> None:
    assert line in refused(*SMALL, *settings)
