"""Measurements that may fail: nothing that a probe raises ends a training.

What it raises becomes a `Failure`, which says in one line what happened and which setting would help; the memory of the
probe and the random state are those before. Where memory ran out the loss is cut into chunks of half as many examples and
measured again. SIGTERM and Ctrl-C are no failures of a probe, and pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lab.objective import NetworkObjective, Unsound
from lab.probes.base import Probe, Snapshot, Value
from lab.settings import SettingError

if TYPE_CHECKING:
    from lab.probes.bench import Bench

REFUSALS: tuple[type[Exception], ...] = (SettingError, Unsound)
"""What says that a measurement cannot be had, and its cure: a door refuses the run, a fit goes on without the probe."""
NO_MEMORY = ("can't allocate memory", "out of memory", "not enough memory", "ALLOC_FAILED", "Storage size calculation")
"""In the RuntimeErrors of torch where an allocation was refused; it has no class of its own for the CPU."""


@dataclass(frozen=True)
class Failure:
    """Why a probe measured nothing at `step`: what was raised, and what may be changed."""

    probe: str
    step: int
    error: Exception
    cure: str

    @property
    def refusal(self) -> bool:
        """Whether the measurement will never be had: what was raised names the cure itself."""
        return isinstance(self.error, REFUSALS)

    @property
    def cause(self) -> str:
        """What was raised, in one line."""
        text = " ".join(str(self.error).split())
        return text if self.refusal else f"{type(self.error).__name__}: {text}".removesuffix(": ")

    def __str__(self) -> str:
        cure = f"; {self.cure}" if self.cure else ""
        return f"probe {self.probe} failed at step {self.step} ({self.cause}): not measured{cure}"


class Failures:
    """What failed in a run, by probe: how often, first where and why, and whether the probe is left out from then on."""

    def __init__(self) -> None:
        self._of: dict[str, dict[str, Any]] = {}

    @property
    def counts(self) -> dict[str, int]:
        """How often each probe failed."""
        return {name: failed["times"] for name, failed in self._of.items()}

    def heard(self, probes: Sequence[Probe]) -> list[Probe]:
        """The probes, less those whose first measurement was refused."""
        return [probe for probe in probes if not self._of.get(probe.name, {}).get("left_out")]

    def note(self, failure: Failure, values: Mapping[str, float], *, refuses: bool) -> str:
        """Count it. What is to be warned of: the first failure of a probe; "" for those that follow.

        values: those of the run so far, by tag. refuses: a refusal of the first measurement is raised at step 0.
        """
        name = failure.probe
        never = failure.refusal and not any(tag.startswith((f"{name}/", f"cost/{name}/")) for tag in values)
        if never and refuses and failure.step == 0:
            raise failure.error
        failed = self._of.setdefault(name, {"times": 0, "step": failure.step, "cause": failure.cause})
        failed |= {"times": failed["times"] + 1, "left_out": never}
        return f"{failure}{', nor will it be' if never else ''}; training goes on" if failed["times"] == 1 else ""

    def sentences(self) -> list[str]:
        """What failed, a sentence for each probe."""
        return [
            f"Probe {name} failed {failed['times']} time{'s' if failed['times'] > 1 else ''}, first at step "
            f"{failed['step']} ({failed['cause']}): nothing was measured there"
            for name, failed in self._of.items()
        ]

    def state_dict(self) -> dict[str, Any]:
        return {name: dict(failed) for name, failed in self._of.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._of = {name: dict(failed) for name, failed in state.items()}


def attempt(probe: Probe, snapshot: Snapshot, bench: "Bench") -> dict[str, Value] | Failure:
    """probe.measure(snapshot), or why it failed. Chunks that were too large stay small, for what is measured next."""
    devices = [snapshot.w.device] if snapshot.w.device.type == "cuda" else []
    memory, chunk_size = probe.state_dict(), bench.chunk_size
    while True:
        try:
            with torch.random.fork_rng(devices):
                return _checked(probe.measure(snapshot))
        except Exception as error:
            failure = Failure(probe.name, snapshot.step, _bare(error), _cure(probe, error))
        probe.load_state_dict(memory)
        smaller = _halved(bench, snapshot.w) if out_of_memory(failure.error) else None
        if smaller is None and bench.chunk_size == chunk_size:
            return failure
        bench.chunk_size = chunk_size if smaller is None else smaller
        bench.objectives.clear()
        snapshot.forget()
        if smaller is None:
            return failure


def joined(before: Mapping[str, Value], values: Mapping[str, Value], probe: str) -> dict[str, Value]:
    """The values of a snapshot with those of one probe more. Raises ValueError where it writes a tag that is there."""
    if twice := sorted(before.keys() & values.keys()):
        raise ValueError(
            f"{twice[0]} is written by probe {probe} and by another one; the tags of a probe begin with its name: "
            f"{probe}/..., error/{probe}/... and cost/{probe}/..."
        )
    return {**before, **values}


def findings(probes: Sequence[Probe], values: dict[str, float]) -> list[str]:
    """What the probes say of the last values of a run, by tag."""
    sentences = []
    for probe in probes:
        try:
            sentences.append(probe.finding(values))
        except Exception as error:
            sentences.append(f"Probe {probe.name} has nothing to say: {type(error).__name__}: {error}")
    return [sentence for sentence in sentences if sentence]


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation was refused, by torch or numpy, on the CPU or a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in NO_MEMORY)


def _halved(bench: "Bench", w: Tensor) -> int | None:
    """Half the examples of a chunk; None where it holds one, or where they see each other: it is part of the loss."""
    made = [loss for loss in bench.objectives.values() if isinstance(loss, NetworkObjective)]
    if len(made) < len(bench.objectives):
        return None  # batches are as large as they are given
    try:
        if any(loss.coupled for loss in made):
            return None
        chunk = bench.chunk_size or max((loss.chunk_size(w) for loss in made), default=0)
    except Exception:  # it looks at the graph of some examples, for which there is no memory either
        return None
    return chunk // 2 or None


def _checked(values: dict[str, Value]) -> dict[str, Value]:
    """`values`, if they can be logged: TypeError or ValueError for what is no number, array or figure."""
    from matplotlib.figure import Figure

    for value in values.values():
        if not isinstance(value, Tensor | Figure):
            float(value)
    return values


def _bare(error: Exception) -> Exception:
    """Without the frames it came through, whose tensors it would keep."""
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error


def _cure(probe: Probe, error: Exception) -> str:
    """Which settings may be changed: those that speak of what happened, else those that are not the default."""
    if isinstance(error, REFUSALS):
        return ""
    settings: dict[str, Field] = {f.name: f for f in fields(probe) if f.init} if is_dataclass(probe) else {}
    name = f"probe.{probe.name}."
    if out_of_memory(error) and "examples" in settings:
        return f"use fewer {name}examples"
    if ("LinAlgError" in type(error).__name__ or "converge" in str(error)) and "max_matvecs" in settings:
        return f"raise {name}max_matvecs" + (f" or {name}tol" if "tol" in settings else "")
    changed = [f"{name}{f.name}" for f in settings.values() if f.name != "every" and _changed(probe, f)]
    return f"change {', '.join(changed) or f'{name}*'}, or leave the probe out"


def _changed(probe: Probe, setting: Field) -> bool:
    """Whether a setting has another value than its default."""
    default = setting.default if setting.default_factory is MISSING else setting.default_factory()
    return repr(getattr(probe, setting.name)) != repr(default)
