"""Reasons to doubt a win rate: each is told from its bound on, grave ones from theirs, and names what was found."""

import math
import re

import pytest

from trl_real.evaluation.checks import (
    cut_doubts,
    identity_doubts,
    judge_doubts,
    length_doubts,
    rate_doubts,
    text_doubts,
)
from trl_real.labeling.verdicts import VerdictSummary


N = 100


def texts(n_same: int, n: int = N, empty: int = 0):
    said = ["the  same\n"] * n_same + [f"text {i}" for i in range(n - n_same - empty)] + [" "] * empty
    return text_doubts("ours", [f"p{i}" for i in range(n)], said)


def rates(n_failed=0, equal=None, n_prompts=50, lengths=(9.0, 9.0), n_total=95, win_rate=0.6):
    found = {"win_rate": win_rate, "n_total": n_total, "n_failed": n_failed}
    return rate_doubts(found | ({} if equal is None else {"equal_length_win_rate": equal}), *lengths, n_prompts)


def judged(**found):
    return judge_doubts(VerdictSummary(**{"position_bias": 0.0, "flip_rate": 0.0, **found}))


def lengths(n_same: int, n: int = N, **more):
    return length_doubts("ours", [7.0] * n_same + [10.0 + i for i in range(n - n_same)], **more)


# What is found, its doubt (None: nothing to doubt), whether it is grave, and words that tell it.
DOUBTS = {
    "a tenth is the same text": (texts(10), None),
    "more than a tenth": (texts(11), "duplicates", False, "ours gives the same .* 11 of 100 rows .*texts: 1"),
    "half": (texts(50), "duplicates", False, "50 of 100"),
    "more than half": (texts(51), "duplicates", True, "51 of 100"),
    "19 rows say nothing about texts": (texts(19, 19), None),
    "20 rows do": (texts(20, 20), "duplicates", True, "20 of 20"),
    "two repeated texts are two": (
        text_doubts("ours", [f"p{i}" for i in range(40)], ["a", "b"] * 20), "duplicates", True, "texts: 2",
    ),
    "one answer to one prompt": (text_doubts("ours", ["p"] * 40, ["a"] * 40), None),
    "no empty answer": (texts(0), None),
    "one empty answer": (texts(0, empty=1), "empty", False, "ours gives an empty answer in 1 of 100"),
    "empty answers are not the same text": (texts(0, empty=60), "empty", False, "60 of 100"),
    "a twentieth was cut": (cut_doubts("ours", [True] * 5 + [False] * 95), None),
    "more was cut": (cut_doubts("ours", [True] * 6 + [False] * 94), "cut", False, "6 of 100 answers of ours were cut"),
    "no answers": (cut_doubts("ours", []), None),
    "half are equal on both sides": (identity_doubts([True] * 5 + [False] * 5), None),
    "more are equal": (identity_doubts([True] * 6 + [False] * 4), "identical", False, "in 6 of 10 rows"),
    "all are equal": (identity_doubts([True] * 10), "identical", True, "in 10 of 10 rows"),
    "no rows": (identity_doubts([]), None),
    "a tenth has one length": (lengths(10), None),
    "more have one length": (lengths(11), "same length", False, "11 of 100 answers of ours are 7 characters long"),
    "half have": (lengths(50), "same length", False, "50 of 100"),
    "most have": (lengths(51), "same length", True, "51 of 100"),
    "few lengths": (lengths(19, 19), None),
    "enough lengths": (lengths(20, 20), "same length", True, "20 of 20"),
    "unknown lengths do not count": (length_doubts("ours", [0.0, math.nan] * 30 + [7.0] * 19), None),
    "one and a half times as long": (rates(lengths=(15.0, 10.0)), None),
    "longer": (rates(lengths=(16.0, 10.0)), "length", False, "answers are 1.6 times as long as the baseline's"),
    "two thirds as long": (rates(lengths=(10.0, 14.9)), None),
    "shorter": (rates(lengths=(10.0, 16.0)), "length", False, "are 0.62 times as long"),
    "unknown length": (rates(lengths=(math.nan, 10.0)), None),
    "no length": (rates(lengths=(10.0, 0.0)), None),
    "a tenth less at equal length": (rates(equal=0.501), None),
    "more than a tenth less": (rates(equal=0.45), "length decides", False, "would be 0.45 instead of 0.60"),
    "more than a tenth more": (rates(equal=0.75), "length decides", False, "would be 0.75 instead of 0.60"),
    "a twentieth failed": (rates(n_failed=5), None),
    "more failed": (rates(n_failed=6), "failures", False, "6 of 101 rows got no verdict"),
    "50 prompts": (rates(n_prompts=50), None),
    "49 prompts": (rates(n_prompts=49), "few prompts", False, "49 prompts"),
    "a small bias": (judged(position_bias=-0.1), None),
    "the first is favoured": (judged(position_bias=0.11), "position bias", False, "shown first .*bias .0.11"),
    "the second is favoured": (judged(position_bias=-0.11), "position bias", False, "shown second .*bias -0.11"),
    "nothing is known of the orders": (judged(position_bias=math.nan, flip_rate=math.nan), None),
    "some winners change": (judged(flip_rate=0.3), None),
    "many change": (judged(flip_rate=0.31), "flips", False, "the judge's winner changes .* in 31% of the pairs"),
    "half change": (judged(flip_rate=0.5), "flips", False, "50%"),
    "most change": (judged(flip_rate=0.51), "flips", True, "51%"),
}  # fmt: skip


@pytest.mark.parametrize("name", DOUBTS)
def test_a_doubt_is_told_from_its_bound_on(name):
    found, expected, *rest = DOUBTS[name]
    assert [doubt.name for doubt in found] == ([] if expected is None else [expected])
    if expected:
        grave, words = rest
        assert found[0].grave is grave
        assert re.search(words, found[0].words)
