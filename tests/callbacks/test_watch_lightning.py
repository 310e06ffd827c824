"""lab.watch as a callback of Lightning: what ProbeCallback does, and a run folder beside the loggers of the trainer."""

from csv import DictReader
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from callbacks.loops import Loss, data, network, same
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import lab
from lab.callbacks import ProbeCallback
from lab.callbacks.watch import Watch
from lab.probes.sharpness import Sharpness
from lab.run.folder import RunFolder
from lab.settings import SettingError


@pytest.fixture(autouse=True)
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures: to draw one takes longer than these fits."""
    monkeypatch.setattr("lab.callbacks.record.show_outcome", lambda folder, loggers, *_: None)


class Theirs(pl.LightningModule):
    """A module as people write them, which may fail."""

    def __init__(self, fails_at: int = -1):
        super().__init__()
        self.net, self.fails_at = network(), fails_at

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if self.global_step == self.fails_at:
            raise RuntimeError("the data are gone")
        return Loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def fit(
    module: Theirs, *callbacks: pl.Callback, folder: Path, resume: Path | None = None, **settings: Any
) -> pl.Trainer:
    torch.manual_seed(7)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    settings = {"max_epochs": 2, "accelerator": "cpu", "logger": False} | quiet | settings
    trainer = pl.Trainer(callbacks=list(callbacks), default_root_dir=folder, **settings)
    loader = DataLoader(TensorDataset(*data()), batch_size=8, shuffle=True)
    trainer.fit(module, loader, ckpt_path=resume, weights_only=True)
    return trainer


def watching(module: Theirs, **settings: Any) -> Watch:
    return lab.watch(module, Loss, data(), probes=[Sharpness(every=3)], **settings)


def test_a_fit_is_bit_identical_and_its_loggers_and_the_folder_get_the_values(tmp_path: Path) -> None:
    modules, logger = [Theirs() for _ in range(3)], CSVLogger(tmp_path / "csv")
    fit(modules[0], folder=tmp_path)
    watch = watching(modules[1], folder=tmp_path / "run")
    fit(modules[1], watch, folder=tmp_path, logger=logger, log_every_n_steps=1)
    probe = ProbeCallback([Sharpness(every=3)], Loss, data())
    fit(modules[2], probe, folder=tmp_path)
    states = [[*module.state_dict().values()] for module in modules]
    assert same(states[0], states[1]) and same(states[0], states[2])

    folder = RunFolder(tmp_path / "run")
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        theirs = {int(row["step"]): float(row["sharpness/ratio"]) for row in DictReader(file) if row["sharpness/ratio"]}
    steps, ratios = folder.series("sharpness/ratio")
    assert list(zip(steps, ratios, strict=True)) == probe.tracker.ratios, "as ProbeCallback measures"
    assert steps == [0, 3, 6, 8]
    assert theirs == dict(zip(steps, ratios, strict=True))
    assert folder.series("train/loss") == (list(range(8)), pytest.approx(probe.tracker.losses))
    assert folder.series("train/lr")[1] == [0.1] * 8
    assert folder.read("status")["status"] == "finished" and folder.read("summary")["steps"] == 8
    assert watch.batch_size == 8 and folder.read("provenance")["settings"]["optimizer"]["momentum"] == 0.9
    with pytest.raises(SettingError, match="holds a run that is over, at step 8"):
        fit(Theirs(), watching(Theirs(), folder=tmp_path / "run"), folder=tmp_path)


def test_a_fit_that_fails_leaves_its_reason_and_what_was_measured(tmp_path: Path) -> None:
    module = Theirs(fails_at=5)
    with pytest.raises(RuntimeError, match="the data are gone"):
        fit(module, watching(module, folder=tmp_path / "run"), folder=tmp_path)
    folder = RunFolder(tmp_path / "run")
    status = folder.read("status")
    assert (status["status"], status["reason"], status["step"]) == ("failed", "RuntimeError: the data are gone", 5)
    assert folder.series("sharpness/ratio")[0] == [0, 3]


def test_a_fit_that_goes_on_from_a_checkpoint_goes_on_in_the_folder(tmp_path: Path) -> None:
    whole = Theirs()
    fit(whole, watching(whole, folder=tmp_path / "whole"), folder=tmp_path, max_epochs=-1, max_steps=8)
    half = Theirs()
    trainer = fit(half, watching(half, folder=tmp_path / "run"), folder=tmp_path, max_epochs=-1, max_steps=4)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    rest = Theirs()
    fit(
        rest,
        watching(rest, folder=tmp_path / "run"),
        folder=tmp_path,
        resume=tmp_path / "half.ckpt",
        max_epochs=-1,
        max_steps=8,
    )
    one, other = (RunFolder(tmp_path / name) for name in ("whole", "run"))
    assert other.series("sharpness/ratio")[0] == one.series("sharpness/ratio")[0] == [0, 3, 6, 8]
    assert other.series("train/loss")[0] == list(range(8)) and other.read("status")["status"] == "finished"
