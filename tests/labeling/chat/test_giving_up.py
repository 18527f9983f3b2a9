"""When a judge behind a server gives up: at once for all, or for one question, and after how many."""

import threading
import time

import pytest

from support.judge_server import MODEL, Handler, JudgeServer
from trl_real.errors import TrlRealError
from trl_real.labeling.chat.question import Question
from trl_real.labeling.chat.server import SILENT


pytest.importorskip("openai", reason="openai is not installed")


@pytest.fixture
def serve():
    """Makes a server whose answer a function of the question's text decides: status, JSON, headers."""
    with JudgeServer() as server:

        def replies(reply):
            class Replies(Handler):
                def answer(self, body):
                    self.send(*reply(body["messages"][-1]["content"]))

            server.RequestHandlerClass = Replies
            return server

        yield replies


def answered(text, finish="stop"):
    message = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return 200, {"choices": [message], "model": MODEL, "usage": {}}


def ask(endpoint, *words):
    found = endpoint.answers([Question([{"role": "user", "content": word}], ("A", "B")) for word in words])
    return [answer.failure or answer.text for answer in found]


def test_an_error_for_all_questions_is_not_kept_waiting_by_one_that_is_tried_again(judge, serve):
    """The second question ends the run while the first pauses."""
    tried = threading.Event()

    def reply(word):
        if word == "slow":
            tried.set()
            return 500, {"error": {"message": "oops"}}
        if word == "bad":
            tried.wait(5)
            return 401, {"error": {"message": "who are you?"}}
        return answered("A")

    endpoint = judge(serve(reply), concurrency=2, deadline=60.0, max_retries=8).model
    assert ask(endpoint, "good") == ["A"]
    started = time.monotonic()
    with pytest.raises(TrlRealError, match="does not accept the key"):
        ask(endpoint, "slow", "bad")
    assert time.monotonic() - started < 15, "the first would be tried for many seconds"


def test_one_refused_question_of_many_fails_alone_and_the_others_are_answered(judge, serve):
    server = serve(lambda word: (400, {"error": {"message": "too rude"}}) if word == "bad" else answered("B"))
    endpoint = judge(server).model
    assert ask(endpoint, "good", "bad", "better") == ["B", "status 400: too rude", "B"]


@pytest.mark.parametrize("silent", [answered("", "length"), (400, {"error": {"message": "a filter"}})])
def test_so_many_questions_without_an_answer_before_the_first_end_a_run(silent, judge, serve):
    asked = []

    def reply(word):
        asked.append(word)
        return answered("A") if word.startswith("good") else silent

    early = judge(serve(reply), max_tokens=5).model
    words = [f"bad {i}" for i in range(SILENT - 1)]
    assert ask(early, *words, "good", "bad", "bad too", "bad again")[SILENT - 1] == "A"
    late = judge(serve(reply), max_tokens=6).model
    with pytest.raises(TrlRealError, match=f"answered none of the first {SILENT} questions; the last time: "):
        ask(late, *words, "bad", "good")
    assert asked[-1] == "bad"


def test_a_question_that_repeats_is_asked_and_paid_for_once(judge, serve):
    asked = []

    def reply(word):
        asked.append(word)
        return answered("A")

    endpoint = judge(serve(reply), price=(1.0, 1.0)).model
    question = Question([{"role": "user", "content": "x"}], ("A", "B"))
    first, second = endpoint.answers([question, question])
    assert asked == ["x"] and (first.cached, second.cached) == (False, True)
    assert (second.input_tokens, second.output_tokens, second.cost, second.text) == (0, 0, 0.0, "A")
