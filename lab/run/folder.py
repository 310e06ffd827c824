"""One run on disk: who owns the folder, what it measured, how it stands, and how it came about.

    provenance.json   command, settings, versions, hardware, git state, data
    status.json       running | finished | diverged | failed, with step and reason
    metrics.jsonl     one line {"step": t, "tag": "...", "value": x} per step and tag
    summary.json      what the run amounts to
    arrays/           <probe>_<step>.npz, what a probe measured beside numbers
    figures/ checkpoints/
    events.out.tfevents.*   what TensorBoard shows

Every JSON and npz file is replaced as a whole (written beside, flushed to disk, renamed), so a kill leaves the old or
the new one. A lock on the folder keeps a second process out for as long as the first one lives.
"""

import errno
import fcntl
import io
import json
import math
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import IO, Any

import numpy as np

from lab.settings import SettingError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What the system says where there is no more room to write: on the disk, in a quota, in a file, or at all."""


class RunFolder:
    """The folder of one run, chosen by the setting `chosen_by`. Write while it is `owned`; every method may be called
    again after a kill.
    """

    def __init__(self, path: Path | str, *, chosen_by: str = "hydra.run.dir"):
        self.path, self.chosen_by = Path(path), chosen_by
        self._metrics: IO[str] | None = None
        self._begin = math.nan

    @property
    def finished(self) -> bool:
        """Whether it holds a run that is over, at its end or by a divergence."""
        return self.read("status").get("status") in ("finished", "diverged")

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def arrays(self) -> Path:
        return self.path / "arrays"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @contextmanager
    def owned(self) -> Iterator[None]:
        """The folder is ours alone, until the end of the block or of the process. Raises SettingError when another live
        process writes to it, or when it cannot be written, at once or later.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("a")
        except OSError as error:
            cure = f"choose another {self.chosen_by}"
            raise SettingError(f"{self.path} cannot be written ({error.strerror}); {cure}") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                busy = f"{self.path} is in use by another run; wait for it or set {self.chosen_by}"
                raise SettingError(busy) from None
            try:
                try:
                    yield
                finally:
                    if self._metrics is not None:
                        self._metrics.close()
                    fcntl.flock(lock, fcntl.LOCK_UN)  # also where a process forked off has inherited it
            except OSError as error:
                if error.errno not in FULL:
                    raise
                raise SettingError(
                    f"{self.path} cannot be written any more ({error.strerror}); make room and repeat the command, which "
                    "goes on from what is there"
                ) from None

    def forget_from(self, step: int) -> None:
        """Drop the measurements from `step` on, which will be made again, and be ready to `log`."""
        kept = [line for line in self._lines() if line["step"] < step]
        replace(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept).encode())
        for file in self.arrays.glob("*_*.npz"):
            if _step_of(file) >= step:
                file.unlink()
        self._metrics = (self.path / "metrics.jsonl").open("a")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append finite numbers, a line each; what is not finite was not measured."""
        assert self._metrics is not None, "call forget_from first"
        for tag, value in values.items():
            if math.isfinite(value):
                self._metrics.write(json.dumps({"step": step, "tag": tag, "value": float(value)}) + "\n")
        self._metrics.flush()

    def series(self, tag: str) -> tuple[list[int], list[float]]:
        """Steps and values of one tag."""
        return self.all_series().get(tag, ([], []))

    def all_series(self) -> dict[str, tuple[list[int], list[float]]]:
        """Steps and values of every tag, in one pass over the file."""
        series: dict[str, tuple[list[int], list[float]]] = {}
        for line in self._lines():
            steps, values = series.setdefault(line["tag"], ([], []))
            steps.append(line["step"])
            values.append(line["value"])
        return series

    def log_arrays(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Arrays by tag `probe/name`, under `name` in arrays/<probe>_<step>.npz, one file a probe."""
        files: dict[str, dict[str, np.ndarray]] = {}
        for tag, array in arrays.items():
            probe, _, name = tag.partition("/")
            files.setdefault(probe, {})[name] = array
        for probe, named in files.items():
            self.arrays.mkdir(exist_ok=True)
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **named)  # type: ignore[arg-type]
            replace(self.arrays / f"{probe}_{step:07d}.npz", buffer.getvalue())

    def all_arrays(self, probe: str) -> dict[int, dict[str, np.ndarray]]:
        """What `probe` left in arrays/, by step in ascending order."""
        files = sorted(self.arrays.glob(f"{probe}_*.npz"), key=_step_of)
        return {_step_of(file): dict(np.load(file)) for file in files}

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Replace `name`.json as a whole."""
        replace(self.path / f"{name}.json", (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())

    def read(self, name: str) -> dict[str, Any]:
        """`name`.json, empty where there is none."""
        file = self.path / f"{name}.json"
        try:
            content = json.loads(file.read_text()) if file.exists() else {}
        except ValueError:
            content = None
        if isinstance(content, dict):
            return content
        raise SettingError(f"{file} is damaged; remove it, or choose another {self.chosen_by}")

    def remove_if_empty(self) -> None:
        """Take the folder away where there is nothing in it, and its parents as far as they are empty."""
        for path in (self.path.absolute(), *self.path.absolute().parents):
            if Path.cwd().is_relative_to(path) or not path.is_dir() or any(path.iterdir()):
                return
            path.rmdir()

    def start_clock(self) -> None:
        """From now on `seconds` run, beginning at those of the processes before this one, as their last status says."""
        self._begin = monotonic() - self.read("status").get("seconds", 0.0)

    @property
    def seconds(self) -> float:
        """Time spent on the run by all its processes (s), less what a killed one did after its last status."""
        return monotonic() - self._begin

    def status(self, state: str, *, step: int, reason: str = "", seconds: float | None = None) -> None:
        """How the run stands: running, finished, diverged or failed; after so many `seconds`, where the clock was read."""
        time = {"seconds": read} if math.isfinite(read := self.seconds if seconds is None else seconds) else {}
        self.write("status", {"status": state, "step": step, "reason": reason, **_process()} | time)

    def _lines(self) -> Iterator[dict[str, Any]]:
        """The measurements on disk; a last line cut off by a kill is passed over."""
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return
        for line in file.read_text().splitlines():
            with suppress(json.JSONDecodeError):
                yield json.loads(line)


def _process() -> dict[str, Any]:
    """This process, and the machine it is one of."""
    return {"pid": os.getpid(), "host": socket.gethostname()}


def _step_of(file: Path) -> int:
    return int(file.stem.rpartition("_")[2])


def replace(file: Path, content: bytes) -> None:
    """Write `content` under a temporary name in the same folder, flush it to disk and rename: all or nothing."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with beside.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
