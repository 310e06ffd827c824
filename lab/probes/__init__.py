"""Measurements on a snapshot of training, free of Lightning: `Sharpness` and whatever else stands in this package."""

from lab.probes.base import Probe, Snapshot
from lab.probes.sharpness import Sharpness
from lab.probes.spectrum import Spectrum

__all__ = ["Probe", "Sharpness", "Snapshot", "Spectrum"]
