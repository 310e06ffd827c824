"""torchvision's classifiers: the same weights as torchvision builds, twice differentiable, and their state dicts fit."""

import pytest
import torch
from pydantic import ValidationError
from torchvision import models

from lab.curvature.operators import hessian
from lab.models.losses import CrossEntropy
from lab.models.torchvision import TorchVision, names
from lab.objective import NetworkObjective
from lab.settings import SettingError

SHAPE = (3, 32, 32)


def test_initial_weights_and_names_are_those_of_torchvision() -> None:
    before = torch.get_rng_state()
    ours = TorchVision(name="resnet18").build(SHAPE, 7, 3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        theirs = models.resnet18(num_classes=7).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("name", ["squeezenet1_1", "efficientnet_b0"])
def test_hessian_products_are_differences_of_gradients(name: str) -> None:
    model = TorchVision(name=name).build(SHAPE, 3, 0)
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    loss = NetworkObjective(model, CrossEntropy().build(3), (x, torch.tensor([0, 2])))
    w = loss.weights.double()
    v = torch.randn(w.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    v /= v.norm()
    # Central differences: an error of step^2 |third derivative| / 6, unless a ReLU changes sides within the step.
    difference = (loss.grad(w + 1e-6 * v) - loss.grad(w - 1e-6 * v)) / 2e-6
    product = hessian(loss, w) @ v
    assert float((product - difference).norm()) < 1e-4 * float(product.norm())


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"expected a convolutional .* resnet18"):
        TorchVision(name="resnet_18")
    with pytest.raises(ValidationError, match="convolutional classifier"):
        TorchVision(name="vit_b_16")
    with pytest.raises(SettingError, match=r"shape \(64,\)"):
        TorchVision().build((64,), 10, 0)
    assert {"resnet50", "vgg11_bn", "densenet121", "mobilenet_v2", "convnext_tiny"} <= {*names()}
