"""What tests share: one thread, for small products on contended cores cost milliseconds with two; CIFAR-10."""

import gc
import os
import signal
from collections.abc import Iterator

# Of this process, whose torch reads it when it loads, and of the programs that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch


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
def no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is kept for later runs goes with the other files of the tests, of programs that they start too."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


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
