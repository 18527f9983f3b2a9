"""What a status, a header and the words of a server mean: try again, give up on a question, or end the run."""

import gzip
import json
import time
import zlib
from contextlib import suppress
from email.utils import formatdate
from types import SimpleNamespace

import pytest

from support.judge_server import MODEL, Handler, JudgeServer
from trl_real.errors import TrlRealError


pytest.importorskip("openai", reason="openai is not installed")

import httpx2

from trl_real.runtime import openai_client
from trl_real.runtime.bounded_http import Unreadable, bounded_client
from trl_real.runtime.openai_client import Refused, Requests, _TryAgain, key_for, key_in, without_password


URL = "https://me:a-long-password@judge.example:8443/v1/?key=secret"
SHOWN = "https://judge.example:8443/v1"


@pytest.fixture
def requests():
    return Requests(URL, None, MODEL, timeout=1.0, deadline=60.0, max_retries=2)


FAILURES = [
    # status, answer, pause that the server asks for -> error, words
    (400, "bad", None, Refused, "status 400: bad"),
    (422, "bad", None, Refused, "status 422: bad"),
    (413, "", None, Refused, "status 413"),
    (401, "who", None, TrlRealError, f"{SHOWN} does not accept the key: .* .model '{MODEL}', status 401.: who"),
    (402, "pay", None, TrlRealError, "wants to be paid first .*402.: pay"),
    (403, "no", None, TrlRealError, "does not allow this .*403"),
    (404, "", None, TrlRealError, "does not know this model or path .*404.\\.$"),
    (405, "", None, TrlRealError, "base_url often ends in /v1 .*405"),
    (408, "late", None, _TryAgain, "status 408: late"),
    (409, "busy", None, _TryAgain, "status 409: busy"),
    (429, "slow down", None, _TryAgain, "status 429: slow down"),
    (429, "slow down", 2.0, _TryAgain, "status 429: slow down"),
    (429, "insufficient_quota", None, TrlRealError, "has no quota left for this key .*429"),
    (429, "100 requests per day", 1.0, TrlRealError, "has no quota left"),
    (429, "slow down", 60.0, _TryAgain, "status 429"),
    (429, "slow down", 7200.0, TrlRealError, "asks to wait 2.0 hours .status 429.: slow down.*than 60 s"),
    (400, "come back", 7200.0, TrlRealError, "asks to wait 2.0 hours"),
    (500, "oops", None, _TryAgain, "status 500: oops"),
    (503, "daily backup", None, _TryAgain, "status 503"),
    (500, "seed is not supported", None, Refused, "status 500: seed is not supported"),
    (501, "not implemented", None, Refused, "status 501"),
    (429, "parameter not supported", None, _TryAgain, "status 429"),
]


@pytest.mark.parametrize(("status", "answer", "pause", "kind", "words"), FAILURES)
def test_a_status_means_what_its_table_says(status, answer, pause, kind, words, requests):
    found = requests._failed(status, answer, pause)
    assert type(found) is kind
    with pytest.raises(kind, match=words):
        raise found if kind is not _TryAgain else _TryAgain(found.reason)
    if kind is Refused:
        assert found.answer == answer and not found.ends_all
    waits = pause if kind is _TryAgain and pause else 0.0
    assert getattr(found, "pause", None) == (waits or None), "this thread's pause"
    assert waits - 5 < max(0.0, requests._not_before - time.monotonic()) <= waits, "all threads' pause"


def test_the_longest_wait_that_was_asked_for_holds(requests):
    requests._failed(429, "", 30.0)
    requests._failed(429, "", 1.0)
    assert 20 < requests._not_before - time.monotonic() <= 30


INSIDE = [
    ({"code": 429, "message": "slow"}, openai_client._Odd, False),
    ({"code": "503", "message": "gone"}, openai_client._Odd, False),
    ({"status": 408}, openai_client._Odd, False),
    ({"code": 400, "message": "bad"}, Refused, True),
    ({"code": "400", "message": "overloaded"}, Refused, True),  # the code counts, not the words
    ({"code": 401, "message": "who"}, TrlRealError, False),
    ({"code": 429, "message": "insufficient_quota"}, TrlRealError, False),
    ({"message": "The engine is overloaded"}, openai_client._Odd, False),
    ({"code": "rate_limit_exceeded"}, openai_client._Odd, False),
    ({"message": "rate limit of 50 per day"}, Refused, True),
    ({"message": "no such thing"}, Refused, True),
    ("Service temporarily unavailable", openai_client._Odd, False),
]


@pytest.mark.parametrize(("error", "kind", "ends_all"), INSIDE)
def test_an_error_inside_a_good_answer_means_what_its_code_or_else_its_words_say(error, kind, ends_all, requests):
    found = requests._failed_inside(error, json.dumps({"error": error}))
    assert type(found) is kind and getattr(found, "ends_all", False) == ends_all


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("", None), ("0", 0.0), ("2.5", 2.5), ("-3", 0.0), ("soon", None), ("5 minutes", None)],
)
def test_the_wait_that_a_header_asks_for_is_read(value, seconds):
    assert openai_client._retry_after(value) == seconds


@pytest.mark.parametrize(("ahead", "seconds"), [(30, 30.0), (-30, 0.0)])
def test_a_wait_until_a_date_is_never_negative(ahead, seconds):
    date = formatdate(time.time() + ahead, usegmt=True)
    assert openai_client._retry_after(date) == pytest.approx(seconds, abs=1.5)


@pytest.mark.parametrize(
    ("given", "url", "environment", "key"),
    [
        ("mine", "https://api.openai.com/v1", {"OPENAI_API_KEY": "o", "TRL_REAL_JUDGE_API_KEY": "t"}, "mine"),
        (None, "https://api.openai.com/v1", {"OPENAI_API_KEY": "o", "TRL_REAL_JUDGE_API_KEY": "t"}, "o"),
        (None, "https://api.openai.com/v1", {"TRL_REAL_JUDGE_API_KEY": "t"}, "t"),
        (None, "https://other.example/v1", {"OPENAI_API_KEY": "o", "TRL_REAL_JUDGE_API_KEY": "t"}, "t"),
        (None, "https://api.openai.com.other.example/v1", {"OPENAI_API_KEY": "o"}, None),
        (None, "https://other.example/api.openai.com", {"OPENAI_API_KEY": "o"}, None),
        ("", "https://other.example/v1", {"TRL_REAL_JUDGE_API_KEY": "t"}, "t"),
    ],
)
def test_a_key_goes_to_the_server_that_it_is_for(given, url, environment, key, monkeypatch):
    for name in ("OPENAI_API_KEY", "TRL_REAL_JUDGE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert key_for(given, url) == key


def test_a_key_is_read_from_a_file_without_its_blanks(tmp_path):
    (tmp_path / "key").write_text(" sk-mine \n")
    (tmp_path / "empty").write_text("\n")
    assert (
        key_in(None, tmp_path / "key") == "sk-mine" and key_in("given", None) == "given" and key_in(None, None) is None
    )
    for given, file, words in (
        ("x", "key", "both given"), (None, "empty", "empty' is empty"), (None, "none", "Cannot read the key"),
    ):  # fmt: skip
        with pytest.raises(TrlRealError, match=words):
            key_in(given, str(tmp_path / file))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (URL, SHOWN),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("http://host/v1#part", "http://host/v1"),
        ("http://me@host", "http://host"),
    ],
)
def test_a_url_is_shown_without_user_password_and_query(url, shown):
    assert without_password(url) == shown


def test_neither_key_nor_password_is_in_the_words_of_a_server():
    client = Requests(URL, "sk-a-secret", MODEL, timeout=1.0, deadline=60.0, max_retries=2)
    assert client._without_secrets("of sk-a-secret and a-long-password") == "of [key] and [key]"
    short = Requests("http://me:pass@host/v1", "none", MODEL, timeout=1.0, deadline=60.0, max_retries=2)
    assert short._without_secrets("none may pass") == "none may pass", "words are no keys"


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({}, 0), ({"logprobs": True}, 1), ({"logprobs": True, "max_tokens": 16}, 16), ({"max_tokens": 16}, 0),
        ({"logprobs": True, "max_completion_tokens": 8}, 8),
    ],
)  # fmt: skip
def test_an_answer_may_be_as_long_as_its_alternatives_are(body, tokens):
    request = SimpleNamespace(content=json.dumps(body).encode())
    least = openai_client.LARGEST_TOKEN
    found = openai_client._largest_answer(request) - openai_client.LARGEST_BODY
    assert found == (least * least if tokens == 1 else least * tokens)


PACKED = {"gzip": gzip.compress, "deflate": zlib.compress, "br": lambda data: b"\x0b\x02\x80" + data}


@pytest.fixture
def sends():
    """Makes a server that gives one answer."""
    with JudgeServer() as server:

        def give(status, content, headers, kind=None):
            class Gives(Handler):
                def do_GET(self):
                    self.send(status, content, headers)

                def do_POST(self):
                    self.rfile.read(int(self.headers["Content-Length"]))
                    self.send(status, content, headers)

            server.RequestHandlerClass = kind or Gives
            return server.url

        yield give


@pytest.mark.parametrize("encoding", PACKED)
@pytest.mark.parametrize("status", [400, 404, 429, 500])
def test_a_compressed_error_is_told_by_its_status_and_not_read(status, encoding, sends):
    url = sends(status, PACKED[encoding](b"[" * 10_000), {"Content-Encoding": encoding})
    with bounded_client() as client:
        found = client.get(url)
    assert (found.status_code, found.content) == (status, b"")
    with bounded_client() as client, pytest.raises(Unreadable, match="a compressed answer, which was not asked for"):
        client.get(sends(200, PACKED[encoding](b"{}"), {"Content-Encoding": encoding}))


@pytest.mark.parametrize(("status", "kind"), [(429, _TryAgain), (400, Refused), (401, TrlRealError)])
def test_a_compressed_error_means_what_a_plain_one_of_its_status_does(status, kind, sends):
    url = sends(status, gzip.compress(b"{}"), {"Content-Encoding": "gzip", "Retry-After": "3"})
    client = Requests(url, None, MODEL, timeout=5.0, deadline=60.0, max_retries=0)
    with pytest.raises(kind) as told:
        client._read({"model": MODEL, "messages": []}, time.monotonic() + 5)
    assert f"status {status}" in getattr(told.value, "reason", str(told.value))
    assert getattr(told.value, "pause", None) == (3.0 if kind is _TryAgain else None)


def test_a_compressed_good_answer_to_a_question_is_not_unpacked(sends):
    url = sends(200, gzip.compress(b"{}"), {"Content-Encoding": "gzip"})
    client = Requests(url, None, MODEL, timeout=5.0, deadline=60.0, max_retries=0)
    with pytest.raises(_TryAgain) as told:
        client._read({"model": MODEL, "messages": []}, time.monotonic() + 5)
    assert told.value.reason == "a compressed answer, which was not asked for"


@pytest.mark.parametrize("encoding", ["", "identity", " Identity "])
def test_an_answer_that_is_not_compressed_is_read(encoding, sends):
    with bounded_client() as client:
        assert client.get(sends(200, b"{}", {"Content-Encoding": encoding})).content == b"{}"


@pytest.mark.parametrize(("status", "bound"), [(200, 1000), (400, 500), (500, 500)])
def test_an_answer_is_read_to_its_bound_and_an_error_is_cut_there(status, bound, sends, monkeypatch):
    monkeypatch.setattr("trl_real.runtime.bounded_http.LARGEST_EXCUSE", 500)
    with bounded_client(lambda _: 1000) as client:
        assert client.get(sends(status, b"x" * bound, {})).content == b"x" * bound
    url = sends(status, b"x" * (bound + 1), {})
    with bounded_client(lambda _: 1000) as client:
        if status != 200:
            assert len(client.get(url).content) <= bound
            return
        with pytest.raises(Unreadable, match="an answer of more than 1 MB"):
            client.get(url)


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("place", ["headers", "body"])
def test_an_answer_that_comes_byte_by_byte_ends_with_the_time_of_its_request(status, place, sends):
    """The time is that of the whole request, where a timeout of the client is that of one read."""

    class Drips(Handler):
        def do_GET(self):
            self.send_response(status)
            if place == "body":
                self.send_header("Content-Length", "1000")
                self.end_headers()
            else:
                self.flush_headers()
            with suppress(OSError):
                for _ in range(1000):
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    time.sleep(0.02)
            self.close_connection = True

    url, started = sends(status, b"", {}, Drips), time.monotonic()
    with bounded_client(timeout=0.15) as client:
        if status == 500 and place == "body":
            assert set(client.get(url).content) == set(b"x"), "what came is the answer"
        else:
            with pytest.raises(httpx2.ReadTimeout):
                client.get(url)
    assert 0.1 < time.monotonic() - started < 10
