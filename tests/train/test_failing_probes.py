"""A probe that fails at a door: the run goes on, says so and resumes bit for bit; a measurement keeps what others found."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.measure import main as measure
from lab.probes import Sharpness
from lab.probes.base import Snapshot
from lab.run.folder import RunFolder
from lab.settings import SettingError

Train = Callable[..., RunFolder]
SMALL = (
    "trainer.threads=1", "trainer.evaluate_every=null", "data.examples=60", "data.batch_size=20", "model.widths=[4]",
    "steps=6", "probe.sharpness.every=2",
)  # fmt: skip
ESCAPE = ("probe=[sharpness,escape]", "probe.escape.every=3", "probe.escape.lrs=[0.05,1e10]", "probe.escape.budget=16")
ESCAPE = (*ESCAPE, "probe.escape.replicas=2", "probe.escape.quench_steps=5")


def test_a_run_whose_probe_divides_by_zero_is_finished_and_says_so(
    train: Train,
    weights: Callable[[RunFolder], Any],
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    plain, folder = train("plain", *SMALL), train("run", *SMALL, *ESCAPE)
    told = capsys.readouterr().out
    for name, tensor in weights(plain).items():
        assert tensor.equal(weights(folder)[name])
    assert plain.series("sharpness/lambda_max") == folder.series("sharpness/lambda_max")
    summary = folder.read("summary")
    assert folder.read("status")["status"] == "finished"
    assert summary["failed_probes"] == {"escape": 2} and plain.read("summary")["failed_probes"] == {}
    [warned] = [str(w.message) for w in recwarn if "probe escape" in str(w.message)]
    assert "probe.escape.lrs" in warned
    assert "Probe escape failed 2 times, first at step 0 (ZeroDivisionError: float division by zero)" in told
    assert not folder.all_arrays("escape")


@pytest.mark.parametrize("first", [0, 2])
def test_a_run_with_failures_resumes_bit_for_bit(
    first: int,
    resumed: Callable[..., tuple[RunFolder, RunFolder]],
    metrics: Callable[[RunFolder], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = Sharpness.measure

    def now_and_then(self: Sharpness, snapshot: Snapshot) -> Any:
        found = right(self, snapshot)
        if snapshot.step % 4 == first:
            raise torch.linalg.LinAlgError("did not converge")
        return found

    monkeypatch.setattr(Sharpness, "measure", now_and_then)
    whole, broken = resumed(*SMALL, "trainer.checkpoint_every=2")
    assert metrics(whole) == metrics(broken)
    summaries = [
        {k: v for k, v in f.read("summary").items() if k not in ("seconds", "budget")} for f in (whole, broken)
    ]
    assert summaries[0] == summaries[1] | {"title": summaries[0]["title"]}
    assert summaries[0]["failed_probes"]["sharpness"] in (1, 2)


def test_a_refusal_by_the_first_measurement_refuses_the_run(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsound(self: Sharpness, snapshot: Snapshot) -> Any:
        raise SettingError("the loss sees other examples; use GroupNorm")

    monkeypatch.setattr(Sharpness, "measure", unsound)
    assert refused(*SMALL, "hydra.run.dir=run") == "error: the loss sees other examples; use GroupNorm"
    assert RunFolder("run").read("status")["status"] == "failed"


def test_what_can_be_refused_before_training_leaves_nothing(refused: Callable[..., str]) -> None:
    told = refused(*SMALL, "hydra.run.dir=run", "probe.sharpness.examples=61")
    assert told == (
        "error: probe.sharpness.examples=61 is larger than the 60 training examples; use probe.sharpness.examples=all"
    )
    assert not Path("run").exists()


def test_a_measurement_keeps_what_other_probes_found(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    train("run", *SMALL, "steps=2")
    for probes, kept in (("[sharpness,escape]", True), ("[escape]", False)):
        capsys.readouterr()
        words = ["checkpoint=run", "trainer.threads=1", *ESCAPE[2:], f"probe={probes}", "hydra.run.dir=found"]
        sys.argv = ["lab.measure", *words]
        with pytest.raises(SystemExit) as stopped:
            measure()
        told = capsys.readouterr()
        assert stopped.value.code == 2
        lines = [line for line in told.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and lines[0].startswith("error: probe escape failed at step 2 (ZeroDivisionError: ")
        assert "probe.escape.lrs" in lines[0]
        assert ("lambda_max = " in told.out) == kept
    found = json.loads(Path("found/summary.json").read_text())
    assert found["values"]["sharpness/lambda_max"] > 0 and found["failures"] == [lines[0].removeprefix("error: ")]
