"""What runs are called and where they are logged: names, tags, loggers, and debug=true."""

import csv
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.run.folder import RunFolder

Command = Callable[..., None]
Train = Callable[..., RunFolder]
Refused = Callable[..., str]
Read = Callable[[RunFolder], Any]
SMALL = ("trainer.threads=1", "data.examples=60", "model.widths=[8]", "steps=6", "probe=[]")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Where this process has connected to, this machine left out; no setting of the user's says where to log."""
    for name in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    reached = list[Any]()
    connect = socket.socket.connect

    def noted(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            reached.append(address)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", noted)
    yield reached
    assert not reached


def cut_off(run: RunFolder, step: int) -> None:
    """The run as if it had been killed after its checkpoint before the last."""
    (run.checkpoints / "last.ckpt").unlink()
    run.write("status", {"status": "running", "step": step, "reason": "", "pid": 1})


def rows(run: RunFolder) -> dict[str, tuple[list[int], list[float]]]:
    """metrics.csv, as series by tag."""
    with (run.path / "metrics.csv").open() as file:
        lines = list(csv.DictReader(file))
    tags = [tag for tag in lines[0] if tag != "step"]
    assert [int(line["step"]) for line in lines] == sorted({int(line["step"]) for line in lines}), "a row a step"
    return {
        tag: tuple(map(list, zip(*[(int(line["step"]), float(line[tag])) for line in lines if line[tag]], strict=True)))
        for tag in tags
    }  # type: ignore[return-value]


def test_the_csv_holds_every_metric_also_after_a_resume(train: Train) -> None:
    settings = (*SMALL, "logger=[csv]", "trainer.checkpoint_every=2", "probe=[sharpness]", "probe.sharpness.every=3")
    run = train("run", *settings)
    assert rows(run) == run.all_series() and len(rows(run)) > 10
    assert not (run.path / "tensorboard").exists()
    cut_off(run, 4)
    (run.path / "metrics.csv").write_text("step\nold")
    train("run", *settings)
    assert rows(run) == run.all_series()


@pytest.mark.filterwarnings("ignore:.*noload")
def test_mlflow_has_settings_tags_and_every_metric_in_a_file_of_the_run_that_a_resume_goes_on_with(
    train: Train, no_network: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    settings = (*SMALL, "logger=[mlflow]", "trainer.checkpoint_every=2", "optimizer.lr=0.3")
    run = train("runs/one", *settings, "tags=[first]", "name=mine")
    cut_off(run, 4)
    train("runs/one", *settings, "tags=[first,2]", "name=mine")
    said = capfd.readouterr().err
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{run.path.absolute()}/mlflow.db")
    experiment = client.get_experiment_by_name("runs")
    assert experiment is not None and experiment.artifact_location.startswith("file://")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == run.read("loggers")["mlflow"] and found.info.status == "FINISHED"
    assert (found.info.run_name, found.data.tags["tags"]) == ("mine", "first,2")
    assert found.data.params["optimizer.lr"] == "0.3" and found.data.params["optimizer"] == "sgd"
    assert "steps" not in found.data.params and found.data.tags["steps"] == "6", "it may grow, and no parameter may"
    for tag, (steps, values) in run.all_series().items():
        history = client.get_metric_history(found.info.run_id, tag)
        assert {metric.step: metric.value for metric in history} == dict(zip(steps, values, strict=True))
    assert found.data.metrics["final/last_loss"] == run.read("summary")["last_loss"]
    assert said == f"{run.path} goes on from step 4 of 6\n"
    assert "MLFLOW_TRACKING_URI" not in os.environ, "the next run of a grid has a file of its own"


def records(file: Path) -> Iterator[Any]:
    """What wandb has written: 7 bytes of header, then records in pieces (checksum, length, kind) in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    content, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        whole, at = whole + content[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def test_wandb_has_settings_tags_and_every_metric_offline_under_one_id_before_and_after_a_resume(
    train: Train, no_network: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    settings = (*SMALL, "logger=[wandb]", "trainer.checkpoint_every=2", "name=mine", "tags=[a,2]", "optimizer.lr=0.3")
    run = train("runs/one", *settings)
    cut_off(run, 4)
    train("runs/one", *settings)
    assert capfd.readouterr().err == f"{run.path} goes on from step 4 of 6\n"
    files = sorted((run.path / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_mtime_ns)
    assert {file.stem for file in files} == {f"run-{run.read('loggers')['wandb']}"}
    logged: dict[str, dict[int, float]] = {}
    for record in (record for file in files for record in records(file)):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            assert (record.run.display_name, [*record.run.tags], record.run.project) == ("mine", ["a", "2"], "runs")
            config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            assert config["optimizer.lr"] == 0.3 and config["optimizer"] == "sgd"
        elif kind == "history":
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
            }
            step = values.pop("trainer/global_step")
            for tag, value in values.items():
                logged.setdefault(tag, {})[step] = value
    for tag, (steps, values) in run.all_series().items():
        assert logged[tag] == dict(zip(steps, values, strict=True))


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("logger=wandb", "logger=wandb: expected a list, logger=[wandb]; logger=[] for none"),
        (
            "logger=[tensorbord]",
            "there is no logger tensorbord; expected a list of tensorboard, csv, wandb, mlflow; did you",
        ),
        ("logger=[csv,csv]", "logger=[csv,csv]: csv stands there twice"),
        ("logger=null", "logger=null: expected a list"),
        ("name=a/b", "name=a/b: expected the name of a folder"),
        ("name=", "name=: expected the name of a folder"),
        ("name=..", "name=..: expected the name of a folder"),
        ("name=[a]", "name=[a]: expected the name of a folder"),
        ("tags=a", "tags=a: expected a list, tags=[a]"),
        ("tags=[a,a]", "a stands there twice"),
        ("tags=['a,b']", "expected words without commas"),
        ("debug=yes", "debug=yes: expected true or false"),
        ("debug=1", "debug=1: expected true or false"),
    ],
)
def test_what_is_no_label_is_refused_before_anything_is_written(word: str, line: str, refused: Refused) -> None:
    assert line in refused(*SMALL, word)
    assert not Path("outputs").exists()


def test_a_logger_that_is_not_installed_names_the_extra(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.doors.labels.find_spec", lambda package: None)
    line = "logger=[wandb] needs the package wandb, which is not installed: pip install 'edge-lab[wandb]'"
    assert line in refused(*SMALL, "logger=[wandb]")


def test_a_name_is_that_of_the_folder_and_tags_may_change(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    command(*SMALL, "name=mine", "tags=[a]", "logger=[]")
    run = RunFolder("outputs/train/mine")
    assert run.read("summary")["tags"] == ["a"] and run.read("summary")["title"].startswith("mine: ")
    command(*SMALL, "name=mine", "tags=[b,c]", "logger=[csv]")
    assert "already finished" in capsys.readouterr().out
    assert run.read("summary")["tags"] == run.read("provenance")["settings"]["tags"] == ["b", "c"]
    command(*SMALL, "hydra.run.dir=elsewhere", "name=other", "logger=[]")
    assert RunFolder("elsewhere").finished, "hydra.run.dir wins"


def test_a_grid_with_a_name_has_its_cells_below_it(command: Command, refused: Refused) -> None:
    command("-m", *SMALL[:-2], "steps=1", "probe=[]", "seed=0,1", "name=mine", "tags=[a]", "logger=[]")
    cells = sorted(file.parent.name for file in Path("outputs/train/mine").glob("*/status.json"))
    assert len(cells) == 2 and all("seed=" in cell and "name" not in cell and "tags" not in cell for cell in cells)
    for word in ("name=a,b", "tags=[a],[b]", "logger=[],[csv]", "debug=true,false"):
        assert f"{word}: runs do not differ in {word.partition('=')[0]}" in refused("-m", *SMALL, word)


def test_a_debug_run_measures_all_once_tells_how_long_the_run_takes_and_begins_anew(
    command: Command, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("trainer.threads=1", "data.examples=100", "model.widths=[8]", "steps=1000", "probe=[sharpness,noise]")
    command(*words, "debug=true", "name=mine")
    told = capsys.readouterr().out
    assert "debug: 3 of 1000 steps; probes: sharpness on 64 of 100 examples, noise on 64 of 100 examples;" in told
    assert "The run itself takes about " in told
    run = RunFolder("outputs/debug/train/mine")
    assert run.read("status")["step"] == 3 and run.read("summary")["audit"]
    assert run.series("noise/trace")[0] == [0] and run.series("train/loss")[0] == [0, 1, 2]
    command(*words, "probe=[]", "debug=true", "name=mine", "optimizer.lr=0.2")
    assert "already finished" not in capsys.readouterr().out and run.series("train/loss")[0] == [0, 1, 2]
    assert run.read("provenance")["settings"]["optimizer"]["lr"] == 0.2
    assert "holds a debug run" in refused(*words, f"hydra.run.dir={run.path}")
    command(*SMALL, "hydra.run.dir=real")
    before = (Path("real") / "metrics.jsonl").read_bytes()
    assert "real holds a run, which debug=true would overwrite" in refused(*SMALL, "hydra.run.dir=real", "debug=true")
    assert (Path("real") / "metrics.jsonl").read_bytes() == before
