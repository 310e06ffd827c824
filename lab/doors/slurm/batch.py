"""Jobs handed to sbatch, by submitit: it writes the script of an array and keeps what each of its jobs has to call.

A signal reaches the run (lab.doors.slurm.job), which saves its state and ends. What comes after is up to the script: it has
the job queued again, unless Slurm has ended it. So a signal that comes while Python still loads costs nothing either.
"""

import io
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from math import ceil
from pathlib import Path
from signal import SIGUSR1, SIGUSR2
from typing import Any

from lab.doors.request import Request
from lab.doors.slurm.card import SlurmCard
from lab.doors.slurm.job import CellJob
from lab.run.signals import TERMINATED
from lab.settings import SettingError

MAX_ARRAY = 1001
"""What Slurm allows in an array where nobody has set another limit."""
STOPPED = (TERMINATED, 128 + SIGUSR1, 128 + SIGUSR2)
AFTER = (
    "code=$?",
    "job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}",
    "# A job that was asked to stop while Slurm holds it for running is queued again, and its run goes on.",
    f"case $code in {'|'.join(map(str, STOPPED))})",
    "  case $(squeue --noheader --jobs=$job --format=%T) in RUNNING|SIGNALING)",
    "    scontrol requeue $job;;",
    "  esac;;",
    "esac",
    "exit $code",
)
"""What the script does after the run. SLURM_JOB_ID of one job of an array is the id of all of them."""


class Refusal(Exception):
    """sbatch has taken none of the jobs; the message is what it said."""


def require_slurm() -> None:
    """Raise SettingError where there is no Slurm, or submitit is not installed."""
    if missing := [name for name in ("sbatch", "squeue", "srun", "scontrol") if shutil.which(name) is None]:
        raise SettingError(
            f"launcher=slurm needs {missing[0]}, which is not on this machine; type the command where you would type "
            "sbatch, or choose launcher=joblib"
        )
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise SettingError(
            "launcher=slurm needs submitit; pip install 'edge-lab[slurm]', or in a checkout pip install -e '.[slurm]'"
        ) from None


def executor(folder: Path, card: SlurmCard, name: str, parallel: int) -> Any:
    """What submits: an executor of submitit with the options of the card."""
    import submitit

    made = submitit.SlurmExecutor(folder=folder)
    options: dict[str, Any] = {key.replace("_", "-"): value for key, value in card.options.items()}
    memory = None if card.memory is None else f"{ceil(card.memory * 1024)}M"
    wanted: dict[str, Any] = {"partition": card.partition, "mem": memory, "gpus_per_node": card.gpus or None}
    made.update_parameters(
        job_name=name,
        time=card.minutes,
        cpus_per_task=card.cpus,
        signal_delay_s=card.warned,
        array_parallelism=parallel,
        stderr_to_stdout=True,
        # What a step does not have from its job in every Slurm, and the log of a job that is queued again goes on.
        srun_args=[f"--cpus-per-task={card.cpus}", "--open-mode=append"],
        additional_parameters={"requeue": True} | options,
        wckey=None,  # submitit's own is refused where such keys are watched
        teardown=list(AFTER),
        **{key: value for key, value in wanted.items() if value is not None},
    )
    return made


def submit(cells: Sequence[Request], run: Callable[[Request], Any], made: Any, card: SlurmCard) -> list[str]:
    """The ids of the jobs of an array, one for each cell. Raises Refusal, with the words of sbatch, and leaves no files."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.helpers import clean_env, environment_variables

    seconds = card.minutes * 60 - card.warned - min(60, card.minutes * 15)
    place = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    before = {*made.folder.iterdir()}
    try:
        # A command within a job passes nothing of that on but where its cluster is; submitit prints what it raises.
        with clean_env(), environment_variables(**place), redirect_stderr(io.StringIO()), made.batch():
            jobs = [made.submit(CellJob(run, cell, seconds)) for cell in cells]
    except (FailedJobError, FailedSubmissionError) as error:
        for file in {*made.folder.iterdir()} - before:
            file.unlink()
        raise Refusal(sbatch_words(str(error))) from None
    return [str(job.job_id) for job in jobs]


def sbatch_words(text: str) -> str:
    """What sbatch says, in one line.

    >>> sbatch_words("sbatch: error: invalid partition specified: x\\nsbatch: error: Batch job submission failed")
    'sbatch: invalid partition specified: x; Batch job submission failed'
    """
    lines = [re.sub(r"^sbatch: ((error|fatal): )?", "", line.strip()) for line in text.splitlines() if line.strip()]
    return "sbatch: " + "; ".join(lines)


def max_array() -> int:
    """How many jobs an array may have here."""
    asked = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=False)
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", asked.stdout, flags=re.M)
    return max(1, int(found[1])) if found else MAX_ARRAY
