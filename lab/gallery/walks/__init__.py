"""Random walks whose laws are known: on graphs, along lines through a point, on lattices, and back to the origin.

The exact law and the walkers that measure it stand side by side and share no code: `graphs` and `wander`, `chords`,
`lattice`, `polya`, `shares`.
"""

from lab.gallery.walks.chords import ChordWalk
from lab.gallery.walks.graphs import HUB, Walk, glued_polygons
from lab.gallery.walks.lattice import FreeWalk, wander
from lab.gallery.walks.polya import first_return, first_returns, return_probability
from lab.gallery.walks.shares import limit_shares, walk_shares
from lab.gallery.walks.wander import Walkers

__all__ = [
    "HUB",
    "ChordWalk",
    "FreeWalk",
    "Walk",
    "Walkers",
    "first_return",
    "first_returns",
    "glued_polygons",
    "limit_shares",
    "return_probability",
    "walk_shares",
    "wander",
]
