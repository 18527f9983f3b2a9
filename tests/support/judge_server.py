"""An OpenAI-compatible judge over real HTTP with every kind of failure of such servers."""

import hashlib
import json
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


FENCED = re.compile(r"=====\[(\w+)\]=====\n(.*?)\n=====\[\1\]=====", flags=re.DOTALL)
MODEL = "test-judge"


def strength(text: str) -> float:
    """Return this judge's score of a response, in [0, 1)."""
    return hashlib.sha256(text.encode()).digest()[0] / 256


def probability(first: str, second: str, bias: float = 0.0) -> float:
    """Return the probability that the first is better; `bias` favours the one shown first."""
    return min(max(0.5 + (strength(first) - strength(second)) / 3 + bias, 0.01), 0.99)


def written(content: str | list[dict]) -> str:
    """Return the text of a message, whose content may be a list of parts."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def rows(n: int) -> dict[str, list[str]]:
    return {name: [f"{name} {i}" for i in range(n)] for name in ("prompt", "response_a", "response_b")}


class JudgeServer(ThreadingHTTPServer):
    """
    Args:
        faults: Names of `FAULTS`, drawn evenly.
        share: Share of the requests that meet a fault.
        log_probs: Whether it returns log-probabilities ("ignored": not at all; "refused": it answers 400).
        bias: Position bias.
        delay: Seconds before an answer.
        seed: Seed of the faults.
        says: Text of every answer, in place of the judged one.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, faults=(), share=0.0, log_probs="told", bias=0.0, delay=0.0, seed=0, says=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults, self.share, self.log_probs, self.bias = list(faults), share, log_probs, bias
        self.delay, self.says, self.random = delay, says, random.Random(seed)
        self.lock = threading.Lock()
        self.answered: Counter = Counter()  # by content: whole answers that were sent
        self.met: Counter = Counter()  # faults by name
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.now = self.most_at_once = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """Ignore the broken connections of killed clients."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet
    server: JudgeServer

    def log_message(self, *args):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.bodies.append(body)
            server.keys.add(self.headers.get("Authorization"))
            server.now += 1
            server.most_at_once = max(server.most_at_once, server.now)
            fault = server.random.choice(server.faults) if server.random.random() < server.share else None
            if fault:
                server.met[fault] += 1
        try:
            time.sleep(server.delay)
            if body["model"] != MODEL:
                return self.send(404, {"error": {"message": "no such model"}})
            if "logprobs" in body and server.log_probs == "refused":
                return self.send(400, {"error": {"message": "logprobs is not supported"}})
            if fault:
                return FAULTS[fault](self, body)
            self.answer(body)
        finally:
            with server.lock:
                server.now -= 1

    def answer(self, body):
        completion = self.completion(body)
        with self.server.lock:
            self.server.answered[json.dumps(body["messages"])] += 1
        self.send(200, completion)

    def completion(self, body) -> dict[str, Any]:
        _, first, second = (text for _, text in FENCED.findall(written(body["messages"][-1]["content"])))
        p = probability(first, second, self.server.bias)
        text = ("A" if p > 0.5 else "B") if self.server.says is None else self.server.says
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        if "logprobs" in body and self.server.log_probs == "told":
            import math

            mass = {"A": 0.6 * p, " A": 0.3 * p, "B": 0.9 * (1 - p), "the": 0.1}
            top = [{"token": token, "logprob": math.log(q)} for token, q in mass.items()]
            choice["logprobs"] = {"content": [{"token": text, "logprob": -0.1, "top_logprobs": top}]}
        usage = {"prompt_tokens": 100, "completion_tokens": 1}
        return {"id": "x", "object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage}

    def send(self, status, value, headers=None, cut=None):
        content = json.dumps(value).encode() if not isinstance(value, bytes) else value
        content = content[:cut] if cut else content
        self.send_response(status)
        for name, text in {
            "Content-Type": "application/json",
            "Content-Length": len(content),
            **(headers or {}),
        }.items():
            self.send_header(name, str(text))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def reset(self):
        """Break the connection so that the client reads an error, not an end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def drip(self, body):
        """Send an answer byte by byte, so slowly that it never ends."""
        content = json.dumps(self.completion(body)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) + 10**6))
        self.end_headers()
        try:
            for byte in content:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.05)
        except OSError:
            pass
        self.close_connection = True


def _other_model(handler, body):
    handler.send(200, {**handler.completion(body), "model": "another-model"})


FAULTS = {
    "429": lambda handler, body: handler.send(429, {"error": {"message": "slow down"}}),
    "429 for a while": lambda handler, body: handler.send(429, {}, {"Retry-After": "0.05"}),
    "429 until": lambda handler, body: handler.send(429, {}, {"Retry-After": formatdate(time.time(), usegmt=True)}),
    "500": lambda handler, body: handler.send(500, {"error": {"message": "oops"}}),
    "503 in HTML": lambda handler, body: handler.send(503, b"<html>busy</html>"),
    "reset": lambda handler, body: handler.reset(),
    "drip": lambda handler, body: handler.drip(body),
    "cut JSON": lambda handler, body: handler.send(200, handler.completion(body), cut=60),
    "empty": lambda handler, body: handler.send(200, b""),
    "no choices": lambda handler, body: handler.send(200, {"model": MODEL, "choices": []}),
    "other model": _other_model,
    "huge": lambda handler, body: handler.send(200, b" " * 3_000_000),
}
QUICK = [name for name in FAULTS if name != "drip"]


def expected(batch: dict[str, list[str]], bias: float = 0.0) -> list[float]:
    pairs = zip(batch["response_a"], batch["response_b"], strict=True)
    return [(probability(a, b, bias) + 1 - probability(b, a, bias)) / 2 for a, b in pairs]


# Labels rows with a judge behind a server, in a process of its own.
CHILD = """
import json, sys
sys.path.insert(0, {tests!r})
from support.project import TESTS
from support.judge_server import rows
from trl_real.labeling.chat.judge import ChatJudge
judge = ChatJudge("test-judge", base_url={url!r}, cache={cache!r}, timeout=1.0, concurrency=8, max_retries=30)
print("begun", flush=True)
print(json.dumps(judge(rows({n}))), flush=True)
"""
