"""The seam of the lab: a scalar loss L(w) on a flat vector w. What mathematics sees of a landscape or a network."""

from lab.objective.base import Objective, differentiating_again, directional, memory_of, require_graph
from lab.objective.decayed import Decayed
from lab.objective.network import CHUNK_BYTES, NetworkObjective
from lab.objective.sharded import Sharded

__all__ = [
    "CHUNK_BYTES",
    "Decayed",
    "NetworkObjective",
    "Objective",
    "Sharded",
    "differentiating_again",
    "directional",
    "memory_of",
    "require_graph",
]
