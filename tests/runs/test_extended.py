"""A run that is made longer is the long run, bit for bit; where it would not be, one line says so."""

import json
from pathlib import Path

import pytest
from whole_runs import FEW, KINDS, SMALL, assert_same_run, command, finished, metrics, train

from lab.run.folder import RunFolder

ADAM = ("optimizer=adam", "data.batch_size=16", "data.sampling=with_replacement", "probe=[sharpness,batch_sharpness]")
LONG = {
    "momentum, in the middle of an epoch": (*KINDS["momentum, mini-batches"], "trainer.evaluate_every=20"),
    "adam, two probes with warm starts": (*SMALL, *ADAM, *FEW),
    "BatchNorm and augmentation": KINDS["resnet with BatchNorm, augmented"],
    "warm-up, negative curvature": (
        *SMALL,
        "schedule=warmup",
        "schedule.steps=50",
        "optimizer/escape=negative_curvature",
    ),
}


@pytest.mark.parametrize("kind", LONG)
def test_a_lengthened_run_is_the_long_run_bit_for_bit(kind: str) -> None:
    settings = LONG[kind]
    [steps] = [int(word.partition("=")[2]) for word in settings if word.startswith("steps=")]
    whole, short = finished("whole", *settings), finished("run", *settings, f"steps={2 * steps // 3 - 1}")
    at_end = {line["tag"] for line in metrics(short) if line["step"] == 2 * steps // 3 - 1}
    assert at_end & {"test/loss", "sharpness/lambda_max"}
    assert_same_run(whole, train("run", *settings))
    told = short.read("provenance")["extended"]
    assert [(one["step"], one["updates"]) for one in told] == [(2 * steps // 3 - 1, [2 * steps // 3 - 1, steps])]
    assert whole.read("status")["step"] == short.read("status")["step"] == steps


def test_epochs_grow_as_steps_do_and_the_default_folder_is_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    small = (*SMALL[:3], "data.batch_size=16", "probe=[]")
    command(*small, "epochs=2")
    folder = RunFolder("outputs/train/data.batch_size=16,data.examples=60,model.widths=[8],probe=[]")
    assert folder.read("status")["step"] == 8
    command(*small, "epochs=3")
    command(*small, "steps=15")
    assert folder.read("status")["step"] == 15
    assert [one["updates"] for one in folder.read("provenance")["extended"]] == [[8, 12], [12, 15]]
    before = {file: file.stat().st_mtime_ns for file in folder.path.rglob("*")}
    for fewer in ("steps=14", "epochs=3"):
        with pytest.raises(SystemExit) as stopped:
            command(*small, fewer)
        assert stopped.value.code == 2
        assert "holds a run of 15 updates, and" in capsys.readouterr().err.splitlines()[-1]
    command(*small, "steps=15")
    assert "already finished" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in folder.path.rglob("*")} == before
    assert_same_run(train("whole", *small, "steps=15"), folder)


def test_a_schedule_that_looks_at_the_end_is_refused_with_words(capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished("run", *KINDS["adam, cosine"])
    before = {file: file.read_bytes() for file in folder.path.rglob("*") if file.is_file()}
    with pytest.raises(SystemExit) as stopped:
        train("run", *KINDS["adam, cosine"], "steps=90")
    assert stopped.value.code == 2
    # (1 + cos(pi 59/60))/2 and the same of 59/90
    assert capsys.readouterr().err == (
        "error: run cannot be lengthened from 60 to 90 updates: schedule=cosine looks at the end, and its factor of "
        "step 59 would have been 0.265, not 0.000685; from=run steps=90 begins a new run at its end, or choose another "
        "hydra.run.dir for a whole one\n"
    )
    assert {file: file.read_bytes() for file in folder.path.rglob("*") if file.is_file()} == before


def test_a_killed_run_is_lengthened_too_and_a_diverged_one_is_what_it_would_be(
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = (*SMALL, "trainer.checkpoint_every=20")
    whole, killed = finished("whole", *settings, "steps=70"), finished("killed", *settings)
    (killed.checkpoints / "last.ckpt").unlink()  # previous.ckpt is that of step 40
    killed.write("status", {"status": "running", "step": 40, "reason": "", "pid": 1})
    assert_same_run(whole, train("killed", *settings, "steps=70"))
    diverging = (*SMALL, "loss=mse", "optimizer.lr=1e4", "trainer.max_loss=1e30")
    lost = train("lost", *diverging)
    step = lost.read("status")["step"]
    capsys.readouterr()
    train("lost", *diverging, "steps=90")
    told = capsys.readouterr()
    assert told.err == f"lost diverged at step {step}: there is nothing to lengthen\n"
    assert "already finished" in told.out


GRID = ("-m", "optimizer.lr=0.1,0.2", "probe=[]", *SMALL[:3])


def test_a_sweep_is_lengthened_by_its_command_and_lengths_on_an_axis_are_runs_of_their_own() -> None:
    command(*GRID, "steps=3")
    command(*GRID, "steps=5")
    cells = sorted(file.parent for file in Path("outputs/train").glob("*/status.json"))
    assert len(cells) == 2
    assert [json.loads((cell / "status.json").read_text())["step"] for cell in cells] == [5, 5]
    command(*GRID, "steps=2,4")
    lengths = [json.loads(file.read_text())["step"] for file in Path("outputs/train").glob("*steps=*/status.json")]
    assert sorted(lengths) == [2, 2, 4, 4]
