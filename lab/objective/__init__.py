"""The seam of the lab: a scalar loss L(w) on a flat vector w. What mathematics sees of a landscape or a network."""

from lab.objective.audit import Audit, audit
from lab.objective.base import (
    Objective,
    Unsound,
    at_least_single,
    differentiating_again,
    directional,
    memory_of,
    require_graph,
    with_gradients,
)
from lab.objective.batches import BatchesObjective
from lab.objective.chunks import CHUNK_BYTES
from lab.objective.criterion import projection, pulled_back
from lab.objective.decayed import Decayed
from lab.objective.laws import Law
from lab.objective.network import NetworkObjective
from lab.objective.sharded import Sharded
from lab.objective.source import BatchSource
from lab.objective.weighing import Weight

__all__ = [
    "CHUNK_BYTES",
    "Audit",
    "BatchSource",
    "BatchesObjective",
    "Decayed",
    "Law",
    "NetworkObjective",
    "Objective",
    "Sharded",
    "Unsound",
    "Weight",
    "at_least_single",
    "audit",
    "differentiating_again",
    "directional",
    "memory_of",
    "projection",
    "pulled_back",
    "require_graph",
    "with_gradients",
]
