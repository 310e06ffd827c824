"""More memory asked for than there is, by torch or numpy, on the CPU or a GPU: told in one line, as any other slip."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from lab.settings import SettingError


@contextmanager
def memory_told() -> Iterator[None]:
    """Raises SettingError for a refused allocation within. Also a decorator: `@memory_told()`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        from lab.probes.attempt import out_of_memory  # torch, which the door does without where nothing is measured

        if not out_of_memory(error):
            raise
        text = " ".join(str(error).split())
        match = re.search(r"allocate ([\d.]+) (\w+)", text)
        size = f" (for {_readable(float(match[1]), match[2])} more)" if match else ""
        raise SettingError(
            f"not enough memory{size}; use a smaller model, data.batch_size or "
            "examples of a probe, or set trainer.chunk_examples"
        ) from None


def _readable(number: float, unit: str) -> str:
    return f"{number / 2**30:.3g} GiB" if unit == "bytes" else f"{number:g} {unit}"
