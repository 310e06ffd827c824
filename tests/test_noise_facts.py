"""What a correct lab must measure at the edge of stochastic stability: whole runs, held against an independent
implementation.

Every fact is a run of `python -m lab.train` with the settings a user would type, as in `tests/test_edge_facts.py`. All
numbers are in units of 2/lr. "Reference" in a comment is what another implementation measured, on another subset of
CIFAR-10; quarters are means over quarters of the run. Where the subset matters our own subsets give the width of the band.

Andreyev and Beneventano 2024 (arXiv 2412.20553).
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.run.folder import RunFolder
from lab.train import main

DIGITS = ("data=digits", "loss=mse", "model.widths=[32,32]", "data.examples=500", "data.batch_size=8")
"""tanh MLP 64-32-32-10, P = 3466, half squared error, batches of 8."""
CIFAR = ("data=image_folder", "data.standardise=pixel", "data.examples=1000", "loss=mse", "model.widths=[32,32]")
"""tanh MLP 3072-32-32-10, P = 99722, on a class-balanced subset of the real images, weights halved at the start."""
PROBES = ("probe=[sharpness,batch_sharpness]",)
TAGS = {
    "lambda_max": "sharpness/lambda_max",
    "batch": "batch_sharpness/ratio_of_means",
    "batch_mean_of_ratios": "batch_sharpness/mean_of_ratios",
    "gni": "batch_sharpness/gni",
}


@dataclass(frozen=True)
class Outcome:
    """summary.json and the series of metrics.jsonl: tag -> step -> value."""

    summary: dict[str, Any]
    series: dict[str, dict[int, float]]

    def quarters(self, tag: str) -> list[float]:
        """Means over the quarters of the run of `tag` over the threshold 2/lr, the steps it was measured at."""
        points, threshold = self.series[TAGS[tag]], self.series["sharpness/threshold"][0]
        last = max(points)
        parts: list[list[float]] = [[], [], [], []]
        for step, value in points.items():
            parts[min(3, 4 * step // last)].append(value / threshold)
        return [sum(part) / len(part) for part in parts]

    @property
    def gaps(self) -> list[float]:
        """Ratio of means over mean of ratios, less 1, of every measurement."""
        means = self.series["batch_sharpness/mean_of_ratios"]
        return [value / means[step] - 1 for step, value in self.series["batch_sharpness/ratio_of_means"].items()]


Carry = Callable[..., Outcome]


@pytest.fixture
def run_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Carry:
    """run_of(*settings): the outcome of `python -m lab.train *settings`, both probes at the rhythm `every`."""

    def carry_out(*settings: str, every: int, name: str = "run") -> Outcome:
        rhythm = [f"probe.{probe}.every={every}" for probe in ("sharpness", "batch_sharpness")]
        how = ("trainer.threads=1", "trainer.evaluate_every=null", f"hydra.run.dir={tmp_path / name}")
        monkeypatch.setattr(sys, "argv", ["lab.train", *settings, *PROBES, *rhythm, *how])
        main()
        folder = RunFolder(tmp_path / name)
        series = {tag: dict(zip(*points, strict=True)) for tag, points in folder.all_series().items()}
        return Outcome(folder.read("summary"), series)

    return carry_out


@pytest.fixture
def cifar(cifar_images: str) -> tuple[str, ...]:
    """The settings of the CIFAR-10 runs."""
    return (*CIFAR, "model.init_scale=0.5", "probe.batch_sharpness.gni_batches=0", f"data.root={cifar_images}")


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


GNI = "ignore:.*no sign of the edge"


@pytest.mark.filterwarnings(GNI)
def test_gni_is_at_two_over_lr_far_below_the_edge(run_of: Carry) -> None:
    run = run_of(*DIGITS, "optimizer.lr=0.2", "steps=600", every=37)
    gni = list(run.series["batch_sharpness/gni"].values())[4:]
    # A fifth of the run below: near 1 as soon as the noise has settled. 20 batches a measurement, 13 measurements: 7 %.
    assert mean(gni) / 10 == pytest.approx(1, abs=0.35)
    assert max(run.quarters("batch")) < 0.45
    assert max(run.quarters("lambda_max")) < 0.45


@pytest.mark.slow
@pytest.mark.filterwarnings(GNI)
def test_gni_stays_at_two_over_lr_for_a_whole_run_that_never_comes_near_the_edge(run_of: Carry) -> None:
    run = run_of(*DIGITS, "optimizer.lr=0.2", "steps=3000", every=101)
    # Reference quarters: GNI 1.16, .80, .98 (of 2, 3 and 4), "0.8 to 1.2"; BS .37, .40, .41; lambda_max .36 to .39.
    assert all(0.75 < gni < 1.3 for gni in run.quarters("gni"))
    assert run.quarters("batch")[1:] == pytest.approx([0.37, 0.40, 0.41], abs=0.04)
    assert all(0.32 < sharpness < 0.41 for sharpness in run.quarters("lambda_max")[1:])
    assert "below the edge" in run.summary["findings"][-1].lower()


@pytest.mark.slow
def test_easy_data_are_interpolated_before_the_edge(run_of: Carry) -> None:
    settings = ("optimizer.lr=0.5", "steps=20000", "trainer.log_every=100", "probe.batch_sharpness.gni_batches=0")
    run = run_of(*DIGITS, *settings, every=501)
    # Reference: loss 6e-4; flat over the last three quarters, BS_mor .76 to .79, BS_rom .79 to .84, lambda_max .60. Which
    # level it is depends on the order of the batches: our seeds 0 to 2 give lambda_max .55, .66, .59, BS_rom .73, .80, .84.
    losses = list(run.series["train/loss"].values())
    assert mean(losses[-20:]) < 2e-3
    assert run.quarters("batch")[1:] == pytest.approx([0.79] * 3, abs=0.12)
    assert run.quarters("batch_mean_of_ratios")[1:] == pytest.approx([0.76] * 3, abs=0.12)
    assert run.quarters("lambda_max")[1:] == pytest.approx([0.60] * 3, abs=0.12)
    for tag, moves in (("batch", 0.1), ("lambda_max", 0.03)):  # flat; a quarter of BS has a standard error of 2 %
        assert max(run.quarters(tag)[1:]) < (1 + moves) * min(run.quarters(tag)[1:])
    assert "interpolated before the edge" in run.summary["findings"][-1].lower()


# batch size, steps, rhythm
SIZES = [(8, 6000, 301), (32, 4000, 201), (128, 2000, 101)]


@pytest.mark.slow
def test_on_cifar10_smaller_batches_have_less_sharpness_and_batch_sharpness_above_it(
    run_of: Carry, cifar: tuple[str, ...]
) -> None:
    runs = {
        size: run_of(
            *cifar, "optimizer.lr=0.05", f"data.batch_size={size}", f"steps={steps}", every=every, name=str(size)
        )
        for size, steps, every in SIZES
    }
    sharpness = {size: run.quarters("lambda_max") for size, run in runs.items()}
    batch = {size: run.quarters("batch") for size, run in runs.items()}
    # Reference, last quarter: lambda_max .373 (8) < .936 (32) < 1.232 (128).
    assert sharpness[8][3] == pytest.approx(0.373, abs=0.08)
    assert sharpness[32][3] == pytest.approx(0.936, abs=0.12)
    assert sharpness[128][3] == pytest.approx(1.232, abs=0.12)
    # Reference: at 8 lambda_max is flat at .32 to .39 while BS_rom rises .19 .28 .37 .51 .67 .56 .68 .72 .82.
    assert sharpness[8][3] / sharpness[8][1] < 1.25
    assert batch[8] == sorted(batch[8])
    assert batch[8][3] > 1.4 * batch[8][1]
    assert batch[8][3] > 1.7 * sharpness[8][3]
    # Reference, quarters: at 32 BS_rom .60, .88, .78; at 128 .83, .99, .95 and BS_mor .81, .97, .93. Single measurements
    # scatter by .14, for the iterates oscillate; the last half of our subsets 0 and 1 gives .88 and .93 at 128.
    assert 0.6 < batch[32][3] < 1.1
    assert 0.8 < (batch[128][2] + batch[128][3]) / 2 < 1.1
    # Reference: the gap of the two estimators is 1 to 10 % as a rule, and BS_mor above BS_rom at one point only.
    gaps = [gap for run in runs.values() for gap in run.gaps]
    assert sum(gap >= 0 for gap in gaps) > 0.9 * len(gaps)
    assert 0.01 < mean(gaps) < 0.2


@pytest.mark.slow
def test_on_cifar10_batch_sharpness_reaches_two_over_lr_with_lambda_max_far_below(
    run_of: Carry, cifar: tuple[str, ...]
) -> None:
    run = run_of(*cifar, "data.batch_size=8", "optimizer.lr=0.1", "steps=6000", every=201)
    sharpness, rom, mor = (run.quarters(tag) for tag in ("lambda_max", "batch", "batch_mean_of_ratios"))
    # Reference: BS_rom .56, .83, 1.04 in quarters 2 to 4, another seed .42, .71, .83; lambda_max .244 and .278.
    assert 0.7 < rom[3] < 1.3
    assert rom == sorted(rom)
    assert sharpness[3] < 0.45
    assert sharpness[3] < 1.1 * sharpness[1]
    assert rom[3] > 2 * sharpness[3]
    # Reference: BS_mor .51, .73, .83; late the gap is up to 40 %.
    assert mor[3] < rom[3]
    assert run.summary["findings"][-1].lower().startswith("edge of stochastic stability")
