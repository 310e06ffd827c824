"""Named random streams: every consumer of randomness has its own, a function of (seed, name, step) and nothing else.

A run that is killed and resumed at step t draws what the uninterrupted run would have drawn, and a measurement that
draws numbers never shifts those of the training. The global generator of torch is not used.
"""

import hashlib
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def stream(seed: int, name: str, step: int = 0, *, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose numbers depend on (seed, name, step) only.

    The 63-bit state is the head of SHA-256("seed/name/step"), so streams of different names are independent for every
    practical purpose. Cost: about 10 microseconds.

    >>> a, b = stream(0, "batches", 7), stream(0, "batches", 7)
    >>> bool((torch.rand(3, generator=a) == torch.rand(3, generator=b)).all())
    True
    """
    generator = torch.Generator(device=device)
    generator.manual_seed(seed_of(seed, name, step))
    return generator


def seed_of(seed: int, name: str, step: int = 0) -> int:
    """What `stream` begins with, for generators that are somebody else's: 63 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}/{step}".encode()).digest()[:8], "big") >> 1


def begin_draws(seed: int, name: str, step: int, device: torch.device) -> None:
    """Let what a network draws from the global generator of its device, as dropout does, be a function of seed, name, step.

    Cost: 5 microseconds on the CPU. Nothing in the lab draws from that generator.
    """
    cuda = device.type == "cuda"
    generator = torch.cuda.default_generators[device.index or 0] if cuda else torch.default_generator
    generator.manual_seed(seed_of(seed, name, step))


def random_signs(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """Independent +1 and -1 in `shape`, of the dtype and device of `like`."""
    count = math.prod(shape)
    random = torch.randint(256, (count // 8 + 1, 1), generator=generator, device=generator.device, dtype=torch.uint8)
    places = torch.arange(8, dtype=torch.uint8, device=generator.device)  # eight signs of a byte: 2.5 times faster
    bits = random.bitwise_right_shift(places).bitwise_and_(1).flatten()[:count].to(like)
    return bits.mul_(2).sub_(1).reshape(shape)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global generators of torch (on the CPU), numpy and Python begin at `seed` for somebody else's code, which knows no
    other ones, and are as before afterwards.
    """
    kept = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(kept[0])
            random.setstate(kept[1])
