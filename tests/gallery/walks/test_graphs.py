"""Walks on graphs: the exact laws by two roads, and walkers within their own standard errors of them (THEORY F1, F3)."""

import networkx as nx
import numpy as np
import pytest
import torch

from lab.gallery.walks.graphs import HUB, Walk, glued_polygons
from lab.gallery.walks.wander import GraphWalkers
from lab.streams import stream

POLYGONS = [(2, 10), (3, 8), (4, 7)]
SIGMAS = 4.5
"""Standard errors of 40 groups allowed (Student t with 39 degrees of freedom): false alarm 6e-5 a comparison."""


def graphs() -> list[nx.Graph]:
    return [
        glued_polygons(1, 3),
        glued_polygons(3, 8),
        nx.star_graph(5),
        nx.path_graph(["a", "b"]),
        nx.barabasi_albert_graph(60, 2, seed=1),
        nx.complete_graph(6),
    ]


@pytest.mark.parametrize(("k", "m"), POLYGONS)
def test_the_crossing_of_k_polygons_has_k_times_the_mass_of_another_corner(k: int, m: int) -> None:
    walk = Walk(glued_polygons(k, m))
    pi = walk.stationary_by_eigenvector()
    assert len(pi) == k * (m - 1) + 1
    assert abs(pi[HUB] - 1 / m) < 1e-12
    assert np.abs(pi[1:] - 1 / (k * m)).max() < 1e-12
    assert np.abs(pi - walk.stationary()).max() < 1e-12


@pytest.mark.parametrize("graph", graphs(), ids=str)
def test_stationary_law_return_times_and_period_agree_with_linear_algebra(graph: nx.Graph) -> None:
    walk = Walk(graph)
    eigenvalues = walk.eigenvalues()
    assert np.abs(walk.stationary_by_eigenvector() - walk.stationary()).max() < 1e-12
    assert abs(eigenvalues[0] - 1) < 1e-12
    assert (walk.period == 2) == (abs(eigenvalues[-1] + 1) < 1e-9)
    for node in (walk.nodes[0], walk.nodes[-1]):
        assert walk.return_time_by_hitting(node) == pytest.approx(walk.return_times()[walk.number(node)], rel=1e-11)


def test_the_mean_return_time_is_the_sum_of_the_survival_and_m_for_any_number_of_polygons() -> None:
    for k, m in POLYGONS:
        survival = Walk(glued_polygons(k, m)).return_survival(HUB, 3000)
        assert survival[:2] == pytest.approx([1, 1], abs=1e-14)
        assert survival.sum() == pytest.approx(m, abs=1e-9)


def test_survival_of_a_triangle_halves_every_step() -> None:
    """From a corner, at either other one; from there home or across, with equal chance: P(T > t) = 2^(1 - t)."""
    assert Walk(glued_polygons(1, 3)).return_survival(HUB, 4) == pytest.approx([1, 1, 1 / 2, 1 / 4, 1 / 8], abs=1e-15)


def test_the_end_of_a_random_edge_has_more_neighbours_than_a_random_node() -> None:
    """F3: E_edge[k] = E[k] + Var(k) / E[k], to 1e-12; the walker in equilibrium sees the same."""
    graph = nx.fast_gnp_random_graph(2000, 0.005, seed=3)
    walk = Walk(graph.subgraph(max(nx.connected_components(graph), key=len)))
    assert abs(walk.edge_mean_degree() - walk.edge_mean_degree_by_variance()) < 1e-12
    assert abs(walk.edge_mean_degree() - walk.stationary() @ walk.degrees) < 1e-12
    assert walk.edge_mean_degree() > walk.mean_degree() + 0.9  # Var / mean of a Poisson degree is 1


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        (nx.DiGraph([(0, 1), (1, 0)]), "directed"),
        (nx.MultiGraph([(0, 1), (0, 1)]), "parallel"),
        (nx.Graph([(0, 0), (0, 1)]), "loops"),
        (nx.Graph([(0, 1), (2, 3)]), "4 nodes in 2 connected parts"),
        (nx.empty_graph(1), "at least 2 nodes"),
        (nx.Graph(), "at least 2 nodes"),
    ],
)
def test_a_graph_without_a_unique_stationary_law_is_refused(graph: nx.Graph, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Walk(graph)


def test_slips_are_told() -> None:
    with pytest.raises(ValueError, match="m of at least 3"):
        glued_polygons(2, 2)
    with pytest.raises(ValueError, match="node zebra is not in the graph"):
        Walk(nx.path_graph(3)).number("zebra")
    walkers = GraphWalkers(Walk(nx.path_graph(3)), stream(0, "test"))
    with pytest.raises(ValueError, match="at least 2 walkers"):
        walkers.occupation(walkers=1, steps=5)


def test_nearby_corners_are_counted_on_all_arms() -> None:
    walk = Walk(glued_polygons(3, 8))
    assert walk.within(HUB, 0).sum() == 1
    assert walk.within(HUB, 2).sum() == 1 + 3 * 2 * 2


def test_a_step_reaches_every_neighbour_equally_and_nothing_else() -> None:
    graph = nx.Graph([("b", "a"), ("b", "c"), ("b", "d"), ("d", "a")])
    walk = Walk(graph)
    walkers = GraphWalkers(walk, stream(0, "test"))
    for node in graph:
        reached = walkers.moved(torch.full((30_000,), walk.number(node)))
        counts = np.bincount(reached, minlength=4)
        share = 1 / graph.degree(node)
        for other in graph:
            expected = share if graph.has_edge(node, other) else 0.0
            error = np.sqrt(expected * (1 - expected) / 30_000)
            assert abs(counts[walk.number(other)] / 30_000 - expected) <= 4.5 * error


@pytest.mark.parametrize(("k", "m"), POLYGONS)
def test_walkers_are_at_the_crossing_k_times_as_often(k: int, m: int) -> None:
    """F1 at a tenth of its size: 500 walkers x 1000 steps; the full size is the slow test."""
    walk = Walk(glued_polygons(k, m))
    seen = GraphWalkers(walk, stream(0, "test")).occupation(walkers=500, steps=1000)
    z = (seen.shares() - torch.from_numpy(walk.stationary())) / seen.errors()
    assert float(z.abs().max()) < SIGMAS
    assert float(z.square().mean()) > 0.2, "the standard errors are far too large"
    assert float(seen.shares().sum()) == pytest.approx(1, abs=1e-12)
    hub = seen.at(torch.from_numpy(walk.within(HUB, 0)))
    assert (hub.value, hub.error) == pytest.approx((float(seen.shares()[HUB]), float(seen.errors()[HUB])))


def test_walkers_from_the_crossing_of_even_polygons_are_home_only_at_even_steps() -> None:
    walk = Walk(glued_polygons(2, 4))
    odd = GraphWalkers(walk, stream(0, "test")).occupation(walkers=50, steps=1, start=HUB)
    assert float(odd.shares()[HUB]) == 0.0
    times = GraphWalkers(walk, stream(0, "test")).first_returns(HUB, walkers=1000)
    assert set((times % 2).tolist()) == {0}


@pytest.mark.parametrize(("k", "m"), POLYGONS)
def test_walkers_come_back_after_m_steps_on_average(k: int, m: int) -> None:
    """F1, Kac: tolerance 1.5 %, and 4.5 standard errors; every walker is followed until it is back, so no bias."""
    walk = Walk(glued_polygons(k, m))
    times = GraphWalkers(walk, stream(0, "test")).first_returns(HUB, walkers=50_000).double()
    error = float(times.std()) / 50_000**0.5
    assert abs(float(times.mean()) - m) < min(4.5 * error, 0.015 * m)
    survival = walk.return_survival(HUB, 20)
    measured = np.array([float((times > t).double().mean()) for t in range(21)])
    assert (np.abs(measured - survival) <= 4.5 * np.sqrt(survival * (1 - survival) / 50_000)).all()


def test_more_walkers_than_a_chunk_are_all_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.gallery.walks.wander.CHUNK", 7)
    walk, told = Walk(glued_polygons(2, 5)), list[float]()
    seen = GraphWalkers(walk, stream(0, "test")).occupation(walkers=45, steps=30, tick=told.append)
    assert float(seen.shares().sum()) == pytest.approx(1, abs=1e-12)
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert len(GraphWalkers(walk, stream(0, "test")).first_returns(HUB, walkers=45)) == 45


@pytest.mark.slow
@pytest.mark.parametrize(("k", "m"), POLYGONS)
def test_the_mass_ratio_is_k_within_one_percent_at_full_size(k: int, m: int) -> None:
    """F1: 2000 walkers x 3000 steps."""
    seen = GraphWalkers(Walk(glued_polygons(k, m)), stream(0, "test")).occupation(walkers=2000, steps=3000)
    shares = seen.shares()
    assert float(shares[HUB] / shares[1:].mean()) == pytest.approx(k, rel=0.01)
