"""The page of votes stays on this machine: what Gradio is told not to do, whatever its defaults are."""

from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest

from trl_real.errors import TrlRealError
from trl_real.labeling.people.page import _launch


pytest.importorskip("gradio", reason="gradio is not installed")
# A link of Gradio, tools for agents, an app to install, pages made by a second server, counts of visitors, a history.
OFF = ("share", "mcp_server", "pwa", "ssr_mode", "enable_monitoring", "run_history")
PAGES = ("docs_url", "redoc_url", "openapi_url")


def launched(host="127.0.0.1", port=None, open_browser=False, fails=None):
    given = {}

    def launch(**settings):
        given.update(settings)
        if fails:
            raise fails
        return None, f"http://{host}:7860/", None

    return _launch(SimpleNamespace(launch=launch), host, port, open_browser), given


@pytest.mark.parametrize("name", OFF)
def test_nothing_that_leaves_the_machine_is_on(name):
    assert launched()[1][name] is False


def test_the_page_listens_where_it_is_told_behind_its_gate():
    url, given = launched("127.0.0.1", 4321)
    assert (given["server_name"], given["server_port"], given["inbrowser"]) == ("127.0.0.1", 4321, False)
    assert launched(open_browser=True)[1]["inbrowser"] is True
    assert given["prevent_thread_lock"] is True, "else nobody would be told the address"
    assert given["max_file_size"] == 1 and given["footer_links"] == []
    app = given["app_kwargs"]
    assert [app[name] for name in PAGES] == [None] * 3
    (token,) = parse_qs(urlsplit(url).query)["token"]
    assert app["middleware"][0].kwargs["token"] == token and len(token) >= 32
    assert launched()[0] != url, "each page has a token of its own"


@pytest.mark.parametrize(("port", "where"), [(80, "127.0.0.1:80"), (None, "127.0.0.1")])
def test_a_port_that_is_taken_is_told(port, where):
    with pytest.raises(TrlRealError, match=f"Cannot listen on {where} .taken.. Give another --port"):
        launched(port=port, fails=OSError("taken"))
