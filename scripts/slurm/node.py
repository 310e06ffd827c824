"""A Slurm of one node, for trying out `launcher=slurm` where there is no cluster.

    python scripts/slurm/node.py           until Ctrl-C; it prints the line to type in another terminal
    python scripts/slurm/node.py install   the packages, on Debian and Ubuntu, as root and without a question

Everything it writes lies in one temporary folder, and its ports are free ones: a Slurm that is on the machine already is
not touched. The partition `usual` is the default one; what is submitted to `urgent` preempts it: SIGTERM, then 30 s to save,
then the end. Without accounting, as on many small clusters.
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = {"munged": "/usr/sbin", "slurmctld": "/usr/sbin", "slurmd": "/usr/sbin", "sbatch": "/usr/bin"}
PATIENCE = 60
"""Seconds that the daemons may take to start."""
CONFIGURATION = """\
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/controller
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=5
SlurmdParameters=config_overrides
KillWait=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory}
PartitionName=usual Nodes={host} Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes={host} MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""
# cred_expire: a job that is queued again waits for twice its value, and by default that is four minutes.


def found(program: str) -> str | None:
    """Where a program is; a user's PATH may lack the folders of daemons."""
    return shutil.which(program) or shutil.which(program, path=PROGRAMS[program])


def missing() -> list[str]:
    """The programs that are not installed."""
    return [program for program in PROGRAMS if found(program) is None]


def install() -> str:
    """Install what is missing, without a question; why it cannot be, or "" where all is there."""
    if not missing():
        return ""
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        return "Slurm is not installed, and only root on Debian or Ubuntu can install it here"
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    options = ["-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20", "-qq", "-y", "--no-install-recommends"]
    for command in (["update"], ["install", *PACKAGES]):
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(["apt-get", *options, *command], env=quiet, capture_output=True, check=False, timeout=300)
    return f"apt-get could not install {', '.join(lacking)}" if (lacking := missing()) else ""


@contextlib.contextmanager
def single_node(cpus: int = 2) -> Iterator[dict[str, str]]:
    """A running Slurm with `cpus` CPUs; the environment in which its commands find it. Its jobs end with the block."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # a short path: sockets have no long ones
    folder.chmod(0o755)
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    daemons = list[subprocess.Popen[bytes]]()
    try:
        _configure(folder, cpus)
        for command in _commands(folder):
            log = (folder / f"{Path(command[0]).name}.log").open("wb")
            daemons.append(
                subprocess.Popen(
                    [*_with_parent(), *command], env=environment, stdout=log, stderr=log, start_new_session=True
                )
            )
            time.sleep(0.5)
        _await_idle(environment, folder)
        yield environment
        subprocess.run(["scancel", "--user", getpass.getuser()], env=environment, check=False)
        _await_idle(environment, folder)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(timeout=20)
            daemon.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _configure(folder: Path, cpus: int) -> None:
    """Keys and configuration."""
    for name in ("controller", "spool"):
        (folder / name).mkdir(mode=0o755)
    (folder / "munge.key").touch(mode=0o600)
    (folder / "munge.key").write_bytes(os.urandom(128))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(
            folder=folder,
            host=socket.gethostname().partition(".")[0],
            user=getpass.getuser(),
            ports=_free_ports(2),
            cpus=cpus,
            memory=memory * 9 // 10,
        )
    )


def _commands(folder: Path) -> Iterator[list[str]]:
    """The daemons, each in the foreground."""
    munge = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log"}
    munge |= {"seed-file": "munge.seed"}
    yield [str(found("munged")), "--foreground", "--force", *(f"--{k}={folder / v}" for k, v in munge.items())]
    yield [str(found("slurmctld")), "-D"]
    yield [str(found("slurmd")), "-D"]


def _with_parent() -> list[str]:
    """What before a command makes it end where this process is killed."""
    return ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _await_idle(environment: dict[str, str], folder: Path) -> None:
    """Until the node has nothing to do. Raises RuntimeError with what the daemons say."""
    for _ in range(PATIENCE * 2):
        asked = subprocess.run(
            ["sinfo", "-h", "-o", "%t"], env=environment, capture_output=True, text=True, check=False
        )
        if {*asked.stdout.split()} == {"idle"}:
            return
        time.sleep(0.5)
    said = "\n".join(line for log in folder.glob("*.log") for line in log.read_text().splitlines()[-5:])
    raise RuntimeError(f"Slurm does not start:\n{asked.stderr}{said}")


def main() -> None:
    """The command line."""
    if sys.argv[1:] not in ([], ["install"]):
        sys.exit(__doc__)
    if reason := install() if sys.argv[1:] else ", ".join(missing()) and f"not installed: {', '.join(missing())}":
        sys.exit(reason)
    if sys.argv[1:]:
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with single_node(len(os.sched_getaffinity(0))) as environment, contextlib.suppress(KeyboardInterrupt):
        print(
            f"Slurm runs until Ctrl-C. In another terminal:\n\n  export SLURM_CONF={environment['SLURM_CONF']}\n",
            flush=True,
        )
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
