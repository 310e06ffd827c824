"""A Hugging Face model built from a configuration: Hessian, trace and noise on padded batches against a dense truth.

The truth is written out in float64 on the eager attention of a copy, with a criterion of its own. Where the model computes
its loss itself it does so in float32, whatever its weights are: to 1e-6 of the largest entry then.
"""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lab import Bench, noise, sharpness
from lab.curvature.operators import hessian
from lab.curvature.trace import hessian_trace
from lab.objective import BatchesObjective

transformers = pytest.importorskip("transformers")
DOUBLE = torch.float64
Batch = dict[str, Tensor]


def gpt(attention: str = "sdpa") -> Any:
    """A causal model of 110 weights, its embedding tied to its output, with dropout."""
    config = transformers.GPT2Config(
        vocab_size=5, n_positions=6, n_embd=2, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel._from_config(config, attn_implementation=attention)
    for p in model.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    return model


def padded(seed: int = 0) -> list[Batch]:
    """Sequences of 2 to 6 tokens in batches of 3, 3 and 2, padded to other lengths, the padding with label -100."""
    generator, batches = torch.Generator().manual_seed(seed), list[Batch]()
    for rows, length in ((3, 6), (3, 4), (2, 5)):
        ids = torch.randint(5, (rows, length), generator=generator)
        there = torch.arange(length) < torch.randint(2, length + 1, (rows, 1), generator=generator)
        batches.append({"input_ids": ids, "attention_mask": there.long(), "labels": ids.masked_fill(~there, -100)})
    return batches


def next_token(outputs: Any, batch: Batch) -> Tensor:
    return cross_entropy(outputs.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


class Truth:
    """L, its gradient, its Hessian and the rows N t_i / T d loss_i/dw, written out in float64 without dropout."""

    def __init__(self, model: Any, batches: list[Batch], by: str):
        config = copy.deepcopy(model.config)
        self.model = type(model)._from_config(config, attn_implementation="eager").double().eval()
        self.model.load_state_dict(model.state_dict())
        self.params = list(self.model.parameters())
        counts = [len(b["labels"]) if by == "examples" else int((b["labels"][:, 1:] != -100).sum()) for b in batches]
        total = sum(n * self.loss(b) for n, b in zip(counts, batches, strict=True)) / sum(counts)
        g = torch.cat([t.flatten() for t in torch.autograd.grad(total, self.params, create_graph=True)])
        self.value, self.gradient = total.detach(), g.detach()
        self.H = torch.stack([self.flat(torch.autograd.grad(one, self.params, retain_graph=True)) for one in g])
        if by == "tokens":
            examples = [{key: t[i : i + 1] for key, t in b.items()} for b in batches for i in range(len(b["labels"]))]
            tokens = torch.tensor([int((one["labels"][:, 1:] != -100).sum()) for one in examples], dtype=DOUBLE)
            rows = torch.stack([self.flat(torch.autograd.grad(self.loss(one), self.params)) for one in examples])
            self.rows = (len(rows) / tokens.sum() * tokens)[:, None] * rows

    def loss(self, batch: Batch) -> Tensor:
        return next_token(self.model(batch["input_ids"], attention_mask=batch["attention_mask"]), batch)

    @staticmethod
    def flat(tensors: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([t.flatten() for t in tensors]).detach()


@cache
def truth_of(by: str) -> Truth:
    return Truth(gpt(), padded(), by)


@pytest.mark.filterwarnings("ignore:the loss of a batch is the mean over its tokens")
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("by", ["examples", "tokens"])
def test_value_gradient_and_hessian_are_those_of_the_dense_truth(by: Any, inside: bool) -> None:
    model = gpt()
    truth = truth_of(by)
    loss = BatchesObjective(model.train(), None if inside else next_token, padded(), weight=by, batch_norm="train")
    w = loss.weights.double()
    H = hessian(loss, w)
    found = torch.stack([H @ e for e in torch.eye(len(w), dtype=DOUBLE)[::20]])
    allowed = 1e-6 if inside else 1e-12
    for a, b in ((loss.value(w), truth.value), (loss.grad(w), truth.gradient), (found, truth.H[::20])):
        assert (a - b).abs().max() <= allowed * b.abs().max()


@pytest.mark.filterwarnings("ignore:the loss of a batch is the mean over its tokens")
@pytest.mark.parametrize("by", ["examples", "tokens"])
def test_the_trace_is_that_of_the_dense_truth(by: Any) -> None:
    loss, truth = BatchesObjective(gpt(), next_token, padded(), weight=by), truth_of(by)
    w = loss.weights.double()
    H = hessian(loss, w)
    trace = hessian_trace(loss, w, operator=H, tol=1e-9, max_matvecs=4 * len(w))
    assert trace.method == "diagonal" and abs(trace.value - float(truth.H.trace())) <= 1e-12 * float(truth.H.norm())


def test_noise_is_that_of_gradients_of_single_sequences_by_their_tokens() -> None:
    model = gpt()
    truth = truth_of("tokens")
    loss = BatchesObjective(model, next_token, padded(), weight="tokens")
    w = loss.weights.double()
    assert (loss.example_grads(w) - truth.rows).abs().max() <= 1e-12 * truth.rows.abs().max()
    assert (truth.rows.mean(0) - truth.gradient).abs().max() <= 1e-12
    centred = truth.rows - truth.rows.mean(0)
    result = noise(loss, w, hessian=False)
    assert abs(result.trace.value - float(centred.square().sum(1).mean())) <= 1e-10 * result.trace.value
    eigenvalues = torch.linalg.eigvalsh(centred @ centred.T / len(centred)).flip(0)
    assert (result.spectrum.values[:5] - eigenvalues[:5]).abs().max() <= 1e-10 * eigenvalues[0]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_give_the_same_numbers(reentrant: bool) -> None:
    plain, model = gpt(), gpt("eager")
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    one, other = (BatchesObjective(m.train(), next_token, padded(), weight="tokens") for m in (plain, model))
    w = one.weights.double()
    assert (one.hvp(w, w) - other.hvp(w, w)).abs().max() <= 1e-12 * one.hvp(w, w).abs().max()


def test_a_bench_measures_sharpness_at_the_weights_of_a_classifier_in_training() -> None:
    config = transformers.BertConfig(
        vocab_size=5,
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=4,
        max_position_embeddings=6,
        num_labels=3,
    )
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).train()
    batches = [{**batch, "labels": batch["input_ids"][:, 0] % 3} for batch in padded()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    result = sharpness(Bench(model, None, batches, optimizer).snapshot(), tol=1e-6)
    loss = BatchesObjective(model, None, batches)
    H = hessian(loss, loss.weights.double())
    dense = torch.stack([H @ e for e in torch.eye(H.size, dtype=DOUBLE)])
    top = float(torch.linalg.eigvalsh(dense)[-1])
    assert abs(float(result.top.values[0]) - top) <= 1e-5 * top and abs(result.ratio - top * 0.05) <= 1e-5 * top
