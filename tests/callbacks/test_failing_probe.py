"""Whatever a probe raises, training goes on as if the probe were not there; what failed is told once and counted."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lab.callbacks import ProbeCallback
from lab.objective import Unsound
from lab.probes import Sharpness
from lab.probes.base import Probe, Snapshot, Value
from lab.settings import SettingError

X = torch.randn(48, 5, generator=torch.Generator().manual_seed(0))
DATA = X, X[:, :3].argmax(1)


class Strangers(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(0.1), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Failing(Probe):
    """Counts in its memory, draws a global random number, and does `act` from step 4 on."""

    name: ClassVar[str] = "failing"

    def __init__(self, act: Callable[[Snapshot], Any], first: int = 4):
        self.every, self.act, self.first, self.count, self.seen = 2, act, first, 0, list[int]()

    def measure(self, snapshot: Snapshot) -> dict[str, Value]:
        self.seen.append(snapshot.step)
        self.count += 1
        torch.randn(3)
        made = self.act(snapshot) if snapshot.step >= self.first else None
        return {"failing/count": float(self.count)} if made is None else made

    def state_dict(self) -> dict[str, Tensor]:
        return {"count": torch.tensor(self.count)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.count = int(state.get("count", 0))


def fit(folder: Path, *callbacks: pl.Callback) -> tuple[dict[str, Tensor], list[str]]:
    """The weights after 12 updates, and what was warned of."""
    module = Strangers()
    torch.manual_seed(7)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        max_epochs=2,
        default_root_dir=folder,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, DataLoader(TensorDataset(*DATA), batch_size=8, shuffle=True))
    assert trainer.global_step == 12
    return module.state_dict(), [str(w.message) for w in caught if "probe" in str(w.message)]


def raising(error: Exception) -> Callable[[Snapshot], None]:
    def act(snapshot: Snapshot) -> None:
        raise error

    return act


def in_forward(snapshot: Snapshot) -> None:
    """Fails within the network, whose modes and random draws are then in the midst of a change."""

    def hook(module: nn.Module, arguments: Any, output: Any) -> None:
        torch.randn(3)
        raise TypeError("no such thing")

    network = snapshot.loss_on("all").model.net  # type: ignore[attr-defined]
    handle = network[3].register_forward_hook(hook)
    try:
        snapshot.loss_on("all").value(snapshot.w)
    finally:
        handle.remove()


FAILURES: dict[str, tuple[Callable[[Snapshot], Any], str]] = {
    "memory of the CPU": (raising(RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")), "RuntimeError"),
    "memory of a GPU": (raising(torch.OutOfMemoryError("CUDA out of memory")), "OutOfMemoryError"),
    "no decomposition": (lambda snapshot: torch.linalg.cholesky(-torch.eye(2)), "_LinAlgError: linalg.cholesky"),
    "no decomposition by numpy": (lambda snapshot: np.linalg.inv(np.zeros((2, 2))), "LinAlgError: Singular matrix"),
    "division": (lambda snapshot: 1 / 0, "ZeroDivisionError: division by zero"),
    "a type in the network": (in_forward, "TypeError: no such thing"),
    "an assertion": (raising(AssertionError()), "AssertionError"),
    "no number": (lambda snapshot: {"failing/count": "many"}, "ValueError: could not convert string"),
    "nothing": (lambda snapshot: {"failing/count": None}, "TypeError: float"),
    "many lines": (raising(KeyError("one\ntwo")), "KeyError"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failing_probe_leaves_training_and_other_probes_as_they_are(kind: str, tmp_path: Path) -> None:
    act, told = FAILURES[kind]
    failing, alone = Failing(act), ProbeCallback([Sharpness(every=3)], nn.functional.cross_entropy, DATA)
    plain, _ = fit(tmp_path, alone)
    probes = ProbeCallback([failing, Sharpness(every=3)], nn.functional.cross_entropy, DATA)
    weights, warned = fit(tmp_path, probes)
    assert all(tensor.equal(weights[name]) for name, tensor in plain.items())
    assert probes.tracker.ratios == alone.tracker.ratios
    assert probes.summary()["failed_probes"] == {"failing": 4} and alone.summary()["failed_probes"] == {}
    assert set(failing.seen) == {0, 2, 4, 6, 8, 10}, "it is tried again"
    assert probes.latest["failing/count"] == failing.count == 2, "its memory is that of the last whole measurement"
    assert len(warned) == 1 and warned[0].startswith(f"probe failing failed at step 4 ({told}"), warned
    assert "not measured; change probe.failing.*, or leave the probe out; training goes on" in warned[0]
    assert "\n" not in warned[0]
    assert probes.failures.sentences() == [
        f"Probe failing failed 4 times, first at step 4 {warned[0].split(' 4 ', 1)[1].split(': not meas')[0]}"
        ": nothing was measured there"
    ]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_what_is_meant_for_the_process_is_no_failure(stop: type[BaseException], tmp_path: Path) -> None:
    def act(snapshot: Snapshot) -> None:
        raise stop

    failing = Failing(act)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        fit(tmp_path, ProbeCallback([failing], nn.functional.cross_entropy, DATA))
    assert failing.count == 2


def test_where_memory_runs_out_chunks_are_halved_until_it_suffices(tmp_path: Path) -> None:
    most, largest = 20, list[int]()

    def criterion(outputs: Tensor, y: Tensor) -> Tensor:
        if outputs.requires_grad and torch.is_grad_enabled():
            largest.append(len(y))
            if len(y) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return nn.functional.cross_entropy(outputs, y)

    whole = ProbeCallback([Sharpness(every=3)], nn.functional.cross_entropy, DATA)
    _, none = fit(tmp_path, whole)
    probes = ProbeCallback([Sharpness(every=3)], criterion, DATA)
    _, warned = fit(tmp_path, probes)
    assert warned == none == [] and probes.summary()["failed_probes"] == {}
    assert probes.bench.chunk_size == 12 and (largest.count(48), largest.count(24)) == (2, 1), "timed, and once each"
    assert [step for step, _ in probes.tracker.ratios] == [step for step, _ in whole.tracker.ratios]
    # float32 sums in another order; lambda_max to 1e-3 of itself
    assert [r for _, r in probes.tracker.ratios] == pytest.approx([r for _, r in whole.tracker.ratios], rel=1e-3)


def test_memory_that_never_suffices_names_the_examples(tmp_path: Path) -> None:
    def criterion(outputs: Tensor, y: Tensor) -> Tensor:
        raise MemoryError("Unable to allocate 9.00 GiB")

    _, warned = fit(tmp_path, ProbeCallback([Sharpness(every=3)], criterion, DATA))
    assert len(warned) == 1
    assert "(MemoryError: Unable to allocate 9.00 GiB): not measured; use fewer probe.sharpness.examples" in warned[0]


def test_settings_that_are_not_the_default_are_named(tmp_path: Path) -> None:
    class Odd(Sharpness):
        def measure(self, snapshot: Snapshot) -> dict[str, Value]:
            raise ZeroDivisionError("division by zero")

    _, warned = fit(tmp_path, ProbeCallback([Odd(every=3, k=2, tol=0.1)], nn.functional.cross_entropy, DATA))
    assert "change probe.sharpness.k, probe.sharpness.tol, or leave the probe out" in warned[0]


@pytest.mark.parametrize("error", [SettingError("x=1: expected 2"), Unsound("the loss sees other examples")])
def test_a_refused_first_measurement_is_told_once_and_not_tried_again(error: Exception, tmp_path: Path) -> None:
    failing = Failing(raising(error), first=0)
    probes = ProbeCallback([failing, Sharpness(every=3)], nn.functional.cross_entropy, DATA)
    _, warned = fit(tmp_path, probes)
    assert failing.seen == [0] and [step for step, _ in probes.tracker.ratios][:2] == [0, 3]
    assert warned == [f"probe failing failed at step 0 ({error}): not measured, nor will it be; training goes on"]
    assert probes.summary()["failed_probes"] == {"failing": 1}


def test_a_door_raises_what_refuses_the_first_measurement_and_nothing_later(tmp_path: Path) -> None:
    refused = SettingError("x=1: expected 2")
    with pytest.raises(SettingError, match="expected 2"):
        fit(
            tmp_path,
            ProbeCallback([Failing(raising(refused), first=0)], nn.functional.cross_entropy, DATA, refuses=True),
        )
    late = Failing(raising(refused), first=4)
    _, warned = fit(tmp_path, ProbeCallback([late], nn.functional.cross_entropy, DATA, refuses=True))
    assert set(late.seen) == {0, 2, 4, 6, 8, 10} and len(warned) == 1
    broken = Failing(raising(ZeroDivisionError("by zero")), first=0)
    fit(tmp_path, ProbeCallback([broken], nn.functional.cross_entropy, DATA, refuses=True))


def test_what_failed_is_remembered_by_a_checkpoint(tmp_path: Path) -> None:
    probes = ProbeCallback([Failing(raising(SettingError("no")), first=0)], nn.functional.cross_entropy, DATA)
    fit(tmp_path, probes)
    torch.save(probes.state_dict(), tmp_path / "state.pt")
    again = ProbeCallback([Failing(raising(SettingError("no")), first=0)], nn.functional.cross_entropy, DATA)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.summary()["failed_probes"] == {"failing": 1} and not again.due(0)
    assert again.failures.sentences() == probes.failures.sentences()


def test_a_probe_that_measures_nan_has_not_failed(tmp_path: Path) -> None:
    probes = ProbeCallback([Failing(lambda snapshot: {"failing/count": math.nan})], nn.functional.cross_entropy, DATA)
    _, warned = fit(tmp_path, probes)
    assert warned == [] and probes.summary()["failed_probes"] == {} and "failing/count" not in probes.latest


class Copying(Failing):
    name: ClassVar[str] = "copying"


def test_two_writers_of_one_tag_are_an_error_and_no_tag_is_written_twice(tmp_path: Path) -> None:
    both = [Failing(lambda snapshot: None), Copying(lambda snapshot: None)]
    with pytest.raises(ValueError, match=r"failing/count is written by probe copying and by another one; .* copying/"):
        fit(tmp_path, ProbeCallback(both, nn.functional.cross_entropy, DATA))
    apart = Copying(lambda snapshot: {"copying/count": 1.0}, first=0)
    probes = ProbeCallback([both[0], apart], nn.functional.cross_entropy, DATA)
    fit(tmp_path, probes)
    assert {"failing/count", "copying/count"} <= probes.latest.keys()
    with pytest.raises(ValueError, match="two probes are named sharpness: each writes under its name"):
        ProbeCallback([Sharpness(every=3), Sharpness(every=5, examples=10)], nn.functional.cross_entropy, DATA)
