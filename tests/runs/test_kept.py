"""Checkpoints that stay: of chosen steps and of the best evaluation; what resumes and lengthens a run keeps them right."""

import shutil
import signal
from pathlib import Path

import pytest
from whole_runs import SMALL, assert_same, assert_same_run, command, finished, last, signalled, timeless, train

from lab.run import checkpoints
from lab.run.folder import RunFolder
from lab.run.keeping import Keeper, Kept

OFTEN = ("data.batch_size=16", "optimizer.momentum=0.9", "trainer.evaluate_every=4", "optimizer.lr=1.5")
KEEP = (*SMALL, *OFTEN, "trainer.keep=[0,23,60,best,every:20]")


def kept(folder: RunFolder) -> dict[str, dict]:
    """The checkpoints that stay, by name, less what the clock says."""
    names = [file.name for file in folder.checkpoints.glob("*.ckpt") if file.name[:4] in ("step", "best")]
    return {name: timeless(checkpoints.load(folder.checkpoints / name)) for name in sorted(names)}


def test_a_kept_checkpoint_is_the_state_before_its_update() -> None:
    run = finished("run", *KEEP)
    assert list(kept(run)) == ["best.ckpt", *(f"step_00000{step}.ckpt" for step in ("00", "20", "23", "40", "60"))]
    short = train("short", *KEEP[:-1], "steps=23")
    for part in ("step", "model", "optimizer"):
        assert_same(kept(run)["step_0000023.ckpt"][part], last(short)[part])
    plain = last(train("plain", *KEEP[:-1]))
    assert_same(plain["model"], last(run)["model"])


def test_the_best_is_that_of_the_lowest_test_loss() -> None:
    run = finished("run", *KEEP)
    steps, losses = run.series("test/loss")
    best = losses.index(min(losses))
    assert 0 < best < len(steps) - 1, "else nothing is shown"
    assert run.read("checkpoints/best") == {"step": steps[best], "quantity": "test/loss", "value": losses[best]}
    assert kept(run)["best.ckpt"]["step"] == steps[best]
    assert f"best.ckpt is step {steps[best]}, whose test/loss was the lowest" in run.read("summary")["findings"][-1]


def test_without_a_test_set_the_best_is_that_of_the_lowest_training_loss() -> None:
    words = ("data=image_folder", "data.batch_size=8", "trainer.threads=1", "model.widths=[4]", "probe=[]", "steps=6")
    shutil.rmtree("images/test")
    run = train("run", *words, "trainer.evaluate_every=2", "trainer.keep=best")
    record = run.read("checkpoints/best")
    assert record["quantity"] == "train/loss" and record["step"] in (0, 2, 4, 6)
    assert not run.series("test/loss")[0]


def test_a_killed_run_keeps_what_the_uninterrupted_one_keeps() -> None:
    settings = (*KEEP, "trainer.checkpoint_every=10")
    whole = finished("whole", *settings)
    lines = len((whole.path / "metrics.jsonl").read_text().splitlines())
    assert signalled(signal.SIGKILL, lines // 2, 500, "killed", *settings) == -signal.SIGKILL
    assert_same_run(whole, train("killed", *settings))
    assert_same(kept(whole), kept(RunFolder("killed")))


def test_a_best_that_only_the_end_has_found_is_none_of_the_longer_run(tmp_path: Path) -> None:
    keeper = Keeper(RunFolder(tmp_path), Kept.of("best"))
    offers = [(4, 2.0, True), (8, 1.0, True), (10, 0.5, False)]
    records = []
    for step, value, regular in offers:
        keeper.offer("test/loss", value, lambda step=step: {"step": step}, regular=regular)  # type: ignore[misc]
        records.append(keeper.record)
    assert checkpoints.load(tmp_path / "checkpoints/best.ckpt")["step"] == 10
    for _ in range(2):  # resumed at the end, and then made longer
        again = Keeper(RunFolder(tmp_path), Kept.of("best"))
        again.recall(records[1])
        assert checkpoints.load(tmp_path / "checkpoints/best.ckpt")["step"] == 8
        assert RunFolder(tmp_path).read("checkpoints/best") == records[1]
        again.offer("test/loss", 0.5, lambda: {"step": 10}, regular=False)


def test_a_best_is_not_lost_when_a_run_is_made_longer() -> None:
    settings = (*SMALL, *OFTEN, "trainer.keep=best")
    whole, _ = finished("whole", *settings), finished("run", *settings, "steps=38")
    assert_same_run(whole, longer := train("run", *settings))
    assert_same(kept(whole), kept(longer))


@pytest.mark.parametrize("word", ["bset", "every:0", "every:x", "[-1]", "[1.5]", "true", "[best,true]", "1.5", "{a:1}"])
def test_what_names_no_checkpoints_is_refused(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command(f"trainer.keep={word}")
    assert stopped.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: trainer.keep") and "[100,500], every:200, best, or a list of these" in line


def test_a_step_beyond_the_end_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command(*SMALL, "trainer.keep=[20,61]", "hydra.run.dir=run")
    assert capsys.readouterr().err == ("error: trainer.keep names step 61, and the run ends at step 60; leave it out\n")
