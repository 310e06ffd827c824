"""Random walks: on graphs, by chords, and on lattices.

The exact law and the walkers that measure it stand side by side and share no code: `graphs` and `wander`, `chords`,
`lattice`, `polya`, `shares`.
"""
