"""Tensors as data: files and functions of one's own, classes and real targets, and every slip in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lab.data.base import Dataset
from lab.data.own import OwnData
from lab.data.tensors import TensorFile
from lab.settings import SettingError

X = torch.randn(12, 3, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def npz(file: str = "data.npz", **arrays: Any) -> TensorFile:
    np.savez(file, **arrays)
    return TensorFile(file=file)


def of(x: Any, y: Any, **more: Any) -> Dataset:
    return npz(x_train=np.asarray(x), y_train=np.asarray(y), **more).load()


def test_the_three_kinds_of_files_hold_the_same_set() -> None:
    split = {"x_train": X, "y_train": Y, "x_test": X[:4], "y_test": Y[:4]}
    torch.save(split, "a.pt")
    save_file({name: tensor.clone() for name, tensor in split.items()}, "a.safetensors")
    np.savez("a.npz", **{name: tensor.numpy() for name, tensor in split.items()})
    for name in ("a.pt", "a.safetensors", "a.npz"):
        data = TensorFile(file=name).load()
        assert torch.equal(data.train.x, X) and torch.equal(data.train.y, Y)
        assert data.test is not None and torch.equal(data.test.y, Y[:4])
        assert (data.num_classes, data.num_outputs, data.input_shape) == (3, 3, (3, 4))
        assert data.facts["sha256"] and data.facts["classes"] == "0, 1, 2"


def test_short_names_stand_for_a_set_without_a_test_split() -> None:
    data = npz(x=X.numpy(), y=Y.numpy()).load()
    assert data.test is None and torch.equal(data.train.x, X)


def test_real_targets_are_no_classes() -> None:
    data = of(X, np.ones((12, 2, 2), np.float32))
    assert data.num_classes is None and data.num_outputs == 4 and data.class_names == ()


def test_numbers_keep_their_precision_and_whole_ones_are_tokens() -> None:
    assert of(X.double(), Y).train.x.dtype == torch.float64
    for kind in (np.uint8, np.int16, np.uint32):
        data = of(np.ones((4, 5), kind), np.arange(4, dtype=kind) % 2)
        assert data.train.x.dtype == data.train.y.dtype == torch.int64
    assert of(X > 0, Y).train.x.dtype == torch.float32
    swapped = of(X.numpy().astype(">f4"), Y.numpy().astype(">i2"))
    assert torch.equal(swapped.train.x, X) and torch.equal(swapped.train.y, Y)


def test_columns_of_labels_are_labels_and_a_row_of_inputs_is_a_column() -> None:
    assert of(X, Y[:, None]).train.y.shape == (12,)
    assert of(X, np.ones((12, 1), np.float32)).train.y.shape == (12, 1)
    assert of(np.linspace(0, 1, 12), Y).train.x.shape == (12, 1)


def test_labels_of_sequences_need_not_all_be_there() -> None:
    data = of(np.zeros((4, 5), int), np.full((4, 5), 8))
    assert data.num_classes == 9 and data.train.y.shape == (4, 5)


def test_settings_choose_classes_examples_and_labels() -> None:
    np.savez("data.npz", x_train=X, y_train=Y, x_test=X, y_test=Y)
    data = TensorFile(file="data.npz", classes=(2, 0), examples=6, random_labels=1.0, subset_seed=4).load()
    assert data.class_names == ("2", "0")
    assert data.train.y.bincount().tolist() == [3, 3]
    assert data.test is not None and torch.equal(data.test.x, X[Y != 1])
    assert {"subset_sha256", "labels_changed"} <= data.facts.keys()
    real = npz(x=X.numpy(), y=X.numpy(), file="real.npz").load()
    few = TensorFile(file="real.npz", examples=5, random_labels=1.0).load()
    assert len(few.train) == 5 and few.facts["subset"] == "uniform"
    rows = {tuple(row.flatten().tolist()) for row in real.train.y}
    assert all(tuple(row.flatten().tolist()) in rows for row in few.train.y)


def _nan(*places: int) -> Tensor:
    x = X.clone()
    x.view(12, -1)[list(places), 0] = torch.nan
    return x


SLIPS: list[tuple[Callable[[], Any], str]] = [
    (lambda: TensorFile().load(), "data.file is missing"),
    (lambda: TensorFile(file="no.npz").load(), "does not exist; data.file is relative to where you are"),
    (lambda: TensorFile(file="data.csv").load(), "expected a file whose name ends in .npz, .pt or .safetensors"),
    (lambda: npz(features=X, labels=Y).load(), "holds features, labels; expected x_train and y_train (or x and y)"),
    (lambda: npz(x_train=X, y_train=Y, x_test=X).load(), "holds x_train, y_train, x_test; expected"),
    (lambda: of(X, Y[:-1]), "x_train has 12 examples, y_train has 11"),
    (lambda: of(_nan(3, 5), Y), "x_train has 2 numbers that are not finite (NaN or inf), the first in example 3"),
    (lambda: of(X, _nan(7)), "y_train has 1 numbers that are not finite"),
    (lambda: of(X, Y + 1), "3 labels from 1 to 3 and none is 0; expected the classes 0..K-1"),
    (lambda: of(X, 2 * Y), "none is 1"),
    (lambda: of(X, Y - 1), "the label -1"),
    (lambda: of(X, 0 * Y), "all labels in y_train are 0"),
    (lambda: of(X, Y, x_test=X, y_test=Y + 1), "y_test has the label 3; those of y_train are 0..2"),
    (lambda: of(X, Y, x_test=X[:, :2], y_test=Y), "x_train is (3, 4) float32 an example, x_test (2, 4) float32"),
    (lambda: of(X, Y, x_test=X, y_test=Y.double()), "y_train is () int64 an example, y_test () float64"),
    (lambda: of(X + 0j, Y), "dtype complex64; expected real or whole numbers"),
    (lambda: of(["a", "b"], [0, 1]), "x_train has dtype <U1"),
    (lambda: of(np.array([[1], [2, 3]], dtype=object), [0, 1]), "holds an array of objects"),
    (lambda: of(np.zeros((0, 3)), np.zeros(0, int)), "shape (0, 3); expected one example at least"),
    (lambda: of(np.float64(3), Y), "expected one example at least, on the first axis"),
]


@pytest.mark.parametrize(("load", "says"), SLIPS, ids=[says for _, says in SLIPS])
def test_what_is_no_data_set_is_one_line(load: Callable[[], Any], says: str) -> None:
    with pytest.raises(SettingError) as refused:
        load()
    assert says in str(refused.value) and "\n" not in str(refused.value)


class Touch:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path("touched"),)  # type: ignore[return-value]


def test_nothing_in_a_file_is_run_and_a_broken_one_is_one_line(here: Path) -> None:
    torch.save({"x_train": X, "y_train": Touch()}, "evil.pt")
    np.save("evil.npy", np.array([Touch()], dtype=object), allow_pickle=True)
    Path("evil.npy").rename("evil.npz")
    torch.save([X, Y], "list.pt")
    for name in ("cut.npz", "cut.pt", "cut.safetensors"):
        Path(name).write_bytes(b"PK\x03\x04 no more")
    for name in ("evil.pt", "evil.npz", "list.pt", "cut.npz", "cut.pt", "cut.safetensors"):
        with pytest.raises(SettingError, match=name):
            TensorFile(file=name).load()
    assert not (here / "touched").exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"classes": 2}, "the targets of data.file=data.npz are real numbers; leave it out"),
        ({"examples": 13}, "data.examples=13 is larger than the 12 training examples"),
        ({"batch_size": 13}, "data.batch_size=13 is larger than the 12 training examples"),
    ],
)
def test_settings_that_the_tensors_cannot_satisfy_are_one_line(settings: dict[str, int], says: str) -> None:
    np.savez("data.npz", x=X, y=X)
    with pytest.raises(SettingError) as refused:
        TensorFile(file="data.npz", **settings).load()  # type: ignore[arg-type]
    assert says in str(refused.value)


CODE = """
import numpy as np
import torch
from torch.utils.data import Dataset, TensorDataset


def pair(n=6):
    return torch.randn(n, 2), torch.arange(n) % 2


def four(n=6):
    return (*pair(n), *pair(4))


def named():
    return {"x": np.random.randn(6, 2), "y": np.arange(6) % 2}


class Pairs(Dataset):
    def __init__(self, n, parts=2):
        self.n, self.parts = n, parts

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return (torch.full((2,), float(i)), i % 2, 3)[: self.parts]


def map_style():
    return Pairs(6)


def two():
    return Pairs(6), TensorDataset(*pair(4))


def triples():
    return Pairs(6, parts=3)


def empty():
    return Pairs(0)


def numbers():
    return 1, 2, 3


def stream():
    return iter([1, 2])


def raises():
    raise OSError("no disk")
"""


@pytest.mark.parametrize("name", ["pair", "four", "named", "map_style", "two"])
def test_a_function_of_ones_own_returns_a_set_in_many_ways(name: str, here: Path) -> None:
    (here / "mine.py").write_text(CODE)
    state = torch.get_rng_state()
    data, again = (OwnData(path=f"mine.py:{name}").load() for _ in range(2))
    assert data.train.x.shape == (6, 2) and data.train.y.tolist() == [0, 1, 0, 1, 0, 1]
    assert (data.test is not None) == (name in ("four", "two"))
    assert torch.equal(data.train.x, again.train.x) and data.facts == again.facts
    assert torch.equal(torch.get_rng_state(), state)


def test_what_the_code_draws_is_of_the_subset_seed(here: Path) -> None:
    (here / "mine.py").write_text(CODE)
    one, other = (OwnData(path="mine.py:pair", args={"n": 8}, subset_seed=seed).load() for seed in (0, 1))
    assert len(one.train) == 8 and not torch.equal(one.train.x, other.train.x)
    assert one.facts["sha256"] != other.facts["sha256"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("numbers", "returned a tuple of int, int, int; expected (x, y), (x, y, x_test, y_test)"),
        ("stream", "returned a list_iterator; expected"),
        ("triples", "the examples of its Pairs are no pairs (x, y)"),
        ("empty", "the examples of its Pairs are no pairs"),
        ("raises", "data.path=mine.py:raises raised OSError: no disk (mine.py, line 55)"),
    ],
)
def test_code_that_returns_no_set_is_one_line(name: str, says: str, here: Path) -> None:
    (here / "mine.py").write_text(CODE)
    with pytest.raises(SettingError) as refused:
        OwnData(path=f"mine.py:{name}").load()
    assert says in str(refused.value) and "\n" not in str(refused.value)
