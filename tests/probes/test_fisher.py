"""The Fisher probe on networks small enough for dense matrices, in float64 where numbers are compared."""

import math
import warnings

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

from lab.curvature.operators import gauss_newton, hessian
from lab.landscapes.quadratic import Quadratic
from lab.noise.covariance import covariance
from lab.noise.information import sampled_fisher, true_fisher
from lab.objective import NetworkObjective
from lab.probes.base import Examples, Plan, Snapshot
from lab.probes.fisher import Fisher, fisher
from lab.probes.fisher_matrices import MATRICES
from lab.settings import SettingError
from lab.streams import stream


@pytest.fixture(scope="module")
def loss() -> NetworkObjective:
    """P = 93, partly trained."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)).double()
    x = torch.randn(50, 6, dtype=torch.float64)
    objective = NetworkObjective(model, functional.cross_entropy, (x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5)))
    w = objective.weights
    for _ in range(30):
        w = w - 0.5 * objective.grad(w)
    nn.utils.vector_to_parameters(w, model.parameters())
    return objective


@pytest.fixture(scope="module")
def dense(loss: NetworkObjective) -> dict[str, Tensor]:
    w, g = loss.weights, loss.grad(loss.weights)
    H, G, E = hessian(loss, w).dense(), gauss_newton(loss, w).dense(), covariance(loss, w, centred=False).dense()
    S = sampled_fisher(loss, w, generator=stream(0, "fisher/labels", 0)).dense()
    found = (true_fisher(loss, w).dense(), S, E, E - torch.outer(g, g), G, H, H - G)
    return dict(zip(MATRICES, found, strict=True))


def snapshot(loss: NetworkObjective, step: int = 0, shift: float = 0.0) -> Snapshot:
    return Snapshot(step, loss.weights + shift, lambda _: loss)


def numbers(probe: Fisher, loss: NetworkObjective, step: int = 0, shift: float = 0.0) -> dict[str, float]:
    return {tag: v for tag, v in probe.measure(snapshot(loss, step, shift)).items() if isinstance(v, float)}


def cosine(A: Tensor, B: Tensor) -> float:
    return float((A * B).sum() / A.norm() / B.norm())


def test_all_numbers_are_those_of_the_dense_matrices_where_P_is_small(loss: NetworkObjective, dense: dict) -> None:
    found = numbers(Fisher(vectors=93, tol=1e-8), loss)
    for i, (name, A) in enumerate(dense.items()):
        assert found[f"fisher/trace_{name}"] == pytest.approx(float(A.trace()), rel=1e-9)
        assert found[f"fisher/norm_{name}"] == pytest.approx(float(A.norm()), rel=1e-9)
        values = torch.linalg.eigvalsh(A)
        for rank in (1, 2, 3):
            assert found[f"fisher/lambda_{rank}_{name}"] == pytest.approx(float(values[-rank]), rel=1e-6)
        for other in MATRICES[i + 1 :]:
            assert found[f"fisher/cosine_{name}_{other}"] == pytest.approx(cosine(A, dense[other]), abs=1e-9)
        if name not in ("true", "residual"):
            distance = float((A - dense["true"]).norm() / dense["true"].norm())
            assert found[f"fisher/distance_{name}"] == pytest.approx(distance, rel=1e-9, abs=1e-7)
    for name in ("hessian", "residual"):
        smallest = float(torch.linalg.eigvalsh(dense[name])[0])
        assert found[f"fisher/lambda_min_{name}"] == pytest.approx(smallest, rel=1e-5)
    share = float(dense["residual"].norm() / dense["hessian"].norm())
    assert found["fisher/residual_share"] == pytest.approx(share, rel=1e-9)
    assert found["fisher/cosine_true_covariance"] == pytest.approx(cosine(dense["covariance"], dense["true"]), abs=1e-9)
    w = loss.weights
    assert found["fisher/rao_norm"] == pytest.approx(float(w @ dense["true"] @ w), rel=1e-9)
    assert found["fisher/converged"] == 1
    assert all(found[f"error/fisher/cosine_true_{name}"] == 0 for name in MATRICES[1:])


def test_sampled_numbers_are_within_their_errors(loss: NetworkObjective, dense: dict) -> None:
    """With 12 random vectors, in 5 standard errors: about 50 numbers, false alarm 3e-5."""
    found = numbers(Fisher(vectors=12, k=2), loss)
    seen = 0
    for i, (name, A) in enumerate(dense.items()):
        checks = {f"fisher/trace_{name}": float(A.trace()), f"fisher/norm_{name}": float(A.norm())}
        checks |= {f"fisher/cosine_{name}_{other}": cosine(A, dense[other]) for other in MATRICES[i + 1 :]}
        for tag, truth in checks.items():
            error = found[f"error/{tag}"]
            seen += error > 1e-6
            assert found[tag] == pytest.approx(truth, abs=5 * error + 1e-9), tag
    assert seen > 20
    assert found["error/fisher/trace_true"] == found["error/fisher/trace_empirical"] == 0


HEADS = {
    "classes": (functional.cross_entropy, 3, lambda n: torch.arange(n) % 3),
    "yes or no": (nn.BCEWithLogitsLoss(), 1, lambda n: (torch.arange(n) % 2).double()[:, None]),
    "numbers": (nn.MSELoss(), 2, lambda n: torch.zeros(n, 2).double()),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("draws", [1, 3])
def test_the_error_of_the_sampled_trace_is_its_scatter_over_labels(head: str, draws: int) -> None:
    """Against the Jacobians of every example: all labels there are, or Var s'As = 2 Tr (AS)^2 for normal s."""
    criterion, num, labels = HEADS[head]
    torch.manual_seed(6)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, num)).double()
    objective = NetworkObjective(model, criterion, (torch.randn(30, 4).double(), labels(30)), chunk_size=13)  # type: ignore[arg-type]
    f, total = model(objective.x), 0.0
    for row in f:
        gradients = [torch.autograd.grad(each, list(model.parameters()), retain_graph=True) for each in row]
        J = torch.stack([nn.utils.parameters_to_vector(each) for each in gradients])
        A, row = J @ J.T, row.detach()
        if head == "numbers":
            total += float(2 * (A @ A).trace())  # |f - y|^2 / 2: S = 1
            continue
        p = row.softmax(0) if num > 1 else torch.cat([row.sigmoid(), 1 - row.sigmoid()])
        scores = p - torch.eye(3).double() if num > 1 else torch.stack([p[:1] - 1, p[:1]])
        squares = torch.einsum("ka,ab,kb->k", scores, A, scores)
        total += float(p @ squares.square() - (p @ squares) ** 2)
    found = Fisher(vectors=5, k=1, draws=draws).measure(snapshot(objective))
    # Ten redraws of each of 30 examples with two numbers know the variance to about 15 % and its root to half of that.
    rel = 0.25 if head == "numbers" else 1e-9
    assert found["error/fisher/trace_sampled"] == pytest.approx((total / draws) ** 0.5 / 30, rel=rel)


def test_a_network_that_is_sure_of_its_labels_tells_that_its_sampled_trace_is_not_known() -> None:
    torch.manual_seed(8)
    model = nn.Linear(4, 3).double()
    objective = NetworkObjective(model, functional.cross_entropy, (torch.randn(20, 4).double(), torch.arange(20) % 3))
    w = objective.weights.clone()
    w[:12] *= 0.1
    w[12:] = torch.tensor([8.0, 0.0, 0.0])  # the first class, all but for 1 label in 1500
    probe = Fisher(vectors=30)
    found = {t: v for t, v in probe.measure(Snapshot(0, w, lambda _: objective)).items() if isinstance(v, float)}
    true = found["fisher/trace_true"]
    assert found["fisher/trace_sampled"] < 0.05 * true, "none of these labels was drawn"
    assert true < found["error/fisher/trace_sampled"]
    assert "labels drawn" not in probe.finding(found)


def test_figures_are_those_of_the_step_and_of_the_run(loss: NetworkObjective) -> None:
    probe = Fisher(vectors=5, k=1)
    first, second = (probe.measure(snapshot(loss, step, 0.01 * step)) for step in (0, 7))
    assert isinstance(first["fisher/matrices"], Figure)
    assert "fisher/training" not in first
    figure = second["fisher/training"]
    assert isinstance(figure, Figure)
    above, below = figure.axes
    curve = next(container for container in below.containers if container.get_label() == "Hessian H")
    drawn = curve.lines[0].get_ydata()
    assert list(drawn) == [each["fisher/cosine_true_hessian"] for each in (first, second)]
    assert above.get_ylabel() == "trace (loss / weight$^2$)"
    table = second["fisher/matrices"].axes[0]
    assert [text.get_text() for text in table.texts][:7:4] == ["1.00", "1.00"]  # with itself and with Gauss-Newton


def test_a_resumed_run_remembers_what_lies_before_it_only(loss: NetworkObjective) -> None:
    probe, resumed = Fisher(vectors=5, k=1), Fisher(vectors=5, k=1)
    for step in (0, 5, 10):
        probe.measure(snapshot(loss, step))
    resumed.load_state_dict(probe.state_dict())
    found = resumed.measure(snapshot(loss, 10))  # the run was killed behind the checkpoint and measures step 10 again
    assert resumed.state_dict()["history"][:, 0].tolist() == [0, 5, 10]
    assert found["fisher/trace_sampled"] == numbers(Fisher(vectors=5, k=1), loss, 10)["fisher/trace_sampled"]
    Fisher().load_state_dict({})


def test_finding_tells_the_last_values_and_where_they_began(loss: NetworkObjective) -> None:
    probe = Fisher(vectors=5, k=1)
    assert probe.finding({}) == ""
    first, last = (numbers(probe, loss, step, 0.3 * step) for step in (0, 1))
    told = probe.finding(last)
    for tag in ("fisher/cosine_true_hessian", "fisher/cosine_true_empirical"):
        assert f"{last[tag]:.2f} ({first[tag]:.2f} at step 0)" in told
    assert "labels drawn" not in told, "the standard error of the 50 of them is not small"
    known = {**last, "error/fisher/trace_sampled": 0.1 * last["fisher/trace_true"]}
    told_too = f"they would be {last['fisher/cosine_true_sampled']:.2f} and "
    assert told_too in probe.finding(known)
    assert told_too not in probe.finding({**known, "error/fisher/trace_sampled": math.nan})
    assert f"{last['fisher/trace_empirical'] / last['fisher/trace_true']:.2g} of the true one" in told
    assert "at step" not in Fisher().finding(last)


def test_a_loss_by_itself_is_measured_and_its_memory_goes_on(loss: NetworkObjective) -> None:
    first = fisher(loss, k=1, vectors=5)
    assert first.numbers() == {
        tag.replace("fisher/", ""): value
        for tag, value in numbers(Fisher(k=1, vectors=5), loss).items()
        if not tag.startswith("cost/")
    }
    second = fisher(snapshot(loss, 3, 0.1), k=1, vectors=5, memory=first.memory())
    assert second.history is not None and second.history[:, 0].tolist() == [0, 3]
    assert second.figure(", here").get_suptitle() == "Fisher against Hessian, here"
    assert set(second.figures()) == {"matrices", "training"} and set(first.figures()) == {"matrices"}
    assert "at step 0" in second.sentence() and "at step" not in first.sentence()
    with pytest.raises(SettingError, match=r"probe=\[fisher\]: Quadratic is no network"):
        fisher(Quadratic(torch.ones(2)), torch.zeros(2))


def test_too_few_products_for_the_eigenvalues_are_refused(loss: NetworkObjective) -> None:
    plan = Plan(loss.model, 50, lambda _: loss)
    with pytest.raises(
        SettingError, match=r"max_matvecs=4 is too few for probe.fisher.k=4 in a model of 93 weights; use"
    ):
        Fisher(k=4, max_matvecs=4).require(plan)
    Fisher(k=3, max_matvecs=4).require(plan)


def test_batch_norm_is_measured_by_its_running_statistics_also_where_training_goes_by_the_batch() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(30, 4, dtype=torch.float64), torch.arange(30) % 3
    model(x)
    both = [NetworkObjective(model, functional.cross_entropy, (x, y), batch_norm=mode) for mode in ("train", "eval")]
    train, evaluated = (numbers(Fisher(vectors=5, k=1), each) for each in both)
    assert train["fisher/trace_hessian"] == evaluated["fisher/trace_hessian"]
    assert train["fisher/distance_gauss_newton"] < 1e-7
    w = both[1].weights
    assert train["fisher/lambda_1_hessian"] == pytest.approx(
        float(torch.linalg.eigvalsh(hessian(both[1], w).dense())[-1]), rel=1e-2
    )


def test_the_residual_of_a_linear_model_is_round_off_and_not_measured() -> None:
    torch.manual_seed(2)
    objective = NetworkObjective(nn.Linear(6, 3), functional.cross_entropy, (torch.randn(40, 6), torch.arange(40) % 3))
    found = Fisher(vectors=5, k=1).measure(snapshot(objective))
    assert math.isnan(found["fisher/cosine_true_residual"])
    assert "fisher/lambda_1_residual" not in found
    assert found["fisher/cosine_true_hessian"] == pytest.approx(1, abs=1e-5)
    assert found["fisher/residual_share"] < 1e-5


def test_a_single_parameter_and_a_single_example_are_measured() -> None:
    objective = NetworkObjective(nn.Linear(1, 1, bias=False), nn.MSELoss(), (torch.ones(1, 1), torch.zeros(1, 1)))
    found = Fisher().measure(snapshot(objective))
    assert [found["fisher/trace_true"], found["fisher/lambda_1_true"]] == pytest.approx([2, 2])
    assert math.isnan(found["fisher/cosine_true_covariance"])  # one example has no noise


def test_the_residual_of_a_piecewise_linear_network_has_no_trace_and_no_small_norm() -> None:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    objective = NetworkObjective(model, functional.cross_entropy, (torch.randn(40, 5).double(), torch.arange(40) % 3))
    found = numbers(Fisher(vectors=6, k=1), objective)
    assert found["fisher/trace_residual"] == found["error/fisher/trace_residual"] == 0
    truth = hessian(objective, objective.weights).dense()
    assert found["fisher/trace_hessian"] == pytest.approx(float(truth.trace()), rel=1e-9)
    assert found["fisher/residual_share"] > 0.3


def test_layers_that_cannot_be_taken_apart_have_sampled_traces() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.inner(x).tanh())

    torch.manual_seed(3)
    model = Tied().double()
    objective = NetworkObjective(model, functional.cross_entropy, (torch.randn(40, 5).double(), torch.arange(40) % 5))
    w = objective.weights
    found = numbers(Fisher(vectors=8, k=2), objective)
    truth = float(true_fisher(objective, w).dense().trace())
    assert 0 < found["error/fisher/trace_true"] < 0.3 * truth
    assert found["fisher/trace_true"] == pytest.approx(truth, abs=5 * found["error/fisher/trace_true"])


def test_a_diverged_network_is_not_measured(loss: NetworkObjective) -> None:
    found = numbers(Fisher(), loss, shift=math.nan)
    assert set(found) == {"cost/fisher/seconds"}


def test_what_has_no_fisher_matrix_is_refused_in_one_line() -> None:
    hinge = NetworkObjective(nn.Linear(4, 3), nn.MultiMarginLoss(), (torch.randn(9, 4), torch.arange(9) % 3))
    with pytest.raises(SettingError, match=r"probe=\[fisher\]: MultiMarginLoss .* no known log-likelihood"):
        Fisher().measure(snapshot(hinge))
    with pytest.raises(SettingError, match=r"probe=\[fisher\]: Quadratic is no network"):
        Fisher().measure(Snapshot(0, torch.zeros(2), lambda _: Quadratic(torch.ones(2))))


def test_a_long_measurement_is_told_of_once_and_before_it_starts(
    loss: NetworkObjective, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.probes.fisher.LONG", 0.0)
    probe = Fisher(vectors=5, k=1)
    with pytest.warns(UserWarning, match=r"on 50 examples takes \d+ to \d+ s.*smaller probe.fisher.examples"):
        probe.measure(snapshot(loss))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe.measure(snapshot(loss, step=1))


def test_a_large_model_is_measured_on_fewer_examples(loss: NetworkObjective, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.probes.fisher.AFFORDABLE", 0)

    def loss_on(examples: Examples) -> NetworkObjective:
        return loss if examples == "auto" else loss.restrict(torch.arange(int(examples)))

    found = Fisher(vectors=5, k=1).measure(Snapshot(0, loss.weights, loss_on))
    assert found["fisher/examples"] == 32
    assert Fisher(vectors=5, k=1, examples=40).measure(Snapshot(0, loss.weights, loss_on))["fisher/examples"] == 40
