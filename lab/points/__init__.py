"""Points of a loss: critical points and how to reach them, minima and saddles, strings between them, the quench."""
