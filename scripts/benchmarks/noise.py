"""What the noise of the gradient costs, and how wrong it is: the lab beside its peers, every table interleaved in one run.

    python scripts/benchmarks/noise.py --images DIR --write docs/benchmarks_noise.md   (DIR/train/<class>/*, e.g. CIFAR-10)

Two workloads: a 3072-200-200-10 tanh MLP on 2000 class-balanced images (half squared error, gradient descent at lr 0.05)
and a ResNet-20 of width 16 with GroupNorm on 256 images, the Gram matrix on 128 (cross-entropy, SGD). At every point each
method works once, in rotating order; time is divided by that of one full gradient (G) on the same examples, measured
around it. What noise adds to a step of training is measured in turns of five steps of whole training, gradient descent on
all examples, beside the same without noise (`none, again`: what the clock alone makes of it); the digits come with
scikit-learn. Errors are relative, against float64: of Tr D; the worst of the top 10 eigenvalues over the largest; of Tr(HD),
against 300 plain probes, themselves within 2 to 3 %. BackPACK has no GroupNorm.
"""

import argparse
import math
import platform
import statistics
import warnings
from collections.abc import Callable, Iterator
from time import process_time

import torch
from curvature import Task, measure, writer
from sharpness import Point, images, mlp_points
from torch import Tensor, nn

from lab.curvature.operators import hessian
from lab.curvature.vectors import dot
from lab.data.base import Dataset, Split
from lab.data.batches import Batches
from lab.data.digits import Digits
from lab.models.losses import CrossEntropy
from lab.models.mlp import Mlp
from lab.models.resnet import ResNet
from lab.module import SupervisedModule
from lab.noise.alignment import NoiseOperator, trace_with
from lab.noise.batch_curvature import along_gradients
from lab.noise.covariance import covariance, eigenvalues
from lab.noise.ratios import ratio_of_means
from lab.noise.size import trace
from lab.objective import NetworkObjective
from lab.optim.noise import Minibatch, NoiseCard, SampleWeights, Trained
from lab.optim.optimizers import Sgd
from lab.run.agenda import Agenda, Steps
from lab.sampling import batch_factor
from lab.streams import random_signs, stream

Found = tuple[float | Tensor | None, float]
"""What was found (None: nothing to compare) and the gradients or products it took."""


def lab_trace(point: Point) -> Found:
    return trace(point.objective, point.w).value, 1


def lab_spectrum(point: Point) -> Found:
    return eigenvalues(point.objective, point.w, 0).values[:10], 1


def lab_top_ten(point: Point) -> Found:
    return eigenvalues(point.objective, point.w, 10).values[:10], 1


def lab_alignment(point: Point) -> Found:
    found = trace_with(hessian(point.objective, point.w), point.objective, point.w, tol=0.05)
    return found.value, found.matvecs


def plain_probes(point: Point) -> Found:
    """e'He of random-sign noise from weighted losses, until the standard error is 5 %: a gradient and a product each."""
    o, H, generator = point.objective, hessian(point.objective, point.w), stream(0, "plain probes")
    draws, relative, num = list[float](), math.inf, len(o.x)
    leaf = point.w.detach().requires_grad_()
    while len(draws) < 8 or relative > 0.05:
        s = random_signs((num,), point.w, generator)
        losses = (o.outputs(leaf, o.x) - nn.functional.one_hot(o.y, 10)).square().sum(1) / 2
        (e,) = torch.autograd.grad((s - s.mean()) @ losses / math.sqrt(num), leaf)
        draws.append(float(dot(e[None], H @ e)))
        if len(draws) > 1:
            relative = statistics.stdev(draws) / math.sqrt(len(draws)) / abs(statistics.mean(draws))
    return statistics.mean(draws), len(draws)


def by_vmap(point: Point) -> Found:
    """Per-example gradients by torch.func, 32 at a time."""
    total = 0.0
    for index in torch.arange(len(point.objective.x)).split(32):
        total += float(point.objective.example_grads(point.w, index).double().square().sum())
    return total / len(point.objective.x) - float(point.objective.grad(point.w).double().square().sum()), 1


def vmap_spectrum(point: Point) -> Found:
    gradients = point.objective.example_grads(point.w)
    centred = gradients - gradients.mean(0)
    return torch.linalg.eigvalsh((centred @ centred.T).double() / len(centred)).flip(0)[:10], 1


def two_batch_sizes(point: Point) -> Found:
    """Disjoint batches of a sixteenth, and their mean: McCandlish et al. (2018), appendix A.1, at one gradient."""
    num = len(point.objective.x)
    parts = torch.randperm(num, generator=stream(0, "two batch sizes")).split(num // 16)
    gradients = torch.stack([point.objective.restrict(part).grad(point.w) for part in parts])
    spread = (gradients - gradients.mean(0)).double().square().sum(1).mean()
    return float(spread) / batch_factor(num, num // 16, "without_replacement"), 1


def backpack(point: Point, extension: str) -> Found:
    """BatchL2Grad or Variance of a loss that is 2/K of the half squared error; its sums are those of g_i / N."""
    from backpack import backpack as extended
    from backpack import extend, extensions

    o, num = point.objective, len(point.objective.x)
    model = extend(nn.Sequential(nn.Flatten(), *(_copy(m) for m in o.model.modules() if not list(m.children()))))
    loss = extend(nn.MSELoss())
    torch.nn.utils.vector_to_parameters(point.w, model.parameters())
    with extended(getattr(extensions, extension)()):
        loss(model(o.x), nn.functional.one_hot(o.y, 10).float()).backward()
    parameters = list(model.parameters())
    if extension == "Variance":
        return 25 * num**2 * sum(float(p.variance.double().sum()) for p in parameters), 1
    norms = sum(float(p.batch_l2.double().sum()) for p in parameters)
    return 25 * (num * norms - sum(float(p.grad.double().square().sum()) for p in parameters)), 1


def _copy(module: nn.Module) -> nn.Module:
    return nn.Linear(module.in_features, module.out_features) if isinstance(module, nn.Linear) else type(module)()


def batch_sharpness(point: Point) -> Found:
    """100 batches of 8, beside a gradient of the same 800 examples: `eight_hundred`."""
    batches = torch.arange(800).view(8, 100).T
    forms = along_gradients(point.objective, point.w, batches)
    return float(ratio_of_means(forms.curvature, forms.slope)[0]), 100


def true_trace(point: Point) -> float:
    return trace(point.objective, point.w.double()).value


def true_top_ten(point: Point) -> Tensor:
    return eigenvalues(point.objective, point.w.double(), 0).values[:10]


def true_alignment(point: Point) -> float:
    """Plain probes, independent of the deflation that is judged; 300 of them are within 2 to 3 %."""
    H, noise = (
        hessian(point.objective, point.w),
        NoiseOperator(covariance(point.objective, point.w), stream(1, "truth")),
    )
    return statistics.mean(float(dot(e[None], H @ e)) for e in (noise.draw() for _ in range(300)))


def first(points: list[Point], num: int) -> list[Point]:
    """The same points with the loss of a class-balanced part of the examples."""
    index = torch.arange(num)
    return [Point(point.w, point.objective.restrict(index)) for point in points]


def resnet_points(data: Split, first_step: int, length: int) -> Iterator[tuple[int, Point]]:
    """SGD at lr 0.05, batch 64; a point every five steps."""
    model = ResNet(norm="group").build(tuple(data.x.shape[1:]), 10, seed=0)
    objective = NetworkObjective(model, CrossEntropy().build(10), (data.x, data.y))
    w = objective.weights
    for step in range(first_step + 5 * (length - 1) + 1):
        if step >= first_step and (step - first_step) % 5 == 0:
            yield step, Point(w.clone(), objective)
        index = torch.randperm(len(data), generator=stream(0, "batches", step))[:64]
        w = w - 0.05 * objective.restrict(index).grad(w)


MLP = [
    Task(
        "Tr D",
        {
            "lab, exact": lab_trace,
            "BackPACK BatchL2Grad": lambda point: backpack(point, "BatchL2Grad"),
            "BackPACK Variance": lambda point: backpack(point, "Variance"),
            "two batch sizes": two_batch_sizes,
        },
        true_trace,
        "<= 1.2 G",
    ),
    Task("Tr D, by forming all gradients", {"vmap(grad)": by_vmap}, true_trace, "-", points=1),
    Task(
        "all eigenvalues of D",
        {"lab, exact": lab_spectrum, "lab, with 10 vectors": lab_top_ten},
        true_top_ten,
        "<= 16 G",
    ),
    Task("Tr(HD) to 5 %", {"lab": lab_alignment, "plain probes": plain_probes}, true_alignment, "<= 60 G", points=1),
]
RESNET = [
    Task(
        "Tr D",
        {"lab, exact": lab_trace, "vmap(grad)": by_vmap, "two batch sizes": two_batch_sizes},
        true_trace,
        "<= 1.4 G",
    ),
    Task("Tr(HD) to 5 %", {"lab": lab_alignment}, lambda point: None, "no bound", points=1),
]
FEW = Task(
    "all eigenvalues of D, 128 images", {"lab": lab_spectrum, "vmap(grad)": vmap_spectrum}, true_top_ten, "<= 2.5 G"
)
STEPS = 10**9
"""More than are ever made."""
NOISY = {
    "sample_weights": SampleWeights(equivalent_batch_size=32),
    "minibatch": Minibatch(equivalent_batch_size=32),
}
BATCHES = Task("batch sharpness of 100 batches of 8", {"lab": batch_sharpness}, lambda point: None, "<= 3 G of the 800")


def training(card: NoiseCard | None, data: Dataset, widths: tuple[int, ...]) -> SupervisedModule:
    """Gradient descent on a tanh MLP as `python -m lab.train` makes it, its norms logged every 50 steps."""
    num, train = len(data.train), (data.train.x, data.train.y)
    model = Mlp(widths=widths).build(data.input_shape, data.num_classes, seed=0)
    criterion = CrossEntropy().build(data.num_classes)
    trained = Trained(model, criterion, train, num, Sgd())
    module = SupervisedModule(
        model,
        criterion,
        torch.optim.SGD(model.parameters(), lr=0.01),
        data,
        Batches(num, "full", "epoch", 0),
        Agenda(0, STEPS, (), 50),
        noise=None if card is None else card.build(trained, 0),
    )
    module.on_fit_start()
    return module


def measure_steps(data: Dataset, widths: tuple[int, ...], turns: int, say: Callable[[str], None]) -> None:
    """A table: steps with noise over steps without."""
    cards: dict[str, NoiseCard | None] = {"none": None, **NOISY}
    modules = {name: training(card, data, widths) for name, card in cards.items()}
    modules["none, again"] = training(None, data, widths)
    took: dict[str, list[float]] = {name: [] for name in modules}
    order = list(modules)
    for _ in range(turns):
        for name in order:
            module = modules[name]
            begin = process_time()
            module.training_step(Steps(module.step, module.step + 5))
            took[name].append(process_time() - begin)
        order = order[1:] + order[:1]
    shape = "-".join(map(str, (data.train.x[0].numel(), *widths, data.num_classes)))
    say(
        f"\n### A step of training, tanh MLP {shape}, {len(data.train)} examples in a batch\n\nWanted: <= 1.15 plain steps\n"
    )
    say("| noise | time / step without: median [quartiles] |")
    say("|---|---|")
    for name, seconds in took.items():
        low, middle, high = statistics.quantiles([a / b for a, b in zip(seconds, took["none"], strict=True)], n=4)
        if name != "none":
            say(f"| {name} | {middle:.2f} [{low:.2f}, {high:.2f}] |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="image folder with train/<class>/*; default: noise")
    parser.add_argument("--workload", choices=("mlp", "resnet", "step", "all"), default="all")
    parser.add_argument("--write", metavar="FILE", help="also write the tables to this file")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    say = writer(options.write)
    source = "real images" if options.images else "noise images"
    say("# What the noise of the gradient costs\n")
    say("Written by `make bench IMAGES=DIR` (`scripts/benchmarks/noise.py`), which says what is measured and how.\n")
    say(f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, {source}.")
    if options.workload in ("mlp", "all"):
        points = [point for _, point in mlp_points(images(options.images, 2000, "pixel"), 0.05, 100, 3)]
        say(f"\n## tanh MLP 3072-200-200-10, P = {points[0].w.numel():,}, 2000 images")
        for task in MLP:
            measure(task, points, say)
        measure(BATCHES, first(points, 800), say)
    if options.workload in ("resnet", "all"):
        points = [point for _, point in resnet_points(images(options.images, 256, "channel"), 10, 3)]
        say(f"\n## ResNet-20, width 16, GroupNorm, P = {points[0].w.numel():,}, 256 images")
        for task in RESNET:
            measure(task, points, say)
        measure(FEW, first(points, 128), say)
    if options.workload in ("step", "all"):
        say("\n## What noise adds to a step of training")
        measure_steps(Digits().load(), (32, 32), 200, say)
        data = images(options.images, 2000, "pixel")
        measure_steps(Dataset(data, None, tuple("0123456789"), {}), (200, 200), 20, say)


if __name__ == "__main__":
    main()
