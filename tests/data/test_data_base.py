"""Choosing classes and examples, and scaling images, against direct computation."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lab.data.base import (
    Dataset,
    check_batch_size,
    class_balanced,
    class_indices,
    permuted,
    short_hash,
)
from lab.data.images import ImageCard, Images, image_statistics, standardised
from lab.settings import SettingError
from lab.streams import stream


class FakeImages(ImageCard):
    """600 random images in three classes, sorted by class, and 30 to test on."""

    def load(self, progress: bool = True) -> Dataset:
        pixels = random_pixels(630)
        train = Images(pixels[:600], torch.arange(600) // 200)
        return self.assemble(train, Images(pixels[600:], torch.arange(30) % 3), ("ant", "bee", "cow"), {"source": "x"})


def random_pixels(count: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (count, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def labels(*counts: int) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


@pytest.mark.parametrize("count", [10, 50, 53, 499, 500])
def test_class_balanced_draws_different_examples_with_class_sizes_at_most_one_apart(count: int) -> None:
    y = labels(*[50] * 10)
    index = class_balanced(y, count, stream(0, "subset"))
    assert len(index.unique()) == count
    sizes = y[index].bincount(minlength=10)
    assert sizes.max() - sizes.min() <= 1


def test_class_balanced_takes_what_remains_when_a_class_runs_short() -> None:
    y = labels(3, 100, 100)
    assert y[class_balanced(y, 33, stream(0, "subset"))].bincount().tolist() == [3, 15, 15]


def test_class_balanced_is_class_mixed_and_a_function_of_its_generator() -> None:
    y = labels(*[50] * 10)
    index = class_balanced(y, 100, stream(3, "subset"))
    assert index.equal(class_balanced(y, 100, stream(3, "subset")))
    assert not index.equal(class_balanced(y, 100, stream(4, "subset")))
    # 100 labels sorted by class change 9 times from one to the next, shuffled ones about 90 times.
    assert (y[index].diff() != 0).sum() > 60


def test_class_balanced_chooses_every_example_equally_often() -> None:
    y = labels(10, 10)
    counts = torch.zeros(20)
    for seed in range(400):
        counts[class_balanced(y, 5, stream(seed, "subset"))] += 1
    # Each is chosen with probability 1/4: 100 +- 8.7 times. 20 examples beyond 4.5 sigma: false alarm below 2e-4.
    assert (counts - 100).abs().max() < 4.5 * 8.7


def test_class_balanced_refuses_more_than_there_are_and_a_single_class() -> None:
    with pytest.raises(SettingError, match=r"^data\.examples=11 is larger than the 10 training examples; use .*$"):
        class_balanced(labels(5, 5), 11, stream(0, "subset"))
    with pytest.raises(SettingError, match=r"^data\.examples=5 leaves 5 examples of 1 class.*at least two.*$"):
        class_balanced(labels(10), 5, stream(0, "subset"))
    with pytest.raises(SettingError, match=r"data\.examples=1 leaves 1 examples of 1 class"):
        class_balanced(labels(5, 5), 1, stream(0, "subset"))


def test_classes_are_chosen_by_number_index_or_name_in_the_order_given() -> None:
    names = ("ant", "bee", "cow", "dog")
    assert class_indices("all", names) == (0, 1, 2, 3)
    assert class_indices(2, names) == (0, 1)
    assert class_indices((3, "ant"), names) == (3, 0)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (5, r"^data\.classes=5 is larger than the 2 classes"),
        ((0, 7), r"^data\.classes=\[0,7\] asks for 7; use 0\.\.1 or names of: ant, bee$"),
        (("ant", "asp"), r"^data\.classes=\[ant,asp\] asks for asp; use 0\.\.1 or names of: ant, bee$"),
        ((1,), r"^data\.classes=\[1\] must name at least two classes"),
        ((), r"^data\.classes=\[\] must name at least two classes"),
        ((0, "ant"), r"^data\.classes=\[0,ant\] must name at least two classes, each once"),
    ],
)
def test_impossible_classes_are_refused_in_one_line(classes: object, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        class_indices(classes, ("ant", "bee"))  # type: ignore[arg-type]


def test_too_large_a_batch_is_refused_in_one_line() -> None:
    check_batch_size("full", 3)
    check_batch_size(3, 3)
    expected = (
        r"^data\.batch_size=60000 is larger than the 50000 training examples; "
        r"use data\.batch_size=full for gradient descent$"
    )
    with pytest.raises(SettingError, match=expected):
        check_batch_size(60000, 50000)


@pytest.mark.parametrize("count", [1, 256, 600])
@pytest.mark.parametrize(("standardise", "axes"), [("channel", (0, 2, 3)), ("pixel", (0,))])
def test_statistics_and_scaling_equal_a_float64_computation(
    count: int, standardise: str, axes: tuple[int, ...]
) -> None:
    pixels = random_pixels(count)
    mean, std = image_statistics(pixels, standardise)  # type: ignore[arg-type]
    values = pixels.double().numpy() / 255
    expected_mean, expected_std = values.mean(axes, keepdims=True)[0], values.std(axes, keepdims=True)[0]
    expected_std[expected_std == 0] = 1  # one image: no pixel varies
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-13)
    np.testing.assert_allclose(std, expected_std, rtol=1e-13)
    x = standardised(pixels, torch.arange(count), mean, std)
    assert x.dtype == torch.float32 and x.is_contiguous()
    # |x| < 4 with centre and scale rounded once each: a few times 4 * 2^-24 / min std * 0.5.
    np.testing.assert_allclose(x, (values - expected_mean) / expected_std, atol=3e-6)


def test_a_pixel_that_never_varies_becomes_zero_and_not_nan() -> None:
    pixels = random_pixels(50)
    pixels[:, 1, 2, 3] = 77
    mean, std = image_statistics(pixels, "pixel")
    assert std[1, 2, 3] == 1
    assert (standardised(pixels, torch.arange(50), mean, std)[:, 1, 2, 3] == 0).all()


def test_standardise_none_is_pixel_over_255() -> None:
    data = FakeImages(standardise="none").load()
    torch.testing.assert_close(data.train.x, random_pixels(630)[:600] / 255, rtol=1e-6, atol=0)


def test_a_subset_holds_the_same_points_as_the_whole_set() -> None:
    for standardise in ("channel", "pixel"):
        whole, subset = (FakeImages(examples=n, standardise=standardise).load() for n in ("all", 150))
        index = class_balanced(whole.train.y, 150, stream(0, "subset"))
        assert subset.train.x.equal(whole.train.x[index]) and subset.train.y.equal(whole.train.y[index])
        assert subset.test is not None and whole.test is not None and subset.test.x.equal(whole.test.x)
        digest = short_hash(index.numpy().tobytes())
        assert subset.facts["subset_sha256"] == digest and len(digest) == 16
        assert subset.facts["statistics"] == whole.facts["statistics"]


def test_restricted_classes_are_renumbered_in_the_order_given_in_both_splits() -> None:
    whole, restricted = FakeImages().load(), FakeImages(classes=("cow", 0)).load()
    assert restricted.class_names == ("cow", "ant") and restricted.num_classes == 2
    assert restricted.input_shape == (3, 4, 5)
    assert restricted.train.y.tolist() == [1] * 200 + [0] * 200
    assert restricted.train.x.equal(whole.train.x[whole.train.y != 1])
    assert restricted.test is not None and restricted.test.y.tolist() == [1, 0] * 10


def test_a_drawn_subset_depends_on_the_subset_seed_only() -> None:
    first, again, other = (FakeImages(examples=150, subset_seed=seed).load() for seed in (1, 1, 2))
    assert first.train.x.equal(again.train.x) and first.facts == again.facts
    assert first.facts["subset_sha256"] != other.facts["subset_sha256"]
    assert first.facts["examples"] == 150 and first.facts["subset_seed"] == 1


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_permuted_labels_keep_the_size_of_every_class_and_move_only_their_share(share: float) -> None:
    y = labels(*[100] * 10)
    given = permuted(y, share, stream(0, "random labels"))
    assert given.bincount().equal(y.bincount())
    changed = int((given != y).sum())
    # A moved label stays in its class with probability 1/10: 900 share +- 9.5 sqrt(share) of 1000 change (4.5 sigma).
    assert abs(changed - 900 * share) <= 4.5 * 9.5 * share**0.5
    assert given.equal(permuted(y, share, stream(0, "random labels")))
    assert share == 0 or not given.equal(permuted(y, share, stream(1, "random labels")))


def test_random_labels_leave_images_subset_and_test_labels_alone_and_are_told() -> None:
    true, random, other = (
        FakeImages(examples=150, random_labels=share, subset_seed=seed).load()
        for share, seed in ((0.0, 0), (1.0, 0), (1.0, 1))
    )
    assert true.test is not None and random.test is not None
    assert random.train.x.equal(true.train.x) and random.test.y.equal(true.test.y)
    assert random.facts["subset_sha256"] == true.facts["subset_sha256"]
    changed = int((random.train.y != true.train.y).sum())
    assert random.facts["labels_changed"] == changed and 75 < changed < 125  # 100 +- 6 of 150
    assert random.facts["random_labels"] == 1.0 and random.facts["subset_seed"] == 0
    assert "random_labels" not in true.facts
    assert other.facts["subset_sha256"] != random.facts["subset_sha256"]


def test_asking_for_all_examples_by_number_is_asking_for_all() -> None:
    numbered = FakeImages(examples=600).load()
    assert numbered.train.x.equal(FakeImages().load().train.x)
    assert numbered.facts["subset"] == "none" and "subset_seed" not in numbered.facts


def test_image_settings_that_contradict_the_data_are_refused() -> None:
    with pytest.raises(SettingError, match=r"^data\.examples=601 is larger than the 600 training examples"):
        FakeImages(examples=601).load()
    with pytest.raises(SettingError, match=r"^data\.batch_size=128 is larger than the 127 training examples"):
        FakeImages(examples=127).load()


@pytest.mark.parametrize(
    "setting",
    [
        {"examples": 0},
        {"examples": True},
        {"examples": "some"},
        {"classes": 1},
        {"classes": "ant"},
        {"batch_size": 0},
        {"batch_size": "half"},
        {"sampling": "random"},
        {"subset_seed": -1},
        {"random_labels": 1.5},
        {"random_labels": -0.1},
        {"standardise": "zca"},
        {"colour": 1},
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        FakeImages(**setting)  # type: ignore[arg-type]
