"""Many walkers on a graph at once: how often each node is visited, and when a node is visited again.

The law that these measure is exact in `lab.gallery.walks.graphs`. A walker at v draws u uniform in [0, 1) and takes the
neighbour number floor(u deg(v)) from the adjacency in compressed rows, so a node with thousands of neighbours costs no
more than one with two. Everything happens on the device of the generator.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lab.gallery.walks.graphs import Walk
from lab.progress import Tick, silent
from lab.results import Estimate

CHUNK = 1 << 16
"""Walkers that move together: what fits into a cache and keeps a GPU busy."""
GROUPS = 40
"""Independent groups of walkers whose scatter gives the standard errors (to 1 / sqrt(2 GROUPS), 11 %)."""


@dataclass(frozen=True)
class Visits:
    """How often walkers were seen at every node.

    visits (groups, n) float64: the share of time that each group of independent walkers spent at each node.
    """

    visits: Tensor

    def shares(self) -> Tensor:
        """(n,) the share of time at every node; sums to 1."""
        return self.visits.mean(0)

    def errors(self) -> Tensor:
        """(n,) the standard errors of `shares`, from the scatter of the groups."""
        return self.visits.std(0) / len(self.visits) ** 0.5

    def at(self, nodes: Tensor) -> Estimate:
        """The share of time at a set of nodes, (n,) bool."""
        each = self.visits[:, nodes.to(self.visits.device)].sum(1)
        return Estimate(float(each.mean()), float(each.std() / len(each) ** 0.5), 0, "walkers")


class GraphWalkers:
    """Walkers on the graph of `walk`, on the device of `generator`, from which they draw."""

    def __init__(self, walk: Walk, generator: Generator):
        def on_device(array: object) -> Tensor:
            return torch.as_tensor(array, dtype=torch.int64, device=generator.device)

        self.walk, self.generator = walk, generator
        self.degrees, self.neighbours = on_device(walk.degrees), on_device(walk.adjacency.indices)
        self.offsets = on_device(walk.adjacency.indptr[:-1])

    def moved(self, at: Tensor) -> Tensor:
        """(w,) the nodes after one step from the nodes `at`."""
        # u < 1 has 24 bits, so u * degree rounds to less than the degree, and the choice is uniform to degree / 2^24.
        u = torch.rand(at.shape, generator=self.generator, device=at.device)
        return self.neighbours[self.offsets[at] + (u * self.degrees[at]).long()]

    def stationary(self, walkers: int) -> Tensor:
        """(walkers,) nodes drawn from the stationary law: the end of a random edge."""
        ends = torch.randint(len(self.neighbours), (walkers,), generator=self.generator, device=self.degrees.device)
        return self.neighbours[ends]

    def occupation(self, *, walkers: int, steps: int, start: object = None, tick: Tick = silent) -> Visits:
        """Where `walkers` are over `steps` steps, the start not counted; start None: drawn from the stationary law.

        From the stationary law the expected shares are pi after any number of steps; from a node they approach it like
        1 / steps. Averages over time, so a period of 2 does no harm once `steps` is even or large. Error about
        sqrt(pi / (walkers steps)) times the correlation time's root. Cost: walkers x steps moves. Raises ValueError for
        fewer than 2 walkers, whose scatter says nothing.
        """
        if walkers < 2 or steps < 1:
            raise ValueError(f"walkers={walkers}, steps={steps}: expected at least 2 walkers and 1 step")
        groups, n = min(GROUPS, walkers), len(self.walk.nodes)
        counts = torch.zeros(groups * n, dtype=torch.int64, device=self.degrees.device)
        sizes = torch.zeros(groups, dtype=torch.float64, device=self.degrees.device)
        for first in range(0, walkers, CHUNK):
            mine = torch.arange(first, min(first + CHUNK, walkers), device=self.degrees.device) % groups
            sizes += torch.bincount(mine, minlength=groups)
            at = self._begin(len(mine), start)
            ones = torch.ones_like(at)
            for step in range(steps):
                at = self.moved(at)
                counts.index_add_(0, mine * n + at, ones)
                tick((first + len(mine) * (step + 1) / steps) / walkers)
        return Visits(counts.view(groups, n).double() / (sizes * steps)[:, None])

    def first_returns(self, node: object, *, walkers: int, tick: Tick = silent) -> Tensor:
        """(walkers,) int64 steps until each walker that starts at `node` is there again.

        Every walker is followed until it is back, so the mean has no bias from a window that ends too early. On a
        connected graph all come back, the last after about log(walkers) relaxation times. Cost: walkers / pi(node)
        moves.
        """
        home = self.walk.number(node)
        times = []
        for first in range(0, walkers, CHUNK):
            size = min(CHUNK, walkers - first)
            taken = torch.zeros(size, dtype=torch.int64, device=self.degrees.device)
            out = torch.arange(size, device=self.degrees.device)
            at = torch.full((size,), home, device=self.degrees.device)
            while len(out):
                at = self.moved(at)
                taken[out] += 1
                still = at != home
                out, at = out[still], at[still]
                tick((first + size - len(out)) / walkers)
            times.append(taken)
        return torch.cat(times)

    def _begin(self, walkers: int, start: object) -> Tensor:
        if start is None:
            return self.stationary(walkers)
        return torch.full((walkers,), self.walk.number(start), device=self.degrees.device)
