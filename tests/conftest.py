"""What tests share: one thread, for small products on contended cores cost milliseconds with two; CIFAR-10."""

import copy
import gc
import os
import signal
from collections.abc import Iterator
from functools import cache
from typing import Any

# Of this process, whose torch reads it when it loads, and of the programs that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

gc.disable()  # while the tests are collected: hardly anything of what they import ever goes


def pytest_collection_finish() -> None:
    """What is loaded by now stays: the garbage collector need not walk through it again and again."""
    gc.freeze()
    gc.enable()


def pytest_sessionfinish() -> None:
    gc.enable()
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


@pytest.fixture(autouse=True, scope="session")
def files_that_no_test_changes_are_read_once() -> Iterator[None]:
    """Half of what a tiny run costs in this process is to read the same cards, images and lists of packages again."""
    from hydra._internal.config_repository import ConfigRepository, ObjectType
    from lightning_fabric.utilities import registry

    from lab.data import digits
    from lab.run.cards import config_dir

    known, load = dict[tuple[str, str], Any](), ConfigRepository.load_config
    plugins, read, images = cache(registry.entry_points), digits.load_digits, list[Any]()

    def parsed(self: ConfigRepository, config_path: str) -> Any:
        source = self._find_object_source(config_path=config_path, object_type=ObjectType.CONFIG)
        if source is None or source.path not in (config_dir(), "hydra.conf"):
            return load(self, config_path)
        if (source.path, config_path) not in known:
            known[source.path, config_path] = load(self, config_path)
        return copy.deepcopy(known[source.path, config_path])

    def load_digits() -> Any:
        images.extend([read()] if not images else [])
        return copy.deepcopy(images[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigRepository, "load_config", parsed)
        patch.setattr(registry, "entry_points", plugins)
        patch.setattr(digits, "load_digits", load_digits)
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
