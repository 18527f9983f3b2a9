"""Fixtures of tests that select."""

import datasets
import pytest
import torch


@pytest.fixture
def quiet_and_apart(monkeypatch, tmp_path_factory):
    """One thread, no progress bars, and a cache of its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)
    datasets.enable_progress_bars()
