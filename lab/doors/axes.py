"""Values for the axes of a grid that fit the settings, which the cards of conf/sweep ask for by ${lab.name:...}."""

from typing import Any

from lab.doors.pages import offer

EXAMPLES = {"digits": 1797, "cifar10": 50000}
"""Training examples of data that have a number of them."""
FEW = 5000
"""Up to so many examples gradient descent on all of them is a cell of a grid."""
FACTORS = (0.25, 1, 4, 16)


def batch_sizes(data: str, examples: Any = None) -> str:
    """Batch sizes a factor of 4 apart for a card of data and its number of examples, if one is set.

    >>> batch_sizes("digits"), batch_sizes("digits", 60), batch_sizes("cifar10"), batch_sizes("own")
    ('8,32,128,full', '8,full', '32,128,512,2048', '8,32,128,512')
    """
    count = examples if isinstance(examples, int) else EXAMPLES.get(data)
    if count is None:
        return "8,32,128,512"
    if count > FEW:
        return "32,128,512,2048"
    return ",".join([*(str(size) for size in (8, 32, 128) if size <= count / 2), "full"])


def rates(lr: Any = None) -> str:
    """Learning rates around one, a factor of 4 apart.

    >>> rates(0.1)
    '0.025,0.1,0.4,1.6'
    """
    return ",".join(f"{factor * lr:.6g}" for factor in FACTORS) if isinstance(lr, int | float) else "0.1"


offer("lab.batch_sizes", batch_sizes)
offer("lab.rates", rates)
