"""Losses on batches that are no (x, y): against `NetworkObjective`, against sums written out, and what is refused."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lab.curvature.operators import gauss_newton, hessian
from lab.noise.covariance import covariance
from lab.noise.size import trace
from lab.objective import BatchesObjective, NetworkObjective, Unsound, audit, source

DOUBLE = torch.float64
Batches = list[dict[str, Any]]


def sequences(seed: int = 0) -> Batches:
    """Token sequences of 1 to 6 tokens, padded with label -100, in batches of 4, 4 and 3 of different lengths."""
    generator, batches = torch.Generator().manual_seed(seed), Batches()
    for rows, length in ((4, 6), (4, 4), (3, 5)):
        ids = torch.randint(5, (rows, length), generator=generator)
        lengths = torch.randint(2, length + 1, (rows, 1), generator=generator)
        labels = ids.masked_fill(torch.arange(length) >= lengths, -100)
        batches.append({"ids": ids, "labels": labels, "text": [f"{rows}.{i}" for i in range(rows)], "id": 7})
    return batches


class Speaker(nn.Module):
    """Predicts the next token (`causal`) or the present one; computes its loss itself, as the mean over tokens."""

    def __init__(self, causal: bool = True):
        super().__init__()
        torch.manual_seed(1)
        self.causal, self.embed, self.out = causal, nn.Embedding(5, 3), nn.Linear(3, 5)
        self.drop = nn.Dropout(0.5)

    def forward(self, ids: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
        logits = self.out(self.drop(torch.tanh(self.embed(ids).cumsum(1))))
        if labels is None:
            return {"logits": logits, "loss": None}
        return {"logits": logits, "loss": token_loss(logits, labels, self.causal)}


def token_loss(logits: Tensor, labels: Tensor, causal: bool) -> Tensor:
    if causal:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return cross_entropy(logits.flatten(0, 1), labels.flatten())


def written_out(model: Speaker, batches: Batches, by: str) -> tuple[Tensor, Tensor, Tensor]:
    """L, its gradient and its dense Hessian, float64, by plain double backward of a sum over batches."""
    model = model.double().eval()
    weights, losses = [], []
    for batch in batches:
        labels = batch["labels"][:, 1:] if model.causal else batch["labels"]
        weights.append(len(labels) if by == "examples" else int((labels != -100).sum()))
        losses.append(model(batch["ids"], batch["labels"])["loss"])
    total = sum(weight * loss for weight, loss in zip(weights, losses, strict=True)) / sum(weights)
    params = list(model.parameters())
    g = torch.cat([t.flatten() for t in torch.autograd.grad(total, params, create_graph=True)])
    rows = [torch.autograd.grad(one, params, retain_graph=True, materialize_grads=True) for one in g]
    H = torch.stack([torch.cat([t.flatten() for t in row]) for row in rows])
    return total.detach(), g.detach(), H


def of_tokens(model: Speaker, batches: Batches) -> Tensor:
    """Rows N t_i / T d loss_i/dw, (N, P): one backward pass for the SUM over the tokens of every sequence."""
    model, rows, tokens = model.double().eval(), [], 0
    for batch in batches:
        for ids, labels in zip(batch["ids"], batch["labels"], strict=True):
            there = labels[1:] if model.causal else labels
            logits = model(ids[None])["logits"][0]
            logits = logits[:-1] if model.causal else logits
            sum_ = cross_entropy(logits, there, reduction="sum")
            rows.append(torch.cat([t.flatten() for t in torch.autograd.grad(sum_, list(model.parameters()))]))
            tokens += int((there != -100).sum())
    return len(rows) / tokens * torch.stack(rows)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("by", ["examples", "tokens"])
def test_value_gradient_and_hessian_are_those_of_the_weighted_sum_over_batches(by: Any, causal: bool) -> None:
    model = Speaker(causal)
    loss = BatchesObjective(model, None, sequences(), weight=by)
    w = loss.weights.double()
    with pytest.warns(UserWarning, match='weight="tokens"') if by == "examples" else _nothing():
        value, H = loss.value(w), hessian(loss, w)
    found = torch.stack([H @ e for e in torch.eye(len(w), dtype=DOUBLE)])
    truth = written_out(model, sequences(), by)
    for a, b in zip((value, loss.grad(w), found), truth, strict=True):
        assert (a - b).abs().max() <= 1e-13
    assert (loss.hvp(w, w) - truth[2] @ w).abs().max() <= 1e-13


class _nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...


@pytest.mark.parametrize("causal", [True, False])
def test_examples_weighted_by_tokens_have_the_gradient_as_their_mean_and_their_covariance_is_that_of_the_noise(
    causal: bool,
) -> None:
    model = Speaker(causal)
    loss = BatchesObjective(model, None, sequences(), weight="tokens")
    w, rows = loss.weights.double(), of_tokens(model, sequences())
    assert (loss.example_grads(w) - rows).abs().max() <= 1e-13
    assert (rows.mean(0) - loss.grad(w)).abs().max() <= 1e-13
    D = rows.T @ rows / len(rows) - torch.outer(rows.mean(0), rows.mean(0))
    assert abs(trace(loss, w).value - float(D.trace())) <= 1e-12
    assert (covariance(loss, w) @ w - D @ w).abs().max() <= 1e-12


@pytest.mark.parametrize("causal", [True, False])
def test_whether_the_first_label_is_predicted_is_found_out_and_said(causal: bool) -> None:
    loss = BatchesObjective(Speaker(causal), None, sequences(), weight="tokens")
    assert ("the first of every row left out" in str(loss.weighing)) == causal
    assert ("the first of every row left out" in repr(loss)) == causal
    assert f"on 3 batches, {loss.weighing}" in audit(loss).notes
    tokens = [int((b["labels"][:, int(causal) :] != -100).sum()) for b in sequences()]
    assert loss.weights_of_batches == tuple(tokens)


def test_the_mean_of_means_over_tokens_says_that_it_is_none_over_tokens_and_has_no_single_examples() -> None:
    loss = BatchesObjective(Speaker(), None, sequences())
    with pytest.warns(UserWarning, match="mean of the means of batches"):
        loss.value(loss.weights)
    with pytest.raises(Unsound, match='weight="tokens"; single examples have no gradients of their own'):
        loss.example_grads(loss.weights)
    assert any("mean of the means of batches" in note for note in audit(loss).notes)


def pairs(size: int, num: int = 23) -> tuple[nn.Module, Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(2)
    x, y = torch.randn(num, 4), torch.randint(3, (num,))
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    return model, x, y, list(zip(x.split(size), y.split(size), strict=True))


INDEX = torch.tensor([22, 3, 3, 17, 0])
METHODS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "value": lambda loss, w: loss.value(w),
    "grad": lambda loss, w: loss.grad(w),
    "hvp": lambda loss, w: loss.hvp(w, w),
    "third": lambda loss, w: loss.third(w, w, w),
    "rebuilt hessian": lambda loss, w: hessian(loss, w, memory=0) @ w,
    "gauss-newton": lambda loss, w: gauss_newton(loss, w) @ w,
    "example_grads": lambda loss, w: loss.example_grads(w),
    "some example_grads": lambda loss, w: loss.example_grads(w, INDEX),
    "restrict": lambda loss, w: loss.restrict(INDEX).hvp(w, w),
    "examples of restrict": lambda loss, w: loss.restrict(INDEX).example_grads(w),
    "restrict of restrict": lambda loss, w: loss.restrict(INDEX).restrict(torch.tensor([4, 1])).example_grads(w),
    "replicas": lambda loss, w: loss.replica_grads(torch.stack([w, -w]), INDEX[None].expand(2, -1)),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("held", [True, False])
def test_pairs_in_batches_are_the_network_objective(method: str, held: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """To round-off of float64, with a ragged last batch, in memory and drawn anew in every pass."""
    model, x, y, _ = pairs(5)
    if not held:
        monkeypatch.setattr(source, "HELD_BYTES", 0)
    one = NetworkObjective(model, cross_entropy, (x, y))
    other = BatchesObjective(model, cross_entropy, DataLoader(TensorDataset(x, y), batch_size=5))
    assert other.source.held == held
    w = one.weights.double()
    a, b = METHODS[method](one, w), METHODS[method](other, w)
    assert a.dtype == b.dtype and (a - b).abs().max() <= 1e-12


def test_a_batch_of_no_tokens_is_left_out_and_its_examples_have_gradient_zero() -> None:
    model, batches = Speaker(), sequences()
    silent = {**batches[1], "labels": torch.full_like(batches[1]["labels"], -100)}
    some = BatchesObjective(model, None, [batches[0], silent, batches[2]], weight="tokens")
    others = BatchesObjective(model, None, [batches[0], batches[2]], weight="tokens")
    w = some.weights.double()
    assert some.value(w) == others.value(w) and torch.equal(some.grad(w), others.grad(w))
    assert (some.example_grads(w)[4:8] == 0).all() and some.num_examples == 11
    with pytest.raises(ValueError, match="all batches have weight zero"):
        BatchesObjective(model, None, [silent], weight="tokens").value(w)


def test_a_loader_that_is_too_large_is_drawn_anew_in_every_pass_one_batch_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x, y, _ = pairs(5)
    monkeypatch.setattr(source, "HELD_BYTES", 0)
    drawn = Drawn(x, y)
    loss = BatchesObjective(model, cross_entropy, drawn)
    w = loss.weights
    loss.grad(w)
    before = drawn.passes
    loss.grad(w)
    assert drawn.passes == before + 1 and not loss.source.held
    drawn.x = x + 1e-3
    with pytest.raises(ValueError, match=r"change from pass to pass \(batch 0 is another than before\)"):
        loss.grad(w)


class Drawn:
    """An iterable of batches that counts how often it is gone through."""

    def __init__(self, x: Tensor, y: Tensor):
        self.x, self.y, self.passes = x, y, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        yield from zip(self.x.split(5), self.y.split(5), strict=True)


class Noisy(Drawn):
    """Augments."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in super().__iter__():
            yield x + 0.1 * torch.randn_like(x), y


class Endless(IterableDataset):
    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield torch.zeros(2)


def refused() -> dict[str, tuple[Callable[[], Any], str]]:
    model, x, y, batches = pairs(5)
    data = TensorDataset(x, y)

    def of(data: Any, loss: Any = cross_entropy, **how: Any) -> Callable[[], Any]:
        return lambda: BatchesObjective(model, loss, data, **how).value(
            torch.cat([p.flatten() for p in model.parameters()])
        )

    def summed(f: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(f, y, reduction="sum")

    return {
        "shuffles": (of(DataLoader(data, 5, shuffle=True)), r"5 of 5 have other contents.*shuffle=False"),
        "augments": (of(Noisy(x, y)), "other contents"),
        "generator": (of(batch for batch in batches), r"a generator, which can be gone through once only.*list\("),
        "dataset": (of(data), "TensorDataset of single examples"),
        "one batch": (of({"x": x}), r"one batch at most.*\[data\]"),
        "endless": (of(DataLoader(Endless(), 4)), "did not end after"),
        "empty": (of([]), "no batches"),
        "sum": (of(batches, summed), "is the sum of those of its examples"),
        "reduction": (of(batches, nn.CrossEntropyLoss(reduction="sum")), 'expected "mean"'),
        "no scalar": (of(batches, nn.CrossEntropyLoss(reduction="none")), "expected"),
        "no loss": (of([x], None), r"loss=None, but what the network returns for \(23, 4\), a Tensor, has no .loss"),
        "no call": (
            of([{"a": {"b": x}}], lambda f, batch: f.mean()),
            r"cannot be called on dict\(a dict\(b \(23, 4\)\)\)",
        ),
        "no labels": (of([(x, x)], nn.MSELoss(), weight="tokens"), 'weight="tokens" counts the labels'),
        "ambiguous": (of([(x.T, y)]), r"first dimensions differ \(4, 23\)"),
        "weight": (of(batches, weight="words"), "weight='words'"),
        "negative": (of(batches, weight=lambda batch: -1), "expected a number >= 0"),
    }


@pytest.mark.parametrize("what", refused())
def test_what_is_no_function_of_the_weights_or_no_mean_is_refused_in_one_line(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "MOST_WITHOUT_LENGTH", 20)
    make, told = refused()[what]
    with pytest.raises((ValueError, TypeError), match=told) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("own", [None, torch.Generator().manual_seed(3)])
@pytest.mark.parametrize("held", [2**30, 0])
def test_going_through_a_loader_draws_nothing_from_any_generator(
    held: int, own: torch.Generator | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "HELD_BYTES", held)
    model, x, y, _ = pairs(5)
    before = torch.get_rng_state(), np.random.get_state()[1].sum(), random.getstate()
    kept = own.get_state() if own else None
    loss = BatchesObjective(model, cross_entropy, DataLoader(TensorDataset(x, y), 5, generator=own))
    loss.grad(loss.weights)
    assert torch.equal(torch.get_rng_state(), before[0]) and (own is None or torch.equal(own.get_state(), kept))
    assert np.random.get_state()[1].sum() == before[1] and random.getstate() == before[2]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, packed: PackedSequence) -> Tensor:
        return self.out(self.rnn(packed)[1][0][-1])


def test_packed_sequences_are_cut_into_their_sequences() -> None:
    torch.manual_seed(3)
    x, y, lengths = torch.randn(5, 6, 4), torch.randint(3, (5,)), torch.tensor([2, 6, 1, 3, 6])
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    loss = BatchesObjective(Recurrent(), cross_entropy, [(packed, y)])
    w = loss.weights.double()
    alone = [(pack_padded_sequence(x[i : i + 1], lengths[i : i + 1], batch_first=True), y[i : i + 1]) for i in range(5)]
    singles = torch.stack([BatchesObjective(loss.model, cross_entropy, [one]).grad(w) for one in alone])
    assert loss.num_examples == 5
    assert (loss.example_grads(w) - singles).abs().max() <= 1e-12
    assert (loss.restrict(torch.tensor([3, 1])).grad(w) - singles[[3, 1]].mean(0)).abs().max() <= 1e-12


@dataclass
class Item:
    x: Tensor
    y: Tensor


def test_a_forward_of_ones_own_takes_a_batch_of_any_class_and_a_loss_whose_second_parameter_is_batch_all_of_it() -> (
    None
):
    model, x, y, batches = pairs(5)
    truth = NetworkObjective(model, cross_entropy, (x, y))
    w = truth.weights.double()
    items = [Item(*batch) for batch in batches]
    loss = BatchesObjective(model, lambda f, b: cross_entropy(f, b.y), items, forward=lambda model, b: model(b.x))
    assert (loss.example_grads(w) - truth.example_grads(w)).abs().max() <= 1e-12
    whole = BatchesObjective(model, lambda f, batch: cross_entropy(f, batch[1]), batches)
    assert abs(float(whole.value(w) - truth.value(w))) <= 1e-12


def test_a_loss_that_looks_at_the_weights_of_the_model_is_differentiated_in_them() -> None:
    model, x, y, batches = pairs(5)
    decayed = BatchesObjective(
        model, lambda f, y: cross_entropy(f, y) + sum(p.square().sum() for p in model.parameters()), batches
    )
    w = decayed.weights.double()
    assert (decayed.grad(w) - NetworkObjective(model, cross_entropy, (x, y)).grad(w) - 2 * w).abs().max() <= 1e-12


def test_train_mode_batch_norm_normalises_by_every_batch_and_noise_goes_by_running_statistics() -> None:
    _, x, y, batches = pairs(8)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    model(x)
    loss = BatchesObjective(model, cross_entropy, batches, batch_norm="train")
    w = loss.weights.double()
    chunked = NetworkObjective(model, cross_entropy, (x, y), chunk_size=8, batch_norm="train")
    assert abs(float(loss.value(w) - chunked.value(w))) <= 1e-12
    with pytest.raises(Unsound, match='use batch_norm="eval"'):
        loss.example_grads(w)
    running = NetworkObjective(model, cross_entropy, (x, y)).example_grads(w)
    assert (loss.with_running_statistics().example_grads(w) - running).abs().max() <= 1e-12


def test_tied_and_frozen_weights_buffers_and_modes_are_left_as_found() -> None:
    model = Speaker().train()
    model.out.weight = nn.Parameter(torch.randn(5, 3))
    model.embed.weight = model.out.weight
    model.out.bias.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loss = BatchesObjective(model, None, sequences(), weight="tokens", batch_norm="train")
    assert loss.num_params == 15
    loss.hvp(loss.weights, loss.weights)
    loss.example_grads(loss.weights)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training and model.drop.training and all(p.grad is None for p in model.parameters())


def test_strings_and_arrays_go_along_with_their_rows_and_other_things_stay() -> None:
    batches = [
        {"x": torch.arange(3.0) + i, "name": [f"{i}.{j}" for j in range(3)], "at": np.arange(3) + i, "scale": 2.0}
        for i in (0, 10)
    ]
    few = BatchesObjective(nn.Linear(1, 1), None, batches).restrict(torch.tensor([4, 0, 2]))
    [batch] = few.source
    assert batch["x"].tolist() == [0.0, 2.0, 11.0] == batch["at"].tolist()
    assert batch["name"] == ["0.0", "0.2", "10.1"] and batch["scale"] == 2.0


def test_examples_of_different_shapes_do_not_share_a_batch_and_keep_their_order() -> None:
    model, index = Speaker(), torch.tensor([10, 0, 5, 1])
    loss = BatchesObjective(model, None, sequences(), weight="tokens")
    few, w = loss.restrict(index), loss.weights.double()
    assert [len(batch["ids"]) for batch in few.source] == [2, 1, 1]
    rows, tokens = loss.example_grads(w, index), loss.weighing.of_rows(next(iter(loss.source)))
    every = torch.cat([loss.weighing.of_rows(batch) for batch in loss.source])
    share = every.mean() / every[index].mean()  # g_i go by the tokens of all, those of a mini-batch by its own
    assert (few.example_grads(w) - share * rows).abs().max() <= 1e-13 and len(tokens) == 4
    assert (few.grad(w) - share * rows.mean(0)).abs().max() <= 1e-13
