"""A new measurement is one file and one card: here in a folder of its own, at both doors and in a notebook."""

import json
import subprocess
import sys
from pathlib import Path

import torch

FILE = '''
"""The norm of the gradient to a power."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from matplotlib.figure import Figure
from pydantic import Field

from lab.probes.base import Every, Memory, Plan, Probe, ProbeSet, Snapshot, measures
from lab.results import Result
from lab.settings import SettingError
from lab.settings import settings as card


@card(frozen=False)
class Norm(Probe):
    """The gradient's norm to a power."""

    name: ClassVar[str] = "norm"
    speaks: ClassVar[bool] = True

    every: Every = 2
    examples: ProbeSet = "auto"
    power: Annotated[float, Field(gt=0, description="power of |g|")] = 1.0

    def require(self, plan: Plan) -> None:
        super().require(plan)
        if self.power > 9:
            raise SettingError(f"probe.norm.power={self.power:g} overflows; use 9 or less")


@dataclass(frozen=True)
class NormResult(Result):
    value: float
    count: int

    def numbers(self) -> dict[str, float]:
        return {"value": self.value, "error/value": 0.0}

    def sentence(self) -> str:
        return f"The norm is {self.value:.6g}, measured {self.count} times."

    def figure(self, when: str = "") -> Figure:
        figure = Figure()
        figure.subplots().set_title(f"norm{when}")
        return figure

    def figures(self, when: str = "") -> dict[str, Figure]:
        return {"picture": self.figure(when)}

    def memory(self) -> Memory:
        import torch

        return {"count": torch.tensor(self.count)}


@measures(Norm)
def norm(here: Snapshot, settings: Norm, memory: Memory) -> NormResult:
    g = here.loss_on(settings.examples).grad(here.w)
    return NormResult(float(g.norm()) ** settings.power, int(memory.get("count", 0)) + 1)
'''
RUN = ("data=digits", "data.examples=40", "model.widths=[4]", "steps=4", "probe=[sharpness,norm]", "probe.norm.power=2")


def door(folder: Path, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"lab.{name}", "--config-dir", str(folder / "conf"), *words]
    path = f"{folder}:{Path(__file__).parents[1]}"
    environment = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PATH": "", "HOME": str(folder)}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


def test_one_file_and_one_card_are_a_measurement_at_every_door(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "conf/probe").mkdir(parents=True)
    (tmp_path / "norm_of_mine.py").write_text(FILE)
    card = "# @package probe.norm\n_target_: norm_of_mine.Norm\nevery: 2\nexamples: auto\npower: 1.0\n"
    (tmp_path / "conf/probe/norm.yaml").write_text(card)

    trained = door(tmp_path, "train", *RUN, "hydra.run.dir=run")
    assert trained.returncode == 0, trained.stderr
    assert "The norm is " in trained.stdout and "measured 2 times." in trained.stdout
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    values = {(line["step"], line["tag"]): line["value"] for line in lines if "norm" in line["tag"]}
    assert {tag for _, tag in values} >= {"norm/value", "error/norm/value", "cost/norm/seconds"}
    assert {step for step, tag in values if tag == "norm/value"} == {0, 2}
    assert list((tmp_path / "run/figures").glob("norm_picture*"))

    measured = door(
        tmp_path, "measure", "checkpoint=run", "probe=[norm]", "probe.norm.power=2", "hydra.run.dir=results"
    )
    assert measured.returncode == 0, measured.stderr
    assert "measured 1 times." in measured.stdout
    refused = door(tmp_path, "train", *RUN, "probe.norm.power=10", "hydra.run.dir=other")
    assert refused.returncode == 2 and "error: probe.norm.power=10 overflows; use 9 or less" in refused.stderr
    assert not (tmp_path / "other").exists()

    monkeypatch.syspath_prepend(str(tmp_path))
    from norm_of_mine import norm  # type: ignore[import-not-found]

    from lab.landscapes.quadratic import Quadratic

    assert norm(Quadratic(torch.tensor([3.0, 4.0])), torch.ones(2), power=2.0).numbers()["value"] == 25.0
