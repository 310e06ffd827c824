"""ProbeCallback in a stranger's Lightning project: right steps, right weights, right dashboard, and nothing disturbed."""

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

from lab.callbacks import ProbeCallback
from lab.callbacks.dashboard import show_settings
from lab.curvature.phase import Phase
from lab.probes import Sharpness

STEPS_PER_EPOCH = 12


class Strangers(pl.LightningModule):
    """A module as people write them: automatic optimisation, its own loss, an optimiser with a cosine schedule."""

    def __init__(self, optimizer: type[torch.optim.Optimizer] = torch.optim.SGD, *, cosine: bool = False):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(0.1), nn.Linear(6, 3))
        self.optimizer, self.cosine = optimizer, cosine
        self.weights: list[list[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        """After the callback and before update t: the weights of step t."""
        if self.trainer.global_step == len(self.weights):
            self.weights.append([p.detach().clone() for p in self.parameters()])

    def configure_optimizers(self) -> dict:
        optimizer = self.optimizer(self.parameters(), lr=0.1)
        if not self.cosine:
            return {"optimizer": optimizer}
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=2 * STEPS_PER_EPOCH)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


class Recorder(Logger):
    """A logger that remembers (step, tag) -> value and refuses to hear anything twice."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[tuple[int, str], float] = {}

    name, version = "recorder", "0"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for tag, value in metrics.items():
            assert (step, tag) not in self.values or tag == "epoch"
            self.values[step or 0, tag] = value

    def log_hyperparams(self, *args: object, **kwargs: object) -> None:
        """Not recorded."""

    def series(self, tag: str) -> dict[int, float]:
        return {step: value for (step, name), value in self.values.items() if name == tag}


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8 * STEPS_PER_EPOCH, 5, generator=generator)
    return x, (x[:, :3] + 0.5 * torch.randn(len(x), 3, generator=generator)).argmax(1)


def fit(
    module: pl.LightningModule,
    data: tuple[Tensor, Tensor],
    *callbacks: pl.Callback,
    logger: Logger | None = None,
    folder: Path,
    resume: str | None = None,
    **settings: object,
) -> pl.Trainer:
    torch.manual_seed(7)  # of the loader's shuffling and the dropout: the global generator, as in a stranger's project
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=logger or False,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **{"max_epochs": 2, **settings},  # type: ignore[arg-type]
    )
    trainer.fit(module, DataLoader(TensorDataset(*data), batch_size=8, shuffle=True), ckpt_path=resume)
    return trainer


def direct_sharpness(module: Strangers, weights: list[Tensor], data: tuple[Tensor, Tensor]) -> float:
    """lambda_max of the whole Hessian at `weights`, row by row, in eval mode and float64."""
    net = Strangers().net.double().eval()
    for parameter, value in zip(net.parameters(), weights, strict=True):
        parameter.data.copy_(value)
    parameters = list(net.parameters())
    loss = nn.functional.cross_entropy(net(data[0].double()), data[1])
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters, create_graph=True)])
    rows = [torch.cat([r.reshape(-1) for r in torch.autograd.grad(g, parameters, retain_graph=True)]) for g in gradient]
    return float(torch.linalg.eigvalsh(torch.stack(rows))[-1])


def test_step_t_is_measured_on_the_weights_before_update_t(data: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    module, logger = Strangers(), Recorder()
    probe = ProbeCallback([Sharpness(every=5)], criterion=nn.functional.cross_entropy, data=data)
    fit(module, data, probe, logger=logger, folder=tmp_path)
    measured = logger.series("sharpness/lambda_max")
    assert list(measured) == [0, 5, 10, 15, 20, 24], "and the end"
    module.weights.append([p.detach().clone() for p in module.parameters()])
    for step, value in measured.items():
        truth = direct_sharpness(module, module.weights[step], data)
        assert value == pytest.approx(truth, rel=2e-3), step  # tol=1e-3 of the eigenvalue, and float32
        assert logger.series("sharpness/threshold")[step] == pytest.approx(2 / 0.1)
        assert logger.series("sharpness/ratio")[step] == pytest.approx(truth * 0.1 / 2, rel=2e-3)
    assert len(probe.tracker.losses) == 2 * STEPS_PER_EPOCH


def test_accumulated_gradients_are_measured_once_per_update(data: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    module, logger = Strangers(), Recorder()
    probe = ProbeCallback([Sharpness(every=2)], criterion=nn.functional.cross_entropy, data=data)
    fit(module, data, probe, logger=logger, folder=tmp_path, accumulate_grad_batches=3)  # the recorder refuses repeats
    assert list(logger.series("sharpness/lambda_max")) == [0, 2, 4, 6, 8]
    assert len(probe.tracker.losses) == 2 * STEPS_PER_EPOCH // 3
    assert probe.tracker.losses[0] == pytest.approx(math.log(3), rel=0.5)  # a mean over micro-batches, not a third


def test_threshold_follows_the_schedule(data: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    logger = Recorder()
    probe = ProbeCallback([Sharpness(every=5)], criterion=nn.functional.cross_entropy, data=data)
    fit(Strangers(cosine=True), data, probe, logger=logger, folder=tmp_path)
    for step, threshold in logger.series("sharpness/threshold").items():
        lr = 0.1 * (1 + math.cos(math.pi * step / (2 * STEPS_PER_EPOCH))) / 2
        assert threshold == pytest.approx(2 / lr, rel=1e-6), step


def test_unknown_optimiser_warns_once_and_is_still_measured(data: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    logger = Recorder()
    probe = ProbeCallback([Sharpness(every=5)], criterion=nn.functional.cross_entropy, data=data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Strangers(torch.optim.Adagrad), data, probe, logger=logger, folder=tmp_path)
    assert sum("no stability threshold is known for Adagrad" in str(w.message) for w in caught) == 1
    assert list(logger.series("sharpness/lambda_max")) == [0, 5, 10, 15, 20, 24]
    assert not logger.series("sharpness/threshold")
    assert not logger.series("sharpness/phase")
    assert probe.summary()["phase"] is None, "below which edge?"
    assert probe.summary()["phases"] == []


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_training_is_the_same_bit_for_bit(
    optimizer: type[torch.optim.Optimizer], data: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    plain, probed = Strangers(optimizer), Strangers(optimizer)
    fit(plain, data, folder=tmp_path)
    probe = ProbeCallback([Sharpness(every=3, k=2, bottom=True)], criterion=nn.functional.cross_entropy, data=data)
    fit(probed, data, probe, folder=tmp_path)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, probed.state_dict()[name]), name


def test_a_probe_set_larger_than_the_data_is_refused(data: tuple[Tensor, Tensor]) -> None:
    probe = ProbeCallback(
        [Sharpness(examples=10_000)], criterion=nn.functional.cross_entropy, data=data, model=Strangers()
    )
    with pytest.raises(ValueError, match=r"examples=10000 is larger than the 96 training examples"):
        probe.bench.require(probe.probes)


def refused() -> list[tuple[Any, type[Exception], str]]:
    x, y = torch.randn(6, 5), torch.arange(6)
    loader = DataLoader(TensorDataset(x, y), shuffle=True)
    return [
        (loader, ValueError, r"the batches change from pass to pass .*shuffle=False.*list\(loader\)"),
        (
            loader.dataset,
            TypeError,
            r"data is a TensorDataset of single examples; expected \(x, y\), the training .*DataLoader",
        ),
        (iter(loader), ValueError, r"which can be gone through once only"),
        (x, TypeError, "data is a Tensor, one batch at most; expected"),
        ((x, y.numpy()), TypeError, "data is a tuple of 2: Tensor, ndarray; expected"),
        ([x, y, y], TypeError, "data is a list of 3: Tensor, Tensor, Tensor; expected"),
        ((x, y[:3]), ValueError, r"of shapes \(6, 5\) and \(3,\); expected as many targets y as inputs x"),
        ((x[:0], y[:0]), ValueError, "one at least"),
    ]


@pytest.mark.parametrize(("data", "kind", "told"), refused())
def test_data_that_are_neither_a_pair_of_tensors_nor_fixed_batches_are_refused_in_one_line(
    data: Any, kind: type[Exception], told: str
) -> None:
    with pytest.raises(kind, match=told) as error:
        ProbeCallback([Sharpness()], nn.functional.cross_entropy, data)
    assert "\n" not in str(error.value)


def test_the_pair_that_a_dataset_collates_to_is_taken() -> None:
    x, y = torch.randn(6, 5), torch.arange(6)
    probe = ProbeCallback([Sharpness()], nn.functional.cross_entropy, default_collate(list(TensorDataset(x, y))))
    assert probe.bench.data[0].equal(x) and probe.bench.data[1].equal(y)


def test_tensorboard_draws_sharpness_and_threshold_in_one_chart(data: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="", default_hp_metric=False)
    probe = ProbeCallback([Sharpness(every=5)], criterion=nn.functional.cross_entropy, data=data)
    fit(Strangers(), data, probe, logger=logger, folder=tmp_path)
    show_settings([logger], {"optimizer.lr": 0.1}, {"last_loss": 0.5, "phase": "edge of stability"})
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0, "scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("sharpness/lambda_max")] == [0, 5, 10, 15, 20, 24]
    page = layout_pb2.Layout()
    page.ParseFromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    pairs = [set(chart.multiline.tag) for category in page.category for chart in category.chart]
    assert pairs.count({"^sharpness/lambda_max$", "^sharpness/threshold$"}) == 1
    assert "preconditioned" not in str(page)  # the optimiser has no preconditioner, and there is no spectrum probe:
    assert [category.title for category in page.category] == ["Edge of stability", "Loss"]  # charts would stay empty
    assert [event.value for event in events.Scalars("final/last_loss")] == [0.5]
    assert [event.value for event in events.Scalars("final/phase")] == [Phase.EDGE.code]
    assert "_hparams_/session_start_info" in events.summary_metadata


@pytest.mark.parametrize("every", [2, 5])
def test_a_fit_that_goes_on_after_its_end_was_measured_is_the_one_that_never_ended(
    every: int, data: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    def probe() -> ProbeCallback:
        return ProbeCallback([Sharpness(every=every)], criterion=nn.functional.cross_entropy, data=data)

    whole, first, then, loggers = probe(), probe(), probe(), (Recorder(), Recorder())
    fit(Strangers(), data, whole, logger=loggers[0], folder=tmp_path)
    trainer = fit(Strangers(), data, first, folder=tmp_path, max_epochs=1)
    assert first.tracker.ratios[-1][0] == STEPS_PER_EPOCH, "the end was measured"
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    fit(Strangers(), data, then, logger=loggers[1], folder=tmp_path, resume=str(tmp_path / "end.ckpt"))
    steps = [step for step, _ in whole.tracker.ratios]
    assert [step for step, _ in then.tracker.ratios] == steps == [*range(0, 24, every), 24]
    before = sum(step < STEPS_PER_EPOCH for step in steps)
    assert then.tracker.ratios[:before] == whole.tracker.ratios[:before]
