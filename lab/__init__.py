"""A lab for the loss landscape of neural networks while they train.

    from lab import sharpness, spectrum, noise, batch_sharpness, fisher
    from lab import linear_stability, batch_landscape, critical_point, escape

Every measurement is a function of an objective, or of a snapshot where the optimiser matters (`Bench`), and returns a frozen
result with `.numbers()`, `.sentence()`, `.figure()` and `.arrays()`. `watch` repeats them in any training loop, `runs` makes
a table of the folders that runs have left. They are loaded when they are first asked for.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lab.callbacks.watch import watch as watch
    from lab.compare.runs import Runs as Runs
    from lab.compare.runs import runs as runs
    from lab.objective import BatchesObjective as BatchesObjective
    from lab.objective import NetworkObjective as NetworkObjective
    from lab.probes.batch_landscape import batch_landscape as batch_landscape
    from lab.probes.batch_sharpness import batch_sharpness as batch_sharpness
    from lab.probes.bench import Bench as Bench
    from lab.probes.critical_point import critical_point as critical_point
    from lab.probes.escape import escape as escape
    from lab.probes.fisher import fisher as fisher
    from lab.probes.linear_stability import linear_stability as linear_stability
    from lab.probes.noise import noise as noise
    from lab.probes.sharpness import sharpness as sharpness
    from lab.probes.spectrum import spectrum as spectrum

__version__ = "0.1.0"
MEASUREMENTS = (
    *("sharpness", "spectrum", "noise", "batch_sharpness", "fisher"),
    *("linear_stability", "batch_landscape", "critical_point", "escape"),
)
HOMES = {name: f"lab.probes.{name}" for name in MEASUREMENTS}
HOMES |= {"Bench": "lab.probes.bench", "NetworkObjective": "lab.objective", "BatchesObjective": "lab.objective"}
HOMES |= {"watch": "lab.callbacks.watch", "runs": "lab.compare.runs", "Runs": "lab.compare.runs"}
__all__ = list(HOMES)


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'lab' has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Room(ModuleType):
    """A package that has the name of a measurement and is called as one: lab.noise(objective), lab.noise.covariance."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        return self._measurement(*args, **settings)

    def __getattr__(self, name: str) -> Any:
        try:
            return import_module(f"{self.__name__}.{name}")
        except ModuleNotFoundError:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}") from None

    def __reduce__(self) -> Any:
        return import_module, (self.__name__,)

    @property
    def __signature__(self) -> Any:
        return self._measurement.__signature__

    @property
    def _measurement(self) -> Any:
        name = self.__name__.removeprefix("lab.")
        return getattr(import_module(f"lab.probes.{name}"), name)


for _name in ("noise", "escape"):
    import_module(f"lab.{_name}")
    sys.modules[f"lab.{_name}"].__class__ = _Room
