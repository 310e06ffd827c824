"""python -m lab.selfcheck: does this installation measure what it should? Known answers, under a minute on a CPU.

Every check yields rows (what, expected, measured, tolerance): closed forms first, then statistics with four standard
errors (all sampling is seeded: a row that passes once passes again on the same build of torch). The exit code is 1
where a row fails. A new check is one function in `CHECKS`.
"""

import argparse
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lab.curvature.density import density
from lab.curvature.eigen import lanczos
from lab.curvature.operators import gauss_newton, hessian
from lab.curvature.pyhessian import PyHessian
from lab.curvature.trace import hessian_trace
from lab.data.digits import Digits
from lab.landscapes.double_well import DoubleWell
from lab.landscapes.quadratic import Quadratic
from lab.models.losses import CrossEntropy, MeanSquaredError
from lab.models.mlp import Mlp
from lab.objective import NetworkObjective
from lab.results import Estimate
from lab.streams import stream

ROUND_OFF = 1e-11
"""Of float64 arithmetic on a few hundred numbers of order 1, with a factor of 100 to spare."""


@dataclass(frozen=True)
class Row:
    """One fact: passed where |measured - expected| <= tolerance, so never by a NaN."""

    what: str
    expected: float
    measured: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return abs(self.measured - self.expected) <= self.tolerance


Check = Callable[[], Iterator[Row]]


def hessian_of_linear_regression() -> Iterator[Row]:
    """L = mean of 1/2 |w'x - y|^2 has H = X'X/N, whether the graph of the gradient is kept or rebuilt."""
    x, y = _normal("regression", 37, 5), torch.zeros(37, 1).double()
    loss = NetworkObjective(_linear(5, 1), lambda f, y: 0.5 * (f - y).square().sum(1).mean(), (x, y), chunk_size=8)
    w = _normal("regression weights", 5)
    for memory, how in ((2**40, "graph kept"), (0, "graph rebuilt")):
        error = (hessian(loss, w, memory=memory).dense() - x.T @ x / len(x)).abs().max()
        yield Row(f"Hessian of linear regression - X'X/N, {how}", 0.0, float(error), ROUND_OFF)


def hessian_of_a_network() -> Iterator[Row]:
    """Hessian products of a tanh network against double backward, row by row, through plain autograd."""
    loss = _small_network()
    w = loss.weights.double()
    truth = _row_by_row(loss, w)
    yield Row(
        "Hessian of a tanh network - row by row", 0.0, float((hessian(loss, w).dense() - truth).abs().max()), ROUND_OFF
    )
    eigenvalues, ends = torch.linalg.eigvalsh(truth), lanczos(hessian(loss, w), top=2, bottom=1, tol=1e-6)
    yield Row("lambda_2 of it", float(eigenvalues[-2]), float(ends.top.values[1]), 1e-5 * float(eigenvalues[-1]))
    yield Row("lambda_min of it", float(eigenvalues[0]), float(ends.bottom.values[0]), 1e-5 * float(eigenvalues[-1]))


def double_well_saddle() -> Iterator[Row]:
    """(x^2 - 1)^2/4 + y^2/2 has eigenvalues (1, -1) at the origin and (2, 1) in its wells."""
    for place, top, bottom in (((0.0, 0.0), 1.0, -1.0), ((1.0, 0.0), 2.0, 1.0)):
        ends = lanczos(hessian(DoubleWell(), torch.tensor(place).double()), bottom=1)
        yield Row(f"double well at {place}: lambda_max", top, float(ends.top.values[0]), ROUND_OFF)
        yield Row(f"double well at {place}: lambda_min", bottom, float(ends.bottom.values[0]), ROUND_OFF)


def thresholds() -> Iterator[Row]:
    """The curvature at which live torch optimisers on h w^2/2 cease to be stable, lr 0.1."""
    b = 0.9
    for name, make, expected in (
        ("gradient descent: 2/lr", lambda p: torch.optim.SGD(p, lr=0.1), 20.0),
        ("heavy ball: (2+2b)/lr", lambda p: torch.optim.SGD(p, lr=0.1, momentum=b), 38.0),
        ("Nesterov: (2+2b)/((1+2b) lr)", lambda p: torch.optim.SGD(p, lr=0.1, momentum=b, nesterov=True), 3.8 / 0.28),
        ("weight decay 0.5: 2/lr - 0.5", lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.5), 19.5),
        ("Adam, frozen P = 1: (2+2b)/((1-b) lr)", lambda p: torch.optim.Adam(p, lr=0.1, betas=(b, 1 - 1e-12)), 380.0),
    ):
        yield Row(f"threshold, {name}", expected, _largest_stable_curvature(make), 1e-3)


def clustered_spectrum() -> Iterator[Row]:
    """The top of a spectrum with three eigenvalues within 1 %, in few products, never below it by more than tol."""
    h = torch.cat([torch.tensor([10.0, 9.95, 9.9]), torch.linspace(-3, 5, 1000)]).double()
    top = lanczos(hessian(Quadratic(h), torch.zeros_like(h)), tol=1e-3, generator=stream(0, "selfcheck")).top
    yield Row("Lanczos, clustered top: lambda_max", 10.0, float(top.values[0]), 0.01)
    yield Row("Lanczos, clustered top: converged", 1.0, float(top.converged), 0.0)


def gauss_newton_matrix() -> Iterator[Row]:
    """G = H for outputs that are linear in the weights, and G >= 0 where H has negative eigenvalues."""
    x, y = _normal("gauss-newton", 30, 4), torch.arange(30) % 3
    linear = NetworkObjective(_linear(4, 3), CrossEntropy().build(3), (x, y))
    w = _normal("gauss-newton weights", linear.num_params)
    difference = gauss_newton(linear, w).dense() - hessian(linear, w).dense()
    yield Row("Gauss-Newton - Hessian of a linear softmax model", 0.0, float(difference.abs().max()), ROUND_OFF)
    loss = _small_network()
    least = float(torch.linalg.eigvalsh(gauss_newton(loss, loss.weights.double()).dense())[0])
    yield Row("Gauss-Newton of a tanh network: lambda_min >= 0", 0.0, min(0.0, least), ROUND_OFF)


def traces() -> Iterator[Row]:
    """Tr H of a network, from draws and from the spectral density, within four of their own standard errors."""
    loss = _small_network()
    w = loss.weights.double()
    truth = _row_by_row(loss, w)
    found = hessian_trace(loss, w, method="signs", tol=0.02, generator=stream(0, "trace"))
    yield Row("Tr H of a tanh network, by random signs", float(truth.trace()), found.value, 4 * found.error)
    phi = density(hessian(loss, w), steps=10, vectors=200, generator=stream(0, "density"))
    yield Row("Tr H from the spectral density", float(truth.trace()), phi.trace.value, 4 * phi.trace.error)
    square = float(truth.square().sum())
    yield Row("Tr H^2 from the spectral density", square, *_scaled(phi.moment(2), len(w)))


def peer() -> Iterator[Row]:
    """PyHessian's power iteration at a tight tolerance, through its adapter."""
    loss = _small_network()
    top = float(torch.linalg.eigvalsh(_row_by_row(loss, loss.weights.double()))[-1])
    theirs = PyHessian(loss, loss.weights.double()).top(tol=1e-6, max_matvecs=2000)
    yield Row("lambda_max by PyHessian, to 1 %", top, float(theirs.values[0]), 0.01 * top)


def edge_of_stability() -> Iterator[Row]:
    """Gradient descent at lr 0.6 on 300 digits: over the last half lambda_max hovers just above 2/lr, g'Hg/|g|^2 on it.

    Level 1.033 to 1.042 in 8 runs from initial weights 1e-5 apart, 1.041 by another implementation.
    """
    lr, steps, every = 0.6, 600, 13
    train = Digits(examples=300).load(progress=False).train
    loss = NetworkObjective(Mlp().build((64,), 10, 0), MeanSquaredError().build(10), (train.x, train.y))
    w, start, levels, directions = loss.weights, None, list[float](), list[float]()
    for step in range(steps):
        if step % every == 0:
            H = hessian(loss, w)
            g, ends = H.gradient, lanczos(H, start=start)
            start = ends.start
            levels.append(float(ends.top.values[0]) * lr / 2)
            directions.append(float(g @ (H @ g) / (g @ g)) * lr / 2)
        else:
            g = loss.grad(w)
        w = w - lr * g
    half = len(levels) // 2
    yield Row("edge of stability: lambda_max lr/2 at the start", 1.017, levels[0], 0.002)
    yield Row("edge of stability: lambda_max lr/2, level", 1.04, _mean(levels[half:]), 0.03)
    yield Row("edge of stability: g'Hg/|g|^2 lr/2, level", 1.0, _mean(directions[half:]), 0.015)


def gibbs_distribution() -> Iterator[Row]:
    """Langevin steps x <- x - h U'(x) + sqrt(2 h T) xi in U = x^4/4 - x^2/2 against exp(-U/T) by quadrature.

    Beside four standard errors over the walkers the tolerance of <x^2> holds the bias of the step, -0.18 h by the
    stationary distribution of the discrete chain on a grid of 1600 points. <x U'> = T + h/2 <U'^2> is exact for the
    chain (from <x^2> = <(x - h U')^2> + 2 h T), and grows with T as <x^2> hardly does.
    """
    T, h, walkers, burn_in, steps = 0.3, 0.01, 10_000, 1000, 3000
    grid = torch.linspace(-5, 5, 4001).double()
    share = torch.exp(-(grid**4 / 4 - grid**2 / 2) / T)
    share /= share.sum()
    generator, x = stream(0, "gibbs"), torch.ones(walkers).double()
    square, virial = torch.zeros(walkers).double(), torch.zeros(walkers).double()
    for step in range(burn_in + steps):
        slope = x**3 - x
        if step >= burn_in:
            square += x.square() / steps
            virial += x * slope / steps
        x = x - h * slope + math.sqrt(2 * h * T) * torch.randn(walkers, generator=generator, dtype=torch.float64)
    error = 4 / math.sqrt(walkers)
    expected = float((grid**2 * share).sum())
    yield Row(
        "Gibbs distribution of a double well: <x^2>",
        expected,
        float(square.mean()),
        error * float(square.std()) + 0.2 * h,
    )
    expected = T + h / 2 * float(((grid**3 - grid) ** 2 * share).sum())
    yield Row(
        "Gibbs distribution of a double well: <x U'(x)>", expected, float(virial.mean()), error * float(virial.std())
    )


def saddle_escape() -> Iterator[Row]:
    """x <- a x + eta sigma xi, a = 1 + eta lambda, leaves |x| < r after
    [log(r/(eta sigma)) + log(a^2 - 1)/2 + (gamma + log 2)/2] / log a + 1/2 steps on average, spread pi/(sqrt(8) log a).
    """
    eta, curvature, sigma, r, walkers = 0.1, 0.5, 1e-3, 1.0, 20_000
    a, gamma = 1 + eta * curvature, 0.5772156649
    drawn = math.log(r / (eta * sigma)) + 0.5 * math.log(a * a - 1) + 0.5 * (gamma + math.log(2))
    generator, x = stream(0, "saddle"), torch.zeros(walkers).double()
    times, step = torch.full((walkers,), math.nan).double(), 0
    while bool(times.isnan().any()) and step < 2000:
        step += 1
        x = a * x + eta * sigma * torch.randn(walkers, generator=generator, dtype=torch.float64)
        times[times.isnan() & (x.abs() > r)] = step
    expected = drawn / math.log(a) + 0.5
    yield Row("escape from a saddle: mean steps, to 1 %", expected, float(times.mean()), 0.01 * expected)
    spread = math.pi / (math.sqrt(8) * math.log(a))
    yield Row("escape from a saddle: their spread, to 3 %", spread, float(times.std()), 0.03 * spread)


CHECKS: Sequence[Check] = (
    hessian_of_linear_regression,
    hessian_of_a_network,
    double_well_saddle,
    gauss_newton_matrix,
    clustered_spectrum,
    traces,
    peer,
    thresholds,
    edge_of_stability,
    gibbs_distribution,
    saddle_escape,
)


def main(arguments: Sequence[str] | None = None, checks: Sequence[Check] | None = None) -> None:
    """The command line: the table, a plain sentence, exit code 1 where a check fails."""
    parser = argparse.ArgumentParser("python -m lab.selfcheck", description="Known answers, under a minute on a CPU.")
    parser.parse_args(arguments)
    torch.set_num_threads(1)  # everything here is too small for a second thread
    begin, rows, console = perf_counter(), list[Row](), Console(stderr=True)
    with console.status("checking") as status:
        for check in CHECKS if checks is None else checks:
            status.update(check.__name__.replace("_", " "))
            rows += _rows(check)
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table(rows))
    failed = [row.what for row in rows if not row.passed]
    if failed:
        print(f"{len(failed)} of {len(rows)} checks FAILED: {'; '.join(failed)}.")
        sys.exit(1)
    print(f"All {len(rows)} checks passed in {perf_counter() - begin:.0f} s.")


def table(rows: Sequence[Row]) -> Table:
    """Expected, measured, tolerance and verdict, a line each."""
    made = Table("check", "expected", "measured", "tolerance", "", box=None)
    for row in rows:
        verdict = "[green]pass[/]" if row.passed else "[bold red]FAIL[/]"
        numbers = f"{row.expected:.6g}", f"{row.measured:.6g}", f"{row.tolerance:.1g}"
        made.add_row(row.what.replace("[", r"\["), *numbers, verdict)
    return made


def _rows(check: Check) -> list[Row]:
    """The rows of a check; one that raises is a row that failed, and the rest is still checked."""
    found: list[Row] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for row in check():
                found.append(row)  # noqa: PERF402 (what came before an exception counts)
    except Exception as error:
        text = " ".join(str(error).split())[:80]
        found.append(Row(f"{check.__name__.replace('_', ' ')}: {type(error).__name__}: {text}", 0.0, math.nan, 0.0))
    return found


def _normal(name: str, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=stream(0, f"selfcheck/{name}"), dtype=torch.float64)


def _linear(inputs: int, outputs: int) -> nn.Module:
    return nn.Linear(inputs, outputs, bias=False)


def _small_network() -> NetworkObjective:
    """A tanh network 5-8-3 on 40 examples in uneven chunks: 75 weights."""
    x, y = _normal("network", 40, 5), torch.arange(40) % 3
    return NetworkObjective(Mlp(widths=(8,)).build((5,), 3, 0), CrossEntropy().build(3), (x, y), chunk_size=16)


def _row_by_row(loss: NetworkObjective, w: Tensor) -> Tensor:
    """The Hessian by double backward of every entry of the gradient, without the operators of the lab."""
    leaf = w.clone().requires_grad_()
    outputs = torch.func.functional_call(loss.model, loss.layout.unflatten(leaf), (loss.x.to(w),))
    (g,) = torch.autograd.grad(loss.criterion(outputs, loss.y), leaf, create_graph=True)
    return torch.stack([torch.autograd.grad(entry, leaf, retain_graph=True)[0] for entry in g])


def _largest_stable_curvature(make: Callable[[list[Tensor]], torch.optim.Optimizer]) -> float:
    """Of h w^2/2 under a live optimiser: many h at once, the interval where stability is lost cut 60 times finer."""
    low, high, steps = 1.0, 1000.0, 800
    for _ in range(4):
        h = torch.linspace(low, high, 61).double()
        w = torch.full_like(h, 1e-100).requires_grad_()  # Adam's variance, all but frozen, sees no gradient
        optimizer = make([w])
        if isinstance(optimizer, torch.optim.Adam):
            step = torch.tensor(1e15)  # bias corrections long over
            moments = {"exp_avg": torch.zeros_like(h), "exp_avg_sq": torch.ones_like(h)}
            optimizer.state[w] = {"step": step, **moments}
        middle = w.detach().clone()
        for step_number in range(steps):
            if step_number == steps // 2:  # the faster roots have died out: from here on it grows or it decays
                middle = w.detach().clone()
            w.grad = h * w.detach()
            optimizer.step()
        first = int((~(w.detach().abs() <= middle.abs())).nonzero()[0])
        low, high = float(h[max(first - 1, 0)]), float(h[first])
    return (low + high) / 2


def _scaled(estimate: Estimate, factor: float) -> tuple[float, float]:
    """Measured and tolerance: an estimate of a mean as that of a sum, with four standard errors."""
    return factor * estimate.value, 4 * factor * estimate.error


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
