"""Files of weights as people have them are read into the model, or refused in one line; no code of a file is run."""

import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lab.measure.weights import load_into, read
from lab.settings import SettingError


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), nn.Linear(3, 2))


def state(prefix: str = "", seed: int = 0) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in network(seed).state_dict().items()}


def optimizer() -> dict[str, Any]:
    """The state of one that has made a step: tensors of the shapes of the weights, by number."""
    model = network()
    made = torch.optim.Adam(model.parameters())
    model(torch.randn(5, 4)).sum().backward()
    made.step()
    return made.state_dict()


def within(part: str) -> dict[str, Tensor]:
    """The names where a part of the model is wrapped, or the part of a part."""
    return {name.replace("1.", f"1.{part}", 1) if name[0] == "1" else name: v for name, v in state().items()}


PLACES: dict[str, Any] = {
    "plain": state(),
    "net, accuracy, epoch": {"net": state(), "acc": 93.5, "epoch": 7},
    "net in DataParallel": {"net": state("module."), "acc": 93.5, "epoch": 7},
    "model_state_dict": {"model_state_dict": state(), "optimizer_state_dict": optimizer(), "loss": torch.tensor(0.5)},
    "Lightning": {
        "state_dict": state("model.") | {"loss.weight": torch.ones(2)},
        "optimizer_states": [optimizer()],
        "callbacks": {"Stopping": {"best": torch.tensor(1.0)}},
    },
    "Lightning around compile": {"state_dict": state("model._orig_mod.")},
    "compile around DDP": state("_orig_mod.module."),
    "a compiled part": {"model": within("_orig_mod.")},
    "a part in DataParallel": within("module."),
    "averaged": {"ema": state("module.") | {"n_averaged": torch.tensor(3)}},
    "two dictionaries deep": {"checkpoint": {"weights": state()}, "config": {"lr": 0.1}},
    "numbers beside the weights": state() | {"epoch": 3, "name": "mine"},
    "twice the same": {"model": state(), "best": state("module.")},
    "single precision of double": {
        "net": {name: v.double() if v.is_floating_point() else v for name, v in state().items()}
    },
}


@pytest.mark.parametrize("place", PLACES)
def test_weights_are_found_wherever_they_are_by_their_names_and_shapes(place: str, tmp_path: Path) -> None:
    torch.save(PLACES[place], tmp_path / "w.pt")
    model = network(seed=1)
    load_into(model, read(tmp_path / "w.pt"))
    for name, tensor in model.state_dict().items():
        assert tensor.equal(state()[name]), name


AMBIGUOUS: dict[str, tuple[Any, str]] = {
    "weights and their average": ({"model": state(), "model_ema": state(seed=1)}, "model.*, model_ema.*"),
    "two networks of one module": ({"net": state("student.") | state("teacher.", 1)}, "net.student.*, net.teacher.*"),
    "in two precisions": ({"net": state(), "half": {n: v.half() for n, v in state().items()}}, "net.*, half.*"),
}  # fmt: skip


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_of_several_sets_that_fit_none_is_taken(kind: str, tmp_path: Path) -> None:
    held, told = AMBIGUOUS[kind]
    torch.save(held, tmp_path / "w.pt")
    with pytest.raises(SettingError) as refused:
        load_into(network(), read(tmp_path / "w.pt"))
    assert str(refused.value) == (
        f"{tmp_path / 'w.pt'} holds several sets of weights that fit the model: {told}; save the one that is meant alone: "
        "torch.save(weights, file)"
    )


MISFITS: dict[str, tuple[Any, str]] = {
    "fewer": ({"net": {n: v for n, v in state().items() if n != "2.bias"}, "acc": 1.0}, "it lacks 2.bias;"),
    "more": ({"net": state("module.") | {"module.3.bias": torch.ones(2)}}, "it has besides 3.bias;"),
    "shape": ({"model": state() | {"2.bias": torch.ones(3)}}, "2.bias has shape [3] in the file, [2] in the model;"),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_what_does_not_fit_is_told_of_the_nearest_set(kind: str, tmp_path: Path) -> None:
    held, told = MISFITS[kind]
    torch.save(held | {"optimizer": optimizer()}, tmp_path / "w.pt")
    with pytest.raises(SettingError, match="does not fit the model: ") as refused:
        load_into(network(), read(tmp_path / "w.pt"))
    assert told in str(refused.value) and str(refused.value).endswith("; set model= and data= as it was trained")


@pytest.mark.parametrize("held", [{"acc": 1.0, "epoch": 3}, [1, 2], {"names": {"a": "b"}}, {}])
def test_a_file_without_tensors_is_told(held: Any, tmp_path: Path) -> None:
    torch.save(held, tmp_path / "w.pt")
    with pytest.raises(SettingError, match="holds no weights by name"):
        read(tmp_path / "w.pt")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.ckpt", "w.safetensors"])
def test_no_code_of_a_file_is_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"net": state(), "more": Evil()}, name)
    with pytest.raises(SettingError) as refused:
        read(Path(name))
    assert "\n" not in str(refused.value) and not Path("harmed").exists()


def write_safetensors(file: Path, tensors: dict[str, Tensor]) -> None:
    """The format, by hand: length of the header, header, bytes."""
    kinds = {torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.int64: "I64"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in tensors.items():
        raw = tensor.numpy().tobytes()
        places = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": places}
        data += raw
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
def test_safetensors_are_read_bit_for_bit(prefix: str, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    write_safetensors(tmp_path / "w.safetensors", state(prefix))
    model = network(seed=1)
    load_into(model, read(tmp_path / "w.safetensors"))
    assert all(tensor.equal(state()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("left", [0, 5, 60, -3])
def test_a_file_of_safetensors_that_was_cut_off_is_told_in_one_line(left: int, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    write_safetensors(tmp_path / "whole", state())
    (tmp_path / "w.safetensors").write_bytes((tmp_path / "whole").read_bytes()[:left])
    with pytest.raises(SettingError, match="is no whole file of safetensors") as refused:
        read(tmp_path / "w.safetensors")
    assert "\n" not in str(refused.value)


def test_without_the_package_the_cure_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    write_safetensors(tmp_path / "w.safetensors", state())
    with pytest.raises(SettingError, match="takes the package safetensors; pip install safetensors"):
        read(tmp_path / "w.safetensors")
