"""Servers that answer too much, too slowly, compressed, elsewhere, or with lies: bounded memory and time, no leak."""

import gzip
import json
import resource
import socketserver
import threading
import time

import pytest

from trl_real.errors import TrlRealError
from trl_real.labeling.chat.question import Question
from trl_real.labeling.chat.server import Endpoint


pytest.importorskip("openai", reason="openai is not installed")
KEY = "sk-a-secret-of-sixteen"
DEADLINE = 1.5
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
}


@pytest.fixture
def server():
    """A server that plays a rogue's part, and counts its visitors."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            seen.append(self.request.recv(65536))
            try:
                play[0](self.request.sendall)
            except OSError:
                pass

    class Threaded(socketserver.ThreadingTCPServer):
        daemon_threads, allow_reuse_address, block_on_close = True, True, False

    seen, play = [], [None]
    with Threaded(("127.0.0.1", 0), Handler) as running:
        running.seen, running.play, running.url = seen, play, f"http://127.0.0.1:{running.server_address[1]}/v1"
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def ask(server, tmp_path):
    settings = {"timeout": 1.0, "deadline": DEADLINE, "max_retries": 3, "price": (1.0, 1.0), "api_key": KEY}
    endpoint = Endpoint("m", server.url, cache=tmp_path / "answers.sqlite", **settings)
    try:
        return endpoint.answers([QUESTION])[0].failure, endpoint
    except TrlRealError as error:
        return str(error), endpoint


@pytest.mark.parametrize("name", ROGUES)
def test_a_rogue_answer_is_a_failure_in_bounded_memory_and_time(name, server, tmp_path):
    server.play[0] = ROGUES[name]
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    failure, endpoint = ask(server, tmp_path)
    assert time.monotonic() - started < DEADLINE + 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024
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
        failure, _ = ask(server, tmp_path)
        other.shutdown()
    assert failure and not elsewhere


def test_an_echoed_key_is_not_kept(server, tmp_path):
    server.play[0] = whole(200, answer(f"A, says {KEY}"))
    ask(server, tmp_path)
    assert KEY.encode() not in b"".join(file.read_bytes() for file in tmp_path.iterdir())
