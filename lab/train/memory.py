"""More memory asked for than there is, by torch or numpy, on the CPU or a GPU: told in one line, as any other slip."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from lab.settings import SettingError

SIGNS = ("can't allocate memory", "out of memory", "Storage size calculation overflowed")
"""In the RuntimeErrors of torch, which has no class of its own for the CPU."""


@contextmanager
def memory_told() -> Iterator[None]:
    """Raises SettingError for a refused allocation within. Also a decorator: `@memory_told()`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = " ".join(str(error).split())
        if isinstance(error, RuntimeError) and not any(sign in text for sign in SIGNS):
            raise
        found = re.search(r"allocate ([\d.]+) (\w+)", text)
        size = f" (for {_readable(float(found[1]), found[2])} more)" if found else ""
        raise SettingError(
            f"not enough memory{size}; use a smaller model, data.batch_size or "
            "examples of a probe, or set trainer.chunk_examples"
        ) from None


def _readable(number: float, unit: str) -> str:
    return f"{number / 2**30:.3g} GiB" if unit == "bytes" else f"{number:g} {unit}"
