"""Random signs at the outputs of layers: z = A s has the covariance A A', so that z'Mz is Tr A'MA on average."""

import pytest
import torch
from recorded_networks import objective
from torch import Tensor, nn

from lab.curvature.operators import hessian
from lab.curvature.trace import hessian_trace
from lab.layers.algebra import Convolution, Layer, Linear
from lab.layers.kinds import Embedding, Norm

DOUBLE = torch.float64
DRAWS = 4000


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=seeded(0))


CALLS: dict[str, tuple[type[Layer], nn.Module, Tensor]] = {
    "linear": (Linear, nn.Linear(3, 2), normal(2, 3)),
    "linear on a sequence": (Linear, nn.Linear(3, 2), normal(2, 4, 3)),
    "signals": (Convolution, nn.Conv1d(4, 2, 2, groups=2, padding=1), normal(2, 4, 5)),
    "images, no bias": (Convolution, nn.Conv2d(2, 3, 2, stride=2, padding="valid", bias=False), normal(2, 2, 4, 4)),
    "one place": (Convolution, nn.Conv2d(4, 4, 2, groups=2), normal(2, 4, 2, 2)),
    "layer norm": (Norm, nn.LayerNorm(3), normal(2, 2, 3)),
    "embedding": (Embedding, nn.Embedding(4, 2, padding_idx=0), torch.tensor([[1, 3, 1, 0], [2, 2, 2, 3]])),
}


@pytest.mark.parametrize("call", CALLS)
def test_signs_have_the_covariance_of_the_parameters(call: str) -> None:
    kind, module, h = CALLS[call]
    output = module.double()(h)
    layer = kind(module, {name: name for name, _ in module.named_parameters()}, h, output)
    generator = seeded(1)
    z = torch.stack([layer.signs(generator) for _ in range(DRAWS)]).flatten(2)  # (draws, n, outputs)
    for i, rows in enumerate(output.flatten(1)):
        grads = [torch.autograd.grad(a, list(module.parameters()), retain_graph=True) for a in rows]
        A = torch.stack([torch.cat([g.flatten() for g in row]) for row in grads])  # (outputs, parameters)
        truth, off = A @ A.T, z[:, i].T @ z[:, i] / DRAWS - A @ A.T
        spread = (truth.diagonal()[:, None] * truth.diagonal() + truth.square()).sqrt() / DRAWS**0.5  # Gaussian at most
        assert bool((off.abs() <= 5 * spread + 1e-12).all())  # of 7 calls, 500 entries: false alarm 3e-4
        assert (layer.signs(generator)[i].flatten()[truth.diagonal() == 0] == 0).all()


@pytest.mark.parametrize("name", ["words", "signals"])
@pytest.mark.filterwarnings("ignore:trace not converged")
def test_networks_of_words_and_of_signals_have_the_trace_of_their_hessian(name: str) -> None:
    loss = objective(name)
    found = hessian_trace(loss, loss.weights, method="signs", tol=0, max_matvecs=300)
    truth = float(hessian(loss, loss.weights).dense().trace())
    assert found.method == "signs" and abs(found.value - truth) < 4 * found.error
