"""What every test shares: one thread of torch, because small products on contended cores cost milliseconds with two."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
