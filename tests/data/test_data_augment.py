"""Crop and flip against a loop over images."""

import pytest
import torch
from torch import Tensor

from lab.data.augment import crop_and_flip
from lab.streams import stream


def naive_crop_and_flip(x: Tensor, generator: torch.Generator, padding: int) -> Tensor:
    """The same draws, one image and one pixel at a time."""
    rows, columns = torch.randint(2 * padding + 1, (2, len(x)), generator=generator)
    flips = torch.randint(2, (len(x),), generator=generator)
    out = torch.zeros_like(x)
    height, width = x.shape[2:]
    for b in range(len(x)):
        for i in range(height):
            for j in range(width):
                row, column = i + int(rows[b]) - padding, j + int(columns[b]) - padding
                if 0 <= row < height and 0 <= column < width:
                    out[b, :, i, width - 1 - j if flips[b] else j] = x[b, :, row, column]
    return out


@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("shape", [(1, 3, 6, 6), (7, 2, 5, 8)])
def test_crop_and_flip_equals_its_naive_twin(shape: tuple[int, ...], padding: int) -> None:
    x = torch.randn(shape, generator=stream(0, "x"))
    before = x.clone()
    out = crop_and_flip(x, stream(1, "augment"), padding=padding)
    assert out.equal(naive_crop_and_flip(x, stream(1, "augment"), padding))
    assert x.equal(before)


def test_offsets_and_flips_are_uniform_and_drawn_for_each_image() -> None:
    # One bright pixel in the middle of 9 x 9: it moves by -4..4 and the mirror keeps the middle column in the middle.
    x = torch.zeros(8100, 1, 9, 9)
    x[:, 0, 4, 4] = 1
    counts = crop_and_flip(x, stream(0, "augment")).sum((0, 1))  # (9, 9)
    # 100 expected in each of 81 places: chi^2 of 80 degrees, five sigma.
    assert ((counts - 100) ** 2 / 100).sum() < 80 + 5 * 160**0.5
    ramp = torch.arange(5.0).expand(4000, 1, 1, 5)
    flipped = (crop_and_flip(ramp, stream(0, "augment"), padding=0)[:, 0, 0, 0] == 4).float().mean()
    assert abs(flipped - 0.5) < 5 * 0.5 / 4000**0.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_gives_the_same_images_as_the_cpu() -> None:
    x = torch.randn(5, 3, 8, 8, generator=stream(0, "x"))
    on_gpu = crop_and_flip(x.cuda(), stream(1, "augment"))
    assert on_gpu.is_cuda and on_gpu.cpu().equal(crop_and_flip(x, stream(1, "augment")))
