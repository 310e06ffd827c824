"""What walkers and replicas cost: the lab beside loops in numba, numpy and PyTorch, every table interleaved in one run.

    python scripts/benchmarks/escape.py --write docs/benchmarks_escape.md          (numba: pip install -e '.[bench]')

Walkers: 1e5 of overdamped Langevin dynamics in a double well in two variables, Euler-Maruyama, on one core; million
walker-steps a second of CPU time, which other processes on the machine disturb less than the clock. The numba loops hold a
walker in registers for all its steps and differ by their normal numbers only: of a NumPy Generator in float32 or float64
(ziggurat), or of numba's own np.random. Every method must give the same mean of x^2. Replicas: 64 copies of a 200-100-10
tanh MLP, mini-batches of 20, plain SGD; milliseconds of the clock for one step of all 64, against the loop over 64 models
that PyTorch users write. In every round each method works once, in rotating order; ratios are taken within a round.
"""

import argparse
import math
import os
import platform
import statistics
import sys
from collections.abc import Callable
from time import perf_counter, process_time

import numpy as np
import torch
from curvature import writer
from torch import Tensor, nn

from lab.escape.replicas import Replicas
from lab.flows.langevin import Langevin
from lab.landscapes.double_well import DoubleWell
from lab.models.losses import CrossEntropy
from lab.models.mlp import Mlp
from lab.objective import NetworkObjective
from lab.settings import usable_cpus
from lab.streams import stream

try:
    import numba
except ImportError:
    numba = None

WALKERS, STEPS, LR, TEMPERATURE = 100_000, 100, 0.01, 0.1
REPLICAS, BATCH, EXAMPLES, REPLICA_STEPS = 64, 20, 1000, 10
Work = Callable[[], object]


# --- walkers ----------


def lab_walkers(dtype: torch.dtype, device: torch.device) -> Callable[[], np.ndarray]:
    dynamics, generator = Langevin(DoubleWell(), TEMPERATURE, LR), stream(0, f"lab {dtype}", device=device)

    def work() -> np.ndarray:
        x = torch.ones(WALKERS, 2, dtype=dtype, device=device)
        dynamics.run(x, STEPS, generator)
        return x.cpu().numpy()

    return work


def numpy_walkers() -> np.ndarray:
    """float32, in place, in chunks that stay in the cache, as the lab."""
    random, x = np.random.Generator(np.random.SFC64(0)), np.ones((WALKERS, 2), np.float32)
    scale = np.float32(math.sqrt(2 * LR * TEMPERATURE))
    for chunk in np.array_split(x, math.ceil(WALKERS / 2**14)):
        places = chunk.T.copy()
        noise, slope = np.empty_like(places), np.empty_like(places)
        for _ in range(STEPS):
            random.standard_normal(dtype=np.float32, out=noise)
            np.multiply(places[0], places[0], out=slope[0])
            slope[0] -= 1
            slope[0] *= places[0]
            slope[1] = places[1]
            slope *= np.float32(LR)
            noise *= scale
            places -= slope
            places += noise
        chunk[:] = places.T
    return x


def numba_walkers() -> dict[str, Callable[[], np.ndarray]]:
    """Compiled loops, warmed up; none without numba."""
    if numba is None:
        return {}

    @numba.njit(fastmath=True)
    def own(x, steps, lr, scale):  # type: ignore[no-untyped-def]
        for i in range(x.shape[0]):
            a, b = x[i, 0], x[i, 1]
            for _ in range(steps):
                a += scale * np.random.standard_normal() - lr * a * (a * a - 1)
                b += scale * np.random.standard_normal() - lr * b
            x[i, 0], x[i, 1] = a, b

    @numba.njit(fastmath=True)
    def generator(x, steps, lr, scale, random):  # type: ignore[no-untyped-def]
        for i in range(x.shape[0]):
            a, b = x[i, 0], x[i, 1]
            for _ in range(steps):
                a += scale * random.standard_normal() - lr * a * (a * a - 1)
                b += scale * random.standard_normal() - lr * b
            x[i, 0], x[i, 1] = a, b

    @numba.njit(fastmath=True)
    def single(x, steps, lr, scale, random):  # type: ignore[no-untyped-def]
        one = np.float32(1)
        for i in range(x.shape[0]):
            a, b = x[i, 0], x[i, 1]
            for _ in range(steps):
                a += scale * random.standard_normal(dtype=np.float32) - lr * a * (a * a - one)
                b += scale * random.standard_normal(dtype=np.float32) - lr * b
            x[i, 0], x[i, 1] = a, b

    scale, random = math.sqrt(2 * LR * TEMPERATURE), np.random.Generator(np.random.SFC64(1))

    def started(dtype: type, loop: Callable[[np.ndarray, int], None]) -> Callable[[], np.ndarray]:
        loop(np.ones((2, 2), dtype), 1)

        def work() -> np.ndarray:
            x = np.ones((WALKERS, 2), dtype)
            loop(x, STEPS)
            return x

        return work

    return {
        "numba loop, float32, Generator": started(
            np.float32, lambda x, steps: single(x, steps, np.float32(LR), np.float32(scale), random)
        ),
        "numba loop, float64, Generator": started(np.float64, lambda x, steps: generator(x, steps, LR, scale, random)),
        "numba loop, float64, np.random": started(np.float64, lambda x, steps: own(x, steps, LR, scale)),
    }


def walkers(rounds: int, device: torch.device, say: Callable[[str], None]) -> None:
    methods: dict[str, Callable[[], np.ndarray]] = {
        "lab, float32": lab_walkers(torch.float32, device),
        "lab, float64": lab_walkers(torch.float64, device),
        **numba_walkers(),
        "numpy, float32, in place": numpy_walkers,
    }
    clock = process_time if device.type == "cpu" else perf_counter
    torch.set_num_threads(1)
    times, squares = interleaved(methods, rounds, clock, lambda x: float((x[:, 0].astype(np.float64) ** 2).mean()))
    spread = float((methods["lab, float64"]()[:, 0] ** 2).std()) / math.sqrt(WALKERS * rounds)
    say(f"\n## {WALKERS:,} Langevin walkers in two variables, {device.type}, one core\n")
    say("Wanted: lab at least 2 times a numba loop\n")
    if numba is None:
        say("numba is not installed: no compiled loop beside the lab (pip install -e '.[bench]')\n")
    say("| method | million walker-steps/s: median [min, max] | lab, float32 / this | mean x^2 |")
    say("|---|---|---|---|")
    for name, spent in times.items():
        rate = [WALKERS * STEPS / 1e6 / t for t in spent]
        ratio = [t / ours for t, ours in zip(spent, times["lab, float32"], strict=True)]
        mean = statistics.mean(squares[name])
        say(f"| {name} | {told(rate, 0)} | {told(ratio, 2)} | {mean:.4f} +- {spread:.4f} |")


# --- replicas ----------


def data(device: torch.device) -> tuple[Tensor, Tensor]:
    random = stream(0, "examples")
    x, y = torch.randn(EXAMPLES, 200, generator=random), torch.randint(10, (EXAMPLES,), generator=random)
    return x.to(device), y.to(device)


def lab_replicas(device: torch.device) -> Work:
    model = Mlp(widths=(100,)).build((200,), 10, seed=0).to(device)
    objective = NetworkObjective(model, CrossEntropy().build(10), data(device))
    replicas = Replicas(
        objective,
        objective.weights.repeat(REPLICAS, 1),
        lambda weights: torch.optim.SGD(weights, lr=0.1),
        batch_size=BATCH,
        generator=stream(0, "replicas", device=device),
    )
    return lambda: replicas.run(REPLICA_STEPS)


def one_after_the_other(device: torch.device) -> Work:
    """64 models, each with its optimiser: what one writes first."""
    x, y = data(device)
    models = [Mlp(widths=(100,)).build((200,), 10, seed=0).to(device) for _ in range(REPLICAS)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    criterion, random = nn.CrossEntropyLoss(), stream(0, "loop", device=device)

    def work() -> None:
        for _ in range(REPLICA_STEPS):
            for model, optimizer in zip(models, optimizers, strict=True):
                index = torch.randint(EXAMPLES, (BATCH,), generator=random, device=device)
                optimizer.zero_grad()
                criterion(model(x[index]), y[index]).backward()
                optimizer.step()

    return work


def functional(device: torch.device) -> Work:
    """torch.func.vmap of grad over stacked parameters, as its tutorial has it."""
    x, y = data(device)
    model = Mlp(widths=(100,)).build((200,), 10, seed=0).to(device)
    stacked = {n: p.detach().repeat(REPLICAS, *[1] * p.dim()) for n, p in model.named_parameters()}
    random = stream(0, "functional", device=device)

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(model, weights, x), y)

    slopes = torch.func.vmap(torch.func.grad(loss))

    def work() -> None:
        for _ in range(REPLICA_STEPS):
            index = torch.randint(EXAMPLES, (REPLICAS, BATCH), generator=random, device=device)
            for name, slope in slopes(stacked, x[index], y[index]).items():
                stacked[name].sub_(slope, alpha=0.1)

    return work


def replicas(rounds: int, threads: int, device: torch.device, say: Callable[[str], None]) -> None:
    torch.set_num_threads(threads)
    methods = {
        "lab, Replicas": lab_replicas(device),
        "torch.func.vmap(grad)": functional(device),
        "one model after the other": one_after_the_other(device),
    }
    for work in methods.values():  # the lab records its program, and caches fill
        work()

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return perf_counter()

    times, _ = interleaved(methods, rounds, clock, lambda x: 0.0)
    where = f"{threads} thread{'s' if threads > 1 else ''}" if device.type == "cpu" else torch.cuda.get_device_name()
    wanted = "at least 6 times the loop on 2 cores" if device.type == "cpu" else "at least 50 times the loop"
    say(f"\n## {REPLICAS} replicas of a 200-100-10 MLP, batch {BATCH}, {where}\n\nWanted: {wanted}\n")
    say("| method | ms for a step of all: median [min, max] | this / lab |")
    say("|---|---|---|")
    for name, spent in times.items():
        ratio = [t / ours for t, ours in zip(spent, times["lab, Replicas"], strict=True)]
        say(f"| {name} | {told([1000 * t / REPLICA_STEPS for t in spent], 2)} | {told(ratio, 1)} |")


# --- the run ----------


def interleaved(
    methods: dict[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float],
    measure: Callable[[object], float],
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of every method in every round, and what was measured on its result."""
    times = {name: list[float]() for name in methods}
    found = {name: list[float]() for name in methods}
    order = list(methods)
    for done in range(1, rounds + 1):
        for name in order:
            begin = clock()
            result = methods[name]()
            times[name].append(clock() - begin)
            found[name].append(measure(result))
        order = order[1:] + order[:1]
        print(f"  {done} of {rounds} rounds", file=sys.stderr, flush=True)
    return times, found


def told(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def processor() -> str:
    """The name of the processor, where Linux tells it."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--part", choices=("walkers", "replicas", "all"), default="all")
    parser.add_argument("--write", metavar="FILE", help="also write the tables to this file")
    options = parser.parse_args()
    say, cpu = writer(options.write), torch.device("cpu")
    devices = [cpu, torch.device("cuda")] if torch.cuda.is_available() else [cpu]
    say("# What walkers and replicas cost\n")
    say("Written by `make bench` (`scripts/benchmarks/escape.py`, which says what is measured and how).\n")
    compiled = f"numba {numba.__version__}" if numba else "no numba"
    say(
        f"{processor()}, {usable_cpus()} core(s), torch {torch.__version__}, numpy {np.__version__}, {compiled}; "
        f"{options.rounds} rounds, {os.getloadavg()[0]:.1f} processes running on the machine before the first."
    )
    for device in devices:
        if options.part in ("walkers", "all"):
            walkers(options.rounds, device, say)
        if options.part in ("replicas", "all"):
            for threads in sorted({1, min(2, usable_cpus())}) if device == cpu else (1,):
                replicas(options.rounds, threads, device, say)


if __name__ == "__main__":
    main()
