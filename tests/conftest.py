"""Fixtures that several test files use."""

import pytest
import torch

from support.browser import CHROMIUM, DRIVER, Browser


@pytest.fixture(scope="module")
def one_thread():
    """Threads that wait for each other take a hundred times as long as such small products."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    pytest.importorskip("gradio", reason="Gradio is not installed")
    if not (CHROMIUM and DRIVER):
        pytest.skip("there is no chromium with a chromedriver")
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.driver.quit()
