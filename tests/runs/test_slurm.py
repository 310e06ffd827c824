"""launcher=slurm without a Slurm: its card, its script, and what becomes of a cell by what squeue says."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import submitit
from whole_runs import SMALL, command

from lab.doors.request import Request
from lab.doors.slurm import batch, queue
from lab.doors.slurm.card import SlurmCard
from lab.doors.slurm.job import REFUSED, CellJob
from lab.doors.slurm.queue import JobState, QueueSilent
from lab.doors.slurm.record import JobRecord
from lab.doors.slurm.watch import verdict
from lab.run.cards import card
from lab.run.folder import RunFolder
from lab.run.signals import TERMINATED
from lab.settings import SettingError

TARGET = "lab.doors.slurm.card.SlurmCard"
SHORT = ("-m", *SMALL[:3], "steps=1", "probe=[]")


def a_cell(folder: str) -> Request:
    return Request({}, {}, ("seed=0",), "seed=0", Path(folder), several=True)


# --- the card ----------


@pytest.mark.parametrize(
    ("time", "minutes"),
    [(90, 90), ("90", 90), ("1:30", 2), ("2:00:00", 120), ("1-12", 2160), ("1-12:30", 2190), ("0-0:0:1", 1)],
)
def test_time_is_read_as_sbatch_reads_it(time: int | str, minutes: int) -> None:
    assert SlurmCard(time=time).minutes == minutes


@pytest.mark.parametrize("time", ["soon", "1h", "-5", "1:2:3:4", "", "1-", 0, "0:00", "1.5"])
def test_what_is_no_time_is_refused_in_one_line(time: int | str) -> None:
    with pytest.raises(SettingError, match=rf"^launcher.time={time}: expected minutes, or") as refused:
        card({"_target_": TARGET, "time": time}, "launcher")
    assert "\n" not in str(refused.value)


def test_options_that_the_jobs_rest_on_are_refused() -> None:
    with pytest.raises(SettingError, match="options: open_mode is not for you to set"):
        card({"_target_": TARGET, "options": {"qos": "long", "open_mode": "truncate"}}, "launcher")


def test_a_run_is_saved_at_most_a_quarter_of_the_time_before_its_limit() -> None:
    assert [SlurmCard(time=minutes).warned for minutes in (1, 4, 60)] == [15, 60, 120]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts programs of Slurm in the place of those of this machine: scripts that print a text and end with a code."""
    place = tmp_path / "programs"
    place.mkdir()
    monkeypatch.setenv("PATH", str(place))  # without those of a Slurm that this machine has

    def make(**scripts: str) -> None:
        for name, script in {"squeue": "", "srun": "", "scontrol": "", **scripts}.items():
            (place / name).write_text(f"#!/bin/sh\n{script}\n")
            (place / name).chmod(0o755)

    return make


def test_the_script_of_an_array_has_the_settings_of_the_card(programs: Callable[..., None], tmp_path: Path) -> None:
    programs(sbatch="echo Submitted batch job 12; /bin/cp $1 script")
    (tmp_path / ".slurm").mkdir()
    settings = SlurmCard(partition="gpu", time="2:00:00", cpus=4, memory=1.5, gpus=1, options={"account": "physics"})
    jobs = batch.submit(
        [a_cell("a"), a_cell("b"), a_cell("c")],
        print,
        batch.executor(tmp_path / ".slurm", settings, "mine", 2),
        settings,
    )
    assert jobs == ["12_0", "12_1", "12_2"]
    script = Path("script").read_text()
    for line in (
        *("array=0-2%2", "partition=gpu", "time=120", "cpus-per-task=4", "mem=1536M", "gpus-per-node=1"),
        *("account=physics", "requeue", "signal=USR2@120", "open-mode=append", "job-name=mine"),
    ):
        assert f"#SBATCH --{line}\n" in script
    assert "wckey" not in script
    made = batch.executor(tmp_path / ".slurm", replace(settings, gpus=0, memory=None), "mine", 2)
    assert "gpus" not in (plain := made._make_submission_file_text("", "")) and "--mem" not in plain


@pytest.mark.parametrize(
    ("code", "state", "requeued"),
    [
        (143, "RUNNING", True),
        (140, "SIGNALING", True),
        (143, "COMPLETING", False),
        (0, "RUNNING", False),
        (2, "", False),
    ],
)
def test_a_job_that_was_asked_to_stop_is_queued_again_unless_it_was_cancelled(
    code: int, state: str, requeued: bool, programs: Callable[..., None]
) -> None:
    programs(squeue=f"echo {state}", scontrol='echo "$@" > asked')
    script = "\n".join([f"(exit {code})", *batch.AFTER])
    one = {"SLURM_JOB_ID": "7"}
    for named, asked in ((one, "7"), (one | {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}, "7_3")):
        done = subprocess.run(["/bin/bash", "-c", script], env=os.environ | named, check=False)
        assert done.returncode == code
        assert Path("asked").exists() == requeued
        assert not requeued or Path("asked").read_text() == f"requeue {asked}\n"


# --- slips ----------


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        command(*SHORT, "seed=0,1", "launcher=slurm", *words)
    assert stopped.value.code == 2
    assert not Path("outputs").exists()
    return capsys.readouterr().err


def test_what_cannot_be_submitted_is_told_in_one_line_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], programs: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "slurm needs sbatch, which is not on this machine" in refusal(capsys)
    programs(sbatch="echo 'sbatch: error: invalid partition specified: x' >&2; exit 1")
    assert refusal(capsys, "launcher.partition=x") == "error: sbatch: invalid partition specified: x\n"
    assert "time=soon: expected minutes" in refusal(capsys, "launcher.time=soon")
    programs(sbatch="exit 1", squeue="echo 'Unable to contact slurm controller' >&2; exit 1")
    silent = refusal(capsys, "launcher.patience=0.1", "launcher.poll=0.2")
    assert silent.startswith("error: squeue has not answered for 0.1 s (Unable to contact slurm controller)")
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert "slurm needs submitit; pip install" in refusal(capsys)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match=r"cannot be written \(Not a directory\); choose another hydra.sweep.dir"):
        JobRecord(tmp_path / "file/grid")


# --- what becomes of a cell ----------


def judged(status: dict[str, Any] | None, state: JobState | None, log: str = "") -> tuple[str, str]:
    cell, record = a_cell("grid/cell"), JobRecord(Path("grid"))
    cell.folder.mkdir(exist_ok=True)
    if status is not None:
        RunFolder(cell.folder).write("status", status)
    record.log("7_1").write_text(log)
    found = verdict(cell, "7_1", state, record, lambda cell: RunFolder(cell.folder).finished)
    return found.kind, found.text


RUNNING = {"status": "running", "step": 40}


@pytest.mark.parametrize(
    ("status", "state", "kind", "text"),
    [
        (None, JobState("PENDING", reason="Priority"), "waits", "Priority"),
        (RUNNING, JobState("RUNNING", node="n3"), "runs", "runs on n3"),
        (RUNNING, JobState("SIGNALING"), "runs", "runs"),
        ({"status": "finished", "step": 60}, JobState("COMPLETED"), "made", "finished"),
        ({"status": "diverged", "step": 9}, None, "made", "diverged at step 9"),
        (RUNNING, JobState("FAILED", 137), "killed", "killed by signal 9 at step 40"),
        (RUNNING, JobState("OUT_OF_MEMORY", 125), "killed", "it ran out of memory at step 40"),
        (RUNNING, JobState("NODE_FAIL"), "killed", "its node failed at step 40"),
        (None, JobState("BOOT_FAIL"), "killed", "its node failed before its first step was saved"),
        (RUNNING, JobState("PREEMPTED", 15), "killed", "it was preempted at step 40"),
        (RUNNING, None, "killed", "ended at step 40, and Slurm does not say why"),
        (RUNNING, JobState("CANCELLED", 15), "failed", "cancelled at step 40"),
        (None, None, "failed", "Slurm does not know the job any more; it was cancelled while it waited, or forgotten"),
        (RUNNING, JobState("COMPLETED"), "unclear", "Slurm says COMPLETED, and the run folder holds no finished run"),
        (
            {"status": "failed", "step": 3, "reason": "ValueError: odd"},
            JobState("FAILED", 1),
            "failed",
            "ValueError: odd",
        ),
    ],
)
def test_the_run_folder_and_slurm_say_what_becomes_of_a_cell(
    status: dict[str, Any] | None, state: JobState | None, kind: str, text: str
) -> None:
    assert judged(status, state) == (kind, text)


def test_a_refused_run_is_told_by_its_own_last_words() -> None:
    log = "submitit INFO (now) - Starting\nerror: grid/cell is in use by another run\nsrun: error: vm: task 0: Exited\n"
    assert judged(None, JobState("FAILED", REFUSED), log) == ("failed", "grid/cell is in use by another run")
    log = "srun: error: execve(): python: No such file or directory\n"
    assert judged(None, JobState("FAILED", 127), log) == ("failed", log.strip())


def test_a_damaged_status_ends_no_watching() -> None:
    Path("grid/cell").mkdir(parents=True)
    Path("grid/cell/status.json").write_text("{")
    assert judged(None, JobState("COMPLETED"))[0] == "failed"


# --- the command ----------


class Cluster:
    """A Slurm in which the n-th look at the queue finds what the n-th function says of the jobs submitted so far."""

    def __init__(self, *looks: Callable[[list[str]], dict[str, JobState]]):
        self.looks, self.sent, self.cells = list(looks), list[str](), list[list[Request]]()

    def submit(self, cells: list[Request], run: Any, made: Any, settings: SlurmCard) -> list[str]:
        array = f"{len(self.cells) + 1}"
        jobs = [f"{array}_{i}" for i in range(len(cells))]
        self.cells.append(list(cells))
        self.sent += jobs
        self.run = run
        return jobs

    def jobs(self) -> dict[str, JobState]:
        look = self.looks.pop(0)
        return {job: replace(state, name="lab-train") for job, state in look(self.sent).items()}

    def make(self, cell: Request) -> None:
        self.run(cell)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    made = Cluster()
    monkeypatch.setattr(batch, "require_slurm", lambda: None)
    monkeypatch.setattr(batch, "max_array", lambda: 2)
    monkeypatch.setattr(batch, "executor", lambda *given: given)
    monkeypatch.setattr(batch, "submit", made.submit)
    monkeypatch.setattr(queue, "jobs", made.jobs)
    yield made
    assert not made.looks, "fewer looks at the queue than there were to be"


SLURM = ("launcher=slurm", "launcher.poll=0.01")


def all_in(state: str, code: int = 0) -> Callable[[list[str]], dict[str, JobState]]:
    return lambda jobs: {job: JobState(state, code, node="n1") for job in jobs}


def test_a_grid_goes_through_jobs_in_arrays_no_larger_than_slurm_allows(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    def made(jobs: list[str]) -> dict[str, JobState]:
        for array in cluster.cells:
            for cell in array:
                cluster.make(cell)
        return all_in("COMPLETED")(jobs)

    cluster.looks = [lambda jobs: {}, all_in("PENDING"), all_in("RUNNING"), made]
    command(*SHORT, "seed=0,1,2", *SLURM)
    told = capsys.readouterr().err
    assert [len(array) for array in cluster.cells] == [2, 1]
    assert "3 cells: 3 submitted to Slurm as jobs 1, 2" in told
    assert told.count("runs on n1") == 3 and "seed=2: finished; 0 to go" in told
    command(*SHORT, "seed=0,1,2", *SLURM)
    assert "3 cells: all finished, nothing is submitted" in capsys.readouterr().err


def test_a_command_that_does_not_wait_finds_its_jobs_again(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.looks = [lambda jobs: {}, all_in("PENDING"), lambda jobs: {"1_0": JobState("RUNNING")}]
    for told in (
        "2 submitted to Slurm as job 1",
        "2 still with Slurm\n",
        "1 still with Slurm, 1 submitted to Slurm as job 2",
    ):
        command(*SHORT, "seed=0,1", *SLURM, "launcher.wait=false")
        assert told in (err := capsys.readouterr().err)
        assert "python -m lab.report outputs/train" in err
    assert "seed=1: Slurm does not know the job any more" in err
    assert json.loads(Path("outputs/train/.slurm/jobs.json").read_text()).popitem()[1] == "2_0"


def test_a_killed_job_is_submitted_again_a_few_times_and_then_told(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed(jobs: list[str]) -> dict[str, JobState]:
        return {job: JobState("FAILED", 137) for job in jobs}

    cluster.looks = [lambda jobs: {}, killed, killed, killed]
    with pytest.raises(SystemExit):
        command(*SHORT, "seed=0", *SLURM)
    told = capsys.readouterr().err
    assert [told.count(f"submitted again as job {i}_0") for i in (2, 3, 4)] == [1, 1, 0]
    assert "killed by signal 9 before its first step was saved, 3 times in a row" in told
    assert "Traceback" not in told


def test_an_interrupted_command_says_that_the_jobs_go_on(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(jobs: list[str]) -> dict[str, JobState]:
        raise KeyboardInterrupt

    cluster.looks = [lambda jobs: {}, interrupt]
    with pytest.raises(SystemExit) as stopped:
        command(*SHORT, "seed=0,1", *SLURM)
    assert stopped.value.code == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "interrupted; 2 jobs go on, and the same command finds what is left; scancel 1 ends it"


def test_slurm_is_asked_again_where_it_does_not_answer(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    def silent(jobs: list[str]) -> dict[str, JobState]:
        raise QueueSilent("no answer")

    def made(jobs: list[str]) -> dict[str, JobState]:
        cluster.make(cluster.cells[0][0])
        return all_in("COMPLETED")(jobs)

    cluster.looks = [silent, lambda jobs: {}, silent, silent, made]
    command(*SHORT, "seed=0", *SLURM)
    assert "seed=0: finished" in capsys.readouterr().err


# --- the job ----------


def test_a_job_ends_with_what_its_run_says(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(cell: Request) -> None:
        raise SettingError("no such data")

    def stop(cell: Request) -> None:
        raise SystemExit(TERMINATED)

    def step(cell: Request) -> None:
        cell.folder.mkdir()
        RunFolder(cell.folder).status("running", step=5)
        raise SystemExit(TERMINATED)

    cell = a_cell("cell")
    for run, seconds, code, told in (
        (refuse, 60.0, REFUSED, "error: no such data\n"),
        (stop, 60.0, TERMINATED, ""),
        (stop, 0.0, REFUSED, "error: the time limit is too short for a single step; give the jobs more time\n"),
        (step, 0.0, TERMINATED, ""),
    ):
        with pytest.raises(SystemExit) as stopped:
            CellJob(run, cell, seconds)()
        assert (stopped.value.code, capsys.readouterr().err) == (code, told)


def test_a_cell_is_made_in_a_process_that_submitit_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its executor for this machine in the place of the one for Slurm: what is sent is found by its name there."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    found = list[Request]()
    monkeypatch.setattr(batch, "require_slurm", lambda: None)
    monkeypatch.setattr(queue, "jobs", lambda: {})
    local = submitit.LocalExecutor(folder=Path("jobs").absolute())
    local.update_parameters(timeout_min=60, stderr_to_stdout=True)

    def submit(cells: list[Request], run: Any, made: Any, settings: SlurmCard) -> list[str]:
        found.extend(cells)
        job = local.submit(CellJob(run, cells[0], 60.0))
        job.wait()
        return [str(job.job_id)]

    monkeypatch.setattr(batch, "submit", submit)
    command(*SHORT, "seed=0", *SLURM)
    assert RunFolder(found[0].folder).finished
