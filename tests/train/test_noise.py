"""Whole runs with noise in the gradient: it changes the gradient and nothing else, resumes bit for bit, and is refused in
one line where it would be wrong.
"""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lab.run.folder import RunFolder
from lab.train.outcome import _times

Command = Callable[..., None]
Train = Callable[..., RunFolder]
Resumed = Callable[..., tuple[RunFolder, RunFolder]]
Refused = Callable[..., str]
Read = Callable[[RunFolder], Any]
SMALL = ("trainer.threads=1", "data.examples=60", "model.widths=[8]", "steps=12", "probe=[]")
KINDS = {
    "isotropic": (*SMALL, "noise.trace=0.1"),
    "diagonal": (*SMALL, "noise.equivalent_batch_size=7", "trainer.chunk_examples=25"),
    "minibatch": (*SMALL, "noise.equivalent_batch_size=7", "data.batch_size=32"),
    "half_difference": (*SMALL, "noise.trace=0.1", "optimizer=adam"),
    "sample_weights": (*SMALL, "noise.equivalent_batch_size=7", "optimizer.momentum=0.9"),
    "fisher": (*SMALL, "noise.equivalent_batch_size=7", "loss=mse", "trainer.precision=64-true"),
    "hessian_sqrt": (
        *SMALL,
        "noise.equivalent_batch_size=7",
        "model.widths=[2]",
        "data.classes=[0,1]",
        "noise.max_matvecs=10",  # fewer than the 136 weights: Lanczos, whose vectors are drawn
        "steps=4",
        "trainer.checkpoint_every=2",
    ),
    "sgld": (*SMALL, "noise.temperature=1e-4", "schedule=cosine"),
}
RESNET = ("data=image_folder", "data.root=images", "data.batch_size=8", "data.augment=true", "model=resnet", "steps=3")
TINY = ("model.depth=8", "model.width=2", "trainer.threads=1", "probe=[]")


@pytest.fixture
def images(scratch: Path) -> None:
    rng = np.random.default_rng(0)
    for place, count in (("train/a", 10), ("train/b", 10), ("test/a", 2), ("test/b", 2)):
        (scratch / "images" / place).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) // (1 + place.endswith("b"))
            Image.fromarray(pixels).save(scratch / "images" / place / f"{i}.png")


def test_a_noise_too_small_to_be_felt_leaves_weights_batches_and_probes_as_they_are_without(
    train: Train, metrics: Read, weights: Read
) -> None:
    # 1e-30 beside gradients of 1e-3 is below the round-off of float32: everything must be bit-identical.
    settings = (*SMALL[:-1], "data.batch_size=7", "probe.sharpness.every=5", "optimizer.momentum=0.9")
    plain = train("plain", *settings)
    noisy = train("noisy", *settings, "optimizer/noise=isotropic", "noise.trace=1e-30")
    assert [line for line in metrics(noisy) if line["tag"] != "train/noise_norm"] == metrics(plain)
    assert all(torch.equal(weights(plain)[name], tensor) for name, tensor in weights(noisy).items())
    assert not [line for line in metrics(plain) if "noise" in line["tag"]]


def test_no_noise_is_the_default_and_leaves_no_trace_in_the_settings(train: Train, metrics: Read) -> None:
    plain, none = train("plain", *SMALL), train("none", *SMALL, "optimizer/noise=none")
    assert metrics(plain) == metrics(none)
    assert not none.read("provenance")["settings"].get("noise")
    assert none.read("summary")["findings"] == []


def test_the_small_batch_is_one_of_the_noises_and_adds_none(train: Train, metrics: Read) -> None:
    small = train("small", *SMALL, "optimizer/noise=small_batch", "noise.equivalent_batch_size=7")
    plain = train("plain", *SMALL, "data.batch_size=7", "data.sampling=with_replacement")
    assert metrics(small) == metrics(plain)
    assert small.read("provenance")["settings"]["data"]["batch_size"] == 7
    assert small.read("summary")["findings"] == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_with_noise_resumes_bit_for_bit_and_says_what_it_cost(
    kind: str, resumed: Resumed, metrics: Read, weights: Read
) -> None:
    settings = ("trainer.checkpoint_every=5", *KINDS[kind], f"optimizer/noise={kind}")
    whole, again = resumed(*settings)
    assert metrics(whole) == metrics(again)
    assert all(torch.equal(weights(whole)[name], tensor) for name, tensor in weights(again).items())
    (told,) = whole.read("summary")["findings"]
    assert told.startswith("Noise in the gradient: ")
    assert re.search(r"; a step took (\d+(\.\d+)? times )?as long as one without noise\.$", told)
    norms = [line["value"] for line in metrics(whole) if line["tag"] == "train/noise_norm"]
    assert norms
    assert all(norm > 0 for norm in norms)


def test_the_cost_of_the_noise_has_two_digits() -> None:
    told = {
        0.999: "as long as",
        1.34: "1.3 times as long as",
        9.97: "10 times as long as",
        101.18: "101 times as long as",
    }
    assert {ratio: _times(ratio) for ratio in told} == told


@pytest.mark.parametrize("kind", ["minibatch", "half_difference"])
@pytest.mark.parametrize("trace", [1e-30, 1e-320])
def test_a_trace_that_no_batch_is_large_enough_for_is_a_batch_scaled_down(
    kind: str, trace: float, train: Train, metrics: Read
) -> None:
    # Tr D/trace examples are 1e30, or not even finite: neither can be drawn.
    folder = train("run", *SMALL, "steps=3", f"optimizer/noise={kind}", f"noise.trace={trace}")
    norms = [line["value"] for line in metrics(folder) if line["tag"] == "train/noise_norm"]
    assert folder.read("status")["status"] == "finished"
    assert norms
    assert all(norm < 1e-14 for norm in norms)  # sqrt(1e-30) = 1e-15


def test_the_norm_that_is_logged_is_of_the_size_asked_for(train: Train, metrics: Read) -> None:
    folder = train("run", *SMALL, "steps=100", "optimizer/noise=isotropic", "noise.trace=0.25")
    squares = np.array([line["value"] ** 2 for line in metrics(folder) if line["tag"] == "train/noise_norm"])
    assert len(squares) == 100
    assert abs(squares.mean() - 0.25) < 4 * squares.std() / 10


def test_a_sweep_over_noises(command: Command) -> None:
    command(
        "-m", *SMALL, "optimizer/noise=sample_weights,fisher,isotropic", "noise.equivalent_batch_size=4,60", "steps=3"
    )
    found = sorted(Path("outputs/train").glob("*/summary.json"))
    assert len(found) == 6
    assert len({json.loads(file.read_text())["last_loss"] for file in found}) == 6


def test_augmented_mini_batches_in_chunks_with_group_norm(images: None, train: Train) -> None:
    settings = (*RESNET, *TINY, "model.norm=group", "trainer.chunk_examples=3", "noise.equivalent_batch_size=4")
    folder = train("run", *settings, "optimizer/noise=sample_weights")
    assert folder.read("status")["status"] == "finished"


def test_batch_norm_counts_no_batch_for_the_noise(images: None, train: Train, weights: Read) -> None:
    plain = train("plain", *RESNET, *TINY, "steps=1")
    for kind, size in (("isotropic", "noise.trace=1e-30"), ("fisher", "noise.equivalent_batch_size=4")):
        noisy = train(kind, *RESNET, *TINY, f"optimizer/noise={kind}", size, "steps=1")
        buffers = {name: t for name, t in weights(noisy).items() if "running" in name or "num_batches" in name}
        assert buffers
        assert all(torch.equal(weights(plain)[name], tensor) for name, tensor in buffers.items())


def test_mixed_precision(train: Train) -> None:
    for kind in ("sample_weights", "half_difference", "fisher", "isotropic"):
        folder = train(kind, *SMALL, "trainer.precision=bf16-mixed", f"optimizer/noise={kind}", "noise.trace=0.1")
        assert folder.read("status")["status"] == "finished"


def test_too_much_noise_is_a_divergence_like_any_other(train: Train) -> None:
    folder = train("run", *SMALL, "loss=mse", "optimizer/noise=isotropic", "noise.trace=1e12", "trainer.max_loss=100")
    assert folder.read("status")["status"] == "diverged"


SLIPS = [
    ("noise.trace=0.1", "noise.trace is not a setting of the chosen noise; choose optimizer/noise= one of diagonal"),
    ("optimizer/noise=fisher noise.temperature=1", "choose optimizer/noise= one of sgld"),
    ("noise=fisher", "noise is not a card with its settings"),
    ("+noise.tracks=1", "noise is not a card with its settings"),
    ("noise=null", "noise is not a card with its settings"),
    ("optimizer.noise=fisher", "write optimizer/noise=fisher"),
    ("optimizer/noise=fishr", "did you mean optimizer/noise=fisher?"),
    ("optimizer/noise=fisher", "needs a size: noise.equivalent_batch_size=32"),
    (
        "optimizer/noise=fisher noise.trace=1 noise.equivalent_batch_size=2",
        "contradict each other; set one of them to null",
    ),
    ("optimizer/noise=fisher noise.trace=0", "noise.trace=0: expected a number greater than 0"),
    ("optimizer/noise=fisher noise.trace=inf", "noise.trace=inf: expected a finite number"),
    ("optimizer/noise=fisher noise.equivalent_batch_size=2.5", "expected a whole number"),
    ("optimizer/noise=fisher noise.equivalent_batch_size=61", "larger than the 60 examples of the batch"),
    ("optimizer/noise=minibatch noise.equivalent_batch_size=9 data.batch_size=8", "or a larger data.batch_size"),
    ("optimizer/noise=small_batch", "data.batch_size=null"),
    ("optimizer/noise=small_batch noise.equivalent_batch_size=61", "larger than the 60 training examples"),
    ("optimizer/noise=sgld", "optimizer/noise=sgld needs noise.temperature"),
    ("optimizer/noise=sgld noise.temperature=1 optimizer=adam", "use optimizer=sgd with optimizer.momentum=0"),
    ("optimizer/noise=sgld noise.temperature=1 optimizer.momentum=0.9", "use optimizer=sgd with optimizer.momentum=0"),
]


@pytest.mark.parametrize(("typed", "told"), SLIPS)
def test_a_slip_is_told_in_one_line_and_writes_nothing(
    typed: str, told: str, capsys: pytest.CaptureFixture[str], command: Command
) -> None:
    with pytest.raises(SystemExit) as stopped:
        command(*SMALL, *shlex.split(typed))
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert told in line
    assert not list(Path.cwd().iterdir())


def test_gradients_of_single_examples_through_batch_norm_are_refused(images: None, refused: Refused) -> None:
    for kind in ("sample_weights", "diagonal", "minibatch", "half_difference", "isotropic", "hessian_sqrt"):
        line = refused(*RESNET, *TINY, f"optimizer/noise={kind}", "noise.equivalent_batch_size=4")
        assert "cannot be had with BatchNorm" in line
        assert "use model.norm=group" in line
    assert [path.name for path in Path.cwd().iterdir()] == ["images"]


def test_help_names_the_noises(capsys: pytest.CaptureFixture[str], command: Command) -> None:
    with pytest.raises(SystemExit):
        command("--help")
    told = capsys.readouterr().out
    assert "optimizer/noise=" in told
    assert "half_difference" in told
    assert "noise.equivalent_batch_size=32 or noise.trace=0.1" in told
