"""Dynamics: thresholds of live optimisers, the edge of stability, a Gibbs distribution, escapes from saddles."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lab.curvature.eigen import lanczos
from lab.curvature.operators import hessian
from lab.data.digits import Digits
from lab.escape.saddle import SaddleDescent, growth_factor
from lab.escape.seen_growth import kick_growth
from lab.escape.survival import of_counts
from lab.escape.walkers import Walkers
from lab.flows.langevin import Langevin
from lab.landscapes.double_well import DoubleWell
from lab.landscapes.gibbs import gibbs
from lab.landscapes.quadratic import Quadratic
from lab.models.losses import MeanSquaredError
from lab.models.mlp import Mlp
from lab.objective import NetworkObjective
from lab.selfcheck.rows import Row, mean
from lab.streams import stream


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
    yield Row("edge of stability: lambda_max lr/2, level", 1.04, mean(levels[half:]), 0.03)
    yield Row("edge of stability: g'Hg/|g|^2 lr/2, level", 1.0, mean(directions[half:]), 0.015)


def gibbs_distribution() -> Iterator[Row]:
    """Langevin steps x <- x - h U'(x) + sqrt(2 h T) xi in U = x^4/4 - x^2/2 against exp(-U/T) by quadrature.

    Beside four standard errors over the walkers the tolerance of <x^2> holds the bias of the step, -0.18 h by the
    stationary distribution of the discrete chain on a grid of 1600 points. <x U'> = T + h/2 <U'^2> is exact for the
    chain (from <x^2> = <(x - h U')^2> + 2 h T), and grows with T as <x^2> hardly does.
    """
    T, h, walkers, burn_in, steps = 0.3, 0.01, 6000, 1000, 3000
    well = DoubleWell(stiffness=())
    law, dynamics = gibbs(well, T, [-5], [5]), Langevin(well, T, h)
    generator, x = stream(0, "gibbs"), torch.ones(walkers, 1).double()
    square, virial = torch.zeros(walkers).double(), torch.zeros(walkers).double()
    dynamics.run(x, burn_in, generator)
    for _ in range(steps):
        square += x[:, 0].square() / steps
        virial += (x * well.gradient(x))[:, 0] / steps
        dynamics.run(x, 1, generator)
    error = 4 / math.sqrt(walkers)
    tolerance = error * float(square.std()) + 0.2 * h
    expected = law.mean(lambda x: x[:, 0].square())
    yield Row("Gibbs distribution of a double well: <x^2>", expected, float(square.mean()), tolerance)
    expected = T + h / 2 * law.mean(lambda x: well.gradient(x)[:, 0].square())
    tolerance = error * float(virial.std())
    yield Row("Gibbs distribution of a double well: <x U'(x)>", expected, float(virial.mean()), tolerance)


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


def saddle_escape_by_heavy_ball() -> Iterator[Row]:
    """Exit times, to four standard errors, and growth by the larger root of z^2 - (1 + b + lr |lambda|) z + b."""
    saddle, descent = Quadratic((-0.5, 1.0)), SaddleDescent([-0.5], 1e-3, 0.05, momentum=0.9)
    walk, start = Walkers(saddle, descent.lr, 1e-3, descent.momentum), torch.zeros(2).double()
    generator, expected = stream(0, "heavy ball"), descent.time(1.0)
    times = walk.first_exits(start, lambda x: x[..., 0].abs() > 1, generator, walkers=4000, steps=2000).times
    tolerance = 4 * float(times.std()) / math.sqrt(len(times))
    yield Row("escape from a saddle, heavy ball: mean steps", expected.mean, float(times.mean()), tolerance)
    kicked = Walkers(saddle, descent.lr, 0.0, descent.momentum).path(
        torch.full((1, 2), 1e-8).double(), generator, steps=90
    )
    z = growth_factor(-0.5, lr=descent.lr, momentum=descent.momentum)
    yield Row("growth from a kick, heavy ball", math.log(z), kick_growth(kicked[:, :, 0]).value, 1e-4)


def escape_rate() -> Iterator[Row]:
    """The 95 % interval of an escape rate covers the truth: 60 exponential times censored at 1/rate, 1000 repetitions."""
    repetitions, generator = 1000, stream(0, "escape rate")
    times = torch.empty(repetitions, 60, dtype=torch.float64).exponential_(generator=generator)
    exits, exposure = (times < 1).sum(1).tolist(), times.clamp(max=1).sum(1).tolist()
    rates = [of_counts(k, watched) for k, watched in zip(exits, exposure, strict=True)]
    covered = mean([float(rate.low <= 1 <= rate.high) for rate in rates])
    yield Row("escape rate: coverage of the 95 % interval", 0.954, covered, 4 * math.sqrt(0.954 * 0.046 / repetitions))


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
