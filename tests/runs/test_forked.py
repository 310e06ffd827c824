"""A run that begins from a checkpoint of another: unchanged it is its continuation, bit for bit; what is typed wins."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from whole_runs import FEW, RESNET, ROUGH, SMALL, assert_same, command, finished, last, metrics, signalled, timeless

from lab.doors.request import cards_at_hand, composed
from lab.run import checkpoints
from lab.run.folder import RunFolder

T = 23
KEEP = ("trainer.keep=[23,24]", "trainer.evaluate_every=10")
MOMENTUM = (*SMALL, "optimizer.momentum=0.9", "data.batch_size=7", *KEEP)
PARENTS = {
    "momentum, mini-batches": (*MOMENTUM, "probe.sharpness.midpoints=true"),
    "adam, cosine, two probes": (
        *(*SMALL, "optimizer=adam", "schedule=cosine", "data.batch_size=16", "probe=[sharpness,batch_sharpness]"),
        *(*FEW, *KEEP),
    ),
    "BatchNorm and augmentation, epochs": (*(*RESNET, "epochs=9", *ROUGH, "trainer.threads=1", "trainer.keep=[8,23]"),),
    "noise and escape": (
        *(*SMALL, "optimizer/noise=isotropic", "noise.trace=0.01", "optimizer/escape=negative_curvature", *KEEP),
    ),
}


def forked(folder: str, origin: str, *overrides: str) -> RunFolder:
    """A run from `origin` in this process."""
    command(f"from={origin}", f"hydra.run.dir={folder}", "trainer.threads=1", *overrides)
    return RunFolder(folder)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a refused command says."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        command(*arguments, "trainer.threads=1")
    assert stopped.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("kind", PARENTS)
def test_a_child_with_nothing_changed_is_the_continuation_bit_for_bit(kind: str) -> None:
    step = 8 if "epochs" in kind else T
    parent = finished("parent", *PARENTS[kind])
    child = forked("child", f"parent@{step}")
    assert_same(*(timeless(last(folder)) for folder in (parent, child)))
    assert metrics(child) == metrics(parent)
    assert child.read("provenance")["parent"]["changes"] == {}
    summaries = [timeless(folder.read("summary")) for folder in (parent, child)]
    assert {k: v for k, v in summaries[1].items() if k not in ("parent", "title")} == {
        k: v for k, v in summaries[0].items() if k != "title"
    }


def test_the_learning_rate_typed_wins_and_the_momentum_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    parent = finished("parent", *MOMENTUM)
    before, after = (checkpoints.load(parent.checkpoints / f"step_000002{digit}.ckpt") for digit in "34")
    child = forked("child", f"parent@{T}", "optimizer.lr=0.3", f"steps={T + 1}")
    assert "child: begins at step 23 of parent: optimizer.lr 0.1 -> 0.3, steps 60 -> 24\n" in capsys.readouterr().err
    dropped = forked("dropped", f"parent@{T}", "optimizer.lr=0.3", f"steps={T + 1}", "trainer.state=drop")
    assert "the state of the optimiser begins anew (trainer.state=drop)" in capsys.readouterr().err
    for i, name in enumerate(before["model"]):
        w = before["model"][name]
        old, new = (state["optimizer"]["state"][i]["momentum_buffer"] for state in (before, after))
        assert torch.equal(last(child)["optimizer"]["state"][i]["momentum_buffer"], new)  # v' = 0.9 v + g
        torch.testing.assert_close(last(child)["model"][name], w - 0.3 * new)
        torch.testing.assert_close(last(dropped)["model"][name], w - 0.3 * (new - 0.9 * old))
    assert last(child)["optimizer"]["param_groups"][0]["lr"] == 0.3


def test_another_optimiser_begins_anew_with_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    finished("parent", *MOMENTUM)
    capsys.readouterr()
    child = forked("child", f"parent@{T}", "optimizer=adam", "optimizer.lr=0.01")
    assert "child: the state of the optimiser begins anew (optimizer sgd -> adam)\n" in capsys.readouterr().err
    assert last(child)["optimizer"]["state"][0]["step"] == 60 - T
    changes = child.read("provenance")["parent"]["changes"]
    assert changes["optimizer"] == ["sgd", "adam"] and changes["optimizer.momentum"] == [0.9, None]


def test_what_a_child_is_stands_in_its_folder(capsys: pytest.CaptureFixture[str]) -> None:
    parent = finished("parent", *MOMENTUM)
    child = forked("child", "parent", "steps=80", "data.batch_size=30", "seed=1")  # the newest
    record = child.read("provenance")["parent"]
    assert record["step"] == 60 and record["checkpoint"] == "last.ckpt"
    assert record["changes"] == {"data.batch_size": [7, 30], "seed": [0, 1], "steps": [60, 80]}
    assert record["command"] == parent.read("provenance")["command"]
    assert child.read("summary")["parent"] == {"folder": "parent", "step": 60, "changes": record["changes"]}
    told = "\nBegan at step 60 of parent: data.batch_size 7 -> 30, seed 0 -> 1, steps 60 -> 80. "
    assert told in capsys.readouterr().out
    before = [line for line in metrics(parent) if line["step"] < 60]
    assert metrics(child)[: len(before)] == before
    events = EventAccumulator(str(child.path), size_guidance={"scalars": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("1_train/loss")] == list(range(60, 80))


def test_a_changed_loss_or_optimiser_has_a_phase_of_its_own() -> None:
    finished("parent", *MOMENTUM)
    for number, (word, begins) in enumerate(
        {"loss=mse": T, "optimizer.lr=0.2": T, "probe.sharpness.every=5": 0}.items()
    ):
        child = forked(f"child{number}", f"parent@{T}", word)
        phase = last(child)["probes"]["phase"]
        assert len(phase["losses"]) == 60 - begins
        assert int(phase["marks"][0]) == begins
        assert int(phase["ratios"][0, 0]) == (28 if word[0] in "lo" else 0)  # 4 x 7, the first measurement after 23


def test_a_killed_child_goes_on_bit_for_bit_and_a_finished_one_returns_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    finished("parent", *MOMENTUM)
    words = (f"from=parent@{T}", "optimizer.lr=0.2", "trainer.checkpoint_every=10", "trainer.threads=1")
    command("hydra.run.dir=whole", *words)
    lines = len((Path("whole") / "metrics.jsonl").read_bytes().splitlines())
    begun = sum(line["step"] < T for line in metrics(RunFolder("whole")))
    code = signalled(signal.SIGKILL, (begun + lines) // 2, 300, "killed", f"from='parent@{T}'", *words[1:])
    assert code == -signal.SIGKILL
    (Path("parent/checkpoints") / f"step_00000{T}.ckpt").unlink()  # what has begun does not need it
    command("hydra.run.dir=killed", *words)
    whole, killed = RunFolder("whole"), RunFolder("killed")
    assert_same(*(timeless(last(folder)) for folder in (whole, killed)))
    assert metrics(whole) == metrics(killed)
    command("hydra.run.dir=parent", *MOMENTUM[:-1], "trainer.evaluate_every=10", "steps=70")  # its length is no more 60
    files = {file: file.stat().st_mtime_ns for file in whole.path.rglob("*")}
    capsys.readouterr()
    command("hydra.run.dir=whole", *words)
    assert "already finished" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in whole.path.rglob("*")} == files


def test_a_child_of_a_child_and_its_default_folder() -> None:
    parent = finished("runs/a=1,b=[2]", *MOMENTUM)
    first = ("optimizer.lr=0.2", "trainer.keep=[30]", "trainer.threads=1")
    command(f"from={parent.path.absolute()}@{T}", *first)
    [child] = Path("outputs/train").iterdir()
    assert child.name.startswith("from=runs-a=1,b=[2]@23,optimizer.lr=0.2-")
    command(f"from={child}@30", "data.batch_size=full", "trainer.threads=1")
    [grandchild] = [folder for folder in Path("outputs/train").iterdir() if folder != child]
    run = RunFolder(grandchild)
    assert run.read("provenance")["parent"]["changes"] == {"data.batch_size": [7, "full"]}
    steps, losses = run.series("train/loss")
    assert steps == list(range(60))
    assert losses[:30] == RunFolder(child).series("train/loss")[1][:30]
    assert losses[:T] == parent.series("train/loss")[1][:T]


def test_the_default_folder_goes_by_what_differs_from_the_parent(code: Path) -> None:
    command(*OWN, "optimizer=own", "optimizer.path=mine.py:two", "trainer.keep=[5]", "hydra.run.dir=parent")
    again = ("optimizer.path=mine.py:two", "data.path=mine.py:made")
    command("from=parent@5", *again, "seed=1", "trainer.threads=1")
    [child] = Path("outputs/train").iterdir()
    assert child.name == "from=parent@5,seed=1"
    written = {file: file.stat().st_mtime_ns for file in child.rglob("*")}
    same = (
        "data=own",
        "optimizer=own",
        "model=mlp",
        "model.widths=[4]",
        "probe=[]",
        "optimizer/noise=none",
        "steps=12",
    )
    command("from=parent@5", *again, *same, "loss=cross_entropy", "seed=0", "seed=1", "trainer.threads=1")
    command("-m", "from=parent@5", *again, "optimizer=own", "seed=1", "model.widths=[4]", "trainer.threads=1")
    assert [*Path("outputs/train").glob("*/status.json")] == [child / "status.json"]
    assert {file: file.stat().st_mtime_ns for file in child.rglob("*")} == written
    other = ("optimizer=sgd", "optimizer.lr=0.1", "optimizer/noise=isotropic", "trainer.state=drop", "probe=[noise]")
    words = ["from=parent@5", *other, "data.path=mine.py:made"]
    with cards_at_hand():
        assert composed("train", words).hydra.job.override_dirname == ",".join(["from=parent@5", *sorted(other)])


def test_a_grid_of_children_of_several_checkpoints(capsys: pytest.CaptureFixture[str]) -> None:
    parent = finished("runs/a=1,b=2", *MOMENTUM)
    words = ("-m", f"from={parent.path}@{T},{parent.path}@24,{parent.path}", "steps=64", "probe=[]", "seed=0,1")
    command(*words)
    cells = sorted(file.parent for file in Path("outputs/train").glob("*/status.json"))
    assert len(cells) == 6
    steps = sorted(json.loads((cell / "provenance.json").read_text())["parent"]["step"] for cell in cells)
    assert steps == [T, T, 24, 24, 60, 60]
    command(*words)
    assert capsys.readouterr().out.count("already finished") == 6


CODE = """
import pytorch_lightning as pl
import torch


class Counter(pl.Callback):
    updates = 0

    def on_train_batch_end(self, trainer, pl_module, *rest):
        self.updates = pl_module.step

    def state_dict(self):
        return {"updates": self.updates, "began": getattr(self, "began", 0) or 1}

    def load_state_dict(self, state):
        self.began = state["updates"]


def made(scale=1.0):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator)
    return scale * x, (x[:, 0] > 0).long()


def two(model, rate=0.1):
    matrices, others = ([p for p in model.parameters() if (p.dim() == 2) == flat] for flat in (True, False))
    return [torch.optim.SGD(matrices, lr=rate, momentum=0.9), torch.optim.Adam(others, lr=0.01)]
"""
OWN = ("data=own", "data.path=mine.py:made", "model.widths=[4]", "steps=12", "probe=[]", "trainer.threads=1")
MUON = ("optimizer=own", "optimizer.path=torch.optim:Muon", "optimizer.args.lr=0.02", "trainer.keep=[5,6]")


@pytest.fixture
def code(scratch: Path) -> Path:
    (scratch / "mine.py").write_text(CODE)
    return scratch / "mine.py"


def test_several_optimisers_go_on_each_with_its_state(capsys: pytest.CaptureFixture[str]) -> None:
    words = (*SMALL[:3], "steps=12", "probe=[]", *MUON)
    parent = finished("parent", *words)
    again = MUON[:2]
    assert_same(*(timeless(last(folder)) for folder in (parent, forked("child", "parent@5", *again))))
    state = checkpoints.load(parent.checkpoints / "step_0000006.ckpt")["optimizer"]
    rate = forked("rate", "parent@5", *again, "optimizer.args.lr=0.5", "steps=6")
    assert_same(last(rate)["optimizer"]["0"]["state"], state["0"]["state"])
    assert [last(rate)["optimizer"][i]["param_groups"][0]["lr"] for i in "01"] == [0.5, 0.5]
    assert "optimizer.args.lr 0.02 -> 0.5" in capsys.readouterr().err
    forked("plain", "parent@5", "optimizer=adam")
    assert "plain: the state of the optimiser begins anew (optimizer own -> adam)" in capsys.readouterr().err
    forked("other", "parent@5", "optimizer.path=torch.optim:Adam", "optimizer=own")
    why = "optimizer.path torch.optim:Muon -> torch.optim:Adam"
    assert f"other: the state of the optimiser begins anew ({why})" in capsys.readouterr().err
    finished("sgd", *words[:-4], "trainer.keep=[5]")
    forked("joint", "sgd@5", *again)
    assert "joint: begins at step 5 of sgd: optimizer sgd -> own\n" in capsys.readouterr().err


def test_code_that_has_changed_is_a_change(code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(*OWN, "optimizer=own", "optimizer.path=mine.py:two", "trainer.keep=[5]", "hydra.run.dir=parent")
    code.write_text(CODE.replace("momentum=0.9", "momentum=0.8"))
    capsys.readouterr()
    child = forked("child", "parent@5", *OWN[:2], "optimizer=own", "optimizer.path=mine.py:two")
    other = {"data.path": ["mine.py:made", "mine.py:made, other code"],
             "optimizer.path": ["mine.py:two", "mine.py:two, other code"]}  # fmt: skip
    assert child.read("provenance")["parent"]["changes"] == child.read("summary")["parent"]["changes"] == other
    told = capsys.readouterr()
    assert "begins anew (optimizer.path mine.py:two -> mine.py:two, other code)" in told.err
    assert "Began at step 5 of parent: data.path mine.py:made -> mine.py:made, other code, optimizer.path" in told.out
    assert "Trained 7 steps (5 to 12); loss from" in told.out
    assert len(last(child)["probes"]["phase"]["losses"]) == 7


def test_data_that_have_changed_are_refused_or_where_they_are_typed_a_change(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("data=image_folder", "data.root=images", "data.batch_size=full", "model.widths=[4]", "steps=4", "probe=[]")
    command(*words, "trainer.threads=1", "trainer.keep=[2]", "hydra.run.dir=parent")
    Image.new("RGB", (8, 8)).save("images/train/a/0.png")
    with pytest.raises(SystemExit):
        forked("child", "parent@2", "data.batch_size=4")
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: parent holds a run on other data: ")
    assert line.endswith("; to train on what is there now add data=image_folder") and not Path("child").exists()
    child = forked("child", "parent@2", "data=image_folder")
    before, now = (folder.read("provenance")["data"]["train_sha256"] for folder in (RunFolder("parent"), child))
    assert before != now and child.read("provenance")["parent"]["changes"] == {"data.train_sha256": [before, now]}
    assert child.read("summary")["phase_since"] == 2


def test_callbacks_are_typed_again_and_take_their_state_along(code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callbacks = "trainer.callbacks=[mine.py:Counter]"
    parent = finished("parent", *SMALL[:3], "steps=12", "probe=[]", "trainer.keep=[5]")
    command(*SMALL[:3], "steps=12", "probe=[]", "trainer.keep=[5]", callbacks, "hydra.run.dir=counted")
    code.write_text("import pathlib\npathlib.Path('touched').touch()\n" + CODE)
    line = told(capsys, "from=counted@5", "hydra.run.dir=child")
    assert line == (
        f"error: the run was made with {callbacks}, which is code; type {callbacks} again to run it, or "
        "trainer.callbacks=[] for none"
    )
    assert not Path("child").exists() and not Path("touched").exists()
    none = forked("none", "counted@5", "trainer.callbacks=[]")
    assert not Path("touched").exists() and "callbacks" not in last(none)
    assert_same(last(none)["model"], last(parent)["model"])
    child = forked("child", "counted@5", callbacks)
    assert last(child)["callbacks"] == {"mine.py:Counter": {"updates": 12, "began": 5}}
    other = {"trainer.callbacks": ["mine.py:Counter", "mine.py:Counter, other code"]}
    assert child.read("provenance")["parent"]["changes"] == other


def test_conditions_of_the_parent_do_not_stop_the_child() -> None:
    command(*SMALL[:3], "steps=60", "probe=[]", "trainer.stop=[train/loss<2.2]", "hydra.run.dir=parent")
    end = RunFolder("parent").read("status")["step"]
    assert 0 < end < 50
    assert forked("child", "parent").read("status")["step"] == 60
    assert end < forked("typed", "parent", "trainer.stop=[train/loss<2.1]").read("status")["step"] < 60


SLIPS = [
    ("from=parent@24 trainer.keep=[23,30]", "trainer.keep names step 23, and the run begins at step 24; leave it out"),
    ("from=nowhere", "from=nowhere is no folder; expected a run folder"),
    ("from=", "from= names no run; expected a run folder"),
    ("from=images", "from=images holds no run of lab.train; expected"),
    ("from=parent@22", "parent has no checkpoint at step 22: there are those of 23, 24, 60"),
    ("from=parent@x", "from=parent@x: x is no step; expected a number, best, or nothing for the newest"),
    ("from=parent@best", "the run has kept no best; trainer.keep=best does, or name a step"),
    ("from=parent/checkpoints/last.ckpt", "is a file; name the folder of its run, and the step: from=parent@STEP"),
    ("from=parent", "the run begins at step 60, and ends at step 60 by its settings; give the step at which it ends"),
    ("from=parent@24 steps=24", "the run begins at step 24, and ends at step 24"),
    ("from=parent@24 steps=30 trainer.keep=[31]", "trainer.keep names step 31, and the run ends at step 30; leave it out"),
    ("from=parent@24 epochs=2", "the run begins at step 24, and ends at step 18"),
    ("from=parent@24 model.widths=[9]", "does not fit the model: 0.weight has shape [8, 64] in the file, [9, 64]"),
    ("from=parent@24 experiment=quickstart", "from= begins with the settings of a run, and experiment= has others"),
    ("from=parent@24 optimizer.lr=-1", "optimizer.lr=-1: expected a number greater than 0"),
    ("from=parent@24 optimizer.lrr=1", "did you mean optimizer.lr?"),
    ("from=parent@24 hydra.run.dir=parent", "parent holds a run with from=None, not parent@24; choose another"),
    ("+from=parent@24", "+from=parent@24: from= is written without the +"),
    ("from=parent@24 from=parent", "from= stands there twice; with -m several runs stand between commas"),
    ("from=parent@23,parent@24", "from=parent@23,parent@24 names several runs, and here is one to be made; add -m"),
    ("-m from=parent@23,nowhere@24 steps=70", "from=nowhere@24 is no folder"),
    ("-m from=parent@21,parent@22 steps=70", "parent has no checkpoint at step 21"),
    ("-m from=parent@23,parent@23", "stands there twice; leave one out"),
    ("-m compare=branches seed=0,1", "compare=branches compares runs that begin from another one; add from=RUN@100,"),
    ("trainer.state=drop", "trainer.state=drop is for a run that begins from another; add from=RUN"),
]  # fmt: skip


def test_every_slip_is_one_line_and_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    finished("parent", *MOMENTUM)
    for words, line in SLIPS:
        assert line in told(capsys, *words.split()), words
        assert not Path("outputs").exists(), words
    file = Path("parent/checkpoints/step_0000023.ckpt")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert (
        "no checkpoint at step 23: there are those of 24, 60; parent/checkpoints/step_0000023.ckpt is damaged ("
        in told(capsys, "from=parent@23")
    )
    with RunFolder("parent").owned():
        assert "from=parent: the run is in use; wait until it is over, or stop it" in told(capsys, "from=parent@24")
    shutil.rmtree("parent/checkpoints")
    assert "has no checkpoint to begin from" in told(capsys, "from=parent")
    assert not Path("outputs").exists()
