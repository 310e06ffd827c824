"""A run with probes is the run without, and one that was killed the one that was not, bit for bit."""

import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data
from whole_runs import KINDS, SMALL, assert_same, assert_same_run, finished, in_child, last, metrics, signalled, train

from lab.callbacks.dashboard import shown
from lab.run import checkpoints
from lab.run.folder import RunFolder

OFTEN = ("trainer.checkpoint_every=5", "trainer.evaluate_every=4")


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_with_probes_is_bit_identical_to_the_run_without(kind: str) -> None:
    plain = [setting for setting in KINDS[kind] if not setting.startswith("probe")]
    probed, bare = last(finished("probed", *KINDS[kind], *OFTEN)), last(train("bare", *plain, "probe=[]"))
    assert_same(probed["model"], bare["model"])
    assert_same(probed["optimizer"], bare["optimizer"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_resumes_bit_for_bit(kind: str) -> None:
    settings = (*KINDS[kind], *OFTEN)
    whole = finished("whole", *settings)
    lines = len((whole.path / "metrics.jsonl").read_text().splitlines())
    random = np.random.default_rng()
    for share in random.uniform(0.1, 0.9, size=2):  # killed twice, at random
        calls = int(random.integers(1, 20_000))
        assert signalled(signal.SIGKILL, int(share * lines), calls, "killed", *settings) == -signal.SIGKILL
        assert RunFolder("killed").read("status")["status"] == "running"
    assert_same_run(whole, train("killed", *settings))


def test_a_kill_after_the_last_step_leaves_a_run_that_can_be_finished() -> None:
    whole, killed = finished("whole", *SMALL), finished("killed", *SMALL)
    killed.write("status", {"status": "running", "step": 60, "reason": "", "pid": 1})
    (killed.path / "summary.json").unlink()
    assert_same_run(whole, train("killed", *SMALL))


def test_a_finished_run_without_its_summary_makes_it_again() -> None:
    run = finished("run", *SMALL)
    before, summary = metrics(run), run.read("summary")
    (run.path / "summary.json").unlink()
    again = train("run", *SMALL)
    assert metrics(again) == before
    clocked = {"seconds": 0, "budget": 0}
    assert again.read("summary") | clocked == summary | clocked


def test_a_damaged_checkpoint_falls_back_to_the_one_before() -> None:
    settings = (*SMALL, "trainer.checkpoint_every=20")
    whole, broken = finished("whole", *settings), finished("broken", *settings)
    file = broken.checkpoints / "last.ckpt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    broken.write("status", {"status": "failed", "step": 60, "reason": "", "pid": 1})
    assert_same_run(whole, train("broken", *settings))
    assert checkpoints.load(file)["step"] == 60


def test_a_finished_run_returns_at_once_and_other_settings_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished("run", *SMALL)
    before = {file: file.stat().st_mtime_ns for file in folder.path.rglob("*")}
    train("run", *SMALL)
    assert "already finished" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        train("run", *SMALL, "optimizer.lr=0.2")
    assert stopped.value.code == 2
    assert "run holds a run with optimizer.lr=0.1, not 0.2; choose another" in capsys.readouterr().err
    assert {file: file.stat().st_mtime_ns for file in folder.path.rglob("*")} == before


def test_a_second_process_in_the_same_folder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with RunFolder("run").owned():
        assert in_child("run", *SMALL) == 2
        with pytest.raises(SystemExit) as stopped:
            train("run", *SMALL)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("run is in use by another run") == 1
    assert [file.name for file in Path("run").iterdir()] == [".lock"]


def test_tensorboard_shows_every_step_once_after_a_kill_before_the_first_checkpoint() -> None:
    settings = (*SMALL[:4], "trainer.checkpoint_every=null", "probe=[]")
    assert signalled(signal.SIGINT, 120, 100, "run", *settings) == 130
    assert not (Path("run") / "checkpoints").exists()
    time.sleep(1.1)  # event files are read in the order of the second in their names
    folder = train("run", *settings)
    assert len(list(folder.path.glob("events.*"))) == 2
    events = EventAccumulator(str(folder.path), size_guidance={"scalars": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("1_train/loss")] == list(range(60))


@pytest.mark.usefixtures("drawn")
def test_tensorboard_has_every_number_of_a_run_and_one_row_of_its_settings() -> None:
    folder = train("run", *SMALL, "data.batch_size=20", "steps=20", "optimizer/noise=none")
    [file] = folder.path.glob("events.*")
    assert not [place for place in folder.path.rglob("events.*") if place.parent != folder.path]
    events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
    kept = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    for tag, (steps, values) in folder.all_series().items():
        assert kept[shown(tag)] == list(zip(steps, map(np.float32, values), strict=True))
    assert {tag.partition("/")[0] for tag in kept.keys() - set(map(shown, folder.all_series()))} == {
        "10_final",
        "13_lines",
    }
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    row = parse_session_start_info_plugin_data(content).hparams
    assert (row["Batch size"].number_value, row["optimizer/noise"].string_value) == (20, "none")
    assert events.Scalars("10_final/loss")[-1].value == np.float32(folder.read("summary")["last_loss"])


def test_double_precision_is_kept_over_a_resume() -> None:
    settings = (*SMALL, "trainer.precision=64-true", "trainer.checkpoint_every=20", "optimizer=adam")
    whole, resumed = finished("whole", *settings), finished("resumed", *settings)
    weight = next(iter(last(whole)["model"].values()))
    assert weight.dtype == torch.float64
    assert not torch.equal(weight, weight.float().double())
    (resumed.checkpoints / "last.ckpt").unlink()  # previous.ckpt is that of step 40
    resumed.write("status", {"status": "running", "step": 40, "reason": "", "pid": 1})
    assert_same_run(whole, train("resumed", *settings))
