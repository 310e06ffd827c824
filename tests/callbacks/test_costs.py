"""What a probe will cost is said in a line before its first measurement, where it is much."""

import itertools

import pytest
import torch
from torch import nn

from lab.callbacks.budgeting import costs_of
from lab.probes.bench import Bench
from lab.probes.budget import budget_of
from lab.probes.sharpness import Sharpness


@pytest.mark.parametrize(("seconds", "budget"), [(1.0, None), (1e-6, None), (1.0, "products:100")])
def test_a_dear_probe_is_foretold_and_a_cheap_one_is_not(seconds: float, budget: str | None) -> None:
    data = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    model, ticks, lines = nn.Linear(3, 2), itertools.count(), list[str]()
    bench = Bench(model, nn.functional.cross_entropy, data, torch.optim.SGD(model.parameters(), lr=0.1), batch_size=10)
    costs = costs_of(bench, budget_of(budget))
    costs.tell, costs.clock = lines.append, lambda: seconds * next(ticks)  # every call takes so long
    costs.begin(130, torch.device("cpu"))
    probe = Sharpness()
    costs.foretell([probe], bench.snapshot())
    costs.foretell([probe], bench.snapshot())
    if seconds < 1:
        assert lines == []
        return
    # 26 products and a gradient of 1 s each, later ones 0.6 of it, against 130 steps of 1 s.
    first, after, every = 27, 16, 13 if budget is None else 39
    share = (27.0 + 16.2 * (130 // every)) / 130
    part = f"{share:.1f} times the time" if share >= 1 else f"{100 * share:.0f} %"
    expected = (
        f"sharpness at step 0: about 26 products, {first} s; then {after} s every {every} steps: {part} of the training"
    )
    assert len(lines) == 1 and lines[0].startswith(expected)
