"""Random walks on graphs, exactly: where the walker is, when it returns, and what its neighbours look like.

A walker at node v moves to one of its deg(v) neighbours with equal chance. On a connected graph with E edges the
stationary law is pi(v) = deg(v) / 2E (detailed balance: pi(v) P(v, u) = 1/2E on every edge), the mean time between
visits of v is 1 / pi(v) (Kac 1947, Bull. AMS 53, 1002), and the mean degree at the end of a random edge, which is the
mean degree that the walker sees, exceeds the mean degree: E_edge[k] = E[k] + Var(k) / E[k] (Feld 1991, Am. J.
Sociology 96, 1464: "Why your friends have more friends than you do").

For k polygons of m corners glued at one of them (n = k(m - 1) + 1 nodes, k m edges) this makes pi(hub) = 1/m and
1/(k m) elsewhere: the crossing is k times as likely as any other node, but its mass vanishes as the polygons are refined.

Every law comes in two ways: by its formula and by linear algebra that knows nothing of it.
"""

from dataclasses import dataclass
from functools import cached_property

import networkx as nx
import numpy as np
from scipy import sparse
from scipy.sparse.linalg import spsolve

Array = np.ndarray
HUB = 0
"""The node that all polygons of `glued_polygons` share."""


def glued_polygons(k: int, m: int) -> nx.Graph:
    """k cycles of length m >= 3 that share node 0. Raises ValueError below k = 1 or m = 3.

    >>> graph = glued_polygons(2, 10)
    >>> len(graph), graph.size(), graph.degree(HUB)
    (19, 20, 4)
    """
    if k < 1 or m < 3:
        raise ValueError(f"k={k} polygons of m={m} corners: expected k of at least 1 and m of at least 3")
    graph = nx.Graph()
    for first in range(1, k * (m - 1) + 1, m - 1):
        nx.add_cycle(graph, [HUB, *range(first, first + m - 1)])
    return graph


@dataclass(frozen=True)
class Walk:
    """The simple random walk on a graph. Nodes are numbered as the graph lists them: `nodes[i]`.

    Raises ValueError for a graph on which it has no unique stationary law or another one: directed, with parallel edges
    or loops, not connected, or of a single node.
    """

    graph: nx.Graph

    def __post_init__(self) -> None:
        graph = self.graph
        if graph.is_directed() or graph.is_multigraph() or nx.number_of_selfloops(graph):
            raise ValueError(
                "the graph has directed or parallel edges or loops; expected a simple undirected networkx.Graph"
            )
        if len(graph) < 2 or not nx.is_connected(graph):
            parts = nx.number_connected_components(graph) if len(graph) else 0
            raise ValueError(
                f"the graph has {len(graph)} nodes in {parts} connected parts, so a walk has no unique stationary law; "
                "expected at least 2 nodes, all connected"
            )

    @cached_property
    def nodes(self) -> list:
        """The nodes by number."""
        return list(self.graph)

    @cached_property
    def adjacency(self) -> sparse.csr_array:
        """(n, n) of ones where there is an edge."""
        return sparse.csr_array(nx.to_scipy_sparse_array(self.graph, weight=None, dtype=np.float64, format="csr"))

    @cached_property
    def degrees(self) -> Array:
        """(n,) the number of neighbours of every node."""
        return np.diff(self.adjacency.indptr)

    def number(self, node: object) -> int:
        """The number of a node of the graph. Raises ValueError where there is none."""
        if node not in self.graph:
            raise ValueError(f"node {node} is not in the graph; expected one of its {len(self.graph)} nodes")
        return self.nodes.index(node)

    def stationary(self) -> Array:
        """(n,) pi = deg / 2E. Exact.

        >>> pi = Walk(glued_polygons(3, 8)).stationary()
        >>> bool(np.isclose(pi[HUB], 1 / 8)), bool(np.allclose(pi[1:], 1 / 24))
        (True, True)
        """
        return self.degrees / self.degrees.sum()

    def stationary_by_eigenvector(self) -> Array:
        """(n,) the left eigenvector of P with eigenvalue 1, scaled to sum 1; round-off about 1e-15. Dense: O(n^3)."""
        values, vectors = np.linalg.eig(self._transitions().toarray().T)
        law = np.real(vectors[:, np.argmin(np.abs(values - 1))])
        return law / law.sum()

    def eigenvalues(self) -> Array:
        """(n,) the eigenvalues of P in descending order, all real in [-1, 1]; the first is 1. Dense: O(n^3).

        P is similar to the symmetric D^(-1/2) A D^(-1/2). The second tells how fast a walk forgets; -1 is there if and
        only if the graph is bipartite, and then P^t does not converge, only its averages over time do.
        """
        roots = 1 / np.sqrt(self.degrees)
        return np.linalg.eigvalsh(self.adjacency.toarray() * np.outer(roots, roots))[::-1]

    @property
    def period(self) -> int:
        """2 if every closed walk is of even length (no odd cycle: the graph is bipartite), otherwise 1."""
        return 2 if nx.is_bipartite(self.graph) else 1

    def return_times(self) -> Array:
        """(n,) mean steps between visits of every node, by Kac's formula 1 / pi. Exact."""
        return 1 / self.stationary()

    def return_time_by_hitting(self, node: object) -> float:
        """Mean steps from `node` back to it, by solving for the mean times h of reaching it from everywhere else.

        h = 1 + P h away from the node and h = 0 at it; the answer is 1 + (P h)(node). One sparse solve.
        """
        home, transitions = self.number(node), self._transitions()
        away = np.delete(np.arange(len(self.nodes)), home)
        inside = sparse.csc_array(transitions[away][:, away])
        times = spsolve(sparse.eye_array(len(away), format="csc") - inside, np.ones(len(away)))
        return float(1 + (transitions[[home]][:, away] @ times)[0])

    def return_survival(self, node: object, steps: int) -> Array:
        """(steps + 1,) the probability not to be back at `node` by step t = 0 .. steps. Exact; cost steps x E.

        Its sum over all t is the mean return time.
        """
        home, transitions = self.number(node), self._transitions()
        law = transitions[[home]].toarray().ravel()  # where the walker is after one step
        survival = np.ones(steps + 1)
        for t in range(1, steps + 1):
            law[home] = 0.0
            survival[t] = law.sum()
            law = transitions.T @ law
        return survival

    def mean_degree(self) -> float:
        """E[k], the mean over nodes."""
        return float(self.degrees.mean())

    def edge_mean_degree(self) -> float:
        """E_edge[k], the mean degree at the end of an edge drawn at random, from the list of edges itself."""
        ends = np.array([self.graph.degree(v) for edge in self.graph.edges for v in edge], dtype=np.float64)
        return float(ends.mean())

    def edge_mean_degree_by_variance(self) -> float:
        """E_edge[k] = E[k] + Var(k) / E[k], from mean and variance over the nodes (Feld 1991)."""
        return self.mean_degree() + float(self.degrees.var()) / self.mean_degree()

    def within(self, node: object, distance: int) -> Array:
        """(n,) bool: the nodes that are at most `distance` edges away from `node`."""
        near = nx.single_source_shortest_path_length(self.graph, node, cutoff=distance)
        return np.array([v in near for v in self.nodes])

    def _transitions(self) -> sparse.csr_array:
        """(n, n) P, whose rows sum to 1."""
        return sparse.csr_array(sparse.diags_array(1 / self.degrees) @ self.adjacency)
