"""Digits against a direct numpy computation, and its refusals."""

import hashlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from lab.data.digits import Digits
from lab.settings import SettingError


def test_digits_are_centred_per_pixel_and_divided_by_the_std_of_all_pixels_before_centring() -> None:
    raw = load_digits()
    pixels = raw.images.reshape(1797, 64) / 16
    grand_mean = pixels.sum() / pixels.size
    scale = np.sqrt(((pixels - grand_mean) ** 2).sum() / pixels.size)
    expected = (pixels - pixels.sum(0) / 1797) / scale
    data = Digits().load()
    assert data.test is None and data.num_classes == 10 and data.input_shape == (64,)
    assert data.train.x.dtype == torch.float32 and data.train.y.dtype == torch.int64
    np.testing.assert_allclose(data.train.x, expected, rtol=1e-6, atol=1e-7)  # float32 rounding is 6e-8
    np.testing.assert_array_equal(data.train.y, raw.target)


def test_a_subset_is_the_first_rows_with_statistics_of_all_and_the_rest_is_the_test_split() -> None:
    whole, part = Digits().load(), Digits(examples=200).load()
    assert part.train.x.equal(whole.train.x[:200]) and part.train.y.equal(whole.train.y[:200])
    assert part.test is not None and part.test.x.equal(whole.train.x[200:]) and len(part.test) == 1597
    assert part.facts["examples"] == 200 and part.facts["test_examples"] == 1597


def test_the_facts_hold_a_hash_of_all_images_and_labels_whatever_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = load_digits()
    found = Digits().load().facts["sha256"]
    assert found == Digits(examples=200, classes=3, random_labels=0.5).load().facts["sha256"]
    bytes_of = raw.data.astype("u1").tobytes() + raw.target.astype("<i8").tobytes()
    assert found == hashlib.sha256(bytes_of).hexdigest()[:16]
    raw.data[7, 20] += 1
    monkeypatch.setattr("lab.data.digits.load_digits", lambda: raw)
    assert Digits().load().facts["sha256"] != found


def test_the_first_rows_are_counted_after_the_class_filter_and_labels_renumbered() -> None:
    whole, pair = Digits().load(), Digits(classes=(7, "1"), examples=100).load()
    rows = ((whole.train.y == 1) | (whole.train.y == 7)).nonzero().squeeze(1)[:100]
    assert pair.train.x.equal(whole.train.x[rows])
    assert pair.train.y.equal((whole.train.y[rows] == 1).long())
    assert pair.class_names == ("7", "1")


def test_a_small_subset_keeps_all_ten_outputs() -> None:
    data = Digits(examples=3).load()
    assert data.num_classes == 10 and data.train.y.tolist() == [0, 1, 2]


def test_digits_refuse_what_the_data_cannot_give() -> None:
    with pytest.raises(SettingError, match=r"^data\.examples=1798 is larger than the 1797 examples there are; use .*"):
        Digits(examples=1798).load()
    with pytest.raises(SettingError, match=r"^data\.examples=1 leaves 1 examples of 1 class"):
        Digits(examples=1).load()
    with pytest.raises(SettingError, match=r"^data\.batch_size=300 is larger than the 200 training examples; use "):
        Digits(examples=200, batch_size=300).load()
    with pytest.raises(SettingError, match=r"^data\.classes=11 is larger than the 10 classes"):
        Digits(classes=11).load()


def test_permuted_labels_of_digits_leave_the_test_split_alone() -> None:
    true, random = (Digits(examples=500, random_labels=share).load() for share in (0.0, 1.0))
    assert random.test is not None and true.test is not None and random.test.y.equal(true.test.y)
    assert random.train.x.equal(true.train.x) and random.train.y.bincount().equal(true.train.y.bincount())
    assert random.facts["labels_changed"] == int((random.train.y != true.train.y).sum()) > 400
    assert random.facts.keys() - true.facts.keys() == {"random_labels", "labels_changed", "subset_seed"}
