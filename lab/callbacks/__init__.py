"""Thin adaptors from Lightning to `lab.probes` and `lab.run`. `ProbeCallback` works in any Lightning project."""

from lab.callbacks.probe import ProbeCallback

__all__ = ["ProbeCallback"]
