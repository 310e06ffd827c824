"""Named random streams: every consumer of randomness has its own, a function of (seed, name, step) and nothing else.

A run that is killed and resumed at step t draws what the uninterrupted run would have drawn, and a measurement that
draws numbers never shifts those of the training. The global generator of torch is not used.
"""

import hashlib

import torch


def stream(seed: int, name: str, step: int = 0, *, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose numbers depend on (seed, name, step) only.

    The 63-bit state is the head of SHA-256("seed/name/step"), so streams of different names are independent for every
    practical purpose. Cost: about 10 microseconds.

    >>> a, b = stream(0, "batches", 7), stream(0, "batches", 7)
    >>> bool((torch.rand(3, generator=a) == torch.rand(3, generator=b)).all())
    True
    """
    digest = hashlib.sha256(f"{seed}/{name}/{step}".encode()).digest()
    generator = torch.Generator(device=device)
    generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return generator
