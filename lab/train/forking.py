"""The beginning of a run that goes on from another one: its first checkpoint, and what of the parent's state is in it.

    weights, buffers     of the parent at step t, whole
    optimiser            settings of the child (its learning rate wins); state of the parent where it is the same optimiser
                         and trainer.state=keep
    history of the phase where nothing that trains has changed: else the phase is that of the child alone
    memory of a probe    where neither its settings nor the landscape have changed
    state of a callback  where it is typed again
    metrics              of the parent, before step t

It is written as the newest checkpoint of the child before anything is trained, so that a run which begins, and one that was
killed and goes on, are one and the same; the parent is not read again.
"""

import fcntl
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from lab.curvature.phase import PhaseTracker
from lab.doors.fork import FROM, ForkPoint
from lab.doors.origin import OriginRun
from lab.doors.parts import Parts
from lab.named import source
from lab.run import checkpoints
from lab.run.checkpoints import State
from lab.run.code import code_facts, named_code
from lab.run.folder import RunFolder
from lab.run.identity import PLACE, differences, require_same_data
from lab.run.length import LENGTH, updates
from lab.run.summary import beginning
from lab.settings import SettingError

APART = (*PLACE, *LENGTH, FROM, "trainer.state", "trainer.keep")
"""Settings that are no change: where, how far, from where, and what is left of it."""
WATCHING = ("audit", "trainer.max_loss", *(f"trainer.{name}_every" for name in ("log", "evaluate", "checkpoint")))
"""Settings that change nothing that is trained; nor do those of probes."""
LOADING = ("data.batch_size", "data.sampling", "data.augment", "data.cache")
"""Settings of the data that leave the examples as they are."""
STEERING = ("optimizer.", "schedule", "noise", "escape", "data.batch_size", "data.sampling")
"""How the settings begin that change the way and not the landscape."""


@dataclass(frozen=True)
class Fork:
    """A run that is to begin: its first state, the parent's metrics up to there, what is told of it and written down."""

    state: State
    metrics: bytes
    record: dict[str, Any]
    notes: tuple[str, ...]

    def plant(self, folder: RunFolder) -> None:
        """Write the beginning into the folder of the child. What marks it as begun comes last."""
        for note in (f"begins {beginning(self.record)}", *self.notes):
            print(f"{folder.path}: {note}", file=sys.stderr)
        folder.path.joinpath("metrics.jsonl").write_bytes(self.metrics)
        checkpoints.save(folder.checkpoints / "last.ckpt", self.state)
        folder.write("provenance", folder.read("provenance") | {"parent": self.record})


def fork(folder: RunFolder, settings: dict[str, Any], parts: Parts, typed: Collection[str] = ()) -> Fork | None:
    """How the run in `folder` begins; None where it begins from no other, or has begun. Nothing is written. `typed` are the
    names of the settings that were typed.

    Raises SettingError, one line: no checkpoint at this step, or a damaged one; another model; a parent that still runs; no
    steps left; other data than then, of which none were typed.
    """
    if settings.get(FROM) is None or has_begun(folder):
        return None
    point = ForkPoint.of(settings[FROM])
    require_steps(point, parts.total)
    with _at_rest(point.folder):
        parent = point.run()
        provenance = point.folder.read("provenance")
        file, saved = checkpoints.at(point.folder, point.step)
        lines = (
            (point.folder.path / "metrics.jsonl").read_bytes()
            if (point.folder.path / "metrics.jsonl").exists()
            else b""
        )
        digest = sha256(file.read_bytes()).hexdigest()
    if why := checkpoints.misfit(saved["model"], parts.model.state_dict()):
        raise SettingError(
            f"{file} does not fit the model: {why}; leave model= and data= as they are in {point.folder.path}"
        )
    changes = _changes(parent, settings, parts, typed)
    optimizer, notes = _optimizer(saved, changes, parts)
    state = {"step": point.step, "model": saved["model"], "optimizer": optimizer}
    state |= {"probes": _probes(saved, changes, parts)} | _kept(saved, changes, parts)
    record = {
        "folder": str(point.folder.path),
        "command": provenance.get("command"),
        "checkpoint": file.name,
        "sha256": digest,
        "step": point.step,
        "phase_since": provenance.get("parent", {}).get("phase_since", 0) if _goes_on(saved, changes) else point.step,
        "changes": {name: list(pair) for name, pair in changes.items()},
    }
    return Fork(state, lines, record, notes)


def has_begun(folder: RunFolder) -> bool:
    """Whether the folder holds a run that began from another one."""
    return "parent" in folder.read("provenance") and checkpoints.newest(folder.checkpoints) is not None


def require_steps(point: ForkPoint, total: int) -> None:
    """Raise SettingError where the run would have no step left to make."""
    if total <= point.step:
        raise SettingError(
            f"from={point}: the run begins at step {point.step}, and ends at step {total} by its settings; give the step at "
            f"which it ends, counted from the beginning of its parent, e.g. steps={2 * point.step or 100}"
        )


def _changes(
    parent: OriginRun, settings: dict[str, Any], parts: Parts, typed: Collection[str]
) -> dict[str, tuple[Any, Any]]:
    """Every setting that differs, with its value in the parent and here; of the length the updates. Code and data that are
    others than then, behind the same settings, are among them.
    """
    found = {
        name: pair
        for name, pair in differences(dict(parent.settings), settings).items()
        if name not in APART and not name.startswith("compare")
    }
    found = _other_code(parent, settings, parts) | found
    found |= _other_data(parent, found, parts, typed)
    examples = parent.folder.read("provenance").get("data", {}).get("examples")
    before = updates(parent.settings, examples)
    return found | ({} if before in (None, parts.total) else {"steps": (before, parts.total)})


def _other_code(parent: OriginRun, settings: dict[str, Any], parts: Parts) -> dict[str, tuple[Any, Any]]:
    """The settings behind whose paths, the same as in the parent, is other code. Only code that is typed is looked at."""
    provenance = parent.folder.read("provenance")
    before = {f"{group}.path": noted for group, noted in (provenance.get("code") or {}).items()}
    now = {f"{group}.path": facts for group, facts in code_facts(settings).items()}
    pairs = [(name, before[name], facts) for name, facts in now.items() if name in before]
    mine = {path: source(path) for path in parts.settings.trainer.callbacks}
    called = [noted for noted in provenance.get("callbacks") or [] if noted["path"] in mine]
    pairs += [("trainer.callbacks", noted, mine[noted["path"]]) for noted in called]
    return {
        name: (facts["path"], f"{facts['path']}, other code")
        for name, noted, facts in pairs
        if noted["path"] == facts["path"] and noted["sha256"] != facts["sha256"]
    }


def _other_data(
    parent: OriginRun, changes: Mapping[str, Any], parts: Parts, typed: Collection[str]
) -> dict[str, tuple[Any, Any]]:
    """What the data say of themselves that is not what they said in the parent, where no setting has changed them. Raises
    SettingError where none was typed: typing the same code again chooses no data.
    """
    if any(name.partition(".")[0] == "data" and name not in LOADING for name in changes):
        return {}
    again = ("data", "data.path") if "data" in named_code(parent.settings) else ()
    if not any(name.partition(".")[0] == "data" and name not in (*LOADING, *again) for name in typed):
        require_same_data(parent.folder, parts.dataset.facts, cure=parent.data_cure("train"))
    before, now = parent.folder.read("provenance").get("data") or {}, parts.dataset.facts
    other = [name for name in sorted(before) if before[name] != now.get(name)]
    digests = [name for name in other if name.endswith("sha256")]
    return {f"data.{name}": (before[name], now.get(name)) for name in digests or other[:1]}


def _watching(changes: Mapping[str, Any]) -> bool:
    """Whether all that is trained is as it was."""
    return all(name in WATCHING or name == "steps" or name.startswith("probe") for name in changes)


def _optimizer(saved: State, changes: Mapping[str, Any], parts: Parts) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The state of the optimiser of the child, whose settings are its own; and in a line why the parent's is left out."""
    fresh = parts.optimizer.state_dict()
    before = saved.get("optimizer")
    if before is None:
        plain = not _needs_state(fresh)
        return fresh, () if plain else ("the checkpoint has no state of the optimiser, which begins anew",)
    dropped, other = parts.settings.trainer.state == "drop", _another_optimizer(changes)
    if not dropped and not other and _groups(before, changes) == _groups(fresh, changes):
        if "param_groups" in fresh:
            return fresh | {"state": before["state"]}, ()
        return {name: member | {"state": before[name]["state"]} for name, member in fresh.items()}, ()
    states = [state for member in _members(before) for state in member["state"].values()]
    if all(value is None for state in states for value in state.values()):  # of plain descent
        return fresh, ()
    was, now = changes[other] if other else ("", "")
    why = "trainer.state=drop" if dropped else f"{other} {was} -> {now}" if other else "its groups are others"
    return fresh, (f"the state of the optimiser begins anew ({why})",)


def _another_optimizer(changes: Mapping[str, Any]) -> str:
    """The setting by which the optimiser is another one; "" where it is not."""
    return next((name for name in ("optimizer", "optimizer.path") if name in changes), "")


def _members(state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The states of the optimisers that one state holds: one, or those of a `lab.optim.joint.Joint`."""
    return [state] if "param_groups" in state else list(state.values())


def _groups(state: Mapping[str, Any], changes: Mapping[str, Any]) -> list[list[tuple[Any, ...]]]:
    """The weights of each group of each optimiser, by their numbers. Where arguments of code have changed, from which it may
    have made another optimiser, the names of its settings too.
    """
    named = any(name.startswith("optimizer.args.") for name in changes)
    return [
        [(group["params"], sorted({*group} - {"initial_lr"}) if named else None) for group in member["param_groups"]]
        for member in _members(state)
    ]


def _needs_state(fresh: Mapping[str, Any]) -> bool:
    """Whether the optimiser remembers anything from step to step: all do but plain gradient descent."""
    groups = [group for member in _members(fresh) for group in member["param_groups"]]
    return not all("momentum" in group and "alpha" not in group and group["momentum"] == 0 for group in groups)


def _probes(saved: State, changes: Mapping[str, Any], parts: Parts) -> dict[str, Any]:
    """What the probes know at the beginning."""
    known = saved.get("probes", {})
    kept = all(name.startswith((*STEERING, "probe")) or name in (*WATCHING, "steps") for name in changes)
    kept = kept and not _another_optimizer(changes) and parts.settings.trainer.state == "keep"
    memories = known.get("probes", {})
    same = [probe for probe in parts.settings.probes if not _changed(probe.name, changes)]
    names = [type(probe).__name__ for probe in same if kept]
    state = {"probes": {name: memories[name] for name in names if name in memories}}
    if kept and "audit" in known:
        state["audit"] = known["audit"]
    if _goes_on(saved, changes):
        mine = {tag for tag in known["latest"] if _of(tag, [probe.name for probe in parts.settings.probes])}
        latest = {tag: value for tag, value in known["latest"].items() if tag in mine}
        failures = {} if any(name.startswith("probe") for name in changes) else {"failures": known.get("failures", {})}
        return known | {"latest": latest, "failures": {}} | failures | state
    return {"phase": PhaseTracker().state_dict(), "latest": {}, "formula": "the threshold", **state}


def _kept(saved: State, changes: Mapping[str, Any], parts: Parts) -> State:
    """What else is taken along: the state of the escape where its settings are the same, that of callbacks typed again."""
    kept: State = {}
    if "escape" in saved and not any(name.startswith("escape") for name in changes):
        kept["escape"] = saved["escape"]
    before = saved.get("callbacks", {})
    if mine := {path: before[path] for path in parts.settings.trainer.callbacks if path in before}:
        kept["callbacks"] = mine
    return kept


def _goes_on(saved: State, changes: Mapping[str, Any]) -> bool:
    """Whether the phase is that of the parent, gone on with."""
    return bool(saved.get("probes")) and _watching(changes)


def _changed(probe: str, changes: Mapping[str, Any]) -> bool:
    """Whether settings of a probe have changed, its rhythm aside."""
    return any(name.startswith(f"probe.{probe}.") and name != f"probe.{probe}.every" for name in changes)


def _of(tag: str, probes: list[str]) -> bool:
    """Whether a tag is of one of the probes, or of no probe."""
    group = tag.removeprefix("error/").removeprefix("cost/").partition("/")[0]
    return group in (*probes, "train", "test", "negative_curvature", "audit")


@contextmanager
def _at_rest(folder: RunFolder) -> Iterator[None]:
    """While the block reads it, no process writes to the folder. Raises SettingError where one does."""
    lock = folder.path / ".lock"
    if not lock.exists():
        yield
        return
    with lock.open() as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            raise SettingError(f"from={folder.path}: the run is in use; wait until it is over, or stop it") from None
        yield
