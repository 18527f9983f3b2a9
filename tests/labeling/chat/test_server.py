"""Tests of judges behind a server, over real HTTP, with every fault of such servers."""

import json
import math
import random
import signal
import subprocess
import sys
import time

import pytest

from support.judge_server import FAULTS, MODEL, QUICK, JudgeServer, probability, rows
from support.project import TESTS
from trl_real.errors import TrlRealError
from trl_real.labeling.chat.answer_cache import AnswerCache
from trl_real.labeling.chat.batch_file import export_batch, import_batch
from trl_real.labeling.chat.judge import ChatJudge
from trl_real.labeling.chat.question import Question
from trl_real.labeling.verdicts import summarize
from trl_real.runtime import openai_client as request
from trl_real.runtime.openai_client import NotAnswered, Requests


def expected(batch: dict[str, list[str]], bias: float = 0.0) -> list[float]:
    pairs = zip(batch["response_a"], batch["response_b"], strict=True)
    return [(probability(a, b, bias) + 1 - probability(b, a, bias)) / 2 for a, b in pairs]


@pytest.fixture
def judge(tmp_path):
    """Makes judges that share a cache."""

    def make(server, **settings):
        defaults = {"cache": tmp_path / "answers.sqlite", "timeout": 1.0, "deadline": 30.0, "concurrency": 16}
        return ChatJudge(MODEL, base_url=server.url, **{**defaults, **settings})

    return make


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


def test_kill_9_at_random_moments_gives_the_same_result(tmp_path, n=250, kills=3):
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


def test_wrong_template_costs_twenty_questions_and_loses_nothing(judge):
    with JudgeServer(log_probs="ignored", says="well") as server:
        message = (
            "10 of 10 pairs got no verdict from chat:test-judge@.* It answered 'well'; expected was one of A, B, C"
        )
        with pytest.raises(TrlRealError, match=f"{message}.*raise max_fail"):
            judge(server)(rows(300))
        assert len(server.bodies) == 20
        found = judge(server, max_failure_rate=1.0).verdicts(rows(30))
        assert len(found) == 30 and {v.unread for v in found} == {"well"} and summarize(found).unread == "well"
        assert len(server.bodies) == 60


def test_money_is_counted_before_and_after(judge):
    with JudgeServer() as server:
        priced = judge(server, price=(10.0, 20.0))
        estimate = priced.estimate(rows(5))
        assert estimate["n_asked"] == 10 and estimate["cost"] > 0 and not server.bodies
        found = summarize(priced.verdicts(rows(5)))
        assert found.cost == pytest.approx(10 * (100 * 10 + 1 * 20) / 1e6)
        assert found.cost <= estimate["cost"]
        assert priced.estimate(rows(5)) == {
            "n_asked": 0, "n_cached": 10, "input_tokens": 0, "output_tokens": 0, "cost": 0.0
        }  # fmt: skip
        assert summarize(judge(server, price=(10.0, 20.0)).verdicts(rows(5))).cost == found.cost


def test_max_cost_stops_before_it_is_exceeded_and_resumes(judge):
    with JudgeServer() as server:
        with pytest.raises(TrlRealError, match="would exceed max_cost=0.04: .* are spent.*raise max_cost"):
            judge(server, price=(10.0, 20.0), max_cost=0.04)(rows(100))
        asked = len(server.bodies)
        spent = asked * (100 * 10 + 20) / 1e6
        assert 0 < spent <= 0.04
        with pytest.raises(TrlRealError, match="would exceed"):
            judge(server, price=(10.0, 20.0), max_cost=0.04)(rows(100))
        assert len(server.bodies) == asked  # what is left of the sum buys no more
        found = judge(server, price=(10.0, 20.0), max_cost=10)(rows(100))
        assert found == pytest.approx(expected(rows(100))) and set(server.answered.values()) == {1}


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


def test_api_key_is_sent_and_written_nowhere(judge, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-you")
    with JudgeServer() as server:
        client = judge(server, api_key="sk-secret")
        client(rows(2))
        assert server.keys == {"Bearer sk-secret"}
        judge(server, cache=tmp_path / "other.sqlite")(rows(2))
        assert "Bearer sk-not-for-you" not in server.keys
        said = f"{client.name} {client.identity} {vars(client)} {vars(client.model)} {capfd.readouterr()}"
    assert "secret" not in said and b"secret" not in (tmp_path / "answers.sqlite").read_bytes()
    with_password = ChatJudge(
        MODEL, base_url="http://me:secret@127.0.0.1:9/v1?key=secret", cache=tmp_path / "c.sqlite"
    )
    assert "secret" not in f"{with_password.name} {with_password.identity}"


def test_cache_key_includes_everything_an_answer_depends_on(judge):
    with JudgeServer() as server:
        batch = rows(1)
        judge(server)(batch)
        for changed in ({"max_tokens": 4}, {"seed": 1}, {"template": "pairwise", "options": {"top_p": 0.5}}):
            before = len(server.bodies)
            judge(server, **changed)(batch)
            assert len(server.bodies) == before + 2, changed
        before = len(server.bodies)
        judge(server, concurrency=2, timeout=9, calibration=2.0, tie_margin=0.1, rule="agree")(batch)
        assert len(server.bodies) == before  # what is done with an answer asks for no new one


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


def test_full_disk_stops_the_requests(judge, tmp_path):
    with JudgeServer() as server:
        cache = AnswerCache(tmp_path / "small.sqlite")
        cache._connection.execute("PRAGMA max_page_count=4")
        with pytest.raises(TrlRealError, match="Cannot store an answer in .*full.*fix the disk and run again"):
            judge(server, cache=cache)(rows(300))
        assert len(server.bodies) < 300


def test_other_files_are_refused_as_cache(tmp_path):
    (tmp_path / "text").write_text("no database" * 1000)
    with pytest.raises(TrlRealError, match="cannot be used as a cache of answers"):
        AnswerCache(tmp_path / "text")


def test_two_processes_share_a_cache(judge, tmp_path):
    with JudgeServer(delay=0.02) as server:
        settings = {
            "tests": str(TESTS),
            "url": server.url,
            "cache": str(tmp_path / "a.sqlite"),
            "n": 60,
        }
        command = [sys.executable, "-c", CHILD.format(**settings)]
        both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        first, second = (child.communicate()[0] for child in both)
    assert first == second and json.loads(first.splitlines()[1]) == pytest.approx(expected(rows(60)))


def test_batch_file_is_exported_and_its_answers_imported(judge, tmp_path):
    with JudgeServer() as server:
        client = judge(server, price=(10.0, 20.0))
        client(rows(1))  # known already: not exported
        questions = client.questions(rows(4))
        assert export_batch(client.model, questions, tmp_path / "out.jsonl") == 6
        lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        answers = []
        for line in lines[:-1]:  # the service failed on the last one
            completion = client.model.requests.ask(line["body"])
            answers.append({"custom_id": line["custom_id"], "response": {"status_code": 200, "body": completion}})
        answers.append({"custom_id": lines[-1]["custom_id"], "response": None, "error": {"code": "expired"}})
        (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, answers)))
        n_requests = len(server.bodies)
        assert import_batch(client.model, tmp_path / "in.jsonl") == {"kept": 5, "failed": 1}
        assert client(rows(4)) == pytest.approx(expected(rows(4)))
        assert len(server.bodies) == n_requests + 1
    (tmp_path / "bad.jsonl").write_text("{}\n")
    with pytest.raises(TrlRealError, match="Line 1 of .* is not a result of a batch service"):
        import_batch(client.model, tmp_path / "bad.jsonl")


def test_repeated_question_in_a_batch_is_asked_once(judge):
    batch = {name: values * 2 for name, values in rows(3).items()}
    with JudgeServer() as server:
        found = judge(server, price=(1.0, 1.0)).verdicts(batch)
        assert len(server.bodies) == 6
    assert [v.probability for v in found[:3]] == [v.probability for v in found[3:]]
    assert summarize(found).n_asked == 6 and summarize(found).cost == pytest.approx(6 * 101 / 1e6)


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
