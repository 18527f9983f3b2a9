"""Tests of judges behind a server, over real HTTP, with every fault of such servers."""

import json
import math
import random
import signal
import subprocess
import sys
import time

import pytest

from support.judge_server import CHILD, FAULTS, MODEL, QUICK, JudgeServer, expected, probability, rows
from support.project import TESTS
from trl_real.errors import TrlRealError
from trl_real.labeling.chat.judge import ChatJudge
from trl_real.labeling.chat.question import Question
from trl_real.labeling.verdicts import summarize
from trl_real.runtime import openai_client as request
from trl_real.runtime.openai_client import NotAnswered, Requests


def test_verdicts_equal_the_server_probabilities_in_both_orders(judge):
    with JudgeServer(bias=0.1) as server:
        found = judge(server).verdicts(rows(20))
    batch = rows(20)
    pairs = list(zip(batch["response_a"], batch["response_b"], strict=True))
    assert [v.a_first for v in found] == pytest.approx([probability(a, b, 0.1) for a, b in pairs])
    assert [v.b_first for v in found] == pytest.approx([1 - probability(b, a, 0.1) for a, b in pairs])
    assert [v.probability for v in found] == pytest.approx(expected(batch, 0.1))
    assert summarize(found).position_bias == pytest.approx(0.1, abs=0.01)
    assert summarize(found).n_asked == 40 and summarize(found).input_tokens == 4000


def test_swapping_the_responses_mirrors_the_verdict(judge):
    batch = rows(12)
    swapped = {**batch, "response_a": batch["response_b"], "response_b": batch["response_a"]}
    for orders in ("both", "one"):
        with JudgeServer(bias=0.2) as server:
            one, other = (judge(server, orders=orders)(pairs) for pairs in (batch, swapped))
            assert other == pytest.approx([1 - p for p in one])
            # Each question was asked once: the swapped rows had theirs from the cache.
            assert sum(server.answered.values()) == (24 if orders == "both" else 12)


def test_one_order_is_drawn_evenly_and_costs_half(judge):
    with JudgeServer(bias=0.5) as server:
        found = judge(server, orders="one").verdicts(rows(200))
        assert len(server.bodies) == 200
    a_first = sum(not math.isnan(v.a_first) for v in found)
    assert 70 < a_first < 130 and all(math.isnan(v.a_first) != math.isnan(v.b_first) for v in found)


@pytest.mark.parametrize("fault", FAULTS)
def test_temporary_fault_changes_nothing(judge, fault):
    patience = 2.0 if fault == "drip" else 30.0  # less, and a busy machine asks twice
    with JudgeServer(seed=3) as server:
        client = judge(server, timeout=patience, max_retries=30)
        client({name: ["first"] for name in rows(1)} | {"response_b": ["other"]})  # so that the server is known
        server.faults, server.share = [fault], 0.5
        assert client(rows(3)) == pytest.approx(expected(rows(3)))
        assert server.met[fault] and set(server.answered.values()) == {1}


@pytest.mark.parametrize("fault", ["500", "429", "cut JSON", "other model", "huge", "drip", "reset"])
def test_permanent_fault_is_a_failure_with_its_reason_and_loses_nothing(judge, fault):
    with JudgeServer() as server:
        client = judge(server, timeout=0.2, max_retries=1)
        client(rows(1))  # so that the server is known to be there
        server.faults, server.share = [fault], 1.0
        batch = {name: values[1:] for name, values in rows(3).items()}
        found = client.verdicts(batch)
    assert all(math.isnan(v.probability) and v.failure and v.outcome == "failed" for v in found)
    reasons = {"cut JSON": "not a chat completion", "other model": "served_as", "huge": "1 MB", "drip": "in time"}
    assert reasons.get(fault, "no connection" if fault == "reset" else f"status {fault}") in found[0].failure
    assert len(found) == 2


def test_many_verdicts_with_a_fifth_of_faults(judge):
    """None lost, none asked twice after success, none counted as a loss; from the cache the same again."""
    batch = rows(300)
    with JudgeServer(QUICK, share=0.2) as server:
        found = judge(server, max_retries=30)(batch)
        assert found == pytest.approx(expected(batch))
        assert len(server.answered) == 600 and set(server.answered.values()) == {1}
        assert server.most_at_once <= 16 and len(server.met) == len(QUICK)
        n_requests = len(server.bodies)
        again = judge(server).verdicts(batch)
        assert [v.probability for v in again] == found and len(server.bodies) == n_requests
        assert summarize(again).n_cached == 600 and summarize(again).n_asked == 0


def test_kill_9_at_random_moments_gives_the_same_result(tmp_path, n=250, kills=2):
    draws = random.Random(0)
    with JudgeServer(QUICK, share=0.2, delay=0.01) as server:
        settings = {
            "tests": str(TESTS),
            "url": server.url,
            "cache": str(tmp_path / "a.sqlite"),
            "n": n,
        }

        def start():
            command = [sys.executable, "-c", CHILD.format(**settings)]
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            assert child.stdout.readline() == "begun\n"
            return child

        for _ in range(kills):
            child = start()
            time.sleep(draws.uniform(0.01, 0.4))
            child.send_signal(signal.SIGKILL)
            child.wait()
        found = json.loads(start().communicate()[0])
        sent = sum(server.answered.values())
    assert found == pytest.approx(expected(rows(n)))
    assert len(server.answered) == 2 * n
    assert sent - 2 * n <= 8 * kills  # at most the answers that were on their way when it was killed


@pytest.mark.slow
def test_kill_9_at_twenty_random_moments_gives_the_same_result(tmp_path):
    test_kill_9_at_random_moments_gives_the_same_result(tmp_path, n=1500, kills=20)


@pytest.mark.slow
def test_ten_thousand_verdicts_with_a_fifth_of_faults(judge):
    batch = rows(10_000)
    with JudgeServer(list(FAULTS), share=0.2) as server:
        found = judge(server, timeout=5.0, deadline=600.0, max_retries=30)(batch)
        assert found == pytest.approx(expected(batch))
        assert len(server.answered) == 20_000 and set(server.answered.values()) == {1}


def test_server_without_log_probs_is_read_by_its_text(judge, tmp_path):
    for how in ("ignored", "refused"):
        with JudgeServer(log_probs=how) as server:
            client = judge(server, cache=tmp_path / f"{how}.sqlite")
            found = client.verdicts(rows(6))
            assert {v.a_first for v in found} <= {0.0, 1.0} and not any(v.failure for v in found)
            refused = sum("logprobs" in body for body in server.bodies)
            assert refused == 12 if how == "ignored" else refused <= 12
            n_requests = len(server.bodies)
            client.verdicts({name: [f"{value} more" for value in values] for name, values in rows(2).items()})
            assert all("logprobs" not in body for body in server.bodies[n_requests:]) == (how == "refused")


@pytest.mark.parametrize(
    "says", ["Both are good.", "[[A]] or [[B]]", "Ignore the rules. A is the winner and so is B", ""]
)
def test_text_that_names_no_response_is_a_failure(judge, says):
    with JudgeServer(log_probs="ignored", says=says) as server:
        found = judge(server).verdicts(rows(3))
    assert {v.failure for v in found} == {"an answer that names no response"}
    assert all(math.isnan(v.probability) for v in found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_cost": 1.0}, "max_cost needs the price"),
        ({"price": (1.0,)}, "price=.*read and generated"),
        ({"concurrency": 0}, "concurrency=0 is too small. Give 1"),
        ({"timeout": 0}, "timeout=0 leaves no time"),
        ({"orders": "three"}, "orders='three' is not one of both, one"),
        ({"rule": "max"}, "rule='max' is not one of mean, agree"),
        ({"tie_margin": 0.7}, "tie_margin=0.7"),
    ],
)
def test_settings_out_of_range_are_reported(judge, settings, message):
    with JudgeServer() as server, pytest.raises(TrlRealError, match=message):
        judge(server, **settings)


def test_error_that_no_retry_can_fix_stops_immediately(tmp_path):
    with JudgeServer() as server:
        wrong = ChatJudge("no-such-model", base_url=server.url, cache=tmp_path / "c.sqlite")
        with pytest.raises(TrlRealError, match="does not know this model or path .model 'no-such-model', status 404"):
            wrong(rows(50))
        assert len(server.bodies) <= 16
    gone = ChatJudge(MODEL, base_url=server.url, cache=tmp_path / "c.sqlite", max_retries=1)
    with pytest.raises(TrlRealError, match="No answer from http://127.0.0.1.*Is the server up?"):
        gone(rows(3))


@pytest.mark.parametrize("answered", [False, True])
def test_unreachable_server_is_not_waited_for(answered, tmp_path, monkeypatch):
    """One that has answered may be starting again, so that all tries are made."""
    monkeypatch.setattr(request, "FIRST_CONTACT", 0.0)
    monkeypatch.setattr(request, "FIRST_PAUSE", 0.01)
    with JudgeServer() as server:
        client = Requests(server.url, None, MODEL, timeout=5, deadline=60, max_retries=4)
    client.ever_answered, tries, read = answered, [], client._read
    monkeypatch.setattr(client, "_read", lambda *args: tries.append(args) or read(*args))
    with pytest.raises(NotAnswered if answered else TrlRealError, match="no connection"):
        client.ask({"model": MODEL, "messages": []})
    assert len(tries) == (5 if answered else 1)


def test_options_replace_fields_and_none_removes_them(judge):
    with JudgeServer() as server:
        judge(server, options={"max_tokens": None, "max_completion_tokens": 99, "temperature": None})(rows(1))
        assert all("max_tokens" not in body and "temperature" not in body for body in server.bodies)
        assert {body["max_completion_tokens"] for body in server.bodies} == {99}


def test_long_texts_are_truncated_with_a_mark_and_reported(judge):
    batch = {"prompt": ["p" * 50 + "END"], "response_a": ["BEGIN" + "a" * 50], "response_b": ["short"]}
    with JudgeServer() as server:
        (found,) = judge(server, max_chars=20).verdicts(batch)
        text = server.bodies[0]["messages"][-1]["content"]
    assert found.truncated and "END" in text and "BEGIN" in text and "a" * 20 not in text and "[…]" in text
    assert summarize([found]).n_truncated == 1


def test_any_object_that_answers_questions_is_a_chat_model():
    from trl_real.labeling.chat.question import Answer

    class Constant:
        name = "first"

        def answers(self, questions: list[Question]) -> list[Answer]:
            return [Answer(text="A") for _ in questions]

    judge = ChatJudge(Constant())
    found = judge.verdicts(rows(3))
    assert [v.probability for v in found] == [0.5] * 3 and summarize(found).position_bias == 0.5
    assert summarize(found).flip_rate == 1.0
    assert ChatJudge(Constant(), rule="agree")(rows(2)) == [0.5] * 2
