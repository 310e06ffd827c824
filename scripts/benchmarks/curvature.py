"""What curvature costs, and how wrong it is: the lab beside its peers, every table interleaved in one run.

    python scripts/benchmarks/curvature.py --images DIR --write docs/benchmarks.md      (DIR/train/<class>/*, e.g. CIFAR-10)

Two workloads: a 3072-200-200-10 tanh MLP on 2000 class-balanced images (gradient descent at lr 0.05, from step 300 on: at
the edge of stability) and a ResNet-20 of width 16 on 256 images (BatchNorm in eval mode, as the peers do). At every point
each method works once, in rotating order; time is divided by that of one full gradient (G), measured around it. Errors are
relative, against float64: of lambda_max; the worst of the top 10 over lambda_max; of the trace. Memory is the growth of the
process while the top 10 of a ResNet-18 are sought, over one vector of P numbers.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from sharpness import METHODS, WARM, Point, Row, begin_chain, images, mlp_points, resnet_points, seconds, writer

from lab.curvature.density import density
from lab.curvature.eigen import lanczos, predicted
from lab.curvature.operators import hessian, rounded
from lab.curvature.pyhessian import PyHessian
from lab.curvature.trace import gauss_newton_trace, hessian_trace
from lab.models.losses import CrossEntropy
from lab.models.resnet import ResNet
from lab.objective import NetworkObjective
from lab.streams import stream

Method = Callable[[Point], tuple]
"""One method: what it found (None: nothing to compare), the products it took, and those of a coarse operator if any."""
Reference = Callable[[Point], float | torch.Tensor | None]


@dataclass
class Task:
    """One table: methods, the truth, and what the lab wants of itself."""

    title: str
    methods: dict[str, Method]
    reference: Reference
    wanted: str
    points: int = 3


# --- methods ----------


def top_ten(*, copies: bool = True, half: bool = False) -> Method:
    def solve(point: Point) -> tuple:
        coarse = rounded(point.objective, point.w) if half else None
        H = hessian(point.objective, point.w)
        top = lanczos(H, top=10, tol=1e-2, copies=copies, coarse=coarse).top
        return top.values, top.matvecs, *([coarse.matvecs] if coarse else [])

    return solve


def pyhessian_top_ten(point: Point) -> tuple[torch.Tensor, float]:
    top = PyHessian(point.objective, point.w).top(10)
    return top.values, top.matvecs


def arpack_top_ten(point: Point) -> tuple[torch.Tensor, float]:
    """Products whose graph is rebuilt, as the code of Cohen et al. 2021 forms them; ARPACK to 1e-2."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    count, size = 0, point.w.numel()

    def product(v: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        return point.objective.hvp(point.w, torch.from_numpy(v.astype(np.float32).ravel())).numpy()

    operator = LinearOperator((size, size), matvec=product, dtype=np.float32)
    values = eigsh(operator, 10, which="LA", tol=1e-2, return_eigenvectors=False)
    return torch.from_numpy(np.sort(values)[::-1].copy()).double(), count


def lobpcg_warm(point: Point) -> tuple[float, float]:
    """scipy's LOBPCG from the last eigenvector and two random ones, products rebuilt: the warm start of other tools."""
    from scipy.sparse.linalg import LinearOperator, lobpcg

    count, size = 0, point.w.numel()

    def product(v: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        return point.objective.hvp(point.w, torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32).ravel())).numpy()

    def block(v: np.ndarray) -> np.ndarray:
        return np.stack([product(column) for column in v.T], axis=1)

    assert point.earlier is not None
    operator = LinearOperator((size, size), matvec=product, matmat=block, dtype=np.float32)
    fill = torch.randn(size, 2, generator=stream(0, "lobpcg"))
    start = torch.cat([point.earlier[:, :1], fill], dim=1).numpy()
    scale = 1e-2 * float(point.earlier.norm())
    values, _ = lobpcg(operator, start, tol=scale, maxiter=20, largest=True)
    return float(np.max(values)), count


def told(*, warm: bool = False) -> Method:
    """A bound: Lanczos from one vector that stops as soon as it is within 1e-3 of the truth, which nobody knows."""

    def solve(point: Point) -> tuple[float, float]:
        assert isinstance(point.truth, float)
        H, size = hessian(point.objective, point.w), point.w.numel()
        if warm:
            assert point.earlier is not None
            v = point.earlier[:, 0]
        else:
            v = torch.randn(size, generator=stream(0, "told"))
        basis, images = torch.empty(0, size), torch.empty(0, size)
        while True:
            for _ in range(2):
                v = v / v.norm()
                v = v - (basis @ v) @ basis
            basis = torch.cat([basis, v[None] / v.norm()])
            images = torch.cat([images, (H @ basis[-1])[None]])
            theta = float(torch.linalg.eigvalsh((basis @ images.T).double())[-1])
            if theta >= (1 - 1e-3) * point.truth:
                return theta, H.matvecs
            v = images[-1]

    return solve


def lab_density(*, half: bool = False) -> Method:
    def solve(point: Point) -> tuple[float, float]:
        H = rounded(point.objective, point.w) if half else hessian(point.objective, point.w)
        found = density(H, steps=80, vectors=1)
        return float(found.nodes.max()), found.matvecs

    return solve


def pyhessian_density(point: Point) -> tuple[float, float]:
    found = PyHessian(point.objective, point.w).density(steps=80, vectors=1)
    return float(found.nodes.max()), found.matvecs


def lab_trace(point: Point) -> tuple[float, float]:
    found = hessian_trace(point.objective, point.w, tol=0.02)
    return found.value, found.matvecs


def lab_exact_trace(point: Point) -> tuple[float, float]:
    found = gauss_newton_trace(point.objective, point.w)
    return found.value, found.matvecs


def pyhessian_trace(point: Point) -> tuple[float, float]:
    found = PyHessian(point.objective, point.w).trace()
    return found.value, found.matvecs


def hutchinson(point: Point) -> tuple[float, float]:
    """Three Rademacher probes on products whose graph is rebuilt, as curvlinops' hutchinson(3) spends them."""
    generator, found = stream(0, "hutchinson"), []
    for _ in range(3):
        v = torch.randint(0, 2, point.w.shape, generator=generator).to(point.w) * 2 - 1
        found.append(float((v.double() * point.objective.hvp(point.w, v).double()).sum()))
    return sum(found) / 3, 3


# --- truths ----------


def true_top(point: Point) -> float:
    return float(lanczos(hessian(point.objective, point.w.double()), tol=1e-6).top.values[0])


def true_top_ten(point: Point) -> torch.Tensor:
    return lanczos(hessian(point.objective, point.w.double()), top=10, tol=1e-4).top.values


def true_trace(point: Point) -> float:
    """A tenth of the error that is judged: by the lab's signs in float64, whose mean is checked against dense traces."""
    return hessian_trace(point.objective, point.w.double(), tol=2e-3, max_matvecs=2000).value


def true_gauss_newton_trace(point: Point) -> float:
    return gauss_newton_trace(point.objective, point.w.double()).value


TOP = {name: method for name, method in METHODS.items() if "tol 0" not in name}
MLP = [
    Task(
        "top eigenvalue to 1e-3, cold",
        {name: method for name, method in TOP.items() if name not in WARM}
        | {"Lanczos told the truth (a bound)": told()},
        true_top,
        "lab <= 20 G, bfloat16 <= 12 G",
    ),
    Task(
        "the same, warm from five and ten steps before, at the edge",
        {name: TOP[name] for name in WARM}
        | {"scipy LOBPCG, warm": lobpcg_warm, "Lanczos told the truth (a bound)": told(warm=True)},
        true_top,
        "<= 9 G",
    ),
    Task(
        "top 10 to 1e-2, cold",
        {
            "lab": top_ten(),
            "lab, copies=False": top_ten(copies=False),
            "lab, copies=False, bfloat16": top_ten(copies=False, half=True),
            "PyHessian eigenvalues(top_n=10)": pyhessian_top_ten,
            "scipy eigsh, k=10, tol 1e-2": arpack_top_ten,
        },
        true_top_ten,
        "<= 35 G, bfloat16 <= 20 G",
        points=2,
    ),
    Task(
        "trace to 2 %",
        {"lab": lab_trace, "PyHessian trace": pyhessian_trace, "Hutchinson, 3 probes": hutchinson},
        true_trace,
        "<= 1.7 G",
    ),
    Task(
        "density, 80 Lanczos steps, one vector (error: of the largest node against lambda_max)",
        {"lab": lab_density(), "lab, bfloat16": lab_density(half=True), "PyHessian density": pyhessian_density},
        true_top,
        "<= 100 G, bfloat16 <= 70 G",
        points=2,
    ),
]
CALM = Task(
    "top eigenvalue to 1e-3, warm from five and ten steps before, below the edge (lr 0.02, from step 100 on)",
    {name: TOP[name] for name in WARM} | {"scipy LOBPCG, warm": lobpcg_warm},
    true_top,
    "<= 6 G",
)
SINGLE = {name: method for name, method in TOP.items() if "bfloat16" not in name}
RESNET = [
    Task(
        "top eigenvalue to 1e-3, cold",
        {name: method for name, method in SINGLE.items() if name not in WARM},
        true_top,
        "<= 20 G",
        points=2,
    ),
    Task(
        "the same, warm from five and ten steps before",
        {name: method for name, method in SINGLE.items() if name in WARM}
        | {"Lanczos told the truth (a bound)": told(warm=True)},
        true_top,
        "<= 9 G",
        points=2,
    ),
    Task(
        "trace of the Gauss-Newton matrix, exact (= Tr H: ReLU, BatchNorm in eval mode)",
        {"lab": lab_exact_trace, "lab, random signs to 2 %": lab_trace, "Hutchinson, 3 probes": hutchinson},
        true_gauss_newton_trace,
        "<= 12 G",
        points=2,
    ),
]


# --- the run ----------


def measure(task: Task, points: list[Point], say: Callable[[str], None]) -> None:
    """One table."""
    rows, order = {name: Row() for name in task.methods}, list(task.methods)
    for method in task.methods.values():
        begin_chain(method, points[: -task.points])
    for done, point in enumerate(points[-task.points :], 1):
        truth = point.truth = task.reference(point)
        for name in order:
            before = seconds(point)
            begin = perf_counter()
            found, *products = task.methods[name](point)
            spent = perf_counter() - begin
            rows[name].add(spent / statistics.median([before, seconds(point), seconds(point)]), tuple(products))
            if truth is not None and found is not None:
                rows[name].errors.append(_error(found, truth))
        order = order[1:] + order[:1]
        print(f"  {task.title}: {done} of {task.points} points", file=sys.stderr, flush=True)
    say(f"\n### {task.title}\n\nWanted: {task.wanted}\n")
    say("| method | time / G: median [min, max] | products | largest relative error |")
    say("|---|---|---|---|")
    for name, row in rows.items():
        times = f"{statistics.median(row.times):.1f} [{min(row.times):.1f}, {max(row.times):.1f}]"
        error = f"{max(row.errors):.1e}" if row.errors else "-"
        say(f"| {name} | {times} | {row.spent} | {error} |")


def products(point: Point, say: Callable[[str], None], wanted: str) -> None:
    """The cost of one product once the graph is there, float32 and bfloat16, interleaved with full gradients."""
    operators = {"lab, float32": hessian(point.objective, point.w), "lab, bfloat16": rounded(point.objective, point.w)}
    v, times = torch.randn(point.w.numel()), {name: list[float]() for name in operators}
    for _ in range(7):
        for name, operator in operators.items():
            before, begin = seconds(point), perf_counter()
            operator @ v
            times[name].append((perf_counter() - begin) / statistics.median([before, seconds(point)]))
    say(f"\n### one Hessian product\n\nWanted: {wanted}\n\n| method | time / G: median [min, max] |\n|---|---|")
    for name, spent in times.items():
        say(f"| {name} | {statistics.median(spent):.2f} [{min(spent):.2f}, {max(spent):.2f}] |")


def memory() -> None:
    """Growth of this process while the top 10 of a ResNet-18 are sought, in vectors of P numbers."""
    model = ResNet(depth=18, width=64).build((3, 32, 32), 10, seed=0)
    x, y = torch.randn(2, 3, 32, 32, generator=stream(0, "noise images")), torch.arange(2)
    objective = NetworkObjective(model, CrossEntropy().build(10), (x, y))
    H = hessian(objective, objective.weights)
    once = _peak(lambda: H @ H.gradient)
    spent = H.matvecs
    grown = _peak(lambda: lanczos(H, top=10, tol=1e-2, copies=False, max_vectors=16, max_matvecs=40)) - once
    vectors, products = grown / (4 * H.size), H.matvecs - spent
    print(f"{vectors:.1f} vectors of P = {H.size:,} beyond the graph and one product ({products} products)")


def _peak(work: Callable[[], object]) -> int:
    """The most bytes that this process held while it worked (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest mark so far
    work()
    mark = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(mark.split()[1])


def _error(found: float | torch.Tensor, truth: float | torch.Tensor) -> float:
    if isinstance(truth, torch.Tensor):
        return float((torch.as_tensor(found)[: len(truth)] - truth).abs().max() / truth.abs().max())
    return abs(float(found) - truth) / abs(truth)


def _trajectory(points: Iterator[tuple[int, Point]]) -> list[Point]:
    """The points, each from the third on with the eigenvector that the two before it point to."""
    kept, vectors = [point for _, point in points], list[torch.Tensor]()
    for point in kept:
        if len(vectors) > 1:
            point.earlier = predicted(vectors[-1], vectors[-2])
        vectors.append(lanczos(hessian(point.objective, point.w)).start)
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="image folder with train/<class>/*; default: noise")
    parser.add_argument("--workload", choices=("mlp", "resnet", "memory", "all"), default="all")
    parser.add_argument("--write", metavar="FILE", help="also write the tables to this file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        memory()
        return
    warnings.filterwarnings("ignore")
    say = writer(options.write)
    source = "real images" if options.images else "noise images"
    say("# What curvature costs\n")
    say(
        "Written by `make bench IMAGES=DIR` (`scripts/benchmarks/curvature.py`, which says what is measured and how).\n"
    )
    say(f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, {source}.")
    if options.workload in ("mlp", "all"):
        data = images(options.images, 2000, "pixel")
        points = _trajectory(mlp_points(data, 0.05, 300, 5))
        say(f"\n## tanh MLP 3072-200-200-10, P = {points[0].w.numel():,}, 2000 images, at the edge of stability")
        products(points[0], say, "<= 1.15 G")
        for task in MLP:
            measure(task, points, say)
        measure(CALM, _trajectory(mlp_points(data, 0.02, 100, 5)), say)
    if options.workload in ("resnet", "all"):
        points = _trajectory(resnet_points(images(options.images, 256, "channel"), 30, 4))
        say(f"\n## ResNet-20, width 16, P = {points[0].w.numel():,}, 256 images, BatchNorm in eval mode")
        products(points[0], say, "<= 2.6 G")
        for task in RESNET:
            measure(task, points, say)
    if options.workload in ("memory", "all"):
        command = [sys.executable, __file__, "--memory", "--threads", str(options.threads)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        say(f"\n## Memory: top 10 of a ResNet-18 with max_vectors=16\n\nWanted: <= 16 vectors\n\n{told}")


if __name__ == "__main__":
    main()
