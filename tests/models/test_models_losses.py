"""The losses against hand computation and torch's own."""

import math
import pickle

import pytest
import torch

from lab.models.losses import CrossEntropy, MeanSquaredError


def test_mse_is_half_the_sum_over_classes_mean_over_examples() -> None:
    outputs = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    # ((1-0)^2 + (2-1)^2 + (3-0)^2) / 2 = 5.5 and (0 + 0 + 1) / 2 = 0.5: mean 3.
    assert MeanSquaredError().build(3)(outputs, torch.tensor([1, 2])) == 3.0


def test_torch_mse_loss_is_2_over_K_times_ours() -> None:
    outputs = torch.randn(6, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(6)
    theirs = torch.nn.MSELoss()(outputs, torch.nn.functional.one_hot(labels, 10).double())
    torch.testing.assert_close(theirs, 2 / 10 * MeanSquaredError().build(10)(outputs, labels))


def test_the_hessian_of_mse_in_the_outputs_is_the_identity_over_N() -> None:
    outputs = torch.zeros(2, 3, dtype=torch.float64)
    criterion = MeanSquaredError().build(3)
    hessian = torch.autograd.functional.hessian(lambda f: criterion(f, torch.tensor([0, 2])), outputs)
    assert hessian.reshape(6, 6).equal(torch.eye(6, dtype=torch.float64) / 2)


def test_mse_of_one_example_under_vmap_is_its_share_of_the_batch() -> None:
    outputs, labels = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 0])
    criterion = MeanSquaredError().build(4)
    torch.testing.assert_close(torch.func.vmap(criterion)(outputs, labels).mean(), criterion(outputs, labels))


def test_mse_refuses_outputs_of_another_number_of_classes() -> None:
    with pytest.raises(ValueError, match=r"outputs of shape \(4, 1\) do not end in the 3 classes"):
        MeanSquaredError().build(3)(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64))


def test_cross_entropy_of_equal_outputs_is_log_K_with_any_smoothing() -> None:
    for smoothing in (0.0, 0.3):
        loss = CrossEntropy(label_smoothing=smoothing).build(10)(torch.zeros(4, 10).double(), torch.arange(4))
        assert loss.item() == pytest.approx(math.log(10), rel=1e-14)


def test_smoothed_cross_entropy_equals_hand_computation() -> None:
    outputs, smoothing = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64), 0.2
    log_softmax = outputs - outputs.exp().sum(1, keepdim=True).log()
    target = torch.tensor([[0.9, 0.1], [0.9, 0.1]], dtype=torch.float64)  # 1 - 0.2 + 0.2/2 and 0.2/2
    expected = -(target * log_softmax).sum(1).mean()
    loss = CrossEntropy(label_smoothing=smoothing).build(2)(outputs, torch.tensor([0, 0]))
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("card", [CrossEntropy(label_smoothing=0.1), MeanSquaredError()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_criteria_keep_the_dtype_and_survive_pickling(
    card: CrossEntropy | MeanSquaredError, dtype: torch.dtype
) -> None:
    outputs, labels = torch.linspace(-1, 1, 12, dtype=dtype).reshape(4, 3), torch.tensor([0, 1, 2, 0])
    criterion = card.build(3)
    loss = criterion(outputs, labels)
    assert loss.dtype == dtype and loss.shape == ()
    assert pickle.loads(pickle.dumps(criterion))(outputs, labels) == loss


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_label_smoothing_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="label_smoothing"):
        CrossEntropy(label_smoothing=value)
