"""Servers that answer too much, too slowly, compressed, elsewhere, or with lies: bounded memory and time, no leak."""

import gzip
import json
import re
import resource
import socketserver
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from trl_real.errors import TrlRealError
from trl_real.labeling.chat.question import Question
from trl_real.labeling.chat.server import Endpoint
from trl_real.labeling.people import label_studio


pytest.importorskip("openai", reason="openai is not installed")
KEY = "sk-a-secret-of-sixteen"
DEADLINE = 0.8
MOST_SENT = 2**26  # bytes, most of them in buffers of the system
QUESTION = Question([{"role": "user", "content": "A or B?"}], ("A", "B"))


def answer(text="A", **usage):
    message = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps({"choices": [message], "model": "m", "usage": usage}).encode()


def whole(status, body, *headers):
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Content-Type: application/json", *headers]
    return lambda send: send("\r\n".join([*lines, "", ""]).encode() + body)


def huge(status):
    def play(send):
        send(f"HTTP/1.1 {status} X\r\nContent-Length: 500000000\r\n\r\n".encode())
        for _ in range(500):
            send(b"x" * 1_000_000)

    return play


def dripping(status):
    def play(send):
        send(f"HTTP/1.1 {status} X\r\nContent-Length: 1000000\r\n\r\n".encode())
        for _ in range(100):
            send(b" ")
            time.sleep(0.2)

    return play


def raw(content):
    return lambda send: send(content)


def endless(start, piece, pause=0.0):
    """A server that never stops: with a header, a chunk, an interim answer or a byte at a time."""

    def play(send):
        send(start)
        for _ in range(10**7):
            send(piece)
            time.sleep(pause)

    return play


def odd(**message):
    """A good answer, but for some fields of its only choice."""
    choice = {"message": {"role": "assistant", "content": None}, "finish_reason": "stop", **message}
    return whole(200, json.dumps({"choices": [choice], "model": "m"}).encode())


def inside(**completion):
    return whole(200, json.dumps({"choices": [{"message": {"content": None}}], "model": "m", **completion}).encode())


OK, CHUNKED = b"HTTP/1.1 200 X\r\n", b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n"
BOMB = gzip.compress(b"[" * 300_000_000, 1)
STATUSES = (200, 400, 429, 500)
ROGUES = {
    **{f"huge {status}": huge(status) for status in STATUSES},
    **{f"dripping {status}": dripping(status) for status in STATUSES},
    **{f"bomb {status}": whole(status, BOMB, "Content-Encoding: gzip") for status in STATUSES},
    "deep": whole(200, b"[" * 900_000),
    "not JSON": whole(200, b"\xff\xfe" * 1000),
    "negative usage": whole(200, answer(prompt_tokens=-10_000_000)),
    "absurd usage": whole(200, answer(prompt_tokens=10**30)),
    "usage of words": whole(200, answer(prompt_tokens="many")),
    "usage of a list": whole(200, answer().replace(b'"usage": {}', b'"usage": [1]')),
    "control characters": whole(400, json.dumps({"error": {"message": "\x1b]0;gone\x07\x1b[2J no"}}).encode()),
    "echoed key in an error": whole(400, json.dumps({"error": {"message": f"key {KEY}"}}).encode()),
    "nothing": lambda send: None,
    # Headers
    "dripping status line": endless(b"", b"H", 0.1),
    "dripping headers": endless(OK + b"X-", b"a", 0.1),
    "endless headers": endless(OK, b"X-Header: more and more\r\n"),
    "one endless header": endless(OK + b"X-Header: ", b"a" * 100_000),
    "endless interim answers": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "another protocol": raw(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "an upgrade": raw(b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"),
    "a negative length": raw(OK + b"Content-Length: -1\r\n\r\n" + answer()),
    "two lengths": raw(OK + b"Content-Length: 5\r\nContent-Length: 500\r\n\r\n" + answer()),
    "a split header": raw(OK + b"X: a\r\r\nContent-Length: 2\r\n\r\n{}"),
    "a status of words": raw(b"HTTP/1.1 fine X\r\n\r\n"),
    "a status of 999": whole(999, b"{}"),
    "no content": raw(b"HTTP/1.1 204 X\r\n\r\n"),
    # Bodies
    "endless chunks": endless(CHUNKED, b"10000\r\n" + b" " * 2**16 + b"\r\n"),
    "dripping chunks": endless(CHUNKED, b"1\r\n \r\n", 0.1),
    "a chunk of a bad size": raw(CHUNKED + b"zz\r\n{}\r\n"),
    "endless trailers": endless(CHUNKED + b"0\r\n", b"X-Trailer: more\r\n"),
    "shorter than told": raw(OK + b"Content-Length: 5000\r\n\r\n" + answer()[:20]),
    "no end told": endless(OK + b"\r\n", b" " * 10_000),
    "deflated": whole(200, b"x\x9c", "Content-Encoding: deflate"),
    "an encoding of its own": whole(200, answer(), "Content-Encoding: secret"),
    "UTF-16": whole(200, answer().decode().encode("utf-16")),
    "empty": whole(200, b""),
    # Waits
    "a wait of years": whole(429, b"{}", "Retry-After: 1e9"),
    "a wait that is no number": whole(429, b"{}", "Retry-After: nan"),
    "an infinite wait": whole(503, b"{}", "Retry-After: inf"),
    "a wait before now": whole(429, b"{}", "Retry-After: -5"),
    "a wait in words": whole(429, b"{}", "Retry-After: soon"),
    # Completions
    "no choices": whole(200, b'{"choices": [], "model": "m"}'),
    "choices of another kind": whole(200, b'{"choices": {"0": 1}, "model": "m"}'),
    "a message of another kind": odd(message=["A"]),
    "content of another kind": odd(message={"content": 7}),
    "nested content": odd(message={"content": {"content": {"content": [[{"text": 1}]]}}}),
    "log-probabilities of words": odd(logprobs={"content": [{"token": 5, "top_logprobs": "many"}]}),
    "log-probabilities of another kind": odd(logprobs={"tokens": 5, "top_logprobs": 7}),
    "an end of another kind": odd(finish_reason={"a": [1]}),
    "an error inside": inside(error={"code": "x" * 10_000, "message": "\x1b[2J" + KEY}),
    "an error of another kind": inside(error=[[7]]),
    "another model": inside(model="m" * 100_000),
    "a model of another kind": inside(model=[1]),
}
assert len(ROGUES) + 6 >= 43 + 20  # with the redirects, and the key that is not kept


@pytest.fixture
def server():
    """A server that plays a rogue's part, and counts its visitors."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            seen.append(self.request.recv(65536))
            try:
                play[0](self.counted)
            except OSError:
                pass

        def counted(self, data):
            self.request.sendall(data)
            running.sent += len(data)

    class Threaded(socketserver.ThreadingTCPServer):
        daemon_threads, allow_reuse_address, block_on_close = True, True, False

    seen, play = [], [None]
    with Threaded(("127.0.0.1", 0), Handler) as running:
        running.sent, running.seen, running.play, running.url = (
            0,
            seen,
            play,
            f"http://127.0.0.1:{running.server_address[1]}/v1",
        )
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@contextmanager
def bounded_memory(server):
    """
    See that memory stays within 300 MB of what it was (the peak of this time only, where Linux forgets the last one),
    and that no more is taken from the server than fits its buffers: in a short time few bytes would fill the memory.
    """
    status, forget = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def peak():
        if not status.exists():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])

    if forget.exists():
        forget.write_text("5")
    before = peak()
    yield
    assert peak() - before < 300 * 1024 and server.sent < MOST_SENT


LABEL_STUDIO = [
    *(name for name in ROGUES if name.startswith(("huge", "dripping", "endless", "bomb", "one endless"))),
    "deep", "not JSON", "no choices", "an upgrade", "shorter than told", "control characters", "no content",
]  # fmt: skip


@pytest.mark.parametrize("name", LABEL_STUDIO)
def test_label_studio_reads_with_the_same_bounds(name, server, tmp_path, monkeypatch):
    monkeypatch.setattr(label_studio, "TIMEOUT", DEADLINE)
    server.play[0] = ROGUES[name]
    started = time.monotonic()
    with bounded_memory(server), pytest.raises(TrlRealError) as told:
        label_studio.pull_votes(label_studio.LabelStudio(server.url, KEY), 1, tmp_path / "votes.jsonl")
    assert time.monotonic() - started < DEADLINE + 2
    assert str(told.value).isprintable() and KEY not in str(told.value)


def ask(server, tmp_path):
    settings = {"timeout": 0.6, "deadline": DEADLINE, "max_retries": 3, "price": (1.0, 1.0), "api_key": KEY}
    endpoint = Endpoint("m", server.url, cache=tmp_path / "answers.sqlite", **settings)
    started = time.monotonic()
    try:
        failure = endpoint.answers([QUESTION])[0].read(QUESTION.labels).failure
    except TrlRealError as error:
        failure = str(error)
    return failure, endpoint, time.monotonic() - started


@pytest.mark.parametrize("name", ROGUES)
def test_a_rogue_answer_is_a_failure_in_bounded_memory_and_time(name, server, tmp_path):
    server.play[0] = ROGUES[name]
    with bounded_memory(server):
        failure, endpoint, seconds = ask(server, tmp_path)
    assert seconds < DEADLINE + 2
    assert (failure or name == "usage of a list") and failure.isprintable() and KEY not in failure
    assert endpoint.spent >= 0
    assert KEY.encode() not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_nothing_is_sent_to_another_host(status, server, tmp_path):
    elsewhere = []

    class Other(socketserver.BaseRequestHandler):
        def handle(self):
            elsewhere.append(self.request.recv(65536))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        server.play[0] = whole(
            status, b"", f"Location: http://127.0.0.1:{other.server_address[1]}/v1/chat/completions"
        )
        failure, *_ = ask(server, tmp_path)
        other.shutdown()
    assert failure and not elsewhere


def test_an_echoed_key_is_not_kept(server, tmp_path):
    server.play[0] = whole(200, answer(f"A, says {KEY}"))
    ask(server, tmp_path)
    assert KEY.encode() not in b"".join(file.read_bytes() for file in tmp_path.iterdir())
