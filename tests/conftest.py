"""What tests share: one thread of torch, for small products on contended cores cost milliseconds with two; CIFAR-10."""

import os
import signal

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


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
