"""Code of one's own as users write it, a command that is refused, and one that measures."""

import sys
from typing import Any

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra

from lab.data.digits import Digits
from lab.measure import main as measure_main

CODE = """
import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=4, inputs=3, outputs=2, drop=0.0):
        super().__init__()
        self.first, self.drop, self.head = nn.Linear(inputs, width), nn.Dropout(drop), nn.Linear(width, outputs)

    def forward(self, x):
        return self.head(self.drop(torch.tanh(self.first(x))))


class Two(Net):
    def forward(self, x):
        return super().forward(x), x


class Few(Net):
    def forward(self, x):
        if len(x) > 2:
            raise ValueError("too many")
        return super().forward(x)


class Detached(Net):
    def forward(self, x):
        return super().forward(x).detach()


class Tokens(nn.Module):
    def __init__(self, words=5):
        super().__init__()
        self.words, self.head = nn.Embedding(words, 4), nn.Linear(4, words)

    def forward(self, x):
        return self.head(self.words(x))


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.LazyLinear(2)

    def forward(self, x):
        return self.head(x)


def made(n=40, real=False):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, generator=generator)
    return x, (x[:, :2].sin() if real else (x[:, 0] > 0).long()), x[:8], (x[:8, :2].sin() if real else (x[:8, 0] > 0).long())


def flat(n=40):
    x, y, *_ = made(n)
    return x, y.float()


def words():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(5, (30, 4), generator=generator)
    return x, (x + 1) % 5


def entropy(outputs, targets, scale=1.0):
    return scale * nn.functional.cross_entropy(outputs, targets)


def vector(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def total(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="sum")


def number(outputs, targets):
    return 3.0


def undefined(outputs, targets):
    return outputs.mean() * float("nan")
"""
DATA = ("data=own", "data.path=mine.py:made")
MODEL = ("model=own", "model.path=mine.py:Net")
SHORT = ("trainer.threads=1", "steps=6")


def refused(capsys: pytest.CaptureFixture[str], main: Any, *words: str) -> str:
    """The one line of a command that ends with exit code 2."""
    GlobalHydra.instance().clear()
    sys.argv = ["lab", *words]
    with pytest.raises(SystemExit) as stopped:
        main()
    told = capsys.readouterr().err
    assert stopped.value.code == 2
    assert told.startswith("error: ") and told.count("\n") == 1, told
    return told


def measured(*words: str) -> None:
    GlobalHydra.instance().clear()
    sys.argv = ["lab.measure", *words]
    measure_main()


def digits_as_tensors() -> dict[str, np.ndarray]:
    data = Digits(examples=100).load()
    assert data.test is not None
    return {"x_train": data.train.x.numpy(), "y_train": data.train.y.numpy(),
            "x_test": data.test.x.numpy(), "y_test": data.test.y.numpy()}  # fmt: skip
