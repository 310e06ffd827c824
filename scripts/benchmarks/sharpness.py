"""What does one top eigenvalue of the Hessian cost, and how wrong is it? The lab beside its peers, interleaved in one run.

    python scripts/benchmarks/sharpness.py --images DIR        (DIR/train/<class>/*, e.g. CIFAR-10; without it: noise images)

Workloads: a 3072-200-200-10 tanh MLP on 2000 and on 10,000 images (full-batch gradient descent) and a ResNet-20 on 256 (SGD,
measured with BatchNorm in eval mode, as the peers do). At each of several points along a real trajectory every method
computes lambda_max once, in rotating order. Time is divided by that of one full gradient, measured at the same points;
errors are against a float64 solve to 1e-6. `cold` knows nothing, `warm` starts from the eigenvectors five and ten steps
earlier, extrapolated; `bfloat16` searches on products in that precision, `on a tenth` on products over a tenth of the
images, and the true ones decide. A chain is what the sharpness probe does: a cold solve at the first point, which is not in
the table, then warm ones that search on a part and carry on what they learn. Products are those over all images, then
those over a part.
"""

import argparse
import platform
import re
import statistics
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn

from lab.curvature.chain import Chain
from lab.curvature.eigen import lanczos, predicted
from lab.curvature.operators import LinearOperator, hessian, rounded
from lab.data.base import Split
from lab.data.image_folder import ImageFolder
from lab.models.losses import CrossEntropy, MeanSquaredError
from lab.models.mlp import Mlp
from lab.models.resnet import ResNet
from lab.objective import NetworkObjective
from lab.streams import stream

Solve = Callable[["Point"], tuple[float, ...]]
"""One method: the top eigenvalue, the products it took, and those of a coarse operator where there is one."""


@dataclass
class Point:
    """Weights on the trajectory, the loss to measure, the eigenvector the points before it point to, and the truth."""

    w: Tensor
    objective: NetworkObjective
    earlier: Tensor | None = None
    truth: float | Tensor | None = None


@dataclass
class Row:
    times: list[float] = field(default_factory=list)
    products: list[float] = field(default_factory=list)
    coarse: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    def add(self, time: float, spent: tuple[float, ...]) -> None:
        """Time over G; products, and those of a coarse operator where there is one."""
        self.times.append(time)
        self.products.append(spent[0])
        self.coarse.extend(spent[1:])

    @property
    def spent(self) -> str:
        """Products: median [least, most], then those of the coarse operator."""
        return " + ".join(
            f"{statistics.median(count):.0f} [{min(count):.0f}, {max(count):.0f}]"
            for count in (self.products, self.coarse)
            if count
        )


def over_part(point: Point, share: float) -> LinearOperator:
    """The Hessian over a share of the images, the same at all points."""
    count = point.objective.num_examples
    index = torch.randperm(count, generator=stream(0, "sharpness/coarse"))[: round(share * count)]
    return hessian(point.objective.restrict(index), point.w)


def lab_solve(*, warm: bool = False, half: bool = False, share: float = 0.0) -> Solve:
    def solve(point: Point) -> tuple[float, ...]:
        coarse = over_part(point, share) if share else rounded(point.objective, point.w) if half else None
        top = lanczos(hessian(point.objective, point.w), start=point.earlier if warm else None, coarse=coarse).top
        return float(top.values[0]), top.matvecs, *([coarse.matvecs] if coarse else [])

    return solve


class LabChain:
    """The solves of the sharpness probe, one at every point in turn."""

    def __init__(self, share: float):
        self.share, self.chain = share, Chain()

    def __call__(self, point: Point) -> tuple[float, ...]:
        before = self.chain.matvecs
        top = self.chain.solve(
            hessian(point.objective, point.w), coarse=(lambda: over_part(point, self.share)) if self.share else None
        ).top
        return float(top.values[0]), top.matvecs, self.chain.matvecs - before


def pyhessian(point: Point) -> tuple[float, int]:
    import importlib

    source = importlib.import_module("pyhessian.hessian")
    count, product = 0, source.hessian_vector_product

    def counted(*args: object) -> object:
        nonlocal count
        count += 1
        return product(*args)

    source.hessian_vector_product = counted
    try:
        load(point)
        point.objective.model.zero_grad()
        data = (point.objective.x, point.objective.y)
        values, _ = source.hessian(
            point.objective.model, point.objective.criterion, data=data, cuda=False
        ).eigenvalues()
    finally:
        source.hessian_vector_product = product
        point.objective.model.zero_grad()
    return values[0], count


def eigsh(tol: float) -> Solve:
    """ARPACK on products whose graph is rebuilt each time, cold, as the code of Cohen et al. 2021 does (tol 0)."""

    def solve(point: Point) -> tuple[float, int]:
        from scipy.sparse.linalg import LinearOperator as ScipyOperator
        from scipy.sparse.linalg import eigsh as arpack

        count, size = 0, point.w.numel()

        def product(v: np.ndarray) -> np.ndarray:
            nonlocal count
            count += 1
            return point.objective.hvp(point.w, torch.from_numpy(v.astype(np.float32).ravel())).numpy()

        operator = ScipyOperator((size, size), matvec=product, dtype=np.float32)
        return float(arpack(operator, 1, which="LM", tol=tol, return_eigenvectors=False)[0]), count

    return solve


def curvlinops(point: Point) -> tuple[float, int]:
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import LinearOperator as ScipyOperator
    from scipy.sparse.linalg import eigsh as arpack

    load(point)
    model, x, y = point.objective.model, point.objective.x, point.objective.y
    loss, target, scale = nn.CrossEntropyLoss(), y, 1.0
    if isinstance(point.objective.criterion, type(MeanSquaredError().build(10))):
        target, scale = nn.functional.one_hot(y, 10).float(), 5.0  # MSELoss is 2/K of the half squared error
        loss = nn.MSELoss()
    matrix = HessianLinearOperator(model, loss, list(model.parameters()), [(x, target)], check_deterministic=False)
    inner, count = matrix.to_scipy(np.float32), 0

    def product(v: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        return inner @ v.ravel()

    operator = ScipyOperator(inner.shape, matvec=product, dtype=np.float32)
    return scale * float(arpack(operator, 1, which="LA", tol=1e-3, return_eigenvectors=False)[0]), count


def eigenthings(point: Point) -> tuple[float, int]:
    from hessian_eigenthings.algorithms.lanczos import lanczos as their_lanczos
    from hessian_eigenthings.operators.hessian import HessianOperator

    load(point)
    o = point.objective
    operator = HessianOperator(o.model, [(o.x, o.y)], lambda model, batch: o.criterion(model(batch[0]), batch[1]))
    result = their_lanczos(operator, k=1, max_iter=20, which="LA", seed=0)
    return float(result.eigenvalues[0]), 20


METHODS: dict[str, Solve] = {
    "lab, cold": lab_solve(),
    "lab, cold, bfloat16": lab_solve(half=True),
    "lab, cold, on a tenth": lab_solve(share=0.1),
    "lab, warm from 5 and 10 steps before": lab_solve(warm=True),
    "lab, warm, bfloat16": lab_solve(warm=True, half=True),
    "lab, warm chain, on a tenth": LabChain(0.1),
    "lab, warm chain, on a fifth": LabChain(0.2),
    "PyHessian eigenvalues(top_n=1)": pyhessian,
    "scipy eigsh, tol 0 (edge-of-stability)": eigsh(0.0),
    "scipy eigsh, tol 1e-3": eigsh(1e-3),
    "curvlinops + eigsh, tol 1e-3": curvlinops,
    "hessian-eigenthings Lanczos, 20 steps": eigenthings,
}


WARM = tuple(name for name in METHODS if "warm" in name)

ALONE = ("lab, warm from 5 and 10 steps before", "lab, warm chain, on a tenth")
"""On many images: the sharpness probe without and with a part of them to search on."""


def load(point: Point) -> None:
    """The weights of the point into the model, for peers that read them there."""
    pieces = point.objective.layout.unflatten(point.w)
    with torch.no_grad():
        for name, parameter in point.objective.model.named_parameters():
            parameter.copy_(pieces[name])
    point.objective.model.eval()


def mlp_points(data: Split, lr: float, first: int, length: int) -> Iterator[tuple[int, Point]]:
    """Gradient descent on all images; points every five steps from `first` on."""
    model = Mlp(widths=(200, 200)).build(tuple(data.x.shape[1:]), 10, seed=0)
    objective = NetworkObjective(model, MeanSquaredError().build(10), (data.x, data.y))
    w = objective.weights
    for step in range(first + 5 * (length - 1) + 1):
        if step >= first and (step - first) % 5 == 0:
            yield step, Point(w.clone(), objective)
        w = w - lr * objective.grad(w)


def resnet_points(data: Split, first: int, length: int) -> Iterator[tuple[int, Point]]:
    """SGD at lr 0.1, batch 128, BatchNorm in train mode; measured on all images with running statistics."""
    model = ResNet().build(tuple(data.x.shape[1:]), 10, seed=0)
    criterion = CrossEntropy().build(10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(first + 5 * (length - 1) + 1):
        if step >= first and (step - first) % 5 == 0:
            objective = NetworkObjective(model, criterion, (data.x, data.y))
            yield step, Point(objective.weights, objective)
        model.train()
        index = torch.randperm(len(data), generator=stream(0, "batches", step))[:128]
        optimizer.zero_grad()
        criterion(model(data.x[index]), data.y[index]).backward()
        optimizer.step()


def measure(points: Iterator[tuple[int, Point]], methods: dict[str, Solve], say: Callable[[str], None]) -> None:
    """Every method at every point, then one table."""
    rows = {name: Row() for name in methods}
    earlier: list[Tensor] = []
    order = list(methods)
    for step, point in points:
        reference = float(lanczos(hessian(point.objective, point.w.double()), tol=1e-6).top.values[0])
        if earlier:
            point.earlier = earlier[-1] if len(earlier) == 1 else predicted(earlier[-1], earlier[-2])
        spent: dict[str, tuple[float, tuple[float, ...]]] = {}
        gradients = [seconds(point)]
        for name in order:
            if name in WARM and point.earlier is None:
                begin_chain(methods[name], [point])
                continue
            begin = perf_counter()
            value, *products = methods[name](point)
            spent[name] = perf_counter() - begin, tuple(products)
            gradients.append(seconds(point))
            rows[name].errors.append(abs(value - reference) / abs(reference))
        gradient = statistics.median(gradients)
        for name, (time, products) in spent.items():
            rows[name].add(time / gradient, products)
        extremes = lanczos(hessian(point.objective, point.w), start=point.earlier)
        earlier, order = [*earlier[-1:], extremes.start], order[1:] + order[:1]
        say(f"- step {step}: lambda_max {reference:.5g}, one gradient {1e3 * gradient:.0f} ms")
    say(f"\n| {'method':40} | points | products | time / G: median [min, max] | largest relative error |")
    say(f"|{'-' * 42}|---|---|---|---|")
    for name, row in rows.items():
        if row.times:
            times = f"{statistics.median(row.times):.1f} [{min(row.times):.1f}, {max(row.times):.1f}]"
            say(f"| {name:40} | {len(row.times)} | {row.spent} | {times} | {max(row.errors):.1e} |")


def begin_chain(method: Solve, points: list[Point]) -> None:
    """Where the method is a chain: a new one, that has been at these points."""
    if isinstance(method, LabChain):
        method.chain = Chain()
        for point in points:
            method(point)


def seconds(point: Point) -> float:
    """Wall time of one full gradient."""
    begin = perf_counter()
    point.objective.grad(point.w)
    return perf_counter() - begin


def images(folder: str | None, count: int, standardise: str) -> Split:
    """`count` class-balanced training images, or noise with labels where there is no folder."""
    if folder is None:
        generator = stream(0, "noise images")
        return Split(torch.randn(count, 3, 32, 32, generator=generator), torch.arange(count) % 10)
    return ImageFolder(root=folder, examples=count, batch_size="full", standardise=standardise).load().train


def writer(file: str | None, *, append: bool = False) -> Callable[[str], None]:
    """Prints lines, and keeps all of them in `file` after each, so that a run cut short leaves its tables."""
    lines = Path(file).read_text().splitlines() if file is not None and append and Path(file).exists() else []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)
        if file is not None:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(file).write_text("\n".join(lines) + "\n")

    return say


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="image folder with train/<class>/*; default: noise")
    parser.add_argument("--workload", choices=("mlp", "large", "resnet", "all"), default="all")
    parser.add_argument("--write", metavar="FILE", help="also write the tables to this file")
    parser.add_argument("--append", action="store_true", help="to what stands in the file")
    parser.add_argument("--length", type=int, default=6, help="points per segment, five steps apart")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--methods", default="", metavar="REGEX", help='only those whose name it is found in, e.g. "^lab"'
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", module="torch|pyhessian|curvlinops")
    methods = {name: solve for name, solve in METHODS.items() if re.search(options.methods, name)}
    say, source = writer(options.write, append=options.append), "real images" if options.images else "noise images"
    if not options.append:
        say("# What the sharpness costs along a trajectory\n")
        say(
            "Written by `scripts/benchmarks/sharpness.py`, which says what is measured and how; wanted: an error of 1e-3"
        )
        say("that holds, in at most 16 products over all images cold and 5 warm.")
    say(f"\n{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, {source}.")
    if options.workload in ("mlp", "all"):
        for lr, first, where in ((0.02, 100, "below the edge"), (0.05, 300, "at the edge")):
            say(f"\n## MLP 3072-200-200-10, 2000 images, gradient descent at lr {lr}, {where} (2/lr = {2 / lr:.0f})\n")
            measure(mlp_points(images(options.images, 2000, "pixel"), lr, first, options.length), methods, say)
    if options.workload in ("large", "all"):
        say("\n## The same MLP at lr 0.05, at the edge, on 10,000 images\n")
        alone = {name: solve for name, solve in methods.items() if name in ALONE}
        measure(mlp_points(images(options.images, 10_000, "pixel"), 0.05, 300, options.length), alone, say)
    if options.workload in ("resnet", "all"):
        say("\n## ResNet-20, width 16, BatchNorm in eval mode, 256 images (other peers: docs/benchmarks.md)\n")
        quick = {name: solve for name, solve in methods.items() if name.startswith(("lab", "PyHessian"))}
        measure(resnet_points(images(options.images, 256, "channel"), 30, options.length), quick, say)


if __name__ == "__main__":
    main()
