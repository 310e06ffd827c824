"""The run folder that a watch leaves: that of lab.train, however the loop ends, and never over another run."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from callbacks.loops import Loss, Training, data
from whole_runs import SMALL, finished

import lab
from lab.callbacks.watch import Watch
from lab.doors.parts import read_settings
from lab.probes.sharpness import Sharpness
from lab.run import underway
from lab.run.folder import RunFolder
from lab.settings import SettingError

COSTS = ("cost/", "train/accuracy", "train/grad_norm", "train/update_norm", "test/")


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures: to draw one takes longer than these loops."""
    monkeypatch.setattr("lab.callbacks.record.show_outcome", lambda folder, loggers, *_: None)


def ran(folder: Path, steps: int = 6, **settings: object) -> Watch:
    training = Training(norm=False)
    watch = training.watch(folder=folder, **settings)
    training.run(steps, watch)
    watch.close()
    return watch


def test_a_plain_loop_measures_what_lab_train_does_and_leaves_the_same_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = finished(str(tmp_path / "train"), *SMALL)
    parts = read_settings(truth.read("provenance")["settings"]).build()
    model, optimizer, (x, y) = parts.model, parts.optimizer, (parts.dataset.train.x, parts.dataset.train.y)
    watch = lab.watch(
        model,
        parts.criterion,
        (x, y),
        optimizer,
        probes=[Sharpness(every=7, tol=0.01)],
        folder=tmp_path / "own",
        batch_size="full",
    )
    for _ in range(60):
        optimizer.zero_grad()
        loss = parts.criterion(model(x), y)
        loss.backward()
        with watch.step(loss):
            optimizer.step()
    capsys.readouterr()
    watch.close()
    own, words = RunFolder(tmp_path / "own"), capsys.readouterr().out
    for tag, curve in truth.all_series().items():
        if not tag.startswith(COSTS):
            assert own.series(tag) == curve, tag
    one, other = truth.read("summary"), own.read("summary")
    differ = {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}
    assert differ <= {
        "seconds",
        "title",
        "loss_unit",
        "edge_lr",
        "test_loss",
        "test_accuracy",
        "rate",
        "tags",
        "budget",
        "stopped_by",
    }
    assert own.read("status")["status"] == "finished" and own.read("status")["step"] == 60
    left, right = ({file.name.partition(".tfevents.")[0] for file in run.path.iterdir()} for run in (truth, own))
    left -= right
    assert left <= {"checkpoints", ".hydra", "lightning_logs"}, left
    assert f"figure       {own.figures / 'edge.png'}" in words and "Phase at the end" in words
    provenance = own.read("provenance")
    assert provenance["settings"]["optimizer"]["lr"] == optimizer.param_groups[0]["lr"]
    assert provenance["model"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert provenance["data"]["train"] == len(y) and "python" in provenance["command"]


def test_without_a_folder_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    training = Training(norm=False)
    watch = training.watch()
    training.run(4, watch)
    watch.close()
    assert list(tmp_path.iterdir()) == [] and watch.latest["sharpness/lambda_max"] > 0
    assert "Trained 4 steps; loss from" in capsys.readouterr().out


@pytest.mark.usefixtures("unseen")
def test_a_folder_that_holds_a_run_is_refused_and_one_that_stopped_is_begun_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran(tmp_path / "run")
    before = (tmp_path / "run/metrics.jsonl").read_text()
    with pytest.raises(SettingError, match="holds a run that is over, at step 6"):
        ran(tmp_path / "run")
    assert (tmp_path / "run/metrics.jsonl").read_text() == before
    assert RunFolder(tmp_path / "run").read("status")["status"] == "finished"

    RunFolder(tmp_path / "run").status("failed", step=4, reason="interrupted")
    ran(tmp_path / "run", steps=3)
    assert "held a run that stopped at step 4 (interrupted): this one takes its place" in capsys.readouterr().err
    assert RunFolder(tmp_path / "run").series("train/loss")[0] == [0, 1, 2]

    finished(str(tmp_path / "train"), *SMALL)
    with pytest.raises(SettingError, match=r"holds a run that lab\.watch has not made"):
        ran(tmp_path / "train")
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match=r"cannot be written .*choose another folder"):
        ran(tmp_path / "file")


@pytest.mark.usefixtures("unseen")
def test_a_run_that_goes_on_leaves_the_folder_of_the_run_that_never_stopped(tmp_path: Path) -> None:
    ran(tmp_path / "whole", steps=9)
    training = Training(norm=False)
    watch = training.watch(folder=tmp_path / "cut")
    training.run(5, watch)
    state, kept = watch.state_dict(), training.state()
    training.run(2, watch)  # lost with the process
    watch.left("interrupted")

    shorter = Training(norm=False)
    shorter.run(5)
    resumed = shorter.watch(folder=tmp_path / "cut")
    resumed.load_state_dict(state)
    torch.set_rng_state(kept[-1])
    shorter.run(4, resumed)
    resumed.close()
    one, other = (RunFolder(tmp_path / name).all_series() for name in ("whole", "cut"))
    assert {t: s for t, s in one.items() if "cost/" not in t} == {t: s for t, s in other.items() if "cost/" not in t}


def test_an_error_in_the_loop_is_in_the_status_with_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = Training(norm=False)

    def stopped() -> None:
        with training.watch(folder=tmp_path / "run") as watch:
            training.run(4, watch)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    folder = RunFolder(tmp_path / "run")
    assert (folder.read("status")["status"], folder.read("status")["reason"]) == ("failed", "interrupted")
    assert folder.read("summary")["steps"] == 4 and (folder.figures / "edge.png").exists()
    assert "The run ended at step 4: interrupted." in capsys.readouterr().out


@pytest.mark.usefixtures("unseen")
def test_an_error_that_the_loop_catches_is_forgotten_with_the_next_block(tmp_path: Path) -> None:
    training, folder = Training(norm=False), RunFolder(tmp_path / "run")
    watch = training.watch(folder=folder.path)
    with pytest.raises(ZeroDivisionError), watch.step():
        1 / 0  # noqa: B018
    assert folder.read("status")["reason"] == "ZeroDivisionError: division by zero"
    training.run(1, watch)
    assert folder.read("status")["status"] == "running"
    with pytest.raises(ZeroDivisionError), watch.step():
        1 / 0  # noqa: B018
    watch.close()
    assert folder.read("status")["status"] == "failed"


@pytest.mark.usefixtures("unseen")
def test_a_run_begun_again_in_this_process_ends_the_one_that_was_left_open(tmp_path: Path) -> None:
    training = Training(norm=False)
    left_open = training.watch(folder=tmp_path / "run")
    training.run(3, left_open)
    ran(tmp_path / "run", steps=4)  # a cell of a notebook, run again
    assert left_open.closed and RunFolder(tmp_path / "run").read("status")["step"] == 4


@pytest.mark.usefixtures("unseen")
def test_a_folder_in_use_by_another_process_is_refused(tmp_path: Path) -> None:
    training = Training(norm=False)
    watch = training.watch(folder=tmp_path / "run")
    training.run(2, watch)
    if (child := os.fork()) == 0:
        underway._Open.runs.clear()
        try:
            ran(tmp_path / "run", steps=1)
        except SettingError as error:
            os._exit(0 if "in use by another run; wait for it or set folder" in str(error) else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    watch.close()
    assert RunFolder(tmp_path / "run").read("status")["status"] == "finished"


ENDS = """
import os, signal, time
from unittest import mock
from callbacks.loops import Training

os.dup2(1, 2)
mock.patch("lab.callbacks.record.show_outcome").start()  # no pictures, which take long
for way in ("forgotten", "raised", "terminated"):
    if (child := os.fork()) == 0:
        training = Training(norm=False)
        watch = training.watch(folder=way)
        training.run(4, watch)
        if way == "forgotten":  # a worker forked off is ended by SIGTERM: no end of the run
            read, write = os.pipe()
            if (worker := os.fork()) == 0:
                os.write(write, b"here")  # Python drops signals that come before it is done with the fork
                while True:
                    time.sleep(0.01)
            os.read(read, 4)
            os.kill(worker, signal.SIGTERM)
            assert os.waitpid(worker, 0)[1] == signal.SIGTERM
            assert '"running"' in open("forgotten/status.json").read()
        if way == "raised":
            raise RuntimeError("the loader is gone")
        if way == "terminated":
            os.kill(os.getpid(), signal.SIGTERM)
        break
    else:
        print("exit", way, os.waitpid(child, 0)[1], flush=True)
"""


def test_the_end_of_the_process_closes_what_was_left_open(tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{tests}:{tests.parent}"}
    command = [sys.executable, "-c", ENDS]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    codes = dict(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("exit"))
    assert codes == {"forgotten": "0", "raised": "256", "terminated": "15"}, done.stdout
    for way, status, reason in (
        ("forgotten", "finished", ""),
        ("raised", "failed", "RuntimeError: the loader is gone"),
        ("terminated", "failed", "interrupted"),
    ):
        folder = RunFolder(tmp_path / way)
        known = folder.read("status")
        assert (known["status"], known["reason"], known["step"]) == (status, reason, 4)
        assert folder.series("sharpness/lambda_max")[0] == [0, 3]
    for way in ("forgotten", "raised"):
        assert RunFolder(tmp_path / way).read("summary")["steps"] == 4


def test_progress_is_a_line_with_the_time_to_go(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lab.callbacks.record.LINE_SECONDS", 0.0)
    training = Training(norm=False)
    watch = training.watch(steps=8)
    training.run(4, watch)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"step {i}/8" for i in range(1, 5)]
    assert "loss" in lines[-1] and "lambda/threshold" in lines[-1] and lines[-1].endswith("s to go")


@pytest.mark.usefixtures("unseen")
def test_what_is_logged_by_hand_is_in_the_folder_and_in_the_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = Training(norm=False)
    with training.watch(folder=tmp_path / "run") as watch:
        training.run(3, watch)
        watch.log({"test/accuracy": torch.tensor(0.75), "test/loss": 0.5})
    assert RunFolder(tmp_path / "run").series("test/accuracy") == ([3], [0.75])
    assert "test accuracy 0.75" in capsys.readouterr().out


@pytest.mark.usefixtures("unseen")
def test_the_provenance_is_json_whatever_the_optimiser_holds(tmp_path: Path) -> None:
    training = Training(norm=False)
    training.optimizer = torch.optim.Adam(training.model.parameters(), lr=torch.tensor(0.1))  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        watch = lab.watch(
            training.model, Loss, data(), training.optimizer, probes=[Sharpness(every=2)], folder=tmp_path / "run"
        )
        with watch.step():
            pass
        watch.close()
    settings = json.loads((tmp_path / "run/provenance.json").read_text())["settings"]
    assert settings["optimizer"]["lr"] == pytest.approx(0.1) and settings["loss"] == "cross_entropy"
