"""lab.watch in the Trainer of Hugging Face: nothing is disturbed, steps are its own, and checkpoints hold the watch."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks.loops import Loss, data, network, same
from torch import Tensor, nn

import lab
from lab.callbacks.watch import Watch
from lab.probes.sharpness import Sharpness
from lab.run.folder import RunFolder
from lab.settings import SettingError

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures: to draw one takes longer than these trainings."""
    monkeypatch.setattr("lab.callbacks.record.show_outcome", lambda folder, loggers, *_: None)


class Theirs(nn.Module):
    """A model that computes its own loss, as the Trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(x)
        return {"loss": Loss(logits, labels), "logits": logits}


def train(model: Theirs, *watches: Watch, folder: Path, steps: int = 8, resume: bool = False, **settings: Any) -> Any:
    x, y = data()
    plain = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_steps": 2}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        seed=3,
        **(plain | settings),
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=[{"x": a, "labels": b} for a, b in zip(x, y, strict=True)],
        eval_dataset=[{"x": a, "labels": b} for a, b in zip(x, y, strict=True)],
        callbacks=[watch.hugging_face() for watch in watches],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def watching(model: Theirs, folder: Path | None = None, **settings: Any) -> Watch:
    return lab.watch(model.net, Loss, data(), probes=[Sharpness(every=3)], folder=folder, **settings)


def test_training_is_bit_identical_and_the_folder_has_what_the_trainer_logs(tmp_path: Path) -> None:
    models = [Theirs() for _ in range(2)]
    looks = {"eval_strategy": "steps", "eval_steps": 4}
    train(models[0], folder=tmp_path / "hf", **looks)
    watch = watching(models[1], tmp_path / "run")
    trainer = train(models[1], watch, folder=tmp_path / "hf", **looks)
    assert same(*([*model.state_dict().values()] for model in models))
    folder = RunFolder(tmp_path / "run")
    assert folder.series("sharpness/lambda_max")[0] == [0, 3, 6, 8]
    logged = {row["step"] - 1: row["loss"] for row in trainer.state.log_history if "loss" in row}
    assert folder.series("train/loss") == (list(logged), [*logged.values()]) and list(logged) == [1, 3, 5, 7]
    assert folder.series("train/lr") == (list(range(8)), [0.01] * 8)
    assert folder.series("test/loss")[0] == [4, 8]
    assert folder.read("status")["status"] == "finished" and folder.read("summary")["steps"] == 8
    assert watch.batch_size == 16 and folder.read("provenance")["settings"]["optimizer"]["_target_"] == "AdamW"
    assert watch.summary()["quantity"] == "sharpness/preconditioned"


def test_the_weights_are_those_before_the_update_of_the_step(tmp_path: Path) -> None:
    model, before = Theirs(), list[float]()

    class Looks(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """After the gradients of all batches of the step."""
            with torch.no_grad(), torch.random.fork_rng():
                before.append(float(Loss(model.net.eval()(data()[0]), data()[1])))
                model.net.train()

    watch = watching(model, batch_norm="eval")
    handed = watch.hugging_face()
    x, y = data()
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no"
    )
    dataset = [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=dataset, callbacks=[handed, Looks()])
    trainer.train()
    assert watch.ends[0] == pytest.approx(before[0], rel=1e-3)  # running statistics move within the step


def test_no_phase_is_judged_by_steps_whose_gradients_were_clipped(tmp_path: Path) -> None:
    for bound, heard in ((0.01, []), (100.0, [3, 6, 8])):  # AdamW has no threshold at step 0
        model = Theirs()
        watch = watching(model)
        train(model, watch, folder=tmp_path, max_grad_norm=bound)
        assert [step for step, _ in watch.tracker.ratios] == heard
        assert watch.latest["train/clipped"] == (bound < 1) and watch.latest["sharpness/ratio"] > 0
        assert ("by a factor that is not known" in watch.clipping.told) == (bound < 1)


def test_a_training_that_goes_on_from_a_checkpoint_goes_on_in_the_folder(tmp_path: Path) -> None:
    model = Theirs()
    looks = {"eval_strategy": "steps", "eval_steps": 2}
    train(model, watching(model, tmp_path / "whole"), folder=tmp_path / "one", steps=8, **looks)
    model = Theirs()
    train(
        model,
        watching(model, tmp_path / "run"),
        folder=tmp_path / "two",
        steps=4,
        save_strategy="steps",
        save_steps=4,
        **looks,
    )
    assert (tmp_path / "two/checkpoint-4/watch.pt").exists()
    model = Theirs()
    train(model, watching(model, tmp_path / "run"), folder=tmp_path / "two", steps=8, resume=True, **looks)
    one, other = (RunFolder(tmp_path / name) for name in ("whole", "run"))
    for tag in ("sharpness/lambda_max", "train/loss", "train/lr", "test/loss"):
        assert one.series(tag) == other.series(tag) and len(one.series(tag)[0]) >= 4, tag


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "lab.callbacks.hugging_face", raising=False)
    with pytest.raises(SettingError, match=r"pip install 'edge-lab\[transformers\]'"):
        watching(Theirs()).hugging_face()
