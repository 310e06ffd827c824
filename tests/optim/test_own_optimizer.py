"""Optimisers of one's own: any of torch, functions of weights or of the model, several as one; Muon with its rest."""

from pathlib import Path

import pytest
import torch
from torch import nn, optim

from lab.optim.joint import Joint, members_of
from lab.optim.own import OwnOptimizer
from lab.settings import SettingError

CODE = """
import torch


def several(model, lr=0.1):
    flat = [p for p in model.parameters() if p.dim() == 1]
    rest = [p for p in model.parameters() if p.dim() > 1]
    return [torch.optim.SGD(rest, lr=lr, momentum=0.9), torch.optim.Adam(flat, lr=lr / 10)]


def twice(params, lr=0.1):
    return [torch.optim.SGD(params, lr=lr), torch.optim.Adam(params, lr=lr)]


def number(params):
    return 3


class NoRate(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {})
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CODE)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))


def gradient(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    model.zero_grad()
    model(torch.randn(5, 1, 4, generator=generator)).square().mean().backward()


def test_any_optimiser_of_torch_is_called_with_its_arguments() -> None:
    made = OwnOptimizer(path="torch.optim:NAdam", args={"lr": 0.02, "betas": [0.8, 0.99]}).of(net())
    assert isinstance(made, optim.NAdam)
    assert made.param_groups[0]["lr"] == 0.02 and list(made.param_groups[0]["betas"]) == [0.8, 0.99]


def test_muon_has_the_matrices_and_adamw_the_rest_at_the_same_rate_which_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, alone = net(), net()
    made = OwnOptimizer(path="torch.optim:Muon", args={"lr": 0.02}).of(model)
    first, second = members_of(made)
    assert isinstance(first, optim.Muon) and type(second) is optim.AdamW
    told = capsys.readouterr().err
    assert "it moves 18 weights, and the other 19 (0.weight, 0.bias, 2.bias, ...) are moved by AdamW" in told
    assert told.count("\n") == 1 and "at the same learning rate, 0.02" in told
    matrices = [p for p in alone.parameters() if p.dim() == 2]
    twins = [optim.Muon(matrices, lr=0.02), optim.AdamW([p for p in alone.parameters() if p.dim() != 2], lr=0.02)]
    for step in range(3):
        for one in (model, alone):
            gradient(one, step)
        made.step()
        for twin in twins:
            twin.step()
    for p, q in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(p, q)


def test_muon_by_itself_moves_a_model_of_matrices_and_none_without(capsys: pytest.CaptureFixture[str]) -> None:
    made = OwnOptimizer(path="torch.optim:Muon").of(nn.Linear(3, 2, bias=False))
    assert isinstance(made, optim.Muon) and not capsys.readouterr().err
    with pytest.raises(SettingError, match="takes matrices only, and the model has none"):
        OwnOptimizer(path="torch.optim:Muon").of(nn.LayerNorm(3))


def test_several_optimisers_go_on_bit_for_bit_from_their_state() -> None:
    card, whole, broken = OwnOptimizer(path="mine.py:several", args={"lr": 0.2}), net(), net()
    one, other = card.of(whole), card.of(broken)
    assert isinstance(one, Joint) and [group["lr"] for group in one.param_groups] == [0.2, 0.02]
    for step in range(4):
        if step == 2:
            state = other.state_dict()
            other = card.of(broken)
            other.load_state_dict(state)
        for model, updater in ((whole, one), (broken, other)):
            updater.zero_grad()
            gradient(model, step)
            updater.step()
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), broken.parameters(), strict=True))
    with pytest.raises(KeyError):
        other.load_state_dict(optim.SGD(broken.parameters(), lr=1.0).state_dict())


@pytest.mark.parametrize(
    ("path", "args", "says"),
    [
        ("mine.py:twice", {}, "hold twice the same weights"),
        ("mine.py:number", {}, "returned int; expected a torch.optim.Optimizer, or a list of them"),
        ("mine.py:NoRate", {}, "have no lr"),
        ("torch.optim:LBFGS", {}, "its step needs a closure"),
        ("torch.optim:SGD", {"lr": -1}, "raised ValueError: Invalid learning rate: -1"),
        ("torch.optim:SGD", {"rate": 1}, "unexpected keyword argument 'rate'"),
    ],
)
def test_what_is_no_optimiser_is_one_line(path: str, args: dict[str, float], says: str) -> None:
    with pytest.raises(SettingError) as refused:
        OwnOptimizer(path=path, args=args).of(net())
    assert says in str(refused.value) and "\n" not in str(refused.value)
