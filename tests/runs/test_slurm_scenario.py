"""A grid through sbatch on a Slurm of one node: preempted, killed, its command killed, and in the end right to the bit."""

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from slurm.node import missing, single_node
from whole_runs import SMALL, assert_same_run

from lab.doors.slurm.record import JobRecord
from lab.run.folder import RunFolder

pytestmark = pytest.mark.slurm
GATE = """
import time
from pathlib import Path

import pytorch_lightning as pl

from lab.run import signals


class Gate(pl.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        while module.step >= 40 and not Path("open").exists() and not signals.asked():
            time.sleep(0.1)
"""
"""Holds a run at step 40 until there is a file `open`: what happens to it meanwhile depends on no clock."""
GRID = ("-m", "optimizer.lr=0.1,0.2", "seed=0,1,2", *SMALL, "trainer.checkpoint_every=10")
SLURM = ("launcher=slurm", "launcher.cpus=1", "launcher.memory=2", "launcher.poll=1")
PATIENCE = 600
"""Seconds that any of the steps may take."""


@pytest.fixture
def cluster() -> Iterator[dict[str, str]]:
    if missing():
        pytest.skip(f"not installed: {', '.join(missing())}; python scripts/slurm/node.py install")
    with contextlib.ExitStack() as stack:
        try:
            environment = stack.enter_context(single_node(cpus=2))
        except RuntimeError as error:  # as in a container that lacks a right
            pytest.skip(str(error))
        yield environment | {"PYTHONPATH": str(Path(__file__).parents[2])}


def await_(what: Callable[[], Any], name: str) -> Any:
    """What the function returns once it is true."""
    for _ in range(PATIENCE * 2):
        if value := what():
            return value
        time.sleep(0.5)
    raise AssertionError(f"not within {PATIENCE} s: {name}")


Begin = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def begin(cluster: dict[str, str]) -> Iterator[Begin]:
    """Begins the command of the grid, with its output in a file, and ends it with the test."""
    with contextlib.ExitStack() as stack:

        def command(log: str, *words: str) -> subprocess.Popen[bytes]:
            file = stack.enter_context(Path(log).open("ab"))
            line = [sys.executable, "-m", "lab.train", *GRID, "trainer.callbacks=[gate.py:Gate]", *words]
            begun = subprocess.Popen(line, env=cluster, stdout=file, stderr=file)
            stack.callback(begun.wait)
            stack.callback(begun.kill)
            return begun

        yield command


def test_a_grid_is_preempted_killed_and_left_alone_and_ends_as_on_one_machine(
    cluster: dict[str, str], begin: Begin
) -> None:
    Path("gate.py").write_text(GATE)

    def slurm(*command: str) -> list[str]:
        return subprocess.run(command, env=cluster, capture_output=True, text=True, check=True).stdout.split("\n")

    def jobs(form: str, *more: str) -> list[str]:
        return [line for line in slurm("squeue", "-h", "-r", "-n", "lab-jobs", "-o", form, *more) if line]

    def held() -> set[str]:
        """The cells that stand at the gate, or come to it after what they have saved."""
        return {
            folder.path.name
            for folder in map(RunFolder, Path("jobs").glob("data*"))
            if (s := folder.read("status")).get("status") == "running" and s["step"] >= 30
        }

    first = begin("first.log", *SLURM, "hydra.sweep.dir=jobs")
    told = Path("first.log").read_text
    await_(lambda: len(held()) == 2, "two runs at the gate")

    slurm("sbatch", "-p", "urgent", "-c", "2", "-o", "/dev/null", "--wrap", "sleep 1")
    await_(lambda: told().count("was stopped and is queued again, to go on from step 4") == 2, "both preempted")
    await_(lambda: len(held()) == 2 and len(jobs("%i", "-t", "running")) == 2, "two at the gate again")

    victim = jobs("%A", "-t", "running")[0]
    slurm("scancel", "--signal=KILL", f"{victim}.0")
    await_(
        lambda: re.search(r"killed by signal 9 at step \d+; submitted again as job", told()),
        "the killed one submitted again",
    )

    first.kill()
    first.wait()
    assert jobs("%i"), "jobs go on without their command"
    again = begin("second.log", *SLURM, "hydra.sweep.dir=jobs")
    await_(lambda: "6 still with Slurm" in Path("second.log").read_text(), "all jobs found, none submitted twice")
    Path("open").touch()
    assert again.wait(timeout=PATIENCE * 2) == 0, Path("second.log").read_text()

    here = begin("here.log", "hydra.sweep.dir=here")
    assert here.wait(timeout=PATIENCE) == 0, Path("here.log").read_text()
    names = sorted(path.parent.name for path in Path("here").glob("*/status.json"))
    assert len(names) == 6
    for name in names:
        assert_same_run(RunFolder(Path("here") / name), RunFolder(Path("jobs") / name))
    submitted = {job.partition("_")[0] for job in JobRecord(Path("jobs")).read().values()}
    assert len(submitted) == 2, "one array, and one job for the run that was killed"
    for log in ("first.log", "second.log", "here.log"):
        assert "Traceback" not in Path(log).read_text()
