"""Runs that end before their last step: at the state that meets a condition, told, and the same after a resume."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.run import checkpoints
from lab.run.folder import RunFolder

Train = Callable[..., RunFolder]
Refused = Callable[..., str]
Read = Callable[[RunFolder], Any]
SMALL = ("trainer.threads=1", "data.examples=60", "model.widths=[8]", "data.batch_size=20", "steps=30", "probe=[]")


def losses(folder: RunFolder) -> list[float]:
    return folder.series("train/loss")[1]


@pytest.mark.parametrize("log_every", ["1", "7", "null"])
def test_a_run_ends_with_the_weights_whose_batch_is_the_first_below_the_bound(
    log_every: str, train: Train, weights: Read, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = losses(train("whole", *SMALL))
    bound = sorted(whole)[4]
    first = next(i for i, loss in enumerate(whole) if loss < bound)
    stopped = train("stopped", *SMALL, f"trainer.stop=[train/loss<{bound!r}]", f"trainer.log_every={log_every}")
    assert 0 < first < 29
    assert f"Stopped at step {first}: train/loss {whole[first]:.4g} < {bound:g}. Trained" in capsys.readouterr().out
    short = train("short", *SMALL, f"steps={first}")
    assert all(torch.equal(a, b) for a, b in zip(*(weights(f).values() for f in (stopped, short)), strict=True))
    status, summary = stopped.read("status"), stopped.read("summary")
    assert (status["status"], status["step"], status["reason"]) == ("finished", first, summary["reason"])
    assert summary["steps"] == first and summary["last_loss"] == whole[first]
    assert stopped.series("test/accuracy")[0][-1] == first, "what is measured at the end is measured there"


def test_a_stopped_run_answers_at_once_and_one_that_was_killed_stops_again(
    train: Train, metrics: Read, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (*SMALL, "trainer.stop=[train/loss<1e-9,test/accuracy>.3]", "trainer.evaluate_every=3")
    stopped = train("run", *settings, "probe=[sharpness]", "probe.sharpness.every=4")
    step, lines = stopped.read("status")["step"], metrics(stopped)
    assert 0 < step < 30 and step % 3 == 0
    files = {file: file.stat().st_mtime_ns for file in stopped.path.rglob("*")}
    train("run", *settings, "probe=[sharpness]", "probe.sharpness.every=4")
    assert "already finished" in capsys.readouterr().out
    assert files == {file: file.stat().st_mtime_ns for file in stopped.path.rglob("*")}
    state = checkpoints.load(stopped.checkpoints / "last.ckpt")
    stopped.write("status", {"status": "running", "step": step, "reason": "", "pid": 1})
    (stopped.path / "summary.json").unlink()
    train("run", *settings, "probe=[sharpness]", "probe.sharpness.every=4")
    assert stopped.read("status")["step"] == step and metrics(stopped) == lines
    again = checkpoints.load(stopped.checkpoints / "last.ckpt")
    before, after = (kept["probes"]["phase"]["losses"] for kept in (state, again))
    assert again["stop"] == state["stop"] and torch.equal(before, after)


def test_a_stopped_run_goes_on_without_its_condition_as_if_it_had_never_stopped(
    train: Train, weights: Read, metrics: Read
) -> None:
    settings = (
        *SMALL,
        "optimizer.momentum=0.9",
        "probe=[sharpness]",
        "probe.sharpness.every=4",
        "trainer.clip_norm=0.5",
    )
    whole = train("whole", *settings)
    train("stopped", *settings, f"trainer.stop=[train/loss<{losses(whole)[0] - 0.5!r}]")
    going = train("stopped", *settings, "trainer.stop=[train/loss<1e-9]")
    assert going.read("status")["step"] == 30 and metrics(going) == metrics(whole)
    assert all(torch.equal(a, b) for a, b in zip(weights(going).values(), weights(whole).values(), strict=True))
    summaries = [run.read("summary") | {"seconds": 0, "budget": None, "title": ""} for run in (going, whole)]
    assert summaries[0] == summaries[1]


def test_a_probe_ends_a_run_at_the_step_that_it_measured_before_its_update(train: Train, weights: Read) -> None:
    probe = ("probe=[sharpness]", "probe.sharpness.every=2", "optimizer.lr=1.5")
    steps, ratios = train("whole", *SMALL, *probe).series("sharpness/ratio")
    step, ratio = next((s, r) for s, r in zip(steps, ratios, strict=True) if s >= 4)
    bound = max(r for s, r in zip(steps, ratios, strict=True) if s < step)
    bound = (bound + ratio) / 2 if ratio > bound else bound
    first = next(s for s, r in zip(steps, ratios, strict=True) if r >= bound)
    stopped = train("stopped", *SMALL, *probe, f"trainer.stop=[sharpness/ratio>={bound!r}]")
    assert stopped.read("status")["step"] == first
    assert stopped.series("sharpness/ratio")[0].count(first) == 1, "not measured a second time at the end"


def test_the_batch_of_the_step_that_is_not_made_leaves_no_trace_in_the_buffers(
    train: Train, weights: Read, scratch: Path
) -> None:
    import numpy as np
    from PIL import Image

    for place in ("train/a", "train/b", "test/a", "test/b"):
        (scratch / "images" / place).mkdir(parents=True)
        for i in range(4):
            pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8) // (1 + place.endswith("b"))
            Image.fromarray(pixels).save(scratch / "images" / place / f"{i}.png")
    net = (
        "data=image_folder",
        "data.root=images",
        "data.batch_size=4",
        "model=resnet",
        "model.depth=8",
        "model.width=2",
    )
    settings = (*net, "trainer.threads=1", "probe=[]", "steps=3")
    whole = losses(train("whole", *settings))
    sign = "<" if min(whole) < whole[0] else ">"
    stopped = train("stopped", *settings, f"trainer.stop=[train/loss{sign}{whole[0]!r}]")
    kept, meant = weights(stopped), weights(train("short", *settings, f"steps={stopped.read('status')['step']}"))
    assert any("running_mean" in name for name in kept)
    assert all(torch.equal(kept[name], meant[name]) for name in meant)


def test_a_condition_that_can_never_be_met_is_refused_before_anything_is_written(refused: Refused) -> None:
    said = refused(*SMALL, "trainer.stop=[trian/loss<1]")
    assert said == "error: trainer.stop=[trian/loss<1]: nothing in this run writes trian/loss; did you mean train/loss?"
    assert "expected a list, [train/loss<1]" in refused(*SMALL, "trainer.stop=train/loss<1")
    assert "(entry train/loss<<1)" in refused(*SMALL, "trainer.stop=[train/loss<<1]")
    assert "nothing in this run writes sharpness/ratio" in refused(*SMALL, "trainer.stop=[sharpness/ratio>1]")
    assert "did you mean sharpness/ratio?" in refused(*SMALL, "probe=[sharpness]", "trainer.stop=[sharpness/ration>1]")
    assert not Path("outputs").exists()


def test_what_may_change_of_a_finished_run_is_refused_where_no_run_takes_it(train: Train, refused: Refused) -> None:
    finished = train("run", *SMALL)
    files = {file: file.stat().st_mtime_ns for file in finished.path.rglob("*")}
    place = (*SMALL, "hydra.run.dir=run")
    assert "nothing in this run writes trian/loss" in refused(*place, "trainer.stop=[trian/loss<1]")
    assert "trainer.keep=last: expected steps" in refused(*place, "trainer.keep=last")
    train("run", *SMALL, "trainer.keep=best", "trainer.stop=[train/loss<1e-9]")
    assert files == {file: file.stat().st_mtime_ns for file in finished.path.rglob("*")}


GUESTS = """
import pytorch_lightning as pl
import torch

class Watcher(pl.Callback):
    def __init__(self):
        self.seen = []
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.seen.append([batch.begin, batch.end, module.step, len(module.updates.losses)])
    def on_train_end(self, trainer, module):
        torch.save(self.seen, "seen.pt")
    def state_dict(self):
        return {"seen": self.seen}
    def load_state_dict(self, state):
        self.seen = [*state["seen"], "again"]

class Stopper(pl.Callback):
    def on_train_batch_end(self, trainer, module, *rest):
        trainer.should_stop = True

class Broken(pl.Callback):
    def on_train_batch_start(self, *rest):
        raise RuntimeError("no such thing")

class Late(pl.Callback):
    def on_train_batch_end(self, trainer, module, *rest):
        if module.step > 14:
            raise RuntimeError("too late")

class Odd(pl.Callback):
    def state_dict(self):
        return {"at": object()}

class Needy(pl.Callback):
    def __init__(self, what): ...

class Keeper(pl.callbacks.ModelCheckpoint): ...

class Nothing: ...
"""


@pytest.fixture
def guests(scratch: Path) -> None:
    (scratch / "guests.py").write_text(GUESTS)


@pytest.mark.usefixtures("guests")
def test_a_callback_of_her_own_sees_chunks_of_updates_and_leaves_the_run_as_it_is(
    train: Train, weights: Read, resumed: Callable[..., tuple[RunFolder, RunFolder]]
) -> None:
    bare = train("bare", *SMALL)
    chunks = ("trainer.evaluate_every=10", "trainer.checkpoint_every=20", "trainer.callbacks=[guests.py:Watcher]")
    whole, broken = resumed(*SMALL, *chunks)
    assert all(torch.equal(a, b) for a, b in zip(weights(bare).values(), weights(whole).values(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(weights(bare).values(), weights(broken).values(), strict=True))
    (code,) = whole.read("provenance")["callbacks"]
    assert code["path"] == "guests.py:Watcher" and len(code["sha256"]) == 16
    assert torch.load("seen.pt") == [[0, 10, 10, 10], [10, 20, 20, 10], "again", [20, 30, 30, 10]]


def test_the_callback_of_the_docs_prints_the_last_loss_of_every_chunk(
    train: Train, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "running.md").read_text()
    code = page.split(":caption: mycallbacks.py\n")[1].split("```")[0]
    (scratch / "mycallbacks.py").write_text(code)
    run = train("run", *SMALL, "trainer.callbacks=[mycallbacks.py:Printer]")
    assert "trainer.callbacks=[mycallbacks.py:Printer]" in page
    assert f"30 {(29, losses(run)[-1])}" in capsys.readouterr().out


@pytest.mark.usefixtures("guests")
def test_a_callback_that_fails_or_stops_the_trainer_is_told(
    train: Train, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(*SMALL, "trainer.callbacks=[guests.py:Broken]", "hydra.run.dir=broken")
    told = (
        "trainer.callbacks=[guests.py:Broken]: on_train_batch_start raised RuntimeError: no such thing (guests.py, line"
    )
    assert told in said
    status = json.loads(Path("broken/status.json").read_text())
    assert status["status"] == "failed" and told in status["reason"]
    assert status["step"] == 0 and status["next"] == "no step is saved yet: the same command starts again"
    stopped = train("stopped", *SMALL, "trainer.callbacks=[guests.py:Stopper]", "trainer.evaluate_every=10")
    assert stopped.read("status")["reason"] == "a callback set trainer.should_stop"
    assert "Stopped at step 10: a callback set trainer.should_stop." in capsys.readouterr().out


@pytest.mark.usefixtures("guests")
def test_the_status_of_a_callback_that_failed_tells_the_step_reached_and_the_one_saved(
    train: Train, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*SMALL, "trainer.checkpoint_every=10", "trainer.evaluate_every=5", "trainer.callbacks=[guests.py:Late]")
    refused(*words, "hydra.run.dir=late")
    status = RunFolder("late").read("status")
    assert (status["step"], status["saved"]) == (15, 10)
    assert status["next"] == "the same command goes on from step 10"
    Path("guests.py").write_text(GUESTS.replace("module.step > 14", "False"))
    run = train("late", *words)
    assert "late goes on from step 10 of 30" in capsys.readouterr().err
    assert {"status": "finished", "step": 30}.items() <= run.read("status").items()
    assert not {"saved", "next"} & run.read("status").keys()


@pytest.mark.usefixtures("guests")
@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("none.py:Watcher", "none.py does not exist"),
        ("guests.py:Watchr", "did you mean Watcher?"),
        ("guests.py:Nothing", "is no Lightning callback"),
        ("guests.py:Needy", "made without arguments, it raised TypeError"),
        ("guests.py:Keeper", "set trainer.checkpoint_every"),
        ("guests.py:Watcher,guests.py:Watcher", "stands there twice"),
    ],
)
def test_what_is_no_callback_is_refused_before_anything_is_written(path: str, line: str, refused: Refused) -> None:
    assert line in refused(*SMALL, f"trainer.callbacks=[{path}]")
    assert not Path("outputs").exists()


@pytest.mark.usefixtures("guests")
def test_a_state_that_a_checkpoint_cannot_hold_is_told(refused: Refused) -> None:
    said = refused(*SMALL, "steps=1", "trainer.callbacks=[guests.py:Odd]")
    assert "its state_dict holds a object; a checkpoint holds tensors and plain values" in said
