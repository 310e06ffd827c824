"""The audit of a loss: sound networks pass, whatever they are; what breaks a law is refused in one line."""

import copy
import warnings

import pytest
import torch
from strangers import BROKEN, COUPLED, HIDDEN, SOUND, data, mlp
from torch import Tensor, nn

from lab.landscapes.double_well import DoubleWell
from lab.noise.covariance import trace
from lab.objective import Audit, Decayed, NetworkObjective, Objective, Unsound, audit
from lab.probes.spectrum import spectrum

CE = nn.CrossEntropyLoss()
FIXED = ("float32 inside", "bfloat16 inside")
"""Networks whose numbers are too coarse for some differences."""


@pytest.mark.parametrize("name", SOUND)
def test_there_is_no_false_alarm(name: str) -> None:
    sound(name, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("name", SOUND)
def test_there_is_no_false_alarm_with_other_seeds(name: str, seed: int) -> None:
    sound(name, seed)


def sound(name: str, seed: int) -> None:
    """All laws hold in both modes, decided where the numbers are fine enough, and nothing of the model is changed."""
    make, kind = SOUND[name]
    torch.manual_seed(seed)
    model = make()
    before, flags = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    random = torch.get_rng_state()
    for batch_norm in ("train", "eval"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that half precision is measured in float32
            loss = NetworkObjective(model, CE, data(kind, seed), batch_norm=batch_norm)  # type: ignore[arg-type]
            found = audit(loss, seed=seed)
        assert all(law.held for law in found.laws) or (
            name in FIXED and not any(law.held is False for law in found.laws)
        )
        assert found is audit(loss.restrict(torch.arange(3))), "one audit serves all mini-batches"
        assert 0 < found.gradients < 10
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in model.modules()] == flags
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_a_law_is_refused_in_one_line(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, y = data("vectors")
    loss = NetworkObjective(mlp(BROKEN[name]()).to(dtype), CE, (x.to(dtype), y), batch_norm="train")
    with pytest.raises(ValueError) as refused:
        spectrum(loss, k=1, bottom=0)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", COUPLED)
def test_examples_that_see_each_other_are_told_and_have_no_gradients_of_their_own(name: str) -> None:
    torch.manual_seed(0)
    model, (x, y) = mlp(COUPLED[name]()), data("vectors")
    whole = NetworkObjective(model, CE, (x, y), batch_norm="train")
    try:
        assert "depend on the others of its batch" in audit(whole).sentence()
    except Unsound:
        assert name == "running mean"  # whose derivative by the batch torch does not take: it breaks a law, too
    w = whole.weights
    for single in (lambda: whole.example_grads(w), lambda: trace(whole, w), lambda: whole.replica_grads(w[None])):
        with pytest.raises(ValueError, match="depend on the others of its batch") as refused:
            single()
        assert "\n" not in str(refused.value)
    with pytest.warns(UserWarning, match="defined by its chunks of 6 examples"):
        NetworkObjective(model, CE, (x, y), chunk_size=6, batch_norm="train").value(w)


@pytest.mark.parametrize("chunk_size", [None, 7])
@pytest.mark.parametrize("name", HIDDEN)
def test_a_criterion_that_is_no_mean_is_right_in_one_chunk_and_refused_elsewhere(
    name: str, chunk_size: int | None
) -> None:
    torch.manual_seed(0)
    model, (x, y) = mlp(nn.Tanh()).double(), data("vectors")
    loss, w = NetworkObjective(model, HIDDEN[name], (x.double(), y), chunk_size=chunk_size), None
    if chunk_size is None:
        w = loss.weights
        value = HIDDEN[name](model(x.double()), y)
        truth = torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))])
        torch.testing.assert_close(loss.grad(w), truth)
        assert "no mean over examples" in audit(loss).sentence()
    else:
        with pytest.raises(ValueError, match="no mean over examples"):
            loss.value(loss.weights)
    for single in (loss.example_grads, lambda w: trace(loss, w), lambda w: loss.replica_grads(w[None])):
        with pytest.raises(ValueError, match="no mean over examples"):
            single(loss.weights)


class Crooked(Objective):
    """A loss that is no network and whose gradient is another one's."""

    num_params = 3

    def parts(self, w: Tensor):
        yield 1.0, (w.square() * w.detach()).sum()


def test_losses_that_are_no_networks_are_looked_at_too() -> None:
    assert all(law.held for law in audit(DoubleWell(), torch.tensor([0.3, 0.2])).laws)
    with pytest.raises(Unsound, match="the gradient differs from the difference of values"):
        audit(Crooked(), torch.tensor([1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="has no weights of its own"):
        audit(DoubleWell())
    inner = NetworkObjective(mlp(nn.Tanh()), CE, data("vectors"))
    assert audit(Decayed(inner, 0.1)) is audit(inner)


def test_a_linear_model_with_a_linear_loss_has_hessian_zero_and_passes() -> None:
    loss = NetworkObjective(nn.Linear(3, 1), lambda f, y: (f - y).mean(), (torch.randn(5, 3), torch.randn(5, 1)))
    assert all(law.held for law in audit(loss).laws)


def test_diverged_weights_tell_nothing() -> None:
    model = mlp(nn.Tanh())
    nn.init.constant_(model[0].weight, torch.nan)  # type: ignore[arg-type]
    found = audit(NetworkObjective(model, CE, data("vectors")))
    assert isinstance(found, Audit)
    assert found.laws == () and "not finite" in found.sentence()


def test_the_audit_can_be_left_out() -> None:
    loss = NetworkObjective(mlp(BROKEN["saved output"]()), CE, data("vectors"))
    assert spectrum(loss, k=1, bottom=0, steps=5, vectors=1, audited=False).top.converged
