"""Several processes on one cache ask, and pay for, each question once."""

import json
import subprocess
import sys
import time

import pytest

from support.judge_server import JudgeServer, rows
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
        mine._run("INSERT OR REPLACE INTO claims VALUES ('key', ?, ?, ?)", (host, process, until))
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
