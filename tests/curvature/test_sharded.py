"""One loss over the examples of two processes: the same numbers, and the same solver, as in one."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn import functional

from lab.curvature.eigen import lanczos
from lab.curvature.operators import gauss_newton, hessian
from lab.landscapes.double_well import DoubleWell
from lab.objective import NetworkObjective, Objective, Sharded

DOUBLE = torch.float64
SHARES = slice(0, 7), slice(7, 10)
"""Uneven: the mean of the two means is not the mean."""


def data() -> tuple[Tensor, Tensor, Tensor]:
    """Inputs (10, 3), classes (10,), a direction (18,)."""
    generator = torch.Generator().manual_seed(0)
    x, v = torch.randn(10, 3, dtype=DOUBLE, generator=generator), torch.randn(18, dtype=DOUBLE, generator=generator)
    return x, torch.arange(10) % 2, v


def local(share: slice) -> NetworkObjective:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2, bias=False)).to(DOUBLE)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.arange(p.numel(), dtype=DOUBLE).view_as(p).sin())
    x, y, _ = data()
    return NetworkObjective(model, functional.cross_entropy, (x[share], y[share]), chunk_size=4)


def results(loss: Objective, w: Tensor, v: Tensor, *, kept: bool) -> dict[str, Tensor]:
    """Everything that is a sum over parts; `kept`: whether this process keeps its graphs."""
    memory = None if kept else 0
    H, G = hessian(loss, w, memory=memory), gauss_newton(loss, w, memory=memory)
    assert H.kept is kept
    pairs = lanczos(H, top=2, bottom=1, tol=1e-10)
    return {
        "examples": torch.tensor(loss.num_examples),
        "value": loss.value(w),
        "grad": loss.grad(w),
        "hvp": loss.hvp(w, v),
        "third": loss.third(w, v, v),
        "hessian": H @ v,
        "hessian value": H.value,
        "hessian gradient": H.gradient,
        "gauss newton": G @ v,
        "gauss newton gradient": G.gradient,
        "top": pairs.top.values,
        "bottom": pairs.bottom.values,
        "products": torch.tensor(pairs.top.matvecs),
    }


def worker(rank: int, folder: str) -> None:
    """What process `rank` finds, saved in `folder`."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(hours=1)
    )
    try:
        share, (_, _, v) = local(SHARES[rank]), data()
        # One process keeps its graphs and the other rebuilds them: they must stay in step all the same.
        torch.save(results(Sharded(share), share.weights, v, kept=rank == 0), f"{folder}/{rank}.pt")
        uncut = NetworkObjective(share.model, summed, (share.x, share.y))
        with pytest.raises(ValueError, match="no mean over examples"):
            Sharded(uncut)  # one chunk here, but one of two
    finally:
        distributed.destroy_process_group()


def summed(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="sum")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What the two processes found."""
    folder: Path = tmp_path_factory.mktemp("sharded")
    context = multiprocessing.get_context("fork")  # torch is loaded already
    other = context.Process(target=worker, args=(1, str(folder)))  # type: ignore[attr-defined]
    other.start()
    worker(0, str(folder))  # this process is the first of the two: one import of torch less
    other.join()
    assert other.exitcode == 0
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_two_processes_find_what_one_finds(shared: list[dict[str, Tensor]]) -> None:
    # The same sums in another order: float64 round-off, 1e-13 over a few hundred operations. The wish was 1e-6.
    whole, (_, _, v) = local(slice(None)), data()
    truth = results(whole, whole.weights, v, kept=True)
    for found in shared:
        assert found.keys() == truth.keys()
        for name, value in truth.items():
            if name != "products":
                assert (found[name] - value).abs().max() <= 1e-10 * value.abs().max(), name


def test_both_processes_find_the_same_bits_in_as_many_products(shared: list[dict[str, Tensor]]) -> None:
    first, second = shared
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_what_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(TypeError, match="DoubleWell is no mean over examples"):
        Sharded(DoubleWell())
    with pytest.raises(ValueError, match="no process group"):
        Sharded(local(SHARES[0]))
