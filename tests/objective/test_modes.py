"""Modes are those of whoever trains the network; only what draws random numbers is off."""

import pytest
import torch
from strangers import Apply, data, mlp
from torch import Tensor, nn
from torch.nn import functional

from lab.objective import NetworkObjective, audit
from lab.params import weights

CE = nn.CrossEntropyLoss()


def normed() -> nn.Sequential:
    """Two BatchNorms with running statistics of their own."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(12, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 7), nn.BatchNorm1d(7), nn.Linear(7, 5)
    )
    for module in model:
        if isinstance(module, nn.BatchNorm1d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize("frozen", [[], [1], [4], [1, 4]])
def test_a_batch_norm_that_is_kept_in_eval_stays_in_eval(frozen: list[int]) -> None:
    model, (x, y) = normed().train(), data("vectors")
    for i in frozen:
        model[i].eval()
    loss = NetworkObjective(model, CE, (x, y), batch_norm="train")
    w = weights(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = loss.value(w)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name
    torch.testing.assert_close(found, CE(model(x), y).detach())  # last, for it moves the running statistics
    assert loss.batch_statistics == (len(frozen) < 2)


def test_modes_that_change_in_the_run_are_followed() -> None:
    model, (x, y) = normed().train(), data("vectors")
    loss = NetworkObjective(model, CE, (x, y), batch_norm="train")
    w, evaluated = weights(model), NetworkObjective(model, CE, (x, y), batch_norm="eval")
    before = loss.value(w)
    for module in model:
        module.training = not isinstance(module, nn.BatchNorm1d)
    assert not torch.allclose(before, loss.value(w))
    torch.testing.assert_close(loss.value(w), evaluated.value(w))
    loss.example_grads(w)  # no example sees another any more


def test_eval_means_every_module() -> None:
    model, (x, y) = normed().train(), data("vectors")
    found = NetworkObjective(model, CE, (x, y), batch_norm="eval").value(weights(model))
    torch.testing.assert_close(found, CE(model.eval()(x), y).detach())


class Behaves(nn.Module):
    """Another function in training, as layers of one's own may be."""

    def forward(self, h: Tensor) -> Tensor:
        return 2 * h if self.training else h


class Block(nn.Module):
    """Dropout by a function, beside a BatchNorm that must keep its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(24)

    def forward(self, h: Tensor) -> Tensor:
        return functional.dropout(self.norm(h), 0.5, self.training)


class DropPath(nn.Module):
    """Stochastic depth, drawn by Python's generator."""

    def forward(self, h: Tensor) -> Tensor:
        import random

        return h if not self.training or random.random() < 0.5 else torch.zeros_like(h)


def test_layers_that_behave_otherwise_in_eval_are_measured_as_they_train() -> None:
    torch.manual_seed(0)
    model, (x, y) = mlp(Behaves(), nn.InstanceNorm1d(24, track_running_stats=False)).train(), data("vectors")
    for batch_norm, modes in (("train", model.train), ("eval", model.eval)):
        found = NetworkObjective(model, CE, (x, y), batch_norm=batch_norm).value(weights(model))  # type: ignore[arg-type]
        torch.testing.assert_close(found, CE(modes()(x), y).detach())
        model.train()


@pytest.mark.parametrize(
    "layer", [nn.Dropout, nn.AlphaDropout, Block, DropPath, nn.RReLU, lambda: nn.FeatureAlphaDropout(0.2)]
)
def test_what_draws_is_off_and_said_and_all_else_keeps_its_mode(layer: type[nn.Module]) -> None:
    torch.manual_seed(0)
    drawing = layer()
    model, (x, y) = mlp(drawing, nn.BatchNorm1d(24), Behaves()).train(), data("vectors")
    loss = NetworkObjective(model, CE, (x, y), batch_norm="train")
    w = weights(model)
    found = [loss.value(w) for _ in range(3)]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert type(drawing).__name__ in audit(loss).sentence()
    drawing.training = False
    torch.testing.assert_close(found[0], CE(model(x), y).detach())


def test_dropout_inside_attention_and_between_recurrent_layers_is_off() -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.3, batch_first=True)
    pooled = nn.Sequential(nn.Embedding(20, 16), encoder, Apply(lambda h: h.mean(1)), nn.Linear(16, 5))

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.head = nn.LSTM(4, 6, num_layers=2, dropout=0.5, batch_first=True), nn.Linear(6, 5)

        def forward(self, h: Tensor) -> Tensor:
            return self.head(self.layers(h)[0][:, -1])

    for model, kind in ((pooled, "tokens"), (Recurrent(), "sequences")):
        x, y = data(kind)
        found = NetworkObjective(model.train(), CE, (x, y), batch_norm="train").value(weights(model))
        torch.testing.assert_close(found, CE(model.eval()(x), y).detach())
