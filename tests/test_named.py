"""Code that is named by a path: it is loaded once, from where it lies, and what is wrong with it is one line."""

import sys
from pathlib import Path

import pytest
import torch

from lab.named import digest, load, require_fit, running, source
from lab.settings import SettingError
from lab.streams import seeded

NET = """
from torch import nn

WIDTH = 3


class Net(nn.Linear):
    def __init__(self, width=2, bias=True):
        super().__init__(2, width, bias)


def fails():
    import math
    return math.sqrt(-1)
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NET)
    return tmp_path


def test_two_loads_of_a_file_give_one_class_by_whatever_path(here: Path) -> None:
    made = load("nets.py:Net", "model.path")
    assert made is load("./nets.py:Net", "model.path") is load(f"{here}/nets.py:Net", "model.path")
    assert sys.modules[made.__module__].Net is made  # type: ignore[attr-defined]


def test_a_file_that_has_changed_is_read_anew_within_the_same_second(here: Path) -> None:
    old, noted = load("nets.py:Net", "model.path"), source("nets.py:Net")
    (here / "nets.py").write_text(NET.replace("width=2", "width=5"))
    assert load("nets.py:Net", "model.path")().out_features == 5
    assert old().out_features == 2
    assert source("nets.py:Net")["sha256"] != noted["sha256"]


def test_files_of_one_name_in_two_folders_are_two_modules(here: Path) -> None:
    (here / "other").mkdir()
    (here / "other/nets.py").write_text(NET.replace("width=2", "width=7"))
    assert load("other/nets.py:Net", "model.path")().out_features == 7
    assert load("nets.py:Net", "model.path")().out_features == 2


def test_the_folder_of_a_file_can_be_imported_from_while_its_code_runs_and_no_longer(here: Path) -> None:
    folder = here / "my nets"
    folder.mkdir()
    (folder / "helper_of_nets.py").write_text("WIDTH = 4")
    (folder / "late_helper_of_nets.py").write_text("WIDTH = 6")
    (folder / "nets.py").write_text(
        "from helper_of_nets import WIDTH\ndef late():\n    import late_helper_of_nets as l\n    return WIDTH + l.WIDTH"
    )
    before = list(sys.path)
    code = load("my nets/nets.py:late", "model.path")
    with running("my nets/nets.py:late", "model.path"):
        assert code() == 10
    assert sys.path == before


def test_an_installed_package_is_named_by_its_module() -> None:
    assert load("torch.nn.functional:cross_entropy", "loss.path") is torch.nn.functional.cross_entropy
    noted = source("torch.optim:Muon")
    assert noted["file"] is not None and noted["file"].endswith("_muon.py")
    assert noted["sha256"] == digest(Path(noted["file"]))


def test_the_source_of_a_file_is_what_was_loaded(here: Path) -> None:
    assert source("nets.py:Net") == {
        "path": "nets.py:Net",
        "file": str(here / "nets.py"),
        "sha256": digest(here / "nets.py"),
    }


WRONG = [
    ("Net", "names no object; expected FILE.py:NAME or PACKAGE.MODULE:NAME"),
    ("nets.py", "names no object"),
    ("nets.py:", "names no object"),
    (":Net", "names no object"),
    ("nets.py:Nett", "nets.py has no Nett; did you mean Net?"),
    ("nets.py:zzzz", "it has Net, fails"),
    ("nets.py:WIDTH", "is of type int; expected a class or a function"),
    ("there.py:Net", "there.py does not exist"),
    ("folder.py:Net", "folder.py is no file"),
    ("nets:Net", "there is no module nets; did you mean nets.py:Net?"),
    ("nowhere.at.all:Net", "there is no module nowhere; expected FILE.py:NAME"),
    (".x:Net", "names no module"),
    ("zero.py:Net", "the file raised ZeroDivisionError: division by zero (zero.py, line 3)"),
    ("leaves.py:Net", "the file raised SystemExit: 3 (leaves.py, line 2)"),
    ("syntax.py:Net", "the file raised SyntaxError: invalid syntax (syntax.py, line 1)"),
    ("misses.py:Net", "the file raised ModuleNotFoundError: No module named 'no_such_thing' (misses.py, line 1)"),
]


@pytest.mark.parametrize(("path", "says"), WRONG, ids=[path for path, _ in WRONG])
def test_a_path_that_names_no_code_is_one_line(path: str, says: str, here: Path) -> None:
    (here / "folder.py").mkdir()
    (here / "zero.py").write_text("import math\n\n1 / 0\n")
    (here / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    (here / "syntax.py").write_text("def f(:\n")
    (here / "misses.py").write_text("import no_such_thing\n")
    modules = set(sys.modules)
    with pytest.raises(SettingError) as refused:
        load(path, "model.path")
    assert str(refused.value).startswith(f"model.path={path}")
    assert says in str(refused.value) and "\n" not in str(refused.value)
    assert not {name for name in set(sys.modules) - modules if name.startswith(("zero", "leaves", "syntax", "misses"))}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"widht": 3}, "got an unexpected keyword argument 'widht'; did you mean model.args.width?"),
        ({"zzz": 3}, "it takes width, bias"),
    ],
)
def test_arguments_that_do_not_fit_are_one_line(args: dict[str, int], says: str) -> None:
    with pytest.raises(SettingError, match=r"model\.path=nets\.py:Net: ") as refused:
        require_fit(load("nets.py:Net", "model.path"), args, "model", "nets.py:Net")
    assert says in str(refused.value)


def test_a_missing_argument_is_named() -> None:
    with pytest.raises(SettingError, match="missing a required argument: 'out_features'"):
        require_fit(torch.nn.Linear, {"in_features": 3}, "model", "torch.nn:Linear")
    require_fit(torch.nn.functional.cross_entropy, {"label_smoothing": 0.1}, "loss", "x:y", ("outputs", "targets"))
    with pytest.raises(SettingError, match="after params"):
        require_fit(torch.optim.SGD, {"rate": 1}, "optimizer", "torch.optim:SGD", ("params",))


def test_what_code_raises_is_one_line_with_the_line_of_its_file_and_ctrl_c_passes() -> None:
    with (
        pytest.raises(SettingError, match=r"^model\.path=x raised ValueError: .*\(nets\.py, line 14\)$"),
        running("nets.py:fails", "model.path=x"),
    ):
        load("nets.py:fails", "model.path")()
    with pytest.raises(KeyboardInterrupt), running("nets.py:fails", "model.path=x"):
        raise KeyboardInterrupt


def test_somebody_elses_generators_begin_at_the_seed_and_are_left_as_they_were() -> None:
    import random

    import numpy as np

    def draw() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), random.random()

    with seeded(3):
        first = draw()
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    untouched = draw()
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    with seeded(3):
        assert draw() == first
    assert draw() == untouched
