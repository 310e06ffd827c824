"""Residual networks: published parameter counts, initialisation, shortcuts, double backward."""

import math

import pytest
import torch
from torch import nn

from lab.models.resnet import BasicBlock, ResNet, Subsample
from lab.settings import SettingError


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("depth", "expected"),
    [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (18, 11_173_962), (34, 21_282_122)],
)
def test_parameter_counts_are_the_published_ones(depth: int, expected: int) -> None:
    assert num_parameters(ResNet(depth=depth).build((3, 32, 32), 10, seed=0)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("depth", [8, 20, 32, 44, 56, 18, 34])
def test_depth_counts_the_layers_with_weights_outside_the_shortcuts(depth: int) -> None:
    model = ResNet(depth=depth, width=2).build((3, 32, 32), 10, seed=0)  # type: ignore[arg-type]
    layers = [m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and "shortcut" not in name]
    assert len(layers) == depth


@pytest.mark.parametrize("depth", [8, 18])
def test_weights_are_those_of_torch_after_manual_seed_in_the_order_of_the_data(depth: int) -> None:
    model = ResNet(depth=depth, width=4).build((3, 8, 8), 10, seed=7)  # type: ignore[arg-type]
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    torch.manual_seed(7)
    for layer in layers:  # modules() walks in order of construction: stem, blocks (conv1, conv2, shortcut), linear
        if isinstance(layer, nn.Linear):
            twin: nn.Module = nn.Linear(layer.in_features, layer.out_features)
        else:
            twin = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, bias=False)  # type: ignore[arg-type]
        assert layer.weight.equal(twin.weight)  # type: ignore[arg-type]
    assert isinstance(layers[-1], nn.Linear)
    names = [name for name, _ in model.blocks[-1].named_children()]  # type: ignore[index, union-attr]
    assert names == ["conv1", "norm1", "conv2", "norm2", "activation", "shortcut"]


def test_init_scale_multiplies_convolutions_and_linear_but_not_normalisation() -> None:
    plain, scaled = (ResNet(depth=8, width=4, init_scale=s).build((3, 8, 8), 10, seed=0) for s in (1.0, 0.5))
    for (name, value), expected in zip(scaled.named_parameters(), plain.parameters(), strict=True):
        assert value.equal(expected if "norm" in name else expected * 0.5)


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    ResNet(depth=8, width=4).build((3, 8, 8), 10, seed=0)
    assert torch.random.get_rng_state().equal(before)


def test_the_parameter_free_shortcut_takes_every_second_pixel_and_adds_zero_channels() -> None:
    x = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    out = Subsample(7, 2)(x)
    assert out.shape == (2, 7, 3, 2)
    assert out[:, :3].equal(x[:, :, [0, 2, 4]][:, :, :, [0, 2]]) and (out[:, 3:] == 0).all()


@pytest.mark.parametrize("projection", [False, True])
def test_a_block_whose_convolutions_are_zero_is_the_activation_of_its_shortcut(projection: bool) -> None:
    block = BasicBlock(4, 8, 2, ResNet(depth=18 if projection else 8, norm="none", activation="relu"))
    with torch.no_grad():
        for conv in (block.conv1, block.conv2):
            for parameter in conv.parameters():
                parameter.zero_()
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    assert block(x).equal(block.shortcut(x).relu())
    assert projection == any(True for _ in block.shortcut.parameters())


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_normalisation_is_as_asked_and_convolutions_have_a_bias_only_without_it(norm: str) -> None:
    model = ResNet(depth=8, width=12, norm=norm).build((3, 8, 8), 10, seed=0)  # type: ignore[arg-type]
    norms = {"batch": nn.BatchNorm2d, "group": nn.GroupNorm, "none": nn.Identity}[norm]
    assert isinstance(model.norm, norms)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert (module.bias is not None) == (norm == "none")
        if isinstance(module, nn.GroupNorm):
            assert module.num_groups == math.gcd(8, module.num_channels)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("depth", [8, 18])
def test_the_second_derivative_is_that_of_finite_differences_of_the_gradient(depth: int, norm: str) -> None:
    card = ResNet(depth=depth, width=2, norm=norm, activation="tanh")  # type: ignore[arg-type]
    model = card.build((3, 16, 16), 10, seed=0).double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 16, 16, generator=generator, dtype=torch.float64)
    parameters = list(model.parameters())
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]

    def gradient() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(model(x).square().sum(), parameters, create_graph=True)

    inner = sum((g * v).sum() for g, v in zip(gradient(), direction, strict=True))
    product = torch.autograd.grad(inner, parameters)  # type: ignore[arg-type]

    def gradient_at(shift: float) -> list[torch.Tensor]:
        with torch.no_grad():
            for p, v in zip(parameters, direction, strict=True):
                p.add_(shift * v)
        values = [g.detach() for g in gradient()]
        with torch.no_grad():
            for p, v in zip(parameters, direction, strict=True):
                p.sub_(shift * v)
        return values

    plus, minus = gradient_at(1e-6), gradient_at(-1e-6)
    scale = max(float(value.abs().max()) for value in product)
    for value, above, below in zip(product, plus, minus, strict=True):
        # The error of central differences falls as h^2 and is 3e-7 of the largest entry here at h = 1e-6.
        torch.testing.assert_close(value, (above - below) / 2e-6, atol=1e-5 * scale, rtol=0)


def test_one_channel_and_odd_sizes_are_images_too() -> None:
    assert ResNet(depth=8, width=4).build((1, 7, 5), 3, seed=0)(torch.zeros(2, 1, 7, 5)).shape == (2, 3)


def test_vectors_are_refused_in_one_line() -> None:
    expected = (
        r"^model=resnet needs images \(channels, height, width\), but examples have shape \(64,\); "
        r"use model=mlp or data=cifar10$"
    )
    with pytest.raises(SettingError, match=expected):
        ResNet().build((64,), 10, seed=0)


@pytest.mark.parametrize("setting", [{"depth": 50}, {"norm": "layer"}, {"width": 0}, {"init_scale": -1.0}])
def test_settings_out_of_range_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        ResNet(**setting)  # type: ignore[arg-type]
