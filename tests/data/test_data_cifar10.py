"""CIFAR-10 from a miniature of torchvision's files: reading, downloading, and failing without a trace."""

import hashlib
import http.client
import pickle
import tarfile
import urllib.error
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from lab.data.cifar10 import Cifar10, Cifar10Small
from lab.settings import SettingError

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write_miniature(folder: Path) -> None:
    """Five training files of 20 images and a test file of 30, in the format of cifar-10-batches-py."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        count = 30 if name == "test_batch" else 20
        pixels = random.integers(0, 256, (count, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [i % 10 for i in range(count)]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES}))


@pytest.fixture
def miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root that holds the miniature, whose checksums torchvision then expects."""
    folder = tmp_path / "store" / CIFAR10.base_folder
    write_miniature(folder)
    md5 = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5[name]] for name, _ in CIFAR10.train_list])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5["batches.meta"]})
    return tmp_path / "store"


def replace_download(monkeypatch: pytest.MonkeyPatch, download: Callable[[Path], None]) -> None:
    def fake(url: str, root: str | Path, **_: object) -> None:
        download(Path(root))

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fake)


def test_images_are_channels_first_and_standardised_by_the_whole_training_split(miniature: Path) -> None:
    data = Cifar10(root=str(miniature), batch_size=10, examples=50).load()
    assert data.input_shape == (3, 32, 32) and data.class_names == tuple(NAMES)
    raw = [pickle.loads((miniature / CIFAR10.base_folder / name).read_bytes()) for name, _ in CIFAR10.train_list]
    pixels = np.concatenate([part["data"] for part in raw]).reshape(100, 3, 32, 32) / 255
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))
    test = pickle.loads((miniature / CIFAR10.base_folder / "test_batch").read_bytes())
    expected = (test["data"].reshape(30, 3, 32, 32) / 255 - mean[:, None, None]) / std[:, None, None]
    assert data.test is not None
    np.testing.assert_allclose(data.test.x, expected, atol=1e-6)
    assert data.test.y.tolist() == test["labels"]
    assert len(data.train) == 50 and data.train.y.bincount().tolist() == [5] * 10
    assert data.facts["md5"] == CIFAR10.tgz_md5


def test_the_5k_card_asks_for_5000_examples(miniature: Path) -> None:
    with pytest.raises(SettingError, match=r"^data\.examples=5000 is larger than the 100 training examples"):
        Cifar10Small(root=str(miniature)).load()


def test_a_download_lands_whole_and_alone_under_root(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "new" / "root"
    damaged = root / CIFAR10.base_folder
    damaged.mkdir(parents=True)
    (damaged / "test_batch").write_bytes(b"half a file")
    calls = []

    def download(folder: Path) -> None:
        calls.append(folder)
        write_miniature(folder / CIFAR10.base_folder)

    replace_download(monkeypatch, download)
    first = Cifar10(root=str(root), batch_size=10).load(progress=False)
    second = Cifar10(root=str(root), batch_size=10).load(progress=False)
    assert len(calls) == 1 and first.train.x.equal(second.train.x)
    assert first.train.x.equal(Cifar10(root=str(miniature), batch_size=10).load().train.x)
    assert [entry.name for entry in root.iterdir()] == [CIFAR10.base_folder]


def test_an_archive_put_under_root_by_hand_is_used_without_network(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "by_hand"
    root.mkdir()
    with tarfile.open(root / CIFAR10.filename, "w:gz") as archive:
        archive.add(miniature / CIFAR10.base_folder, CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5((root / CIFAR10.filename).read_bytes()).hexdigest())
    replace_download(monkeypatch, lambda folder: pytest.fail("asked the network"))
    assert len(Cifar10(root=str(root), batch_size=10).load(progress=False).train) == 100


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("Name or service\nnot known"),
        http.client.IncompleteRead(b"half"),
        RuntimeError("File not found or corrupted."),
        EOFError("Compressed file ended"),
    ],
)
def test_a_failed_download_gives_one_line_with_the_ways_out_and_leaves_nothing(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(folder: Path) -> None:
        (folder / CIFAR10.filename).write_bytes(b"half an archive")
        raise error

    replace_download(monkeypatch, broken)
    with pytest.raises(SettingError) as caught:
        Cifar10(root=str(tmp_path / "deep" / "root")).load(progress=False)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("data.root=")
    for way_out in ("data.root", "data=image_folder data.root=", "data=digits"):
        assert way_out in message
    assert list(tmp_path.iterdir()) == []


def test_a_download_interrupted_by_the_user_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(folder: Path) -> None:
        (folder / CIFAR10.filename).write_bytes(b"half an archive")
        raise KeyboardInterrupt

    replace_download(monkeypatch, interrupted)
    with pytest.raises(KeyboardInterrupt):
        Cifar10(root=str(tmp_path / "root")).load(progress=False)
    assert list(tmp_path.iterdir()) == []


def test_what_else_lies_under_root_survives_a_failed_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    def offline(folder: Path) -> None:
        raise urllib.error.URLError("offline")

    replace_download(monkeypatch, offline)
    with pytest.raises(SettingError):
        Cifar10(root=str(tmp_path)).load(progress=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def test_a_root_that_is_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match=r"^data\.root=\S+ does not hold CIFAR-10 and it cannot be downloaded there"):
        Cifar10(root=str(tmp_path / "file")).load(progress=False)


def test_loading_does_not_touch_the_global_generator(miniature: Path) -> None:
    before = torch.random.get_rng_state()
    Cifar10(root=str(miniature), batch_size=10, examples=50).load(progress=False)
    assert torch.random.get_rng_state().equal(before)
