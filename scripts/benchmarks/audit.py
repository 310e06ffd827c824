"""What the audit of a loss costs, what it catches, and how often it cries wolf.

    python scripts/benchmarks/audit.py --write docs/audit.md

Networks and criteria are those of `tests/strangers.py`: sound ones of every usual kind, in train and in eval mode, and ones
that break a law, in float32 and in float64, every one with `--seeds` seeds. Cost: what was evaluated in gradients of the
whole loss, and the time over that of one gradient, median of `--rounds` interleaved rounds.
"""

import argparse
import platform
import statistics
import sys
import warnings
from collections import defaultdict
from pathlib import Path
from time import perf_counter

import torch
from curvature import writer
from torch import nn

from lab.models.mlp import Mlp
from lab.models.resnet import ResNet
from lab.objective import NetworkObjective, Unsound, audit

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from strangers import BROKEN, COUPLED, HIDDEN, SOUND, Attention, data, mlp

CE = nn.CrossEntropyLoss()
LAWS = {
    "the value at one w differs": "the value of one w twice, other examples in between",
    "the gradient differs from the difference of values": "gradient against the difference of values",
    "a Hessian product differs": "Hessian product against the difference of gradients, parameter by parameter",
    "u'Hv differs": "u'Hv = v'Hu",
    "formed at once": "gradients of single examples formed at once against those formed one by one",
    "the mean of the gradients": "mean of the gradients of single examples against the gradient",
    "one chunk differs": "one chunk against two uneven ones",
    "depend on the others": "outputs of an example in other company",
    "no mean over examples": "criterion of all targets against the mean over uneven parts of them",
    "marked once_differentiable": "the graph of the gradient, walked for nodes that end it",
    "draws random numbers": "generators before and after the network",
    "changes its weights": "w before and after the first evaluation",
}
"""Words of a refusal or of a note, and the law behind them."""


def networks() -> dict[str, NetworkObjective]:
    """Three networks whose audit is timed."""
    generator = torch.Generator().manual_seed(0)

    def images(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(n, 3, 32, 32, generator=generator), torch.randint(10, (n,), generator=generator)

    return {
        "MLP 3072-200-200-10, 2000 images": NetworkObjective(
            Mlp(widths=(200, 200)).build((3, 32, 32), 10, 0), CE, images(2000)
        ),
        "ResNet-20, GroupNorm, 256 images": NetworkObjective(
            ResNet(depth=20, norm="group").build((3, 32, 32), 10, 0), CE, images(256)
        ),
        "attention block, 1000 sequences": NetworkObjective(Attention(), CE, data("tokens", examples=1000)),
    }


def costs(rounds: int) -> list[str]:
    """Rows of the table of costs."""
    rows = []
    for name, loss in networks().items():
        w, ratios = loss.weights, []
        for _ in range(rounds):
            begin = perf_counter()
            loss.grad(w)
            between = perf_counter()
            fresh = NetworkObjective(loss.model, loss.criterion, (loss.x, loss.y))
            found = audit(fresh)
            ratios.append((perf_counter() - between) / (between - begin))
        told = f"{statistics.median(ratios):.2g} [{min(ratios):.2g}, {max(ratios):.2g}]"
        rows.append(f"| {name} | {found.gradients:.2g} | {told} |")
    return rows


def caught(seeds: int) -> tuple[dict[str, set[str]], list[str], int]:
    """Law -> what it caught first; what was missed; and how many were tried."""
    by_law, missed, tried = defaultdict[str, set[str]](set), [], 0
    cases = {**{name: (mlp, make, CE) for name, make in (BROKEN | COUPLED).items()}}
    cases |= {f"criterion: {name}": (mlp, nn.Tanh, criterion) for name, criterion in HIDDEN.items()}
    for dtype in (torch.float32, torch.float64):
        for name, (build, layer, criterion) in cases.items():
            for seed in range(seeds):
                torch.manual_seed(seed)
                x, y = data("vectors", seed)
                loss = NetworkObjective(build(layer()).to(dtype), criterion, (x.to(dtype), y), batch_norm="train")
                tried += 1
                try:
                    told = "; ".join(audit(loss, seed=seed).notes)
                except ValueError as error:
                    told = str(error)
                law = next((law for words, law in LAWS.items() if words in told), None)
                if law is None:
                    missed.append(f"{name}, {dtype}, seed {seed}")
                else:
                    by_law[law].add(name)
    return by_law, missed, tried


def alarms(seeds: int) -> tuple[list[str], list[str], int]:
    """False alarms, undecided laws, and how many sound losses were tried."""
    found, undecided, tried = [], [], 0
    for name, (make, kind) in SOUND.items():
        for seed in range(seeds):
            for mode in ("train", "eval"):
                torch.manual_seed(seed)
                tried += 1
                try:
                    laws = audit(NetworkObjective(make(), CE, data(kind, seed), batch_norm=mode), seed=seed).laws  # type: ignore[arg-type]
                except Unsound as error:
                    found.append(f"{name}, seed {seed}: {error}")
                    continue
                undecided += [f"{name}: {law.name}" for law in laws if law.held is None]
    return found, undecided, tried


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", metavar="FILE", help="also write the tables to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    by_law, missed, tried = caught(options.seeds)
    wolf, undecided, sound = alarms(options.seeds)
    write = writer(options.write)
    write("# The audit of a loss\n")
    write("Before its first number a loss is held against the laws that every number rests on (`lab.objective.audit`).")
    write(f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}.")
    write("Written by `scripts/benchmarks/audit.py`, which says what is measured and how.\n")
    write("## What it caught\n")
    write("| law | broken by |\n|---|---|")
    for law in LAWS.values():
        write(f"| {law} | {', '.join(sorted(by_law.get(law, ()))) or '-'} |")
    write(f"\nMissed: {len(missed)} of {tried}{': ' + '; '.join(missed) if missed else ''}.")
    write(f"\nFalse alarms: {len(wolf)} of {sound} sound losses{': ' + '; '.join(wolf) if wolf else ''}.")
    write(f"Undecided laws: {len(undecided)}{': ' + '; '.join(sorted(set(undecided))) if undecided else ''}.\n")
    write("## What it costs\n")
    write("| network | gradients of the whole loss | seconds over those of one gradient |\n|---|---|---|")
    for row in costs(options.rounds):
        write(row)


if __name__ == "__main__":
    main()
