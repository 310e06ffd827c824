"""Data of one's own for `python -m lab.train`: a file of arrays, or a function that returns them.

    python examples/own/make_data.py                    writes moons.npz where you are
    python -m lab.train data=tensors data.file=moons.npz
    python -m lab.train data=own data.path=examples/own/make_data.py:moons data.args.examples=200

Whole numbers in y are classes 0..K-1, real numbers a regression. x_test and y_test may be left out.
"""

import numpy as np

FILE = "moons.npz"


def moons(examples: int = 400, noise: float = 0.15, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Two half circles in the plane, one class each: x (N, 2) and y (N,), of which one in four is for the test."""
    generator = np.random.default_rng(seed)
    y = generator.integers(2, size=examples)
    angle = np.pi * generator.random(examples)
    upper, lower = np.stack([np.cos(angle), np.sin(angle)], 1), np.stack([1 - np.cos(angle), 0.5 - np.sin(angle)], 1)
    x = np.where(y[:, None] == 0, upper, lower)
    x = (x + noise * generator.standard_normal(x.shape)).astype(np.float32)
    test = examples // 4
    return x[test:], y[test:], x[:test], y[:test]


def waves(examples: int = 100) -> dict[str, np.ndarray]:
    """A regression: y = sin 3x in real numbers."""
    x = np.linspace(-1, 1, examples, dtype=np.float32)[:, None]
    return {"x_train": x, "y_train": np.sin(3 * x)}


if __name__ == "__main__":
    x, y, x_test, y_test = moons()
    np.savez(FILE, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    print(f"{FILE}: {len(x)} training and {len(x_test)} test examples")
