"""What tests share: one thread, for small products on contended cores cost milliseconds with two; CIFAR-10."""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

# Of this process, whose torch reads it when it loads, and of the programs that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hydra._internal.hydra import Hydra


def pytest_collection_finish() -> None:
    """What is loaded by now stays: the garbage collector need not walk through it again and again."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Here, and where a door asks how many threads there could be."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
        yield


@pytest.fixture(autouse=True, scope="session")
def settings_are_composed_once() -> Iterator[None]:
    """Hydra composes all settings twice, first to look for `hydra.mode`, which is half of the price of a refusal: here
    only where it is typed, or an experiment that sets it is.
    """
    compose = Hydra.get_mode
    cards = (Path(__file__).parents[1] / "conf/experiment").glob("*.yaml")
    signs = "hydra.mode", *(f"experiment={card.stem}" for card in cards if "MULTIRUN" in card.read_text())

    def mode(self: Hydra, config_name: str | None, overrides: list[str]) -> object:
        asked = any(sign in word for sign in signs for word in overrides)
        return compose(self, config_name, overrides) if asked else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hydra, "get_mode", mode)
        yield


@pytest.fixture
def cifar_images() -> str:
    """The folder of the unpacked images of CIFAR-10; they lie where LAB_CIFAR10_IMAGES says."""
    root = os.environ.get("LAB_CIFAR10_IMAGES")
    if not root:
        pytest.skip("set LAB_CIFAR10_IMAGES to a folder that holds train/<class>/*.png of CIFAR-10")
    return root


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard() -> None:
    """A shell starts what runs in the background with SIGINT ignored, which children inherit."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
