"""The data of a run are part of what it is."""

import shutil
from pathlib import Path

import pytest
from PIL import Image
from whole_runs import command, train

from lab.data.image_folder import ImageFolder


def test_another_dataset_is_another_run(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("images", "others")
    Image.new("RGB", (8, 8)).save("others/train/a/0.png")
    image_run = ("data=image_folder", "data.batch_size=full", "model.widths=[4]", "steps=2", "trainer.threads=1")
    command("-m", "data.root=images,others", *image_run, "probe=[]")
    assert len(list(Path("outputs/train").glob("*/summary.json"))) == 2
    train("run", *image_run)
    with pytest.raises(SystemExit) as stopped:
        command("hydra.run.dir=run", "data.root=others", *image_run)
    assert stopped.value.code == 2
    assert "run holds a run with data.root=images, not others" in capsys.readouterr().err


def test_a_killed_run_is_not_resumed_on_data_that_changed(capsys: pytest.CaptureFixture[str]) -> None:
    image_run = ("data=image_folder", "data.batch_size=full", "model.widths=[4]", "steps=2", "trainer.threads=1")
    folder = train("run", *image_run)
    folder.write("status", {"status": "running", "step": 1, "reason": "", "pid": 1})
    before = {file: file.read_bytes() for file in folder.path.rglob("*") if file.is_file()}
    Image.new("RGB", (8, 8)).save("images/train/a/0.png")
    with pytest.raises(SystemExit) as stopped:
        train("run", *image_run)
    assert stopped.value.code == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: run holds a run on other data: ")
    assert {file: file.read_bytes() for file in folder.path.rglob("*") if file.is_file()} == before


IMAGES = ("data=image_folder", "data.batch_size=full", "model.widths=[4]", "steps=2", "trainer.threads=1", "probe=[]")


def test_a_finished_run_says_when_its_data_have_changed(capsys: pytest.CaptureFixture[str]) -> None:
    folder = train("run", *IMAGES)
    before = {file: file.read_bytes() for file in folder.path.rglob("*") if file.is_file()}
    pixels = Path("images/train/a/0.png").read_bytes()
    Image.new("RGB", (8, 8)).save("images/train/a/0.png")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        train("run", *IMAGES)
    told = capsys.readouterr()
    assert stopped.value.code == 2
    assert told.err.splitlines()[-1].startswith("error: run holds a run on other data: ")
    assert told.out == ""
    assert {file: file.read_bytes() for file in folder.path.rglob("*") if file.is_file()} == before
    Path("images/train/a/0.png").write_bytes(pixels)  # the same pixels, another time of change: looked at, and the same
    train("run", *IMAGES)
    Path("images").rename("gone")  # nothing to compare with: what was found then is still what was found
    train("run", *IMAGES)
    assert capsys.readouterr().out.count("already finished") == 2


def test_a_finished_run_is_known_by_its_files_without_reading_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train("run", *IMAGES)
    monkeypatch.setattr(ImageFolder, "load", lambda *arguments: pytest.fail("the images were read"))
    train("run", *IMAGES)
    assert "already finished" in capsys.readouterr().out
