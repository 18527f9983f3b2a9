"""What several test files set up."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """Threads that wait for each other take a hundred times as long as such small products."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
