"""How a long simulation tells how far it is: it calls `tick` with the share done, 0 to 1, every so often."""

from collections.abc import Callable

Tick = Callable[[float], object]


def silent(share: float) -> None:
    """The tick of a caller who does not want to know."""
