"""Whatever a user of `python -m lab.measure` gets wrong is told in one line too, with exit code 2; nothing is written."""

import shlex
import sys
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from lab.measure import main as measure
from lab.models.mlp import Mlp

GRAMMAR = "cannot be read"
MEASURE_SLIPS = [
    ("", "checkpoint= is missing"),
    ("model=mlp", "checkpoint= is missing"),
    ("checkpoint=nope.pt", "checkpoint=nope.pt: there is no such file"),
    ("checkpoint='outputs/*/*'", "there is no such file"),
    ("checkpoint=bare", "is a folder without checkpoints/last.ckpt"),
    ("w.pt", "w.pt cannot be read; write checkpoint=w.pt"),
    ("ckpt_path=w.pt model=mlp", "ckpt_path=w.pt: the setting is checkpoint; write checkpoint=w.pt"),
    ("--ckpt w.pt", "settings are typed without dashes; write checkpoint=w.pt"),
    (
        "checkpoint=w.pt model=MLP lr=0.1",
        "model=MLP does not exist; write model=mlp; likewise optimizer.lr=0.1 for lr=0.1\n",
    ),
    ("checkpoint=w.pt model=mlp max_epochs=3", "max_epochs: epochs: lab.measure does not read it"),
    ("checkpoint=w.pt model=mlp probe.sharpness.freq=3", "probe.sharpness.every is the rhythm of a run"),
    ("checkpoint=w.pt model=mlp optimizer.lr=0.1,0.2 --cfg job", "lab.measure takes one value of a setting at a time"),
    ("checkpoint=w.pt", "lies in no run folder of lab.train; say which model it is"),
    ("checkpoint='*.txt*'", "there is no such file"),
    (
        "checkpoint='note*'",
        "finds no folder with checkpoints/last.ckpt and no file in .ckpt, .pt, .pth, .safetensors; name a run",
    ),
    ("checkpoint=notes.yaml model=mlp", "notes.yaml is no torch file, or was cut off"),
    ("checkpoint='*.yaml' model=mlp", "notes.yaml is no torch file, or was cut off"),
    ("checkpoint=w.pt model=mlp ~optimizer.lr", "~optimizer.lr: a setting cannot be taken away"),
    ("checkpoint=w.pt model=mlp probe=[sharpness,sharpness]", "sharpness stands there twice"),
    ("checkpoint=w.pt model=mlp optimizer.lr=inf", "optimizer.lr=inf: expected a finite number"),
    ("checkpoint=w.pt model=mlp model.widths=[10000000000000000]", "not enough memory"),
    ("-m checkpoint=w.pt model=mlp", "has no sweeps; give a glob"),
    ("checkpoint=w.pt model=mlp --run", "--run: of Hydra's"),
    ("checkpoint=w.pt model=mlp --config-dir x", "--config-dir=x: there is no such folder"),
    ("checkpoint=w.pt model=mlp foo", GRAMMAR),
    ("checkpoint=w.pt model=mlp model.widths=[32", GRAMMAR),
    ("checkpoint=w.pt model=mlp data=mnist", "data=mnist does not exist; expected one of cifar10"),
    ("checkpoint=w.pt model=mlp experiment=quickstart", "unknown setting experiment"),
    ("checkpoint=w.pt model=mlp probe=[sharpnes]", "did you mean probe=sharpness?"),
    ("checkpoint=w.pt model=mlp scaling.lr=linear", "lab.measure has no such setting: leave it out"),
    ("checkpoint=w.pt model=mlp noise.trace=1", "lab.measure has no such setting: leave it out"),
    ("checkpoint=w.pt model=mlp optimizer/noise=fisher", "lab.measure has no such setting: leave it out"),
    ("checkpoint=w.pt model=mlp probe=[spectrum] probe.sharpness.k=2", "is for a probe that is not selected"),
    (
        "checkpoint=w.pt model=mlp probe.sharpness.evry=2",
        "probe.sharpness.every is the rhythm of a run; lab.measure looks",
    ),
    ("checkpoint=w.pt model=mlp probe.sharpness.every=2", "looks once: leave it out"),
    ("checkpoint=w.pt model=mlp probe.sharpness.k=0", "probe.sharpness.k=0: expected a number greater than 0"),
    ("checkpoint=w.pt model=mlp probe.sharpness.examples=99999", "larger than the 1797 training examples"),
    ("checkpoint=w.pt model=mlp probe.sharpness.tol=1,2", "one value of a setting at a time"),
    ("checkpoint=w.pt model=mlp trainer.accelerator=gpu", "use trainer.accelerator=cpu or auto"),
    ("checkpoint=w.pt model=mlp hydra.run.dir=/proc/nope", "choose another hydra.run.dir"),
    ("checkpoint=w.pt model=mlp model.widths=[8]", "w.pt does not fit the model: it has besides"),
    ("checkpoint=w.pt model=mlp model.widths=[32,32,32]", "w.pt does not fit the model: it lacks"),
    (
        "checkpoint=w.pt model=mlp model.widths=[32,31]",
        "2.weight has shape [32, 32] in the file, [31, 32] in the model",
    ),
    ("checkpoint=w.pt model=resnet", "model=resnet needs images"),
    ("checkpoint=empty.pt model=mlp", "empty.pt is empty; name another checkpoint"),
    ("checkpoint=cut.pt model=mlp", "cut.pt is no torch file, or was cut off; name another checkpoint"),
    ("checkpoint=w.pt model=mlp probe=[]", "probe=[]: there is nothing to measure"),
    ("checkpoint=list/checkpoints/last.ckpt", "provenance.json does not hold the settings of the run"),
    ("checkpoint=none/checkpoints/last.ckpt", "provenance.json does not hold the settings of the run"),
    ("checkpoint=word/checkpoints/last.ckpt", "provenance.json does not hold the settings of the run"),
    ("checkpoint=half/checkpoints/last.ckpt", "provenance.json does not hold the settings of the run"),
    ("checkpoint=flipped.pt model=mlp", "flipped.pt is damaged"),
    ("checkpoint=text.pt model=mlp", "text.pt is no torch file, or was cut off"),
    ("checkpoint=pickled.pt model=mlp", "it holds a torch.nn.modules.container.Sequential"),
    ("checkpoint=numbers.pt model=mlp", "numbers.pt holds no weights by name"),
    ("checkpoint=nan.pt model=mlp", "0.weight is not finite"),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights, sound and otherwise."""
    folder, model = tmp_path_factory.mktemp("weights"), Mlp().build((64,), 10, 0)
    torch.save(model.state_dict(), folder / "w.pt")
    flipped = bytearray((folder / "w.pt").read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (folder / "flipped.pt").write_bytes(flipped)
    (folder / "empty.pt").touch()
    (folder / "bare").mkdir()
    (folder / "cut.pt").write_bytes((folder / "w.pt").read_bytes()[:3000])
    for name, told in (
        ("list", "[]"),
        ("none", '{"settings": {}}'),
        ("word", '{"settings": {"model": "x"}}'),
        ("half", "{"),
    ):
        (folder / name / "checkpoints").mkdir(parents=True)
        torch.save({"model": model.state_dict()}, folder / name / "checkpoints/last.ckpt")
        (folder / name / "provenance.json").write_text(told)
    for name in ("text.pt", "notes.yaml"):
        (folder / name).write_text("epoch,loss\n1,2\n")
    torch.save(model, folder / "pickled.pt")
    torch.save({"loss": 1.0}, folder / "numbers.pt")
    torch.save(model.state_dict() | {"0.weight": torch.full((32, 64), torch.nan)}, folder / "nan.pt")
    return folder


@pytest.mark.parametrize(("line", "says"), MEASURE_SLIPS, ids=[line for line, _ in MEASURE_SLIPS])
def test_a_slip_with_measure_is_told_in_one_line_too_and_writes_nothing(
    line: str,
    says: str,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(weights)
    monkeypatch.setattr(sys, "argv", ["lab.measure", *shlex.split(line)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = sorted(weights.rglob("*"))
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as stopped:
        measure()
    told = capsys.readouterr().err
    assert stopped.value.code == 2
    assert told.startswith("error: ")
    assert told.count("\n") == 1, told
    assert says in told
    assert sorted(weights.rglob("*")) == before
