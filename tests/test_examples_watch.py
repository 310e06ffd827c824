"""The examples that watch a training of one's own run, shortened, and leave the run folder that they speak of."""

import os
from pathlib import Path

import pytest

from lab.run.folder import RunFolder

ROOT = Path(__file__).parents[1]
EXAMPLES = {
    "loop.py": ("EPOCHS = 60", "EPOCHS = 2", "loop", 20),
    "lightning_module.py": ("EPOCHS = 40", "EPOCHS = 2", "lightning", 20),
    "hugging_face.py": ("STEPS = 200", "STEPS = 12", "hugging_face", 12),
}
"""Each example, what makes it short, the folder of its run, and the updates it then makes."""


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_leaves_a_finished_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "hugging_face.py":
        pytest.importorskip("transformers")
    long, short, place, steps = EXAMPLES[name]
    text = (ROOT / "examples/own" / name).read_text()
    assert long in text and f"python examples/own/{name}" in text
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    exec(compile(text.replace(long, short), name, "exec"), {"__name__": "__main__"})
    folder = RunFolder(tmp_path / "runs" / place)
    assert folder.read("status")["status"] == "finished" and folder.read("summary")["steps"] == steps
    assert folder.series("sharpness/lambda_max")[0][0] == 0 and folder.series("train/loss")[0]
    assert f"figure       runs/{place}/figures/edge.png" in capsys.readouterr().out
