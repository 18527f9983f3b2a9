"""The words of a server's answer, in every form in which servers put them."""

import json

import pytest

from trl_real.runtime.server_words import WORDS, words_of


@pytest.mark.parametrize(
    "answer",
    [
        "no credit",
        {"error": "no credit"},
        {"error": {"message": "no credit"}},
        {"message": "no credit"},
        {"detail": "no credit"},
        {"error": {"message": "Provider returned error", "metadata": {"raw": "no credit"}}},
        {"error": {"message": "no credit", "metadata": ["raw"]}},
        {"error": {"message": "no credit", "metadata": None}},
        {"error": {"message": "no credit", "metadata": {"raw": ""}}},
        {"error": {}, "detail": "no credit"},
    ],
    ids=str,
)
def test_the_message_is_found(answer):
    assert words_of(answer if isinstance(answer, str) else json.dumps(answer)) == "no credit"


@pytest.mark.parametrize("answer", ["", "[]", "[1, 2]", "null", '{"error": [1]}', '{"a": 1}'])
def test_an_answer_without_a_message_is_shown_as_it_is(answer):
    assert words_of(answer) == ("[1]" if "error" in answer else answer)


def test_long_words_and_control_characters_are_cut():
    assert words_of("a\x1b[2J\n b" + "c" * 999) == ("a[2J b" + "c" * 999)[:WORDS]
