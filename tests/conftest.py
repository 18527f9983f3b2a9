"""Fixtures that several test files use, and the guard that keeps all tests off the network."""

import atexit
import gc
import os
import sys
import tempfile
from pathlib import Path

import pytest


GUARD = Path(__file__).parent / "support" / "guard"
# Before any library reads its settings: no counters, no telemetry, here and in the processes that tests start.
os.environ.update(HF_UPDATE_DOWNLOAD_COUNTS="0", HF_HUB_DISABLE_TELEMETRY="1", RAY_USAGE_STATS_ENABLED="0")
os.environ["TRL_REAL_TEST_REFUSED"] = refused = tempfile.mkstemp(prefix="refused.")[1]
atexit.register(Path(refused).unlink, missing_ok=True)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(GUARD), os.environ.get("PYTHONPATH"))))
sys.path.insert(0, str(GUARD))
if not hasattr(sys.modules.get("sitecustomize"), "REFUSED"):
    sys.modules.pop("sitecustomize", None)  # that of the system, such as Debian's

import sitecustomize  # noqa: E402
import torch  # noqa: E402

from support.browser import CHROMIUM, DRIVER, Browser  # noqa: E402


@pytest.fixture(autouse=True)
def no_network():
    """Fail a test in which anything asked for a host beyond this machine, even if a library swallowed the error."""
    file = Path(os.environ[sitecustomize.REFUSED])
    before = file.stat().st_size
    yield
    assert file.stat().st_size == before, file.read_text(encoding="utf-8")[before:]


@pytest.fixture(scope="module", autouse=True)
def short_collections():
    """Each training ends with `gc.collect()`, which took .3 s or more over all that the libraries hold."""
    gc.collect()
    gc.freeze()


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
