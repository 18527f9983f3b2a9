"""Tests of generation with a server."""

import hashlib
import json

import pytest

from support.judge_server import MODEL, QUICK, JudgeServer
from trl_real.errors import TrlRealError
from trl_real.models.generation.from_server import generate_from_server


PROMPTS = ["one", [{"role": "user", "content": "two"}], "three", "four"]


class PolicyServer(JudgeServer):
    """Writes responses that hang on the messages, the seed and the number of the choice; at most `most` at a time."""

    def __init__(self, most: int = 100, **settings):
        super().__init__(**settings)
        self.most = most
        self.RequestHandlerClass = type("Handler", (self.RequestHandlerClass,), {"completion": completion})


def completion(handler, body):
    """What the server answers."""
    said = [f"{json.dumps(body['messages'])}{body['seed']}{i}" for i in range(min(body["n"], handler.server.most))]
    choices = [
        {"index": i, "message": {"content": hashlib.md5(text.encode()).hexdigest()}, "finish_reason": reason}
        for i, (text, reason) in enumerate(zip(said, ["stop", "length", "stop"] * len(said), strict=False))
    ]
    usage = {"prompt_tokens": 10, "completion_tokens": 7 * len(choices)}
    return {"model": MODEL, "choices": choices, "usage": usage}


def ask(server, prompts=PROMPTS, **settings):
    return generate_from_server(server.url, MODEL, prompts, **{"n": 3, "timeout": 10, **settings})


def test_server_generates_n_responses_per_prompt_in_any_order():
    with PolicyServer() as server:
        found = ask(server, temperature=0.7, top_p=0.9, max_new_tokens=20, options={"top_k": 5})
        assert [len(set(row)) for row in found.texts] == [3] * 4
        assert found.finish_reasons == [["stop", "length", "stop"]] * 4
        assert found.n_tokens == 4 * 3 * 7
        assert ask(server, PROMPTS[::-1]).texts == found.texts[::-1] != ask(server, seed=1).texts
        body = server.bodies[0]
    assert (body["n"], body["temperature"], body["top_p"], body["max_tokens"], body["top_k"]) == (3, 0.7, 0.9, 20, 5)
    assert len({body["seed"] for body in server.bodies[:4]}) == 4
    assert {body["messages"][0]["role"] for body in server.bodies} == {"user"}


def test_missing_responses_are_requested_again():
    with PolicyServer(most=1) as server:
        found = ask(server)
        assert [len(set(row)) for row in found.texts] == [3] * 4 and len(server.bodies) == 12


def test_journal_is_read_before_the_server_is_asked(tmp_path):
    path = tmp_path / "served.jsonl"
    with PolicyServer() as server:
        first = ask(server, PROMPTS[:2], journal=path)
        whole = ask(server, journal=path)
        assert whole.texts[:2] == first.texts and len(server.bodies) == 4
        last = ask(server, [*PROMPTS, PROMPTS[0]], journal=path)
        assert (last.n_tokens, last.n_kept) == (0, 4 * 3 * 7) and len(server.bodies) == 4
        assert ask(server, [PROMPTS[0]] * 2, temperature=0.5, journal=path).n_tokens == 3 * 7


def test_server_faults_change_no_response():
    with PolicyServer() as server:
        expected = ask(server).texts
    with PolicyServer(faults=[name for name in QUICK if name != "huge"], share=0.3) as server:
        assert ask(server, max_retries=50).texts == expected
        assert server.met


def test_responses_before_an_error_are_kept(tmp_path):
    path = tmp_path / "served.jsonl"
    with PolicyServer() as server:
        ask(server, PROMPTS[:2], journal=path)
        with pytest.raises(TrlRealError, match="does not know this model"):
            generate_from_server(server.url, "another", PROMPTS, journal=path, n=3)
    assert len(path.read_text().splitlines()) == 2
    with pytest.raises(TrlRealError, match="Is the server up"):
        ask(server, PROMPTS, max_retries=0)
    with pytest.raises(TrlRealError, match="concurrency=0 generates nothing. Give 1 or more"):
        generate_from_server("http://127.0.0.1:9/v1", MODEL, PROMPTS, concurrency=0)
    with pytest.raises(TrlRealError, match="Prompt 0 is empty"):
        ask(server, [""])


def test_api_key_is_sent_and_not_written_to_the_journal(tmp_path):
    path = tmp_path / "served.jsonl"
    with PolicyServer() as server:
        ask(server, api_key="sk-secret", journal=path)
        assert server.keys == {"Bearer sk-secret"}
    assert "secret" not in path.read_text()


def changed(answer, odd):
    """Put an odd part into an answer, once."""
    name, value = odd
    if name == "usage":
        return {**answer, "usage": value}
    choices = [dict(choice) for choice in answer["choices"]]
    choices[1] = {**choices[1], name: value} if name else value
    return {**answer, "choices": choices}


@pytest.mark.parametrize(
    ("odd", "n_tokens"),
    [
        (("usage", [1]), 32), (("usage", None), 32), (("usage", {"completion_tokens": -5}), 32),
        (("usage", {"completion_tokens": 10**12}), 32), (("usage", {"completion_tokens": "7"}), 32),
        (("message", None), 21), (("message", ["text"]), 21), (("", None), 21), (("", "text"), 21),
    ],
    ids=str,
)  # fmt: skip
def test_an_odd_answer_is_asked_for_again_and_an_odd_count_is_estimated(odd, n_tokens):
    with PolicyServer() as server:
        expected = ask(server, ["one"])
        handler = server.RequestHandlerClass
        first = [odd]
        handler.completion = lambda self, body: (
            changed(completion(self, body), first.pop()) if first else completion(self, body)
        )
        found = ask(server, ["one"], max_retries=2)
    assert found.texts == expected.texts and found.n_tokens == n_tokens


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""), ([{"type": "text", "text": "tea"}], "tea"), ({"type": "text", "text": "tea"}, "tea"), (7, ""),
        ([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "tea"}], "tea"),
    ],
    ids=str,
)  # fmt: skip
def test_contents_in_blocks_are_their_text(content, text):
    with PolicyServer() as server:
        handler = server.RequestHandlerClass
        handler.completion = lambda self, body: changed(completion(self, body), ("message", {"content": content}))
        assert ask(server, ["one"]).texts[0][1] == text
