"""What advice says in one paragraph: the rule, the budget, what to expect, how sure, and what would make it sure."""

from dataclasses import replace

import pytest

from trl_real.functional.statistics.label_savings import Saving, ValueWithInterval
from trl_real.study.advice.advise import Advice, RuleAdvice
from trl_real.study.advice.pool_facts import PoolFacts
from trl_real.study.report import in_words


POOL = PoolFacts(5000, 3, 3.0, 2, 120.0, 0.02, {"p05": 0.1, "median": 0.5, "p95": 0.9}, 0.0)
GAIN, NONE = ValueWithInterval(0.02, 0.01, 0.03), ValueWithInterval(-0.01, -0.02, 0.005)
SAVED = Saving(1.0, 0.6123, 1000.0, 590.0, 0.41, 0.125, 0.55, 1.0)
SURE = {"sure": True, "learned": True, "n_pilot": 400, "pilot_needed": None}
OPEN = {"sure": False, "learned": True, "n_pilot": 400, "pilot_needed": None}


def advice(gain=GAIN, saved=SAVED, rule="easy", budget=100, levelled=True, **changes):
    rules = [RuleAdvice("auto", NONE, False, None), RuleAdvice("easy", gain, False, saved)]
    return Advice(rule, budget, **{**SURE, "levelled": levelled, "rules": rules, "pool": POOL, **changes})


EXPECTED = "On the pilot its test loss minus random's is -0.0200 [-0.0300, -0.0100]"
WORSE = "On the pilot its test loss minus random's is +0.0100 [-0.0050, +0.0200]. No gain is measured"
ENOUGH = "with 100 labels: more of them taught nothing measurable on the pilot."
NO_SIGNAL = "Random labels taught nothing measurable on the pilot: it tells neither a rule nor a budget."
CASES = {
    "measured": (
        advice(),
        f"Use 'easy' {ENOUGH} {EXPECTED}, and it saves {in_words(SAVED)} of the labels. That is meas",
    ),
    "still learning": (
        advice(levelled=False, budget=1200),
        f"Use 'easy' with 1,200 labels or more: the pilot's 400 still taught more with every step. {EXPECTED}, and it",
    ),
    "no saving": (advice(saved=None), f"{EXPECTED}. That is measurable, for all rules together."),
    "not sure": (
        advice(**OPEN),
        f"{EXPECTED}. No gain is measured, and none is in sight: expect about what random gives.",
    ),
    "not sure of auto": (advice(rule="auto", **OPEN), f"Use 'auto' {ENOUGH} {WORSE}"),
    "a larger pilot": (
        advice(**{**OPEN, "pilot_needed": 999}),
        "with about 999 pilot labels one of this size would be.",
    ),
    "all of it": (
        advice(**{**OPEN, "pilot_needed": POOL.n_rows}),
        "the whole pool would hardly show one of this size",
    ),
    "nothing learned": (
        advice(**{**OPEN, "learned": False, "pilot_needed": 800}, budget=None),
        f"Use 'easy' for now. {NO_SIGNAL} Label about 800 pairs before you decide",
    ),
    "no pilot": (advice(**{**OPEN, "n_pilot": 0}), "label 200 pairs drawn at random and give them as the pilot."),
}


@pytest.mark.parametrize("name", CASES)
def test_advice_says_no_more_than_it_knows(name):
    found, words = CASES[name]
    assert found.words().startswith(POOL.words() + " ") and words in found.words()
    assert ("saves" in found.words()) == (name in ("measured", "still learning"))
    assert found.to_dict()["words"] == found.words()


def test_a_small_pool_is_its_own_pilot():
    pool = replace(POOL, n_rows=60)
    assert "label 60 pairs drawn" in advice(**{**OPEN, "n_pilot": 0, "pool": pool}).words()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "has 5,000 rows with 3.0 responses each by 2 writers, 2% of them in several rows, of 120 characters"),
        ({"n_writers": None, "repeated": 0.009}, "3.0 responses each, of 120 characters (median)"),
        ({"repeated": 0.01}, ", 1% of them in several rows"),
        ({}, "a similarity of 0.50 (5 to 95 %: 0.10 to 0.90)."),
        ({"near_copies": 0.009}, "0.10 to 0.90)."),
        ({"near_copies": 0.01}, "0.10 to 0.90), 1% near-copies."),
    ],
)
def test_facts_of_a_pool_in_words(changes, words):
    assert words in replace(POOL, **changes).words()
