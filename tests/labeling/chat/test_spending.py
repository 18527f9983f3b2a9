"""Nothing is paid for twice: costs, the cache, keys and batch files of a judge behind a server."""

import json
import subprocess
import sys

import pytest

from support.judge_server import CHILD, MODEL, JudgeServer, expected, rows
from support.project import TESTS
from trl_real.errors import TrlRealError
from trl_real.labeling.chat.answer_cache import AnswerCache
from trl_real.labeling.chat.batch_file import export_batch, import_batch
from trl_real.labeling.chat.judge import ChatJudge
from trl_real.labeling.verdicts import summarize


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
