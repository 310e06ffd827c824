"""Models and losses of one's own, and the losses of real targets and of sequences."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from lab.models.losses import CrossEntropy, MeanSquaredError, hits
from lab.models.own import OwnModel
from lab.models.own_loss import OwnLoss
from lab.settings import SettingError

CODE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, widths=(3,)):
        super().__init__()
        sizes = [2, *widths, 2]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))


net = nn.Linear(2, 2)


def frozen():
    return nn.Linear(2, 2).requires_grad_(False)


def number():
    return 3


def scaled(outputs, targets, factor=1.0):
    return factor * (outputs - targets).square().mean()


class Learned(nn.Linear):
    def __init__(self):
        super().__init__(2, 2)
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CODE)


def test_a_model_is_made_of_its_arguments_within_the_seed_of_the_run() -> None:
    state = torch.get_rng_state()
    made = OwnModel(path="mine.py:Net", args={"widths": [5, 4]}).build((2,), 2, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    layers = [nn.Linear(2, 5), nn.Linear(5, 4), nn.Linear(4, 2)]
    assert torch.equal(made.layers[2].weight, layers[2].weight)  # type: ignore[index,union-attr]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("net", "is a module already; name the class, or a function that makes one"),
        ("frozen", "no trainable weight"),
        ("number", "returned int, no torch.nn.Module"),
    ],
)
def test_what_makes_no_model_is_one_line(name: str, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        OwnModel(path=f"mine.py:{name}").build((2,), 2, seed=0)


def test_a_loss_is_a_function_with_arguments_or_a_class_made_with_them() -> None:
    f, y = torch.tensor([[3.0], [1.0]]), torch.tensor([[1.0], [1.0]])
    assert OwnLoss(path="mine.py:scaled", args={"factor": 0.5}).build(None)(f, y) == 1.0
    assert OwnLoss(path="torch.nn:HuberLoss", args={"delta": 1.0}).build(None)(f, y) == 0.75  # (2 - 1/2) / 2
    assert OwnLoss(path="mine.py:scaled").unit == "scaled"
    with pytest.raises(SettingError, match=r"did you mean loss\.args\.factor"):
        OwnLoss(path="mine.py:scaled", args={"facto": 1}).check()
    with pytest.raises(SettingError, match="trainable weights, which would not be trained"):
        OwnLoss(path="mine.py:Learned").build(None)


def test_the_squared_error_of_real_targets_is_half_the_sum_over_the_numbers_of_an_example() -> None:
    criterion = MeanSquaredError().build(None)
    f, y = torch.randn(5, 6), torch.randn(5, 2, 3)
    assert torch.allclose(criterion(f, y), 0.5 * (f - y.flatten(1)).square().sum() / 5)
    assert criterion(torch.tensor([[3.0], [1.0]]), torch.tensor([1.0, 1.0])) == 1.0, "no broadcasting"
    with pytest.raises(ValueError, match="6 outputs of an example against 5 targets"):
        criterion(f, torch.randn(5, 5))


def test_real_targets_have_no_cross_entropy() -> None:
    with pytest.raises(SettingError, match=r"loss=cross_entropy needs class labels.*use loss=mse"):
        CrossEntropy().build(None)


def test_losses_of_sequences_are_means_over_all_places() -> None:
    f, y = torch.randn(4, 5, 3), torch.randint(3, (4, 5))
    rows = torch.stack([functional.cross_entropy(f[i], y[i]) for i in range(4)])
    assert torch.allclose(CrossEntropy().build(3)(f, y), rows.mean())
    onehot = functional.one_hot(y, 3)
    assert torch.allclose(MeanSquaredError().build(3)(f, y), 0.5 * (f - onehot).square().sum() / 20)


def test_there_is_accuracy_for_classes_only() -> None:
    f, y = torch.eye(3)[[0, 1, 1]], torch.tensor([0, 1, 2])
    assert hits(f, y) == 2
    assert hits(f.expand(2, 3, 3), y.expand(2, 3)) == 4
    assert hits(f, y.float()) is None
    assert hits(f[:, :1], y) is None, "one logit says which of two by its sign, not by its place"
    assert hits(f[:, 0], y) is None
    assert hits(torch.randn(3, 4, 4), y) is None
