"""Cells of a grid in processes of this machine, under our own control.

A process makes cells until none is left. One that is killed, for want of memory or by hand, takes its cell with it and no
other: it is told as killed, and a new process goes on with the rest. Processes end with the one that began them: they are
sent SIGTERM, on which a run saves its state.
"""

import os
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from lab.doors.ending import TRACEBACK, CellError, keep_traceback, reason
from lab.doors.grid import Failure, Grid
from lab.doors.request import Request
from lab.run import signals
from lab.run.folder import RunFolder
from lab.run.progress import shown_elsewhere
from lab.settings import SettingError

PATIENCE = 60.0
"""Seconds (s) that a process has to save the state of its run before it is killed."""
STREAMS = ("stdout", "stderr")
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass
class Worker:
    """A process that makes cells, the cell that it has in hand, and the files that it writes its output to."""

    process: BaseProcess
    pipe: Connection
    output: Path
    cell: Request | None = None

    @staticmethod
    def begin(run: Any, output: Path, environment: Mapping[str, str]) -> "Worker":
        here, there = (context := get_context("spawn")).Pipe()
        for stream in STREAMS:
            output.with_suffix(f".{stream}").write_bytes(b"")
        process = context.Process(target=work, args=(there, run, output, dict(environment)))
        main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:  # the process would run the program of the user once more, which may have no guard
            process.start()
        finally:
            sys.modules["__main__"] = main
        there.close()
        return Worker(process, here, output)

    def give(self, cell: Request) -> None:
        self.cell = cell
        with suppress(OSError):  # it has died meanwhile, which is seen where its answer is waited for
            self.pipe.send(cell)

    def answer(self) -> Exception | None:
        """What became of the cell in hand; None: it was made. Where the process is dead, that is what became of it."""
        try:
            kind, text = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            return killed(self.process.exitcode or 0)
        return {"made": None, "refused": SettingError(text), "failed": CellError(text)}[kind]

    def tell(self) -> None:
        """Say what it has written since the last time."""
        for stream in STREAMS:
            file = self.output.with_suffix(f".{stream}")
            with file.open("rb") as written:
                text = written.read().decode(errors="replace")
            if text:
                os.truncate(file, 0)
                print(text, end="", file=getattr(sys, stream), flush=True)


def in_processes(grid: Grid, run: Any, *, jobs: int, gpus: list[str]) -> list[Failure]:
    """Every cell that is not over, `jobs` at once, each with one of the `gpus` by turns."""
    failures = [failure for cell in grid.cells if cell.folder in grid.done for failure in make_here(grid, run, cell)]
    waiting = [replace(cell, jobs=jobs) for cell in grid.cells if cell.folder not in grid.done][::-1]
    grid.jobs = jobs
    workers = dict[int, Worker]()
    with TemporaryDirectory(prefix="lab-grid-") as place:
        try:
            while waiting or any(worker.cell for worker in workers.values()):
                for slot in range(jobs):
                    if waiting and (slot not in workers or workers[slot].cell is None):
                        if slot not in workers:
                            workers[slot] = Worker.begin(run, Path(place, str(slot)), _own_gpu(slot, gpus))
                        workers[slot].give(cell := waiting.pop())
                        grid.begin(cell)
                failures += _collect(grid, workers)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("interrupted; the same command goes on with what is not finished") from None
        finally:
            end([*workers.values()])
    return failures


def make_here(grid: Grid, run: Any, cell: Request) -> list[Failure]:
    """One cell in this process; the failure, if it is one."""
    grid.begin(cell)
    try:
        attempt(run, cell)
    except Exception as error:
        grid.end(cell, error)
        return [(cell, error)]
    grid.end(cell)
    return []


def _collect(grid: Grid, workers: dict[int, Worker]) -> list[Failure]:
    """Wait until at least one cell has ended, and note what became of it; the failures."""
    failures, busy = list[Failure](), {slot: worker for slot, worker in workers.items() if worker.cell}
    ready = connection.wait([worker.pipe for worker in busy.values()])
    for slot, worker in busy.items():
        if worker.pipe not in ready or (cell := worker.cell) is None:
            continue
        error, worker.cell = worker.answer(), None
        worker.tell()
        if worker.process.exitcode is not None:
            del workers[slot]
            note_killed(cell, error)
        if error is not None:
            failures.append((cell, error))
        grid.end(cell, error)
    return failures


def note_killed(cell: Request, error: Exception | None) -> None:
    """Say in the folder of a run, where it has one, that its process was killed: it could not."""
    folder = RunFolder(cell.folder)
    status = folder.read("status")
    if error is not None and status.get("status") == "running":
        with suppress(SettingError, OSError), folder.owned():
            folder.status("failed", step=status.get("step", 0), reason=reason(error), seconds=status.get("seconds"))


def killed(code: int) -> CellError:
    """How a process ended that did not answer.

    >>> print(killed(-9)); print(killed(1))
    its process was killed (SIGKILL): for want of memory, or by hand
    its process ended with exit code 1
    """
    if code < 0 or code == signals.TERMINATED:
        name = signal.Signals(-code if code < 0 else signal.SIGTERM).name
        why = ": for want of memory, or by hand" if -code == signal.SIGKILL else ""
        return CellError(f"its process was killed ({name}){why}")
    return CellError(f"its process ended with exit code {code}")


def end(workers: list[Worker]) -> None:
    """End all processes: at once those that have nothing in hand, the others as SIGTERM does."""
    for worker in workers:
        worker.pipe.close()
        if worker.cell is not None:
            worker.process.terminate()
    for worker in workers:
        worker.process.join(PATIENCE)
        if worker.process.exitcode is None:
            worker.process.kill()
            worker.process.join()
        worker.tell()


def gpus_here() -> list[str]:
    """The names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    return named if len(named) == count else [str(number) for number in range(count)]


def _own_gpu(slot: int, gpus: list[str]) -> dict[str, str]:
    """Of several GPUs one for each process, by turns."""
    return {VISIBLE: gpus[slot % len(gpus)]} if len(gpus) > 1 else {}


def work(pipe: Connection, run: Any, output: Path, environment: Mapping[str, str]) -> None:
    """What a process does: cell after cell, as long as there is somebody who sends some."""
    os.environ.update(environment)
    for number, stream in enumerate(STREAMS, 1):
        file = os.open(output.with_suffix(f".{stream}"), os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with shown_elsewhere(), suppress(KeyboardInterrupt):
        while True:
            try:
                cell = pipe.recv()
            except (EOFError, OSError):
                return
            answer = _make(run, cell)
            sys.stdout.flush()
            sys.stderr.flush()
            with suppress(OSError):
                pipe.send(answer)


def attempt(run: Any, cell: Request) -> None:
    """Make a cell; the traceback of what it raises is left in its folder, until it is made."""
    try:
        run(cell)
    except Exception as error:
        keep_traceback(error, cell.folder)
        raise
    (cell.folder / TRACEBACK).unlink(missing_ok=True)


def _make(run: Any, cell: Request) -> tuple[str, str]:
    try:
        attempt(run, cell)
    except SettingError as error:
        return "refused", reason(error)
    except Exception as error:
        return "failed", reason(error)
    return "made", ""


def _end_with_parent() -> None:
    """SIGTERM to this process once the one that began it is gone, also where that was killed."""
    if (parent := parent_process()) is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
