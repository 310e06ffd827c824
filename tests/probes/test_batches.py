"""Probes on data given as batches: probe sets, what a snapshot has of them, and which probes take them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import lab
from lab import BatchesObjective, Bench
from lab.settings import SettingError

NUM = 30


def model() -> nn.Module:
    torch.manual_seed(0)
    return Bag(nn.Tanh())


class Bag(nn.Module):
    """Classifies the mean of embedded tokens."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.embed, self.middle, self.out = nn.Embedding(7, 4), middle, nn.Linear(4, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        embedded = self.embed(tokens) * mask[..., None]
        return self.out(self.middle(embedded.sum(1) / mask.sum(1, keepdim=True)))


def rows() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for i in range(NUM):
        tokens = torch.randint(7, (5,), generator=generator)
        mask = (torch.arange(5) < torch.randint(1, 6, (1,), generator=generator)).float()
        made.append({"tokens": tokens, "mask": mask, "label": tokens[0] % 3, "text": f"row {i}"})
    return made


def loader(size: int = 8) -> DataLoader:
    return DataLoader(rows(), batch_size=size)  # type: ignore[arg-type]


def loss(outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return cross_entropy(outputs, batch["label"])


def bench(**how: Any) -> Bench:
    network = model()
    return Bench(network, loss, loader(), torch.optim.SGD(network.parameters(), lr=0.5), **how)


def of_rows(network: nn.Module, index: Tensor) -> BatchesObjective:
    whole = next(iter(loader(NUM)))
    chosen = {key: value[index] for key, value in whole.items() if isinstance(value, Tensor)}
    return BatchesObjective(network, loss, [chosen])


def test_a_probe_set_is_whole_examples_chosen_by_the_seed() -> None:
    one, again, other = (bench(seed=seed).objective(11) for seed in (3, 3, 4))
    w = one.weights
    assert one.num_examples == 11 and one.value(w) == again.value(w) != other.value(w)
    text = [item for batch in one.source for item in batch["text"]]  # type: ignore[union-attr]
    index = torch.tensor([int(item.split()[1]) for item in text])
    assert len(set(text)) == 11
    assert abs(float(one.value(w) - of_rows(one.model, index).value(w))) <= 1e-6


def test_the_batch_of_a_step_is_made_of_the_examples_of_its_index() -> None:
    index = torch.tensor([29, 2, 2, 17])
    here = bench(batch_size=4).snapshot(batch=index)
    batch = here.batch()
    assert batch is not None and here.num_train == NUM
    assert (batch.grad(here.w) - of_rows(model(), index).grad(here.w)).abs().max() <= 1e-6
    assert bench().snapshot().batch() is None


def test_where_examples_see_each_other_a_probe_set_is_made_of_whole_batches() -> None:
    network = Bag(nn.BatchNorm1d(4))
    whole = Bench(network, loss, loader())
    few = whole.objective(9)
    assert few.num_examples in (14, 16) and len(few.source) == 2  # type: ignore[union-attr]
    w = few.weights
    values = [float(BatchesObjective(network, loss, [b], batch_norm="train").value(w)) for b in loader()]
    pairs = {round((6 * values[3] + 8 * a) / 14, 5) for a in values[:3]}
    pairs |= {round((values[i] + values[j]) / 2, 5) for i, j in ((0, 1), (0, 2), (1, 2))}
    assert round(float(few.value(w)), 5) in pairs


@pytest.mark.parametrize("probe", ["sharpness", "noise", "batch_sharpness"])
def test_measurements_of_the_loss_are_those_of_the_same_examples_in_one_batch(probe: str) -> None:
    """The audit and the batches drawn are the same: to round-off of float32 in solves of 1e-3."""
    measure = getattr(lab, probe)
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    many, one = (
        Bench(network, loss, data, optimizer, batch_size=4, seed=1) for data in (loader(), [next(iter(loader(NUM)))])
    )
    a, b = (
        measure(each.snapshot(), **({"hessian": False} if probe == "noise" else {})).numbers() for each in (many, one)
    )
    assert a.keys() == b.keys()
    for name in a.keys() - {name for name in a if "error" in name or "gauss" in name}:
        assert a[name] == pytest.approx(b[name], rel=1e-2, abs=1e-6), name


@pytest.mark.parametrize("probe", ["fisher", "linear_stability", "batch_landscape", "escape"])
def test_what_goes_by_outputs_and_targets_says_in_one_line_that_it_wants_pairs(probe: str) -> None:
    with pytest.raises(
        SettingError, match=rf"probe=\[{probe}\]: it goes by the outputs .*; give data=\(x, y\)"
    ) as error:
        getattr(lab, probe)(bench().snapshot(), **({"examples": "all"} if probe == "linear_stability" else {}))
    assert "\n" not in str(error.value)


def test_forward_and_weight_of_pairs_and_a_missing_criterion_are_refused() -> None:
    x, y = torch.randn(4, 4), torch.randint(3, (4,))
    with pytest.raises(ValueError, match=r"forward and weight are of data given as batches.*data=\[\(x, y\)\]"):
        Bench(nn.Linear(4, 3), cross_entropy, (x, y), weight="tokens")
    with pytest.raises(ValueError, match="criterion=None is of batches"):
        Bench(nn.Linear(4, 3), None, (x, y))
