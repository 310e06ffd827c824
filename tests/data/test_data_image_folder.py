"""Trees of images: reading, the cache and what invalidates it, and every refusal."""

import errno
import hashlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lab.data.image_cache
import lab.data.image_folder
from lab.data.image_folder import ImageFolder
from lab.settings import SettingError

FILES = ["test-native.json", "test-native.uint8", "train-native.json", "train-native.uint8"]


def draw(path: Path, seed: int, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> np.ndarray:
    """A random PNG of (width, height); its pixels (H, W, 3) or (H, W)."""
    shape = size[::-1] if mode == "L" else (*size[::-1], 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of 2 x 12 training and 2 x 3 test images of 6 x 5 pixels; plain order would put class10 first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user_cache"))
    tree = tmp_path / "tree"
    for label, name in enumerate(["class2", "class10"]):
        for i in range(12):
            draw(tree / "train" / name / f"{i}.png", seed=100 * label + i)
        for i in range(3):
            draw(tree / "test" / name / f"{i}.png", seed=1000 + 100 * label + i)
    return tree


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The files decoded so far."""
    paths: list[str] = []
    decode = lab.data.image_folder._decode

    def counted(path: str, image_size: int | None) -> np.ndarray:
        paths.append(path)
        return decode(path, image_size)

    monkeypatch.setattr(lab.data.image_folder, "_decode", counted)
    return paths


@pytest.fixture
def cache(root: Path, tmp_path: Path) -> Path:
    """Where the cache of the tree is unless something else is chosen."""
    place = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return tmp_path / "user_cache" / "lab" / place


def card(root: Path, **settings: object) -> ImageFolder:
    return ImageFolder(root=str(root), batch_size="full", **settings)  # type: ignore[arg-type]


def test_classes_and_files_come_in_natural_order_as_rgb_channels_first(root: Path) -> None:
    data = card(root, standardise="none").load(progress=False)
    assert data.class_names == ("class2", "class10") and data.input_shape == (3, 5, 6)
    assert data.train.y.tolist() == [0] * 12 + [1] * 12
    with Image.open(root / "train" / "class10" / "11.png") as file:
        expected = np.asarray(file).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(data.train.x[23], expected, rtol=1e-6)
    assert data.test is not None and data.test.y.tolist() == [0] * 3 + [1] * 3


def test_hidden_files_and_files_that_are_no_images_are_passed_over(root: Path) -> None:
    before = card(root).load(progress=False)
    (root / "train" / "class2" / "notes.txt").write_text("x")
    (root / "train" / "class2" / ".hidden.png").write_text("x")
    (root / "train" / ".git").mkdir()
    assert card(root).load(progress=False).train.x.equal(before.train.x)


def test_greyscale_is_repeated_to_three_channels(tmp_path: Path) -> None:
    grey = draw(tmp_path / "train" / "a" / "0.png", seed=0, mode="L")
    draw(tmp_path / "train" / "b" / "0.PNG", seed=1)
    x = card(tmp_path, standardise="none").load(progress=False).train.x
    np.testing.assert_allclose(x[0], np.stack([grey] * 3) / 255, rtol=1e-6)


def test_a_tree_without_test_folder_has_no_test_split(tmp_path: Path) -> None:
    draw(tmp_path / "train" / "a" / "0.png", seed=0)
    draw(tmp_path / "train" / "b" / "0.png", seed=1)
    assert card(tmp_path).load(progress=False).test is None


def test_the_second_load_decodes_nothing_and_gives_the_same(root: Path, cache: Path, decoded: list[str]) -> None:
    first = card(root).load(progress=False)
    count = len(decoded)
    second = card(root).load(progress=False)
    assert len(decoded) == count >= 30
    assert second.train.x.equal(first.train.x) and second.facts == first.facts
    assert sorted(entry.name for entry in cache.iterdir()) == [".lock", *FILES]
    assert not (root / ".lab_cache").exists()


def test_one_flipped_byte_in_the_cache_is_found_and_the_cache_made_again(
    root: Path, cache: Path, decoded: list[str]
) -> None:
    first = card(root).load(progress=False)
    content = bytearray((cache / "train-native.uint8").read_bytes())
    content[7] ^= 1
    (cache / "train-native.uint8").write_bytes(content)
    decoded.clear()
    assert card(root).load(progress=False).train.x.equal(first.train.x)
    assert len(set(decoded)) == 24  # the training split only
    decoded.clear()
    card(root).load(progress=False)
    assert not decoded


@pytest.mark.parametrize("content", [b"", b"not json", b"[]", b"{}"])
def test_a_damaged_header_makes_the_cache_again(root: Path, cache: Path, content: bytes) -> None:
    first = card(root).load(progress=False)
    (cache / "train-native.json").write_bytes(content)
    assert card(root).load(progress=False).train.x.equal(first.train.x)
    assert json.loads((cache / "train-native.json").read_bytes())["shape"] == [24, 3, 5, 6]


def test_a_changed_added_or_touched_file_makes_the_cache_again(root: Path, decoded: list[str]) -> None:
    first = card(root, standardise="none").load(progress=False)
    draw(root / "train" / "class2" / "0.png", seed=77)
    changed = card(root, standardise="none").load(progress=False)
    assert not changed.train.x[0].equal(first.train.x[0]) and changed.train.x[1:].equal(first.train.x[1:])
    draw(root / "train" / "class10" / "99.png", seed=78)
    assert len(card(root).load(progress=False).train) == 25
    decoded.clear()
    os.utime(root / "test" / "class2" / "0.png", ns=(0, 0))
    card(root).load(progress=False)
    assert len(set(decoded)) == 6  # the test split only


def test_a_cache_beside_the_images_is_made_when_asked_for_and_used_as_long_as_it_is_valid(
    root: Path, cache: Path, decoded: list[str]
) -> None:
    first = card(root, cache="beside").load(progress=False)
    assert sorted(entry.name for entry in (root / ".lab_cache").iterdir()) == [".lock", *FILES]
    (root / ".lab_cache" / ".lock").unlink()  # as it was when it was made by default
    decoded.clear()
    assert card(root).load(progress=False).train.x.equal(first.train.x)
    assert not decoded and not cache.exists()
    for split in ("train", "test"):
        os.utime(root / split / "class2" / "0.png", ns=(0, 0))
    assert card(root).load(progress=False).train.x.equal(first.train.x)
    assert decoded and sorted(entry.name for entry in cache.iterdir()) == [".lock", *FILES]
    assert not (root / ".lab_cache").exists(), "a stale one is taken away"


def test_a_folder_may_hold_the_caches_of_several_trees(root: Path, tmp_path: Path, decoded: list[str]) -> None:
    other = tmp_path / "other"
    for name in ("a", "b"):
        draw(other / "train" / name / "0.png", seed=1)
    for tree in (root, other, root, other):
        card(tree, cache=str(tmp_path / "mine")).load(progress=False)
    assert len(list((tmp_path / "mine").iterdir())) == 2 and not (root / ".lab_cache").exists()
    assert len(decoded) == 30 + 2 + 3  # the first image of each split twice, for its size


def test_without_a_cache_every_load_decodes_and_nothing_is_written(
    root: Path, tmp_path: Path, decoded: list[str]
) -> None:
    kept = card(root).load(progress=False)
    before = sorted(tmp_path.rglob("*"))
    decoded.clear()
    for _ in range(2):
        data = card(root, cache=None).load(progress=False)
        assert data.train.x.equal(kept.train.x) and data.facts == kept.facts
    assert len(decoded) == 2 * (30 + 2)
    assert sorted(tmp_path.rglob("*")) == before


def test_where_the_cache_is_and_its_size_are_told_once(
    root: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card(root).load()
    told = capsys.readouterr().err
    assert f"are kept for later runs in {cache} (0.0027 MB); data.cache= says where\n" in told  # 30 images of 90 bytes
    assert told.count("data.cache=") == 1
    card(root).load()
    assert capsys.readouterr().err == ""


def test_a_tree_that_changed_leaves_no_old_caches_of_other_image_sizes(root: Path, cache: Path) -> None:
    for size in (None, 4):
        card(root, image_size=size).load(progress=False)
    (cache / ".train-native.uint8-0123").write_bytes(b"of a process that was killed")
    for split in ("train", "test"):
        os.utime(root / split / "class2" / "0.png", ns=(0, 0))
    card(root).load(progress=False)
    assert sorted(entry.name for entry in cache.iterdir()) == [".lock", *FILES]


def test_a_user_cache_that_cannot_be_written_leaves_the_images_in_memory_with_a_line(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = card(root, cache=None).load(progress=False)
    (tmp_path / "user_cache").write_text("a file where the folder should be")
    data = card(root).load()
    assert data.train.x.equal(kept.train.x) and data.facts == kept.facts
    told = capsys.readouterr().err
    assert "cannot be kept in" in told and "set data.cache=DIR or data.cache=beside\n" in told
    assert told.count("cannot be kept") == 1


def test_a_full_disk_leaves_the_images_in_memory(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    kept = card(root, cache=None).load(progress=False)
    monkeypatch.setattr(os, "fsync", full)
    assert card(root).load(progress=False).train.x.equal(kept.train.x)
    assert [file.name for file in cache.iterdir()] == [".lock"]


def test_a_chosen_cache_that_cannot_be_written_is_refused_in_one_line(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    (root / ".lab_cache").write_text("no folder")
    for choice in (str(tmp_path / "file"), "beside"):
        with pytest.raises(SettingError, match=rf"^data\.cache={choice}: .* cannot be written \(.*\); choose another"):
            card(root, cache=choice).load(progress=False)


def test_a_user_without_a_home_has_the_images_in_memory(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    before = sorted(Path.cwd().iterdir())
    assert len(card(root).load(progress=False).train) == 24
    assert sorted(Path.cwd().iterdir()) == before


def test_a_cache_folder_that_is_no_absolute_path_is_not_that_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for named in ("", "here"):
        monkeypatch.setenv("XDG_CACHE_HOME", named)
        assert lab.data.image_cache.user_cache() == tmp_path / ".cache"


def test_of_processes_that_want_the_same_cache_at_once_one_decodes_and_the_others_wait(
    root: Path, cache: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir(parents=True)
    monkeypatch.setattr(sys, "stderr", said := io.StringIO())  # what reads it takes nothing away from who writes
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(cache)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdin is not None
    assert holder.stdout.readline() == "held\n"
    kept = card(root, cache=None).load(progress=False)
    decoded.clear()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(card(root).load)
        while "waiting" not in said.getvalue():
            assert not waiting.done()
            time.sleep(0.01)
        assert not decoded
        holder.stdin.close()
        assert waiting.result().train.x.equal(kept.train.x)
    holder.wait()


HOLD = """
import fcntl, sys
with open(sys.argv[1] + "/.lock", "a") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""
"""A program that has the lock of a cache until its input ends."""


def test_mixed_sizes_are_refused_with_two_files_their_sizes_and_the_cure(root: Path, cache: Path) -> None:
    draw(root / "train" / "class10" / "5.png", seed=5, size=(7, 5))
    with pytest.raises(SettingError) as caught:
        card(root).load(progress=False)
    message = str(caught.value)
    assert "\n" not in message and "data.image_size=PIXELS" in message
    for part in (str(Path("class2/0.png")), "6x5", str(Path("class10/5.png")), "7x5"):
        assert part in message
    assert [file.name for file in cache.iterdir()] == [".lock"]


def test_train_and_test_of_different_sizes_are_refused(root: Path) -> None:
    for name in ("class2", "class10"):
        for i in range(3):
            draw(root / "test" / name / f"{i}.png", seed=i, size=(8, 8))
    with pytest.raises(SettingError, match=r"images differ in size, .*train.* is 6x5 and .*test.* is 8x8"):
        card(root).load(progress=False)


def test_image_size_makes_all_images_squares_and_has_a_cache_of_its_own(root: Path, decoded: list[str]) -> None:
    native = card(root).load(progress=False)
    draw(root / "train" / "class10" / "5.png", seed=5, size=(9, 12))
    assert card(root, image_size=4).load(progress=False).input_shape == (3, 4, 4)
    (root / "train" / "class10" / "5.png").unlink()
    draw(root / "train" / "class10" / "5.png", seed=105)
    assert card(root).load(progress=False).train.x.equal(native.train.x)
    assert card(root, image_size=4).load(progress=False).input_shape == (3, 4, 4)


def test_image_size_keeps_the_centre_of_an_oblong_image(tmp_path: Path) -> None:
    pixels = np.zeros((4, 12, 3), dtype=np.uint8)
    pixels[:, 4:8] = 200  # the central square
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "train" / name / "0.png")
    x = card(tmp_path, image_size=4, standardise="none").load(progress=False).train.x
    torch.testing.assert_close(x, torch.full((2, 3, 4, 4), 200 / 255))


def test_a_broken_image_is_named(root: Path, cache: Path) -> None:
    path = root / "train" / "class10" / "3.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(
        SettingError, match=r"^data\.root: \S*class10\S3\.png cannot be decoded \(.*\); replace or remove"
    ):
        card(root).load(progress=False)
    assert [file.name for file in cache.iterdir()] == [".lock"]


def test_sixteen_bit_images_are_refused_instead_of_clipped(root: Path) -> None:
    Image.fromarray(np.full((5, 6), 40000, dtype=np.uint16)).save(root / "train" / "class2" / "0.png")
    with pytest.raises(SettingError, match=r"class2\S0\.png has more than 8 bits per channel"):
        card(root).load(progress=False)


def test_a_tree_of_the_wrong_form_is_refused_in_one_line(root: Path, tmp_path: Path) -> None:
    with pytest.raises(
        SettingError, match=r"^data\.root is empty; set data\.root=FOLDER to a folder that holds train/"
    ):
        ImageFolder().load()
    with pytest.raises(SettingError, match=r"^data\.root=\S+ holds no folder train; data=image_folder expects .*$"):
        card(tmp_path / "nowhere").load()
    (tmp_path / "bare" / "train").mkdir(parents=True)
    with pytest.raises(SettingError, match=r"holds no class folders; expected train/<class>/<images>$"):
        card(tmp_path / "bare").load()
    (root / "train" / "empty").mkdir()
    with pytest.raises(SettingError, match=r"empty holds no images"):
        card(root).load(progress=False)
    draw(root / "train" / "empty" / "0.png", seed=0)
    with pytest.raises(SettingError, match=r"same class folders, but only one of them has empty; add or remove these$"):
        card(root).load(progress=False)


def test_a_tree_of_one_class_is_refused(tmp_path: Path) -> None:
    draw(tmp_path / "train" / "a" / "0.png", seed=0)
    with pytest.raises(
        SettingError, match=r"holds one class folder, a, but at least two classes are needed; add another"
    ):
        card(tmp_path).load(progress=False)


@pytest.mark.skipif(
    "LAB_CIFAR10_IMAGES" not in os.environ, reason="LAB_CIFAR10_IMAGES names no tree of CIFAR-10 images"
)
def test_real_cifar10_images_have_the_statistics_of_cifar10(tmp_path: Path) -> None:
    source = Path(os.environ["LAB_CIFAR10_IMAGES"])
    for folder in (source / "train").iterdir():
        (tmp_path / "train" / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:150]:
            (tmp_path / "train" / folder.name / file.name).symlink_to(file)
    data = ImageFolder(root=str(tmp_path), standardise="none").load(progress=False)
    assert data.num_classes == 10 and data.input_shape == (3, 32, 32) and len(data.train) == 1500
    # The means of all 50000 are 0.4914, 0.4822, 0.4465. Image means scatter by about 0.15: 1500 of them by 0.004.
    torch.testing.assert_close(data.train.x.mean((0, 2, 3)), torch.tensor([0.4914, 0.4822, 0.4465]), atol=0.02, rtol=0)
