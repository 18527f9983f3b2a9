"""The page on which people vote: keys, reloads, kills, and who gets in."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from datasets import Dataset

from support.browser import Browser, rows
from support.pages import HOSTILE_RESPONSE
from support.project import ROOT
from trl_real.errors import TrlRealError
from trl_real.labeling.people.desk import Desk
from trl_real.runtime.journal import Journal


def test_desk_accepts_each_vote_once_and_reports_stale_votes(tmp_path):
    desk = Desk(Dataset.from_list(rows(2)), tmp_path / "votes.jsonl")
    key = _key(desk.show("ann"))
    said = {"annotator": "ann", "key": key, "seconds": 1}
    assert _key(desk.act("left", {**said, "key": None})) == key  # pressed too early
    assert _key(desk.act("left", said)) != key
    assert "Another window moved on" in desk.act("right", said)
    assert desk.act("left", {"key": key}) == "" and desk.show("  ") == ""
    assert _key(desk.show("bob")) and not desk.finished.is_set()
    for name in ("ann", "bob", "bob"):
        view = desk.act("tie", {"annotator": name, "key": _key(desk.show(name)), "seconds": "x"})
    assert 'id="end"' in view and desk.finished.is_set()
    assert _key(desk.act("undo", {"annotator": "bob", "key": ""}))
    desk.close()
    lines = [json.loads(line) for line in (tmp_path / "votes.jsonl").read_text().splitlines()]
    assert [next(iter(line)) for line in lines] == ["opened", *["key"] * 4, "undo"]


def test_second_desk_on_the_same_file_is_refused(tmp_path):
    desk = Desk(Dataset.from_list(rows(1)), tmp_path / "votes.jsonl")
    with pytest.raises(TrlRealError, match="Another process is writing"):
        Desk(Dataset.from_list(rows(1)), tmp_path / "votes.jsonl")
    desk.close()


def test_vote_that_cannot_be_written_is_not_counted(tmp_path):
    desk = Desk(Dataset.from_list(rows(2)), tmp_path / "votes.jsonl")
    key = _key(desk.show("ann"))
    desk.close()
    with Journal(tmp_path / "votes.jsonl") as other:
        other.append({"opened": 2})
        assert "Another process is writing" in desk.act("left", {"annotator": "ann", "key": key})
    assert _key(desk.show("ann")) == key and _key(desk.act("left", {"annotator": "ann", "key": key})) != key
    desk.close()


def _key(view: str) -> str:
    return view.split('data-key="')[1].split('"')[0]


# A shell starts its background jobs with SIGINT ignored, and so does pytest its processes there: as in a terminal.
SERVER = """
import json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from datasets import Dataset
from trl_real.labeling.people.page import serve_page
data, options = (json.loads(open(path).read()) for path in sys.argv[1:3])
serve_page(Dataset.from_list(data), on_ready=lambda url: print(url, flush=True), **options)
"""


class Server:
    """The page in a separate process that can be killed and started again at the same address."""

    def __init__(self, folder: Path, data: list[dict], **options):
        self.folder, self.votes = folder, folder / "votes.jsonl"
        self.home = folder / "home"
        self.home.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (folder / "pool.json").write_text(json.dumps(data))
        (folder / "options.json").write_text(json.dumps({"votes": str(self.votes), "port": self.port, **options}))
        self.start()

    def start(self) -> None:
        settings = {"HOME": self.home, "TMPDIR": self.home, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}
        arguments = [self.folder / "pool.json", self.folder / "options.json"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, *arguments],
            stdout=subprocess.PIPE,
            stderr=open(self.folder / "errors.txt", "ab"),
            text=True,
            cwd=self.home,
            env={**os.environ, **{name: str(value) for name, value in settings.items()}},
        )
        self.url = self.process.stdout.readline().strip()
        self.site, _, self.token = self.url.partition("?token=")
        assert self.site == f"http://127.0.0.1:{self.port}/" and self.token, (self.folder / "errors.txt").read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.votes.read_text().splitlines()]


@pytest.fixture
def serve(tmp_path):
    pytest.importorskip("gradio", reason="Gradio is not installed")
    servers = []

    def start(data: list[dict], **options) -> Server:
        servers.append(Server(tmp_path, data, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


def test_a_person_votes_by_keys_reloads_and_undoes(serve, browser):
    server = serve(rows(6), guidelines="# Be kind\n![far](https://example.invalid/x.png)")
    browser.driver.get(server.url)
    seen = [browser.enter("ann 1234u")]  # the keys in a name are letters of the name
    assert server.lines() == [{"opened": 6, "seed": 42}]
    seen.append(browser.vote("1"))
    browser.press("33")  # a second press comes before the next pair was looked at
    seen.append(browser.shown())
    held = {"type": "rawKeyDown", "key": "2", "code": "Digit2", "windowsVirtualKeyCode": 50, "autoRepeat": True}
    browser.driver.execute_cdp_cmd("Input.dispatchKeyEvent", held)
    browser.press("\ue009" + "4")  # with Ctrl it is another program's key
    browser.press("\ue000")
    assert browser.shown() == seen[-1]
    browser.driver.refresh()
    assert browser.shown() == seen[-1] and "ann 1234u" in browser.text()
    seen.append(browser.vote("2"))
    assert browser.vote("u") == seen[2] and browser.vote("U") == seen[1]
    assert [browser.vote("3"), browser.vote("4")] == seen[2:4]
    seen += [browser.vote("1"), browser.vote("2"), browser.vote("2")]
    assert seen[-1] == "" and "6 pairs done" in browser.text()
    assert browser.vote("u") == seen[5] and browser.vote("4") == ""
    votes = [line for line in server.lines() if "verdict" in line]
    sides = [{"a": "1", "b": "3"} if vote["shown_first"] == "a" else {"a": "3", "b": "1"} for vote in votes]
    pressed = [{**side, "tie": "2", "skip": "4"}[v["verdict"]] for side, v in zip(sides, votes, strict=True)]
    assert pressed == list("132341224"[:3]) + list("341224")
    assert all(0.3 < vote["seconds"] < 30 and vote["annotator"] == "ann 1234u" for vote in votes)
    assert browser.asked_for() <= {"https://example.invalid/x.png"}  # and the policy stopped that one
    assert browser.run("return document.querySelectorAll('footer a').length") == 0
    _another_person_in_another_tab(browser, server)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(20) == 0
    written = [path for path in server.home.rglob("*") if path.is_file() and "matplotlib" not in path.parts]
    assert not written  # Matplotlib, which Gradio imports where it is installed, keeps a list of fonts


def test_ctrl_c_ends_the_server_and_closes_the_votes(serve):
    server = serve(rows(2))
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) == 0 and (server.folder / "errors.txt").read_text() == ""


def _another_person_in_another_tab(browser: Browser, server: Server) -> None:
    first = browser.driver.current_window_handle
    browser.driver.switch_to.new_window("tab")
    browser.driver.get(server.url)
    assert browser.enter("eve")
    browser.vote("2")
    assert "1 of 6 pairs" in browser.text() and server.lines()[-1]["annotator"] == "eve"
    browser.driver.close()
    browser.driver.switch_to.window(first)
    browser.driver.refresh()
    assert browser.shown() == "" and "ann 1234u" in browser.text()


@pytest.mark.slow
def test_killed_server_loses_no_vote_and_hostile_text_is_escaped(serve, browser):
    data = rows(4) + [
        {
            "prompt": HOSTILE_RESPONSE,
            "response_a": HOSTILE_RESPONSE + "x" * 20_000,
            "response_b": "\u200b",
            "pair": [0, 1],
        }
    ]
    server = serve(data, annotator="bob", until_done=True)
    browser.asked_for()
    browser.driver.get(server.url)
    seen = [browser.shown()]
    for verdict in "12":
        seen.append(browser.vote(verdict))
    browser.press("3")
    time.sleep(0.05)
    server.process.send_signal(signal.SIGKILL)
    server.kill()
    with open(server.votes, "ab") as file:
        file.write(b'{"key": "half a li')
    server.start()
    browser.driver.get(server.url)  # its token is a new one
    at = browser.shown()
    while at:
        if at not in seen:
            seen.append(at)
        if "hacked" in browser.run("return document.querySelector('#prompt').innerText"):
            _look_at_hostile(browser)
            _try_the_doors(server)
        at = browser.vote("3")
    assert server.process.wait(20) == 0
    votes = [line["key"] for line in server.lines() if "verdict" in line]
    assert len(votes) == len(set(votes)) == 5 and set(seen) == set(votes) and not browser.asked_for()


def _look_at_hostile(browser: Browser) -> None:
    assert not browser.run("return window.hacked")
    assert "<script>window.hacked=1</script>" in browser.run("return document.querySelector('#prompt').innerText")
    panels = browser.run(
        "return [...document.querySelectorAll('.sides .panel')].map(p => {const s = p.querySelector('.scroll'),"
        " r = p.getBoundingClientRect(); return [r.left, r.right, r.bottom, s.scrollWidth - s.clientWidth]})"
    )
    (left, middle, bottom, spill), (other, right, bottom_too, spill_too) = panels
    assert 0 <= left < middle <= other < right <= 1280 and bottom == bottom_too and spill == spill_too == 0
    buttons = browser.run("return document.querySelector('#votes').getBoundingClientRect().toJSON()")
    assert bottom <= buttons["top"] + 1
    assert buttons["bottom"] <= browser.run("return innerHeight")
    heights = "return [...document.querySelectorAll('.sides .scroll')].map(s => s.scrollHeight > s.clientHeight)"
    assert sorted(browser.run(heights)) == [False, True]  # only the long one scrolls
    browser.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": False}
    )
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def _try_the_doors(server: Server) -> None:
    """What a page of another site, or a curious neighbour, would try."""
    answer = urllib.request.urlopen(server.url)
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    strange = urllib.request.Request(server.url, headers={"Host": "evil.example"})
    for request in (strange, *(f"{server.site}gradio_api/file={file}" for file in (server.votes, "/etc/hosts"))):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        assert refused.value.code in (400, 403, 404)


CLOSED = 0  # before all of a request was sent


def _asks(server: Server, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"{server.site}{path}", body, named, method=method)
    try:
        return urllib.request.urlopen(request).status
    except urllib.error.HTTPError as refused:
        return refused.code
    except (BrokenPipeError, ConnectionResetError, urllib.error.URLError):
        return CLOSED


def test_only_who_has_the_printed_address_gets_in_and_only_to_what_the_page_needs(serve):
    server = serve(rows(2))
    entry = urllib.request.urlopen(server.url)
    cookie = entry.headers["set-cookie"].partition(";")[0]
    assert "HttpOnly" in entry.headers["set-cookie"] and "SameSite=Strict" in entry.headers["set-cookie"]
    page, own = entry.read().decode(), {"Cookie": cookie, "Origin": server.site.rstrip("/")}
    # What the page itself loads and asks.
    used = {url.partition("?")[0] for url in re.findall(r'(?:src|href)="\.?/?([^"#:]+)"', page)}
    used -= {"manifest.json"}  # only with Gradio's own pwa=True
    assert used and {_asks(server, path.lstrip("/"), Cookie=cookie) for path in used} == {200}
    assert _asks(server, "config", **own) == 200 and _asks(server, "", Cookie=cookie) == 200
    number = json.loads(urllib.request.urlopen(urllib.request.Request(f"{server.site}config", headers=own)).read())
    arrive = next(event for event in number["dependencies"] if not event.get("queue", True))
    sent = {"data": [json.dumps({"annotator": "ann"})], "fn_index": arrive["id"], "session_hash": "s"}
    body, kind = json.dumps(sent).encode(), {"Content-Type": "application/json"}
    predict = f"gradio_api/run/{arrive.get('api_name') or 'predict'}"
    votes = server.votes.read_bytes() if server.votes.exists() else b""
    assert _asks(server, predict, "POST", body, **own, **kind) == 200
    # Without the token, from another site or another local server, for other routes, or too long.
    for other in ("http://evil.example", "http://127.0.0.1:1", "http://localhost:3000", "null"):
        assert _asks(server, predict, "POST", body, **kind, Cookie=cookie, Origin=other) == 403
    for site in ("cross-site", "same-site"):
        assert _asks(server, "config", Cookie=cookie, Sec_Fetch_Site=site) == 403
    assert {_asks(server, path) for path in ("", "?token=x", "config", "gradio_api/info")} == {401}
    assert _asks(server, predict, "POST", body, **kind) == 401
    doors = [
        "upload",
        "upload_progress",
        "file=/etc/hosts",
        "file/etc/hosts",
        "proxy=http://x",
        "runs",
        "openapi.json",
    ]
    assert {_asks(server, f"gradio_api/{door}", **own) for door in doors} == {404}
    assert _asks(server, "gradio_api/upload", "POST", b"x" * 1000, **own) == 404
    assert _asks(server, predict, "POST", b"x" * 2**21, **own) in (413, CLOSED)
    assert len(server.votes.read_bytes()) - len(votes) < 200  # one line: the pairs that "ann" got


def test_used_port_is_reported(tmp_path):
    pytest.importorskip("gradio", reason="Gradio is not installed")
    from trl_real.labeling.people.page import serve_page

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(TrlRealError, match=f"Cannot listen on 127.0.0.1:{port}"):
            serve_page(Dataset.from_list(rows(1)), tmp_path / "votes.jsonl", port=port)


def test_unreadable_guidelines_are_named(tmp_path):
    pytest.importorskip("gradio", reason="Gradio is not installed")
    from trl_real.labeling.people.page import build_page

    data, votes = Dataset.from_list(rows(1)), tmp_path / "votes.jsonl"
    with pytest.raises(TrlRealError, match="Cannot read the guidelines"):
        build_page(data, votes, guidelines="none.md")
    (tmp_path / "g.md").write_text("# Kind")
    build_page(data, votes, guidelines=tmp_path / "g.md").desk.close()
