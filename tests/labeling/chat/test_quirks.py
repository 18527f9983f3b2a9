"""Tests of judges' servers as they really answer: hopeless ones, capped ones, and models that think."""

import math
import time
from contextlib import contextmanager
from email.utils import formatdate

import pytest

from support.judge_server import MODEL, Handler, JudgeServer, rows
from trl_real.errors import TrlRealError
from trl_real.labeling.chat.judge import ChatJudge
from trl_real.labeling.verdicts import summarize
from trl_real.runtime.server_words import same_model


USAGE = {"prompt_tokens": 100, "completion_tokens": 10}


def completion(message, finish="stop", **fields):
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish, **fields}
    return {"object": "chat.completion", "model": MODEL, "choices": [choice], "usage": USAGE}


@contextmanager
def answering(reply):
    """A server whose answer a function of the body decides: status, JSON and headers."""

    class Replies(Handler):
        def answer(self, body):
            self.send(*reply(body))

    with JudgeServer() as server:
        server.RequestHandlerClass = Replies
        yield server


@pytest.fixture
def judge(tmp_path):
    def make(server, **settings):
        return ChatJudge(MODEL, base_url=server.url, **{"cache": tmp_path / "a.sqlite", **settings})

    return make


def refusal(said, **fields):
    return {"error": {"message": said, **fields}}


HOPELESS = {
    "error inside": ((200, {**refusal("The model is gone for good.", code=400), "usage": USAGE}), "gone for good"),
    "error inside the choice": ((200, completion({}, error={"message": "Bad upstream"})), "Bad upstream"),
    "overloaded for ever": ((200, refusal("Provider is overloaded", code=502)), "Provider is overloaded"),
    "no content": ((200, completion({"reasoning": "Let me see"}, "length")), "cut off while thinking"),
    "no choices": ((200, {"choices": None, "usage": USAGE}), "not a chat completion"),
    "other model": ((200, {**completion({"content": "A"}), "model": "other"}), "'other'; if .* give served_as"),
    "web page": ((200, b"<html>Welcome</html>"), "<html>Welcome"),
    "refused parameter": ((400, refusal("'seed' must be a prime", param="top_p")), "must be a prime"),
    "key": ((401, refusal("Who are you? sk-secret")), "Who are you?"),
    "money": ((402, refusal("Add 5 dollars")), "Add 5 dollars"),
    "forbidden": ((403, refusal("Not in your country")), "Not in your country"),
    "path": ((405, {"detail": "Method Not Allowed"}), "Method Not Allowed.*|/v1"),
    "quota": ((429, refusal("Buy more", code="insufficient_quota")), "Buy more"),
    "until tomorrow": ((429, refusal("Come back"), {"Retry-After": "40000"}), "wait 11.1 hours .*Come back"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOPELESS)
def test_hopeless_server_is_told_early_in_its_own_words(judge, name):
    answer, words = HOPELESS[name]
    options = {"options": {"top_p": 0.5}} if name == "refused parameter" else {}
    with answering(lambda body: answer) as server:
        client = judge(server, api_key="sk-secret", price=(1.0, 1.0), **options)
        started = time.monotonic()
        with pytest.raises(TrlRealError, match=words) as caught:
            client(rows(40))
        assert len(server.bodies) <= 4 and time.monotonic() - started < 5
        assert "\n" not in str(caught.value) and "sk-secret" not in str(caught.value)
        fix = "--option top_p=null, options={'top_p': None}"
        assert (fix in str(caught.value)) == ("To leave a field" in str(caught.value)) == (name == "refused parameter")
        n_paid = len(server.bodies) if isinstance(answer[1], dict) and "usage" in answer[1] else 0
        assert client.model.spent == pytest.approx(n_paid * 110 / 1e6)


def reject(field, said):
    return lambda body: (400, refusal(said)) if field(body) else (200, completion({"content": "A"}))


REFUSALS = {
    "max_tokens": reject(lambda body: "max_tokens" in body, "'max_tokens': use 'max_completion_tokens' instead"),
    "temperature": reject(lambda body: "temperature" in body, "temperature does not support 0"),
    "seed": reject(lambda body: "seed" in body, "Unknown name \"seed\": cannot find field"),
    "logprobs": reject(lambda body: "logprobs" in body, "logprobs is not supported"),
    "5 alternatives": reject(lambda body: body.get("top_logprobs", 0) > 5, "top_n_tokens must be <= 5. Given: 20"),
    "8 alternatives": reject(lambda body: body.get("top_logprobs", 0) > 8, "top_logprobs is at most 8"),
    "no number": reject(lambda body: body.get("top_logprobs", 0) > 5, "top_logprobs is too large"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_field_has_its_twin_tried_once_and_remembered(judge, name, caplog):
    with answering(REFUSALS[name]) as server:
        found = judge(server).verdicts(rows(8))
        assert not any(v.failure for v in found) and len(server.bodies) == 17
        assert [message for message in caplog.messages if MODEL in message]
        if "alternatives" in name:
            assert server.bodies[-1]["top_logprobs"] == int(name[0])


@pytest.mark.parametrize("n_thoughts", [300, 3000])
@pytest.mark.parametrize("has_field", [False, True])
@pytest.mark.parametrize("told", [False, True])
def test_judge_that_thinks_gives_verdicts_by_default(judge, n_thoughts, has_field, told, caplog):
    words = ["Hm"] * n_thoughts

    def reply(body):
        said = ["<think>", *words, "</think>", "B"][: body["max_tokens"]]
        is_cut = said[-1] != "B"
        text = " ".join(said)
        message = {"content": text}
        if has_field:
            message = {"content": None if is_cut else "B", "reasoning_content": " ".join(words)}
        tops = [{"token": name, "logprob": math.log(share)} for name, share in {"B": 0.9, "A": 0.05}.items()]
        content = [{"token": word, "logprob": -0.1, "top_logprobs": tops * 10} for word in said]
        return 200, completion(
            message, "length" if is_cut else "stop", logprobs={"content": content} if told else None
        )

    with answering(reply) as server:
        found = judge(server, concurrency=2).verdicts(rows(4))
        assert [v.failure for v in found] == [""] * 4 and all(v.a_first < 0.1 for v in found)
        assert len(server.bodies) == 9  # one was cut, and told
        assert any("cut off at 16 tokens" in message for message in caplog.messages)
        assert summarize(found).label_mass == pytest.approx(0.95) if told else math.isnan(summarize(found).label_mass)
        judge(server).verdicts(rows(4))
        assert len(server.bodies) == 9


def test_odd_answers_in_the_cache_crash_no_later_run(judge, tmp_path):
    with answering(lambda body: (200, completion({"content": [{"type": "text", "text": "B"}]}))) as server:
        client = judge(server)
        keys = [client.model.key(question) for question in client.questions(rows(2))]
        odd = [
            {"text": [{"text": "B"}], "top": None, "finish_reason": None},
            {"text": 3, "places": 7},
            {"top": [1]},
            {},
        ]
        for key, entry in zip(keys, odd, strict=True):
            client.model.cache.put(key, entry)
        assert not any(verdict.failure for verdict in client.verdicts(rows(2)))
        assert len(server.bodies) == 3  # the first can be read; the others count as absent


def test_answers_cached_by_an_older_version_are_read(judge):
    with answering(lambda body: (500, {})) as server:
        client = judge(server)
        top = [["A", math.log(0.6)], ["B", math.log(0.2)]]
        for question in client.questions(rows(1)):
            entry = {
                "text": "A",
                "top": top,
                "finish_reason": "length",
                "input_tokens": 9,
                "output_tokens": 16,
                "cost": 0,
            }
            client.model.cache.put(client.model.key(question), entry)
        (found,) = client.verdicts(rows(1))
        assert (found.a_first, found.b_first) == pytest.approx((0.75, 0.25)) and not server.bodies


SAME = [
    ("gpt-4o-2024-08-06", "gpt-4o"), ("/models/Qwen3-8B/", "Qwen/Qwen3-8B"), ("models/gemini", "gemini"),
    ("/hub/models--Qwen--Qwen3-8B/snapshots/0a1b2c3d", "Qwen/Qwen3-8B"),
    ("smollm2-135m-instruct-q8_0.gguf", "smollm2"),
    ("us.anthropic.claude-sonnet-4-20250514-v1:0", "claude-sonnet-4"), ("openai/gpt-4o:free", "gpt-4o"),
    ("/models/Qwen3-8B@main", "/models/Qwen3-8B"), ("claude@20250514", "claude"),
    ("C:\\m\\x.gguf", "x"), ("gemini-2.5-flash-preview-05-20", "gemini-2.5-flash"),
]  # fmt: skip
OTHER = [("gpt-4o-mini", "gpt-4o"), ("gpt-4o", "gpt-4"), ("deepseek-r1-distill-qwen-7b", "deepseek-r1"), ("a", "b")]


def test_names_are_compared_as_servers_write_them():
    for found, asked in SAME:
        assert same_model(found, asked) and same_model(asked, found), (found, asked)
    for found, asked in OTHER:
        assert not same_model(found, asked), (found, asked)


@pytest.mark.parametrize("as_date", [False, True])
def test_no_thread_asks_again_before_the_time_that_the_server_told(as_date, judge):
    """Seconds, or a date, which holds whole seconds only."""
    arrived, refused = [], []

    def reply(body):
        arrived.append(time.monotonic())
        if len(arrived) == 3:
            refused.append(time.monotonic())
            after = formatdate(time.time() + 2, usegmt=True) if as_date else "1.2"
            return 429, refusal("slow down"), {"Retry-After": after}
        time.sleep(0.15)
        return 200, completion({"content": "A"})

    with answering(reply) as server:
        assert not any(v.failure for v in judge(server, concurrency=2).verdicts(rows(8)))
    late = [t - refused[0] for t in arrived[3:]]
    assert len(late) == 14 and sum(t < 0.1 for t in late) <= 1  # one may have been on its way
    assert all(t < 0.1 or t >= (0.9 if as_date else 1.2) for t in late)
