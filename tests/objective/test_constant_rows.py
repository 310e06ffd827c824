"""What training leaves out: the row `padding_idx` of an embedding, and a single example as a batch of its own."""

import pytest
import torch
from torch import Tensor, nn

import lab
from lab.objective import NetworkObjective, Unsound, audit

Loss = nn.functional.cross_entropy


class Tagger(nn.Module):
    """Embeddings with a row for padding, mixed and read out; tied: by the same matrix."""

    def __init__(self, *, tied: bool):
        super().__init__()
        self.words, self.out = nn.Embedding(5, 3, padding_idx=0), nn.Linear(3, 5, bias=False)
        if tied:
            self.out.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.words(x)).mean(1))


def tokens() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(5, (12, 4), generator=generator), torch.randint(5, (12,), generator=generator)


def test_a_padding_row_is_a_constant_and_the_sharpness_that_of_double_backward() -> None:
    torch.manual_seed(0)
    model, (x, y) = Tagger(tied=False), tokens()
    assert (x == 0).any(), "the data hold the pad"
    with torch.no_grad():
        model.words.weight[0] = 1.0  # of a value that is not nothing
    loss = NetworkObjective(model, Loss, (x, y))
    exact = model.double()
    params = list(exact.parameters())
    g = torch.cat([d.flatten() for d in torch.autograd.grad(Loss(exact(x), y), params, create_graph=True)])
    rows = [torch.autograd.grad(entry, params, retain_graph=True, materialize_grads=True) for entry in g]
    H = torch.stack([torch.cat([d.flatten() for d in row]) for row in rows])
    top = float(torch.linalg.eigvalsh((H + H.T) / 2)[-1])
    assert float(lab.sharpness(loss, tol=1e-6).top.values[0]) == pytest.approx(top, rel=1e-5)


def test_a_padding_row_that_is_tied_moves_and_is_refused() -> None:
    torch.manual_seed(0)
    loss = NetworkObjective(Tagger(tied=True), Loss, tokens())
    with pytest.raises(Unsound):
        audit(loss, loss.weights)


@pytest.mark.parametrize(("examples", "size", "chunks"), [(17, 8, [8, 9]), (65, 16, [16, 16, 16, 17]), (5, 4, [5])])
def test_one_example_that_is_left_over_joins_the_batch_before(examples: int, size: int, chunks: list[int]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    x, y = torch.randn(examples, 3), torch.randint(2, (examples,))
    loss = NetworkObjective(model, Loss, (x, y), chunk_size=size, batch_norm="train")
    parts = [Loss(model(a), b) * len(b) / examples for a, b in zip(x.split(chunks), y.split(chunks), strict=True)]
    assert float(loss.value(loss.weights)) == pytest.approx(float(sum(parts)), rel=1e-6)
    audit(loss, loss.weights)  # no law is broken
