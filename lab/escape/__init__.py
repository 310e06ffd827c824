"""Escape from minima and saddles: replicas of a run, what counts as an exit, survival, and the theory to compare with."""
