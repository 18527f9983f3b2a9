"""What a chat judge makes of the answers in both orders, and what a summary counts."""

import inspect
import math

import pytest

from trl_real.errors import TrlRealError
from trl_real.labeling.chat.judge import RULES, ChatJudge, calibrated
from trl_real.labeling.chat.question import Answer
from trl_real.labeling.verdicts import Verdict, drawn_swap, summarize


class Scripted:
    """A chat model that answers by a function of the pair: `(first text, second text) -> Answer`."""

    name = "scripted"

    def __init__(self, says):
        self.says, self.asked = says, []

    def answers(self, questions):
        self.asked += questions
        return [self.says(question.messages[-1]["content"]) for question in questions]


def batch(n=1):
    rows = range(n)
    return {
        "prompt": [f"ask {i}" for i in rows],
        "response_a": [f"alpha {i}" for i in rows],
        "response_b": [f"beta {i}" for i in rows],
    }


def shares(p: float, **fields) -> Answer:
    """An answer that gives the first shown response the probability `p`."""
    top = [(label, math.log(share)) for label, share in (("A", p), ("B", 1 - p)) if share]
    return Answer(top=tuple(top), **fields)


def is_a_first(text: str) -> bool:
    return text.index("alpha") < text.index("beta")


def judged(a_first: Answer, b_first: Answer, **settings) -> Verdict:
    """Return the verdict of a judge that is answered so with `response_a` first, and so with `response_b` first."""
    model = Scripted(lambda text: a_first if is_a_first(text) else b_first)
    (found,) = ChatJudge(model, **settings).verdicts(batch())
    return found


def test_the_two_orders_are_read_for_the_response_that_was_first():
    found = judged(shares(0.9), shares(0.3))
    assert (found.a_first, found.b_first) == pytest.approx((0.9, 0.7)) and found.probability == pytest.approx(0.8)


LENGTH = Answer(text="A long and", finish_reason="length")
FAILED = {"no answer": Answer(failure="status 500"), "cut": LENGTH, "unread": Answer(text="Well")}


@pytest.mark.parametrize("orders", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("name", FAILED)
def test_a_failed_order_is_a_failed_pair(name, orders):
    answers = [FAILED[name] if failed else shares(0.9) for failed in orders]
    found = judged(*answers)
    assert math.isnan(found.probability) and found.outcome == "failed" and found.failure
    assert found.unread == FAILED[name].text
    known = [0.9, 0.1]
    for value, failed, expected in zip((found.a_first, found.b_first), orders, known, strict=True):
        assert math.isnan(value) if failed else value == pytest.approx(expected)


@pytest.mark.parametrize("distance", [-0.25, 0.25])
def test_a_verdict_at_the_margin_is_a_tie_and_one_beyond_is_none(distance):
    for margin, is_tie in ((0.25, True), (0.3, True), (0.24, False), (0.0, False)):
        p = 0.5 + distance
        found = judged(shares(p), shares(1 - p), tie_margin=margin)
        assert found.probability == (0.5 if is_tie else pytest.approx(p)), margin
        assert found.a_first == pytest.approx(p)


@pytest.mark.parametrize(
    ("a_first", "b_first", "mean", "agree"),
    [
        (0.9, 0.8, 0.85, 1.0), (0.2, 0.1, 0.15, 0.0), (0.9, 0.3, 0.6, 0.5), (0.3, 0.9, 0.6, 0.5),
        (0.9, 0.5, 0.7, 0.5), (0.5, 0.1, 0.3, 0.5), (0.5, 0.5, 0.5, 0.5),
    ],
)  # fmt: skip
def test_rules_combine_the_two_orders(a_first, b_first, mean, agree):
    assert RULES.keys() == {"mean", "agree"}
    assert RULES["mean"](a_first, b_first) == pytest.approx(mean) and RULES["agree"](a_first, b_first) == agree
    assert judged(shares(a_first), shares(1 - b_first), rule="agree").probability == pytest.approx(agree)


def test_calibration_divides_the_log_odds():
    for p in (0.0, 0.1, 0.5, 0.8, 1.0):
        assert calibrated(p, 1.0) == p
        for temperature in (0.5, 2.0, 7.0):
            odds = math.inf if p == 1 else p / (1 - p)
            expected = 1.0 if p == 1 else odds ** (1 / temperature) / (1 + odds ** (1 / temperature))
            assert calibrated(p, temperature) == pytest.approx(expected)
    assert judged(shares(0.8), shares(0.2), calibration=2.0).probability == pytest.approx(2 / 3)


OTHER = {
    "template": "real", "orders": "one", "rule": "agree", "tie_margin": 0.1, "calibration": 2.0, "max_chars": 99,
    "min_label_mass": 0.9, "seed": 7,
}  # fmt: skip


def test_every_setting_that_changes_verdicts_is_a_part_of_the_identity():
    own = inspect.signature(ChatJudge).parameters.keys() - {"model", "base_url", "settings"}
    assert own == OTHER.keys() | {"max_failure_rate"}  # which changes no verdict: it only stops
    plain = ChatJudge(Scripted(shares)).identity
    found = [ChatJudge(Scripted(shares), **{name: value}).identity for name, value in OTHER.items()]
    assert all(identity != plain for identity in found)
    assert len({str(identity) for identity in found}) == len(found)
    assert ChatJudge(Scripted(shares), max_failure_rate=0.9).identity == plain


@pytest.mark.parametrize("seed", range(4))
def test_one_order_is_the_drawn_one(seed):
    model = Scripted(lambda text: shares(0.9))
    judge = ChatJudge(model, orders="one", seed=seed)
    found = judge.verdicts(batch(6))
    for i, (verdict, question) in enumerate(zip(found, model.asked, strict=True)):
        swapped = drawn_swap(f"alpha {i}", f"beta {i}", seed, f"ask {i}")
        assert is_a_first(question.messages[-1]["content"]) != swapped
        assert verdict.probability == pytest.approx(0.1 if swapped else 0.9)
        assert math.isnan(verdict.a_first) == swapped and math.isnan(verdict.b_first) != swapped


@pytest.mark.parametrize(
    ("n", "n_failed", "rate", "stops"),
    [(20, 4, 0.2, False), (20, 5, 0.2, True), (19, 5, 0.2, False), (10, 10, 0.2, False), (11, 10, 0.2, True),
     (40, 40, 1.0, False), (20, 1, 0.0, True), (20, 0, 0.0, False)],
)  # fmt: skip
def test_a_judge_stops_above_the_given_share_of_failures(n, n_failed, rate, stops):
    step = n / max(n_failed, 1)
    failed = {int(i * step) for i in range(n_failed)} if n_failed < 10 else set(range(n_failed))
    model = Scripted(lambda text: FAILED["unread"] if any(f"alpha {i}\n" in f"{text}\n" or f"alpha {i} " in text
                     for i in failed) else shares(0.9))  # fmt: skip
    judge = ChatJudge(model, max_failure_rate=rate)
    if stops:
        with pytest.raises(TrlRealError, match="pairs got no verdict"):
            judge.verdicts(batch(n))
        return
    assert sum(v.outcome == "failed" for v in judge.verdicts(batch(n))) == n_failed


def test_answers_are_counted_with_their_price():
    found = judged(shares(0.9, cached=True, input_tokens=3, output_tokens=5, cost=0.25),
                   shares(0.2, input_tokens=4, output_tokens=6, cost=0.5))  # fmt: skip
    assert (found.n_asked, found.n_cached, found.input_tokens, found.output_tokens) == (1, 1, 7, 11)
    assert found.cost == 0.75 and found.source == "chat:scripted" and not found.truncated


def test_a_summary_counts_every_outcome_once_and_a_tie_is_no_flip():
    verdicts = [
        Verdict(0.9, 0.9, 0.9), Verdict(0.2, 0.1, 0.3), Verdict(0.5, 0.9, 0.1), Verdict(0.7, 0.9, 0.5),
        Verdict(0.3, 0.5, 0.1), Verdict(math.nan, 0.8, math.nan, failure="lost"), Verdict(math.nan),
    ]  # fmt: skip
    found = summarize(verdicts)
    assert (found.n, found.n_a, found.n_b, found.n_ties, found.n_failed) == (7, 2, 2, 1, 2)
    assert found.failures == {"lost": 1, "no verdict": 1}
    assert found.n_both == 5 and found.flip_rate == pytest.approx(1 / 5)
    first_shown = [0.9, 0.1, 0.9, 0.9, 0.5, 0.8, *(1 - p for p in (0.9, 0.3, 0.1, 0.5, 0.1))]
    assert found.position_bias == pytest.approx(sum(first_shown) / 11 - 0.5)
    assert math.isnan(summarize([]).position_bias) and math.isnan(summarize([Verdict(0.9)]).flip_rate)
