"""Several processes on one cache ask, and pay for, each question once."""

import json
import socket
import sqlite3
import subprocess
import sys
import time

import pytest

from support.judge_server import MODEL, JudgeServer, rows
from trl_real.labeling.chat.answer_cache import AnswerCache
from trl_real.labeling.chat.claims import Claims
from trl_real.labeling.chat.judge import ChatJudge
from trl_real.labeling.chat.question import Question


pytest.importorskip("openai", reason="openai is not installed")
PROCESS = """
import json, sys
from support.judge_server import MODEL, rows
from trl_real.labeling.chat.judge import ChatJudge
judge = ChatJudge(MODEL, base_url=sys.argv[1], cache=sys.argv[2], price=(1.0, 1.0), concurrency=4)
found = judge.verdicts(rows(15))
print(json.dumps([[v.probability for v in found], sum(v.n_asked for v in found)]))
"""


@pytest.mark.parametrize("n_processes", [2, 4])
def test_processes_on_one_cache_ask_each_question_once(n_processes, tmp_path):
    with JudgeServer(delay=0.05) as server:
        command = [sys.executable, "-c", PROCESS, server.url, str(tmp_path / "answers.sqlite")]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env()) for _ in range(n_processes)]
        found = [json.loads(process.communicate(timeout=120)[0]) for process in running]
        assert sum(server.answered.values()) == 30 and set(server.answered.values()) == {1}
    assert all(probabilities == found[0][0] for probabilities, _ in found)
    assert sum(n_asked for _, n_asked in found) == 30


SPENDING = """
import sys
from support.judge_server import MODEL, rows
from trl_real.errors import TrlRealError
from trl_real.labeling.chat.judge import ChatJudge
url, cache, number = sys.argv[1:]
judge = ChatJudge(MODEL, base_url=url, cache=cache, price=(10_000.0, 0.0), max_cost=12.0, concurrency=1, orders="one")
try:
    judge.verdicts({name: [f"{number} {text}" for text in texts] for name, texts in rows(30).items()})
except TrlRealError as error:
    print(error)
"""


def test_four_processes_with_different_questions_share_the_limit(tmp_path):
    with JudgeServer(delay=0.2) as server:
        command = [sys.executable, "-c", SPENDING, server.url, str(tmp_path / "answers.sqlite")]
        running = [
            subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, text=True, env=env()) for i in range(4)
        ]
        said = [process.communicate(timeout=120)[0] for process in running]
        spent = sum(server.answered.values())  # 1 each
    assert all("would exceed max_cost=12" in words for words in said)
    assert 8 <= spent <= 12 + 3  # what the others had in flight


def judge_with(server, tmp_path, max_cost=12.0, model=MODEL):
    settings = {"price": (10_000.0, 0.0), "max_cost": max_cost, "orders": "one", "concurrency": 1}
    return ChatJudge(model, base_url=server.url, cache=tmp_path / "answers.sqlite", **settings)


def noted(tmp_path, process, seconds):
    """Let another process have begun when nothing was spent."""
    with sqlite3.connect(tmp_path / "answers.sqlite") as database:
        row = (socket.gethostname(), process, 0.0, time.time() + seconds)
        database.execute("INSERT INTO spenders SELECT job, ?, ?, ?, ? FROM spending", row)


@pytest.mark.parametrize(("process", "seconds", "shared"), [(1, 60, True), (1, -1, False), (2**22 + 1, 60, False)])
def test_a_limit_holds_what_living_processes_spent(process, seconds, shared, tmp_path):
    with JudgeServer() as server:
        first = judge_with(server, tmp_path)
        first.verdicts(rows(3))
        assert first.model.spent == pytest.approx(3)
        noted(tmp_path, process, seconds)
        later = judge_with(server, tmp_path)
        assert later.model.spent == pytest.approx(3 * shared)
        later.verdicts(rows(5))
        assert later.model.spent == pytest.approx(5), "each answer counts once, kept or new"
        assert judge_with(server, tmp_path).model.spent == pytest.approx(5 * shared)


def test_another_job_has_a_limit_of_its_own(tmp_path):
    with JudgeServer() as server:
        judge_with(server, tmp_path).verdicts(rows(3))
        noted(tmp_path, 1, 60)
        assert judge_with(server, tmp_path, model="other").model.spent == 0


def env():
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def test_the_claim_of_a_dead_or_late_process_is_taken_over(tmp_path):
    cache = AnswerCache(tmp_path / "answers.sqlite")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine = Claims(cache, 60.0)
    for process, host, until, free in [
        (dead.pid, mine.host, time.time() + 60, True),
        (1, mine.host, time.time() + 60, False),
        (dead.pid, "elsewhere", time.time() + 60, False),
        (1, "elsewhere", time.time() - 1, True),
    ]:
        with mine._at_once() as database:
            database.execute("INSERT OR REPLACE INTO claims VALUES ('key', ?, ?, ?)", (host, process, until))
        assert mine.take("key") == free
    mine.release("key")
    assert mine.take("key") and not mine.take("key")
    mine.release("key")
    assert mine.take("key")


@pytest.mark.parametrize(
    "odd",
    [
        {}, {"text": None},
        {"text": "A", "top": "A", "finish_reason": None, "input_tokens": 1, "output_tokens": 1, "cost": 0},
        {"text": "A", "top": [["A", "x"]], "finish_reason": None, "input_tokens": 1, "output_tokens": 1, "cost": 0},
        {"text": "A", "top": None, "finish_reason": None, "input_tokens": -1, "output_tokens": 1, "cost": 0},
    ],
)  # fmt: skip
def test_an_odd_answer_in_the_cache_is_asked_again(odd, tmp_path):
    with JudgeServer() as server:
        judge = ChatJudge("test-judge", base_url=server.url, cache=tmp_path / "answers.sqlite")
        question = judge.questions(rows(1))[0]
        judge.model.cache.put(judge.model.key(question), odd)
        assert not judge.verdicts(rows(1))[0].failure
        assert sum(server.answered.values()) == 2


def test_an_odd_answer_of_a_server_is_read_again_from_the_cache(tmp_path):
    top = {"content": [{"token": "A", "top_logprobs": [{"token": "A", "logprob": "high"}]}]}
    for choice in ({"message": {"content": ["A"]}}, {"message": {"content": "A"}, "logprobs": top}):
        judge = ChatJudge("m", base_url="http://127.0.0.1:1/v1", cache=tmp_path / "answers.sqlite")
        judge.model.requests.ask = lambda body, paid, choice=choice: {"choices": [choice]}
        asked = [Question([{"role": "user", "content": str(choice)}], ("A", "B"))]
        first, again = judge.model.answers(asked)[0], judge.model.answers(asked)[0]
        assert again.cached and not first.cached
        assert first.read(("A", "B")) == again.read(("A", "B"))
